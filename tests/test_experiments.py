"""Controlled experiments: what an arm changes, and what is read off its runs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from diffrl import experiments, figures
from diffrl import policy as policies
from diffrl.experiments import EXPERIMENTS, Arm, Experiment, effects, learning_speed
from diffrl.presets import CloneConfig, OperatorConfig, Preset, RLConfig, get_preset

ARMS = {arm.name: arm for chosen in EXPERIMENTS.values() for arm in chosen.arms}


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_changes_only_what_it_names_and_makes_a_valid_policy(name):
    base, arm = get_preset("laptop"), ARMS[name]
    changed = arm.preset(base)
    policies.make_config(arm.algorithm, changed.clone, changed.rl)  # raises if it is not valid
    named = {setting for setting, _ in (*experiments.BUDGET.items(), *arm.changes)}
    for stage in ("demonstrations", "clone", "rl"):
        old, new = (dataclasses.asdict(getattr(preset, stage)) for preset in (base, changed))
        assert {f"{stage}.{key}" for key in old if old[key] != new[key]} <= named
    assert changed.rl.iterations == experiments.BUDGET["rl.iterations"]


def test_arms_of_one_name_are_the_same_in_every_experiment():
    for chosen in EXPERIMENTS.values():
        assert all(ARMS[arm.name] == arm for arm in chosen.arms)
        assert len({arm.name for arm in chosen.arms}) == len(chosen.arms)


def test_learning_speed_is_the_first_good_measurement_and_the_area_under_the_curve():
    diagnostics = pd.DataFrame(
        {
            "control_steps": [100, 200, 300, 400],
            "measured": [0, 24, 0, 24],
            "measured_success": [np.nan, 0.5, np.nan, 1.0],
        }
    )
    found = learning_speed(diagnostics, clone=0.1)
    # (0, .1) to (200, .5) to (400, 1): (.3 · 200 + .75 · 200) / 400
    assert found == {"steps_to_90": 400.0, "auc": pytest.approx(0.525)}
    assert learning_speed(diagnostics[:3], clone=0.1)["steps_to_90"] == np.inf


def test_every_task_of_an_experiment_gets_the_arm_s_settings_and_none_of_its_own():
    laptop = get_preset("laptop")
    for experiment in EXPERIMENTS.values():
        for arm in experiment.arms:
            settings = arm.preset(laptop)
            assert all(settings.of(task).rl == settings.rl for task in experiment.tasks)


def test_learning_curves_are_means_over_the_finished_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    arm, task = EXPERIMENTS["seeds"].arms[0], EXPERIMENTS["seeds"].tasks[0]
    for seed, success in enumerate((0.4, 0.8, 0.1)):
        folder = experiments.run_folder(arm, task, seed, "laptop")
        folder.mkdir(parents=True)
        pd.DataFrame({"success": [0.2]}).to_csv(folder / "clone.csv")
        steps, measured = [50, 100 + 20 * seed], [0, 24]
        rows = {"control_steps": steps, "measured": measured, "measured_success": [0, success]}
        pd.DataFrame(rows).to_csv(folder / "diagnostics.csv")
        if seed < 2:  # the third is still at work
            (folder / "run.done.json").write_text("{}")
    curves = experiments.learning_curves("laptop")
    assert curves["steps"].tolist() == [0, 110]
    assert curves["value"].tolist() == pytest.approx([0.2, 0.6])
    assert curves["n"].tolist() == [2, 2]
    assert curves["low"].tolist() == pytest.approx([0.2, 0])  # Student's t, cut
    assert curves["high"].tolist() == pytest.approx([0.2, 1])
    assert set(curves["task"]) == {task}


def test_effects_are_paired_by_task_seed_and_mode():
    runs = [("base", 1.0), ("other", 3.0)]
    rows = [
        {"arm": arm, "task": task, "seed": seed, "mode": "deterministic", "jerk_rms": 10 * s + v}
        for s, task in enumerate(("a/0", "b/0"))
        for seed in (0, 1, 2)
        for arm, v in ((arm, value + 0.1 * seed) for arm, value in runs)
    ]
    table = pd.DataFrame(rows)
    table.loc[
        (table["arm"] == "other") & (table["task"] == "b/0") & (table["seed"] == 2), "jerk_rms"
    ] = np.nan
    (row,) = effects(table, [("base", "other"), ("base", "absent")], ("jerk_rms",)).to_dict(
        "records"
    )
    assert (row["base"], row["arm"], row["n"]) == ("base", "other", 5)
    assert row["difference"] == pytest.approx(2.0)  # what tasks and seeds share cancels
    assert row["p"] == pytest.approx(2 / 2**5)


def test_learning_speed_is_compared_once_and_success_in_both_modes():
    rows = [
        {"arm": arm, "task": "a/0", "seed": seed, "mode": mode, "auc": 0.5 + gain, "success": gain}
        for arm, gain in (("base", 0.1), ("other", 0.2))
        for seed in (0, 1)
        for mode in ("deterministic", "stochastic")
    ]
    found = effects(pd.DataFrame(rows), [("base", "other")], ("auc", "success"))
    assert found["measure"].value_counts().to_dict() == {"auc": 1, "success": 2}


def test_an_arm_without_any_success_keeps_its_row_in_the_figure():
    runs = [
        {"arm": arm, "algorithm": arm, "mode": "deterministic", "success": 0.5, "jerk_rms": jerk}
        for arm, jerk in (("diffusion", 7.0), ("diffusion", 8.0), ("gaussian", np.nan))
    ]
    figure = figures.arm_comparison(pd.DataFrame(runs), measures=("success", "jerk_rms"))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["gaussian", "diffusion"]
    assert [axes.get_title() for axes in figure.axes] == ["Success", "Jerk, RMS (m/s³)"]


@pytest.mark.sim
@pytest.mark.slow
def test_a_run_is_measured_recorded_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setattr(
        experiments,
        "BUDGET",
        {"rl.iterations": 2, "rl.measure_every": 1, "rl.measure_starts": 4},
    )
    small = Preset(
        name="laptop",
        tasks=("libero_object/0",),
        demonstrations=OperatorConfig(count=2),
        clone=CloneConfig(measure_starts=4),
        rl=RLConfig(copies=8, decisions=4, evaluation_starts=4),
    )
    monkeypatch.setattr(experiments, "get_preset", lambda name: small)
    arms = (Arm("diffusion"), Arm("gaussian", "gaussian"))
    monkeypatch.setitem(EXPERIMENTS, "seeds", Experiment(arms, ("libero_object/0",), (0,)))
    table = experiments.run_experiment("seeds", workers=1)
    assert list(table["arm"]) == ["diffusion", "diffusion", "gaussian", "gaussian"]
    assert (table["trials"] == 4).all()
    measured = table[table["successes"] > 1]
    assert len(measured)
    assert np.isfinite(measured["jerk_rms"]).all()
    written = pd.read_csv(tmp_path / "results/laptop/experiments.csv")
    assert len(written) == 4
    pd.testing.assert_frame_equal(experiments.run_experiment("seeds", workers=1), table)
