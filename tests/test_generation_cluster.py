"""Stages 1 and 2 on a real Ray cluster of two nodes: a local run's bytes, also when a node is lost.

Minutes; `make check-cluster` runs it with `test_base_cluster.py`, whose cluster it uses.
"""

import threading
from pathlib import Path

import pandas as pd
import pytest
from test_base_cluster import cluster  # noqa: F401, a fixture

from diffrl.base.arm import Arm
from diffrl.base.scale import RAY
from diffrl.generation.stage import generate_all
from diffrl.presets import CloneConfig, GenerationConfig, OperatorConfig, Preset, RLConfig
from diffrl.rl.stage import train_experts

pytestmark = pytest.mark.cluster
TINY = Preset(
    name="smoke",  # any name that the command line knows
    tasks=("libero_goal/7", "libero_object/0", "libero_goal/0", "libero_object/8"),
    demonstrations=OperatorConfig(count=3),
    clone=CloneConfig(width=128, steps=800, first_measure=800, measure_starts=4),
    rl=RLConfig(
        physics="training",
        copies=4,
        decisions=4,
        iterations=2,
        epochs=2,
        measure_every=2,
        measure_starts=2,
        evaluation_starts=1,
        evaluation_seeds=(0,),
    ),
    generation=GenerationConfig(episodes=2, modes=("deterministic",), max_attempts=4),
)
ARMS = (Arm("operator"), Arm("diffusion", "deterministic"))
RESULTS = ("policy.safetensors", "policy.json", "clone.csv", "trials.csv", "_demo.hdf5")


def run(home: Path, monkeypatch) -> dict[str, bytes]:
    """Do both stages in `home`; return the files that are results, without their wall clocks."""
    monkeypatch.setenv("DIFFRL_HOME", str(home))
    train_experts(TINY, algorithms=("diffusion",), workers=2)
    generate_all(TINY, arms=ARMS, workers=2)
    kinds = (*RESULTS, ".attempts.csv")
    paths = [path for path in home.rglob("*") if path.name.endswith(kinds)]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in paths}


def counted(home: Path) -> pd.DataFrame:
    """What the tables of both stages count, without their minutes."""
    names = ("experts.csv", "generation.csv")
    tables = [pd.read_csv(home / "runs" / "smoke" / name) for name in names]
    return pd.concat(tables).drop(columns="minutes").reset_index(drop=True)


def test_stages_1_and_2_have_a_local_run_s_bytes_although_a_node_is_lost(
    cluster,  # noqa: F811
    tmp_path,
    monkeypatch,
    capfd,
):
    address = cluster.address
    monkeypatch.delenv(RAY)
    local = run(tmp_path / "local", monkeypatch)
    monkeypatch.setenv(RAY, address)
    running = tmp_path / "ray" / "runs" / "smoke" / "experts"

    def lose_a_node():  # while both nodes train an expert
        while len(list(running.rglob("*.running.json"))) < 2 and not ended.wait(0.2):
            pass
        cluster.remove_node(cluster.second)

    ended = threading.Event()
    killer = threading.Thread(target=lose_a_node, daemon=True)
    killer.start()
    try:
        spread = run(tmp_path / "ray", monkeypatch)
    finally:
        ended.set()
        killer.join(timeout=60)
    assert "it is tried again" in capfd.readouterr().err
    assert spread.keys() == local.keys()
    experts = [name for name in local if name.endswith("seed0/policy.safetensors")]
    assert len(experts) == len(TINY.tasks)
    assert [name for name in local if spread[name] != local[name]] == []
    pd.testing.assert_frame_equal(counted(tmp_path / "ray"), counted(tmp_path / "local"))
