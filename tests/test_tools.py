"""The tools that make records: run on a tiny configuration."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffrl.presets import CloneConfig, OperatorConfig, Preset, RLConfig


def load_tool(name):
    path = Path(__file__).parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    return tool


@pytest.mark.sim
def test_experts_of_both_physics_are_judged_alike_and_finished_runs_are_found(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    tool = load_tool("compare_physics")
    rl = RLConfig(copies=4, decisions=2, iterations=2, epochs=1, measure_every=2, measure_starts=1)
    clone = CloneConfig(width=32, steps=20, first_measure=20, measure_starts=1)
    # twenty steps clone nothing, and a clone that never succeeds is not trained
    monkeypatch.setattr("diffrl.rl.train.success_rate", lambda trials: 1.0)
    tiny = Preset(
        name="tiny",
        tasks=("libero_goal/7",),
        demonstrations=OperatorConfig(count=1),
        clone=clone,
        rl=rl,
    )
    monkeypatch.setattr(tool, "get_preset", lambda name: tiny)
    monkeypatch.setattr(tool, "STARTS", 2)
    options = {"tasks": ("libero_goal/7",), "algorithms": ("gaussian",), "seeds": (1,)}
    tool.main(**options, preset="tiny", workers=1)
    path = tmp_path / "results" / "training_physics.csv"
    table = pd.read_csv(path)
    assert list(table.columns) == tool.COLUMNS
    assert table["physics"].tolist() == ["exact", "training"]
    assert (table["trials"] == 2).all()
    np.testing.assert_allclose(table["success"], table["successes"] / 2)
    assert (table["control_steps"] > 0).all()
    monkeypatch.setattr(tool, "judged", lambda *_: pytest.fail("it was there"))
    tool.main(**options, preset="tiny", workers=1)
    pd.testing.assert_frame_equal(pd.read_csv(path), table)


def test_a_task_that_neither_class_learned_is_tried_once_more_with_both():
    path = Path(__file__).parents[1] / "tools" / "tasks_to_retry.py"
    spec = importlib.util.spec_from_file_location("tasks_to_retry", path)
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    success = {
        "libero_goal/0": {"diffusion": 0.85, "gaussian": 0.4},
        "libero_goal/1": {"diffusion": 0.95, "gaussian": 0.4},  # one class learned it: it can be
        "libero_goal/2": {"gaussian": 0.99},  # the diffusion's clone never succeeded
        "libero_goal/3": {"diffusion": 0.2, "gaussian": 0.1},
    }
    assert tool.to_retry(success, tried={"libero_goal/3"}) == ["libero_goal/0", "libero_goal/2"]
