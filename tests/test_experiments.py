"""Controlled experiments: what an arm changes, and what is read off its runs."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from policy_samples import ARMS

from diffrl import evidence, experiments
from diffrl import policy as policies
from diffrl.base import artifacts, checkpoint
from diffrl.base.errors import TrainingError, UserError
from diffrl.experiments import EXPERIMENTS, Experiment, Variant, effects, factorial_effects
from diffrl.presets import CloneConfig, OperatorConfig, Preset, RLConfig, get_preset
from diffrl.rl.rollout import Rollout
from diffrl.sim.tasks import get_task

LAPTOP = Path(__file__).parents[1] / "results" / "laptop"


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_changes_only_what_it_names_and_makes_a_valid_policy(name):
    base, arm = get_preset("laptop"), ARMS[name]
    changed = arm.preset(base)
    policies.make_config(arm.algorithm, changed.clone, changed.rl)  # raises if it is not valid
    named = {setting for setting, _ in (*experiments.BUDGET.items(), *arm.changes)}
    for stage in ("demonstrations", "clone", "rl"):
        old, new = (dataclasses.asdict(getattr(preset, stage)) for preset in (base, changed))
        assert {f"{stage}.{key}" for key in old if old[key] != new[key]} <= named
    arm_steps, steps = (
        p.rl.copies * p.rl.iterations * p.rl.decisions * p.clone.chunk
        for p in (changed, Variant("base").preset(base))
    )
    budget = experiments.BUDGET["rl.iterations"]
    longer = 60 / budget if "60 iterations" in name else 1
    assert abs(arm_steps / steps / longer - 1) < 0.05
    measured = changed.rl.iterations / changed.rl.measure_every
    assert measured == longer * budget / experiments.BUDGET["rl.measure_every"]


def test_what_iterations_cut_off_cannot_fail_an_arm_that_restarts_with_each():
    rl = ARMS["diffusion synchronous"].preset(get_preset("laptop")).rl
    assert rl.decisions * 8 >= get_task("libero_object/0").max_steps


def test_arms_of_one_name_are_the_same_in_every_experiment():
    for chosen in EXPERIMENTS.values():
        assert all(ARMS[arm.name] == arm for arm in chosen.variants)
        assert len({arm.name for arm in chosen.variants}) == len(chosen.variants)


def test_learning_speed_is_the_first_good_measurement_and_the_area_under_the_curve():
    found = experiments.learning_speed([0, 200, 400], [0.1, 0.5, 1.0])
    # (0, .1) to (200, .5) to (400, 1): (.3 · 200 + .75 · 200) / 400
    assert found == {"auc": pytest.approx(0.525), "steps_to_90": 400.0}
    assert experiments.learning_speed([0, 200], [0.1, 0.5])["steps_to_90"] == np.inf
    assert experiments.learning_speed([0, 200], [0.95, 0.5])["steps_to_90"] == 0  # a good clone


def test_roughness_is_that_of_the_clone_of_the_first_good_and_of_the_kept_policy():
    def found(*success):
        jerk = [7.0, 8.0, 9.0, 10.0, 11.0][: len(success)]
        curve = pd.DataFrame({"measured_success": success, "measured_jerk_rms": jerk})
        return tuple(experiments.roughness(curve).values())

    assert found(0.1, 0.5, 0.95, 1.0, 0.6) == (7.0, 9.0, 10.0)
    assert found(1.0, 0.95, 0.95) == (7.0, 8.0, 9.0)  # not the clone's; the last of the best
    np.testing.assert_equal(found(0.1, 0.5), (7.0, np.nan, 8.0))


def test_a_curve_begins_with_the_clone_and_leaves_out_what_was_not_measured():
    diagnostics = pd.DataFrame({"control_steps": [50, 100], "measured": [0, 24]})
    diagnostics = diagnostics.assign(measured_success=[np.nan, 0.5])
    diagnostics = diagnostics.assign(**{f"measured_{m}": 1.0 for m in experiments.MOVEMENT})
    clone = [Rollout(f"fresh/0/{i}", "deterministic", 0, error=i == 0) for i in range(4)]
    curve = experiments.measurements(diagnostics, clone, chunk=8)
    assert curve["control_steps"].tolist() == [0, 100]
    assert curve["measured"].tolist() == [3, 24]
    assert curve["measured_success"].tolist() == [0, 0.5]
    assert np.isnan(curve["measured_jerk_rms"][0])  # no success to measure


def test_every_task_of_an_experiment_gets_the_arm_s_settings_and_none_of_its_own():
    laptop = get_preset("laptop")
    for experiment in EXPERIMENTS.values():
        for arm in experiment.variants:
            settings = arm.preset(laptop)
            assert all(settings.of(task).rl == settings.rl for task in experiment.tasks)


def test_learning_curves_are_means_over_the_finished_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    arm, task = EXPERIMENTS["seeds"].variants[0], EXPERIMENTS["seeds"].tasks[0]
    for seed, success in enumerate((0.4, 0.8, 0.1)):
        stage = experiments._stage(arm, task, EXPERIMENTS["seeds"].seeds[seed], "laptop")
        stage.folder.mkdir(parents=True)
        rows = {"control_steps": [0, 100 + 20 * seed], "measured_success": [0.2, success]}
        pd.DataFrame(rows).to_csv(stage.folder / "curve.csv")
        if seed < 2:  # the third is still at work
            stage.finish({"rows": []})
    curves = experiments.learning_curves("laptop")
    assert curves["steps"].tolist() == [0, 110]
    assert curves["value"].tolist() == pytest.approx([0.2, 0.6])
    assert curves["n"].tolist() == [2, 2]
    assert curves["low"].tolist() == pytest.approx([0.2, 0])  # Student's t, cut
    assert curves["high"].tolist() == pytest.approx([0.2, 1])
    assert set(curves["task"]) == {task}
    each = experiments.held_out_curves("laptop", "seeds")
    assert each["measured_success"].tolist() == [0.2, 0.4, 0.2, 0.8]
    assert each["measurement"].tolist() == [0, 1, 0, 1]
    assert each["seed"].tolist() == [1, 1, 2, 2]
    assert experiments.held_out_curves("smoke", "seeds").empty


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


def test_a_run_that_never_gets_to_90_percent_has_no_part_in_the_effect_on_its_steps():
    rows = [
        {"arm": arm, "task": "a/0", "seed": s, "mode": "deterministic", "steps_to_90": steps}
        for arm, found in (("base", (100, 200, np.inf)), ("other", (50, 100, 100)))
        for s, steps in enumerate(found)
    ]
    (row,) = effects(pd.DataFrame(rows), [("base", "other")], ("steps_to_90",)).to_dict("records")
    assert (row["n"], row["difference"]) == (2, -75)
    shown = experiments.summary(pd.DataFrame(rows).reindex(columns=experiments.COLUMNS))
    assert shown["reached"].tolist() == ["2 of 3", "3 of 3"]
    assert shown["steps_to_90"].tolist() == [200, 100]


def factorial_runs(value) -> pd.DataFrame:
    """Runs of all eight arms, two seeds of three tasks; `value` of (policy, noise, fade, run)."""
    rows = [
        {
            **{"arm": arm.name, "task": task, "seed": seed, "mode": "deterministic"},
            "jerk_rms": value(
                arm.algorithm == "diffusion", "white" in arm.name, "fade" in arm.name, 3 * seed + k
            ),
        }
        for arm in EXPERIMENTS["factorial"].variants
        for k, task in enumerate(EXPERIMENTS["factorial"].tasks)
        for seed in (1, 2)
    ]
    return pd.DataFrame(rows)


def test_a_factorial_gives_each_factor_and_interaction_what_is_its_own():
    runs = factorial_runs(lambda d, w, f, run: 10 * run + 2 * d + 3 * w - f + 4 * d * f)
    table = factorial_effects(runs, ("jerk_rms",)).set_index("effect")
    found, tasks = table["difference"], list(EXPERIMENTS["factorial"].tasks)
    assert list(table.columns[-3:]) == tasks
    assert table.loc["policy × hand-over", tasks].tolist() == [4, 4, 4]
    expected = {
        "diffusion − gaussian": 2 + 4 / 2,
        "white − correlated": 3,
        "faded − cut": -1 + 4 / 2,
        "policy × noise": 0,
        "policy × hand-over": 4,
        "noise × hand-over": 0,
        "policy × noise × hand-over": 0,
    }
    assert found.to_dict() == pytest.approx(expected)


def test_a_factorial_is_tested_over_complete_blocks_with_a_correction_for_its_seven_effects():
    runs = factorial_runs(lambda d, w, f, run: 10 * run + d * (1 + 0.01 * run))
    found = factorial_effects(runs, ("jerk_rms",)).set_index("effect")
    policy = found.loc["diffusion − gaussian"]
    assert (policy["n"], policy["p"], policy["p_holm"]) == (6, 2 / 2**6, 7 * 2 / 2**6)
    less = runs.drop(runs.index[(runs["arm"] == "gaussian fade") & (runs["seed"] == 2)])
    assert set(factorial_effects(less, ("jerk_rms",))["n"]) == {3}
    assert factorial_effects(runs[runs["arm"] != "gaussian fade"], ("jerk_rms",)).empty


def test_a_factorial_s_numbers_are_numbers_though_a_mode_lacks_a_measure():
    runs = factorial_runs(lambda d, w, f, run: 10.0 * run + d)
    both = pd.concat([runs, runs.assign(mode="stochastic")]).assign(jerk_at_90=1.0)
    found = factorial_effects(both, ("jerk_at_90", "jerk_rms"))
    assert found.groupby(["mode", "measure"]).size().tolist() == [7, 7, 7]
    assert found[["difference", "p", "p_holm"]].dtypes.eq(float).all()


def test_an_arm_that_cannot_be_trained_counts_as_one_that_never_succeeds(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))

    def fail(self):
        raise (TrainingError if self.algorithm == "gaussian" else UserError)("no success")

    monkeypatch.setattr(experiments.Training, "train", fail)
    (arm, task, seed), old = experiments._runs("seeds")[1], "of other settings"
    stale = experiments.run_folder(arm, task, seed, "laptop") / "curve.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text(old)
    chosen = EXPERIMENTS["seeds"]
    gaussian = dataclasses.replace(
        chosen, variants=chosen.variants[1:], tasks=chosen.tasks[:1], seeds=(1,)
    )
    monkeypatch.setitem(EXPERIMENTS, "seeds", gaussian)
    runs = experiments.run_experiment("seeds", workers=1)
    assert runs[["success", "auc", "steps_to_90"]].values.tolist() == [[0, 0, np.inf]] * 2
    assert set(runs["note"]) == {"no success"}
    assert runs["jerk_rms"].isna().all()
    assert experiments.learning_curves("laptop").empty
    monkeypatch.setitem(
        EXPERIMENTS, "seeds", dataclasses.replace(gaussian, variants=chosen.variants[:1])
    )
    with pytest.raises(UserError, match="no success"):  # not of the settings: it may pass next time
        experiments.run_experiment("seeds", workers=1)
    assert experiments.finished_runs("laptop", "seeds").empty


def test_finished_runs_are_shown_although_everything_is_to_be_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    stage = experiments._stage(*experiments._runs("seeds")[0], "laptop")
    stage.finish({"rows": [dict.fromkeys(experiments.COLUMNS, 1)]})
    monkeypatch.setenv(artifacts.FORCE, str(time.time() + 60))
    assert not stage.done
    assert len(experiments.finished_runs("laptop", "seeds")) == 1


def test_an_unfinished_run_of_other_settings_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    run = experiments._runs("seeds")[0]
    folder = experiments.run_folder(*run, "laptop")
    checkpoint.save(folder / "checkpoint" / "rl.safetensors", {"a": 1}, "other")
    seen = []

    def train(self):
        seen.extend((self.folder / "checkpoint").glob("*"))
        raise TrainingError("enough")

    monkeypatch.setattr(experiments.Training, "train", train)
    experiments._run(run, "laptop", threads=1)
    assert not seen


def test_an_arm_that_was_renamed_keeps_its_records_and_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    now, before = "diffusion DPPO's defaults", "diffusion paper's settings"
    stage = experiments._stage(ARMS[now], "libero_object/0", 1, "laptop")
    assert stage.folder.parent.name == "diffusion-papers-settings"
    stage.finish({"rows": [dict.fromkeys(experiments.COLUMNS, 1) | {"arm": before}]})
    assert experiments.finished_runs("laptop", "ablations")["arm"].tolist() == [now]


def test_an_arm_in_training_physics_is_another_run_of_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    (exact, task, seed), (cheap, *_) = (
        experiments._runs("covariance", physics)[0] for physics in ("exact", "training")
    )
    base = get_preset("laptop")
    assert cheap.name == "diffusion, training physics"
    assert cheap.preset(base) == exact.preset(base).with_settings({"rl.physics": "training"})
    folders = [experiments.run_folder(arm, task, seed, "laptop") for arm in (exact, cheap)]
    assert folders[0] != folders[1]
    row = dict.fromkeys(experiments.COLUMNS, 1) | {"arm": cheap.name}
    experiments._stage(cheap, task, seed, "laptop").finish({"rows": [row]})
    assert len(experiments.finished_runs("laptop", "covariance", "training")) == 1
    assert experiments.finished_runs("laptop", "covariance").empty


@pytest.mark.parametrize("name", ["smoke", "laptop", "libero"])
def test_an_arm_of_a_preset_learns_in_the_physics_that_was_asked_for(name):
    base = get_preset(name)
    exact, cheap = (
        experiments._runs("covariance", physics)[0][0].preset(base).rl
        for physics in ("exact", "training")
    )
    assert (exact.physics, exact.physics_check) == ("exact", None)
    assert (cheap.physics, cheap.physics_check) == ("training", base.rl.physics_check)


def test_training_success_is_that_of_the_first_and_last_iterations_with_ended_episodes(tmp_path):
    path = tmp_path / "diagnostics.csv"
    success = [0.0, 0.9, np.nan, 0.1, 0.2, 0.3, np.nan, 0.6, 0.7, 0.8]
    pd.DataFrame({"success": success}).to_csv(path)
    found = experiments.training_success(path, skipped=2)
    assert found == pytest.approx({"training_first": 0.2, "training_last": 0.7})
    assert all(map(np.isnan, experiments.training_success(tmp_path / "absent.csv", 2).values()))


def test_the_first_training_episodes_that_count_are_those_after_the_cut_ones():
    base = get_preset("laptop")
    one = base.with_settings({"rl.decisions": 24})  # 192 control steps a robot and iteration
    assert experiments.cut_iterations(one, "libero_object/0") == 2  # 280 a trial
    longer = base.with_settings({"rl.decisions": 35})
    assert experiments.cut_iterations(longer, "libero_object/0") == 1
    together = longer.with_settings({"rl.staggered": False})  # nothing is cut
    assert experiments.cut_iterations(together, "libero_object/0") == 0
    runs = evidence.packed_table(LAPTOP, "experiments_diagnostics.csv")
    by_iteration = runs.groupby("iteration")["success"].mean()
    assert by_iteration[1] < 0.3 < 0.5 < by_iteration[3]


def test_the_record_of_an_arm_that_restarts_counts_its_first_iterations(tmp_path):
    skipped = experiments.cut_iterations(
        ARMS["diffusion synchronous"].preset(get_preset("laptop")), "libero_object/0"
    )
    runs = evidence.packed_table(LAPTOP, "experiments_diagnostics.csv").set_index("run")
    table = pd.read_csv(LAPTOP / "experiments.csv").query("arm == 'diffusion synchronous'")
    assert len(table) == 6
    for row in table.to_dict("records"):
        path = tmp_path / "diagnostics.csv"
        runs.loc[f"diffusion-synchronous/libero_object-0-seed{row['seed']}/"].to_csv(path)
        found = experiments.training_success(path, skipped)
        assert {name: row[name] for name in experiments.TRAINING} == pytest.approx(found)


def test_the_summary_has_success_with_noise_beside_that_without():
    rows = [
        {"arm": "a", "mode": mode, "success": success, "training_last": 0.5}
        for mode, success in (("deterministic", 0.9), ("stochastic", 0.6), ("stochastic", 0.4))
    ]
    (row,) = experiments.summary(pd.DataFrame(rows, columns=experiments.COLUMNS)).to_dict("records")
    assert (row["success"], row["success_stochastic"], row["training_last"]) == (0.9, 0.5, 0.5)


def test_seeds_that_an_experiment_does_not_have_are_refused_with_those_it_has():
    for seeds in ((9,), (1, 9), ()):
        with pytest.raises(UserError, match="seeds has the seeds"):
            experiments.run_experiment("seeds", "smoke", seeds=seeds)


def test_runs_of_other_settings_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    run = experiments._runs("seeds")[0]
    experiments._stage(*run, "laptop").finish({"rows": [dict.fromkeys(experiments.COLUMNS, 1)]})
    assert len(experiments.finished_runs("laptop", "seeds")) == 1
    monkeypatch.setitem(experiments.BUDGET, "rl.iterations", 30)
    assert experiments.finished_runs("laptop", "seeds").empty


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
    monkeypatch.setattr(experiments, "FEWEST", 2)
    arms = (Variant("diffusion"), Variant("gaussian", "gaussian"))
    monkeypatch.setitem(EXPERIMENTS, "seeds", Experiment(arms, ("libero_object/0",), (0,)))
    table = experiments.run_experiment("seeds", workers=1)
    assert list(table["arm"]) == ["diffusion", "diffusion", "gaussian", "gaussian"]
    assert (table["trials"] == 4).all()
    assert len(table[np.isfinite(table["jerk_rms"])])
    assert table["jerk_rms"].isna().equals(table["successes"] < 2)
    folder = experiments.run_folder(arms[0], "libero_object/0", 0, "laptop")
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["jerk_rms"].isna().equals(~trials["success"])
    assert trials["boundary_share"].isna().equals(~trials["success"])
    assert trials.groupby("policy").size().to_dict() == {"clone": 4, "diffusion": 8}
    curve = pd.read_csv(folder / "curve.csv")
    assert len(curve) == 3  # the clone, two measurements
    assert curve["measured_jerk_rms"].isna().equals(curve["measured_success"] == 0)
    assert table["clone_success"][0] == curve["measured_success"][0]
    written = pd.read_csv(tmp_path / "runs/laptop/experiments.csv")
    assert len(written) == 4
    pd.testing.assert_frame_equal(experiments.run_experiment("seeds", workers=1), table)
