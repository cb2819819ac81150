"""A real Ray cluster of two nodes on this machine: same results, and a lost node loses nothing.

It needs the extra `cluster` and some ten seconds to start, so `make check-cluster` runs it.
"""

import functools
import os
import threading
import time

import pytest

from diffrl.base.errors import UserError
from diffrl.base.scale import RAY, Resources, StageError, map_tasks

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([here, os.path.join(here, "tests")])
    monkeypatch.setenv("PYTHONPATH", path)  # the nodes import these functions
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default anything else here comes first
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.second = nodes.add_node(num_cpus=1)
    monkeypatch.setenv(RAY, nodes.address)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def node_of(item):
    import ray

    time.sleep(1.0)
    return item, ray.get_runtime_context().get_node_id()


def slow_square(folder, item):
    (folder / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(2.0)
    return item * item


def complain(item):
    raise UserError("no such thing") if item == 1 else ZeroDivisionError("cause 2")


def test_items_are_spread_over_the_nodes_and_come_back_in_order(cluster):
    results = map_tasks(node_of, list(range(6)))
    assert [item for item, _ in results] == list(range(6))
    assert len({node for _, node in results}) == 2


def test_a_lost_node_loses_nothing_and_nothing_counts_twice(cluster, tmp_path, capfd):
    killer = threading.Timer(6.0, lambda: cluster.remove_node(cluster.second))
    killer.start()
    results = map_tasks(functools.partial(slow_square, tmp_path), list(range(8)))
    killer.join()
    assert results == [item * item for item in range(8)]
    tries = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
    assert set(tries) == set(range(8))
    assert "it is tried again" in capfd.readouterr().err


def test_an_item_goes_where_there_is_a_gpu_and_waits_for_none_where_there_is_none(cluster):
    seeing = Resources(gpus=0.25)
    assert [item for item, _ in map_tasks(node_of, [0, 1], resources=seeing)] == [0, 1]
    third = cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
    assert {node for _, node in map_tasks(node_of, [0, 1], resources=seeing)} == {third.node_id}


def test_errors_of_a_node_read_like_those_of_a_local_process(cluster):
    with pytest.raises(UserError, match=r"^1: no such thing$"):
        map_tasks(complain, [1])
    with pytest.raises(StageError, match=r"(?s)cause 2.*2 of 2 failed"):
        map_tasks(complain, [1, 2])


def test_no_cluster_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setenv(RAY, "127.0.0.1:1")
    with pytest.raises(UserError, match=r"No Ray cluster answers at '127\.0\.0\.1:1'.*ray start"):
        map_tasks(abs, [1])
