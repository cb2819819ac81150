"""Efficiency of a Ray cluster of two nodes against one, on this machine.

    python tools/ray_efficiency.py        # writes results/ray_efficiency.csv

Each item computes for the same processor time. Two local processes are measured beside the two
nodes, in turn: they show what the machine itself allows while others use it, too. Efficiency is the
time of one, divided by twice the time of two, of medians over the rounds. Where other work takes
the cores, it says little; `spread` is the largest of the rounds' times over the smallest.
"""

import os
import statistics
import sys
import time

import pandas as pd
import tyro

from diffrl.base.artifacts import root, write_csv
from diffrl.base.scale import RAY, map_tasks

ITEMS, SECONDS = 8, 2.0


def compute(item: int) -> int:
    """Keep one core busy for `SECONDS` of processor time."""
    end = time.process_time() + SECONDS
    while time.process_time() < end:
        pass
    return item


def seconds(workers: int, address: str | None = None) -> float:
    """Time the items on so many local processes, or on the cluster at `address`."""
    if address is not None:
        os.environ[RAY] = address
    map_tasks(compute, range(workers), workers=workers)  # starts the workers
    began = time.perf_counter()
    map_tasks(compute, range(ITEMS), workers=workers)
    os.environ.pop(RAY, None)
    return time.perf_counter() - began


def on_cluster(nodes: int) -> float:
    """Time the items on a new cluster of `nodes` nodes with one core each."""
    import ray
    from ray.cluster_utils import Cluster

    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.path.dirname(here)])  # for the nodes
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, as the local processes
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1)
    try:
        return seconds(nodes, cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


def main(rounds: int = 3) -> None:
    """Measure, print and write the table.

    Args:
        rounds: of which the table has the medians.
    """
    spent = {(kind, n): [] for kind in ("local processes", "Ray nodes") for n in (1, 2)}
    for _ in range(rounds):
        for kind, n in spent:
            spent[kind, n].append(seconds(n) if kind == "local processes" else on_cluster(n))
    rows = []
    for kind in ("local processes", "Ray nodes"):
        one, two = (statistics.median(spent[kind, n]) for n in (1, 2))
        spread = max(max(spent[kind, n]) / min(spent[kind, n]) for n in (1, 2))
        values = (round(one, 2), round(two, 2), round(one / 2 / two, 3), round(spread, 2))
        rows.append((kind, ITEMS, *values))
    columns = ["what", "items", "seconds_one", "seconds_two", "efficiency", "spread"]
    table = pd.DataFrame(rows, columns=columns)
    write_csv(root() / "results" / "ray_efficiency.csv", table)
    table.to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    tyro.cli(main)
