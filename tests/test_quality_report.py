"""From files to tables: comparisons and records."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quality_samples import CONFIG, arms, minimum_jerk, trajectory, write_data_set

from diffrl import quality
from diffrl.base import artifacts, intervals
from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.data.episode import Episode
from diffrl.generation.stage import dataset_path
from diffrl.presets import get_preset
from diffrl.quality import report
from diffrl.quality.report import compare_over_tasks, over_tasks
from diffrl.quality.stage import dataset_files
from diffrl.quality.trajectory import Trajectory


def test_a_planted_difference_is_found_and_an_absent_one_is_not():
    for effect, significant in ((3.0, True), (1.0, False)):
        units = quality.measure(list(arms(effect)), CONFIG)
        tests = quality.compare(units, CONFIG).set_index("measure")
        assert (tests.loc["jerk_rms", "p_holm"] < 0.05) == significant
        assert tests.loc["jerk_rms", "test"] == "paired sign flip"
        assert np.all(tests["p_holm"] >= tests["p"])
    assert quality.compare(units, CONFIG, pairs=[(("a", "b"), ("c", "d"))]).empty


def tasks_of_units(gaps, states=50):
    """Units of two arms: on each task, all `states` of diffusion are `gap` above the Gaussian's."""
    rows = []
    for k, gap in enumerate(gaps):
        for arm, value in (("diffusion", gap), ("gaussian", 0.0), ("operator", 1.0)):
            mode = "recorded" if arm == "operator" else "deterministic"
            for i in range(states):
                own = value + 0.01 * (i % 5)
                rows.append((arm, mode, f"libero_object/{k}", f"fresh/0/{i}", "jerk_rms", own))
    return pd.DataFrame(rows, columns=["source", "mode", "task", "start_state", "measure", "value"])


def test_levels_are_over_the_tasks_that_all_arms_have_and_teleoperation_stands_as_it_is():
    units = tasks_of_units([1.0, 2.0, 9.0])
    lacking = (units["source"] == "gaussian") & (units["task"] == "libero_object/2")
    people = units.tail(50).assign(source="teleoperation", task="square")
    summary = quality.summarise(pd.concat([units[~lacking], people]), CONFIG)
    means = quality.levels(summary, ["jerk_rms"])
    assert means.loc["jerk_rms", ("diffusion", "deterministic")] == pytest.approx(1.52)
    assert list(means.loc["tasks"]) == [2, 2, 2, 1]
    everywhere = quality.levels(quality.summarise(units, CONFIG), ["jerk_rms"])
    assert everywhere.loc["jerk_rms", ("diffusion", "deterministic")] == pytest.approx(4.02)


def test_one_rough_expert_is_one_witness_however_many_trajectories_it_made():
    row = quality.compare(tasks_of_units([9.0, 0, 0, 0, 0, 0]), CONFIG).iloc[0]
    assert row["p"] < 1e-3  # over start states of these data it is certain
    assert (row["tasks"], row["p_tasks"]) == ("1 of 6", 1)
    assert row["low_tasks"] < 0 < row["high_tasks"]
    every = quality.compare(tasks_of_units([1.0, 2, 3, 2, 1, 3]), CONFIG)
    row = every.iloc[0]
    assert row["p_tasks"] == pytest.approx(2 / 2**6)
    # s² = 4 / 5 of the six gaps, mean 2; t.975 of five degrees of freedom is 2.570582
    half = 2.570582 * np.sqrt(4 / 5 / 6)
    assert row[["low_tasks", "high_tasks"]].tolist() == pytest.approx([2 - half, 2 + half])
    assert row["difference_tasks"] == pytest.approx(2)
    # more start states change nothing about the class
    more = quality.compare(tasks_of_units([1.0, 2, 3, 2, 1, 3], states=200), CONFIG).iloc[0]
    assert more["p_tasks"] == row["p_tasks"]
    assert more["high_tasks"] == pytest.approx(row["high_tasks"])
    found = quality.findings(every, by="p_tasks_holm")
    assert found["worse"].iloc[0] == "–"  # 3 rows: 2/64 · 3 > 0.05
    assert quality.findings(every)["worse"].iloc[0] == "Jerk, RMS"


def test_the_record_says_over_tasks_what_an_arm_is_and_whether_it_differs_from_the_operator():
    summary = quality.summarise(tasks_of_units([1.0, 2, 3, 2, 1, 3]), CONFIG)
    rows = summary[summary["task"] == "all"].set_index("source")
    half = 2.570582 * np.sqrt(4 / 5 / 6)
    assert rows.loc["diffusion", "high_tasks"] == pytest.approx(2.02 + half)
    assert rows.loc["gaussian", "p_tasks"] == pytest.approx(2 / 2**6)  # 1 below it on each task
    assert np.isnan(rows.loc["operator", "p_tasks"])
    assert summary.loc[summary["task"] != "all", ["low_tasks", "p_tasks"]].isna().all(axis=None)


def test_what_is_zero_by_construction_is_shown_as_such_and_not_tested():
    units = tasks_of_units([1.0, 2, 3]).assign(measure="own_action_variance")
    tests = quality.compare(units, CONFIG)
    assert len(tests) == 1  # diffusion against the operator
    assert not tests[["first", "second"]].eq("gaussian/deterministic").any(axis=None)
    summary = quality.summarise(units, CONFIG)
    shown = quality.printable(summary[summary["task"] == "all"]).iloc[0]
    assert shown["gaussian deterministic"].endswith("(by construction)")
    assert "construction" not in shown["diffusion deterministic"]
    assert summary.loc[summary["source"] == "gaussian", "p_tasks"].isna().all()


def test_the_committed_tests_over_tasks_follow_from_the_committed_means():
    folder = Path(__file__).parent.parent / "results" / "laptop"
    tests, summary = (pd.read_csv(folder / f"quality{part}.csv") for part in ("_tests", ""))
    again = compare_over_tasks(tests, summary)
    pd.testing.assert_frame_equal(again, tests, atol=1e-8, rtol=1e-6)
    pd.testing.assert_frame_equal(over_tasks(summary), summary, atol=1e-8, rtol=1e-6)
    assert tests["p_holm"].to_numpy() == pytest.approx(intervals.holm(tests["p"]), rel=1e-6)
    own = tests[tests["measure"].str.startswith("own_")]
    assert not own[["first", "second"]].eq("gaussian/deterministic").any(axis=None)


def test_without_shared_start_states_the_comparison_is_unpaired():
    found = list(arms(3.0))
    moved = [
        trajectory(
            t.position, t.actions, source=t.source, mode=t.mode, start_state=f"{t.source}{i}"
        )
        for i, t in enumerate(found)
    ]
    tests = quality.compare(quality.measure(moved, CONFIG), CONFIG).set_index("measure")
    assert tests.loc["jerk_rms", "test"] == "permutation"
    assert tests.loc["jerk_rms", "p_holm"] < 0.05
    assert tests.loc["jerk_rms", "cliffs_delta"] < -0.9


def test_the_record_has_its_columns_and_weights_tasks_equally():
    one, two = list(arms(n=4)), list(arms(n=12, seed=1))
    second = [
        trajectory(2 * t.position, t.actions, task="other", source=t.source, mode=t.mode,
                   start_state=t.start_state)
        for t in two
    ]  # fmt: skip
    summary = quality.summarise(quality.measure(one + second, CONFIG), CONFIG)
    columns = ["source", "mode", "task", "measure", "value", "low", "high", "n"]
    assert list(summary) == [*columns, "low_tasks", "high_tasks", "p_tasks"]
    rows = summary[(summary["source"] == "diffusion") & (summary["measure"] == "path_length")]
    by_task = rows.set_index("task")
    assert by_task.loc["all", "value"] == pytest.approx(by_task.drop("all")["value"].mean())
    assert by_task.loc["all", "n"] == 16
    assert set(summary["measure"]) <= set(quality.MEASURES)


def test_no_interval_of_a_mean_leaves_what_its_measure_can_be():
    drawn = {
        "still_share": ([0, 0, 0.08], 0, None),
        "idle_share": ([1, 1, 0.92], None, 1),
        "path_ratio": ([1, 1, 1.2], 1, None),
        "steps": ([1, 1, 90], 0, None),
        "sparc": ([-1, -0.1, -9], None, 0),
        "ldlj": ([-2, -2, 7], None, None),
    }
    units = pd.DataFrame(
        [
            ("a", "recorded", f"task{k % 2 if task else ''}", str(k), name, value)
            for task in (False, True)
            for name, (values, *_) in drawn.items()
            for k, value in enumerate(values)
        ],
        columns=["source", "mode", "task", "start_state", "measure", "value"],
    )
    summary = quality.summarise(units, CONFIG)
    for name, (_, least, most) in drawn.items():
        rows = summary[summary["measure"] == name]
        lows, highs = rows[["low", "low_tasks"]].stack(), rows[["high", "high_tasks"]].stack()
        assert least is None or lows.min() == least, name
        assert most is None or highs.max() == most, name
    free = summary[summary["measure"] == "ldlj"]
    assert free["low"].min() < -2.5  # is not cut


def test_only_successes_count_and_none_is_an_error():
    found = list(arms(n=3))
    failed = trajectory(found[0].position, found[0].actions, success=False)
    assert len(quality.select([*found, failed], 10)) == 6
    assert len(quality.select(found, 2)) == 4
    with pytest.raises(UserError, match="No successful trajectory"):
        quality.select([failed], 10)


def test_findings_name_the_better_arm_in_the_direction_of_each_measure():
    tests = quality.compare(quality.measure(list(arms(4.0)), CONFIG), CONFIG)
    row = quality.findings(tests).iloc[0]
    assert (row["first"], row["second"]) == ("diffusion/deterministic", "gaussian/deterministic")
    for label in ("Jerk, RMS", "Log dimensionless jerk, path"):  # lower and higher is better
        assert label in row["better"]
    assert "Jerk" not in row["worse"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with two small data sets of preset smoke, and no reference beside it."""
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path / "clone"))
    for source in ("diffusion", "gaussian"):
        path = dataset_path(get_preset("smoke"), "libero_object/0", Arm(source, "deterministic"))
        path.parent.mkdir(parents=True)
        write_data_set(path, [t for t in arms() if t.source == source])
        path.with_name(f".{path.stem}-killed.tmp.hdf5").write_bytes(b"half a file")
    return tmp_path / "clone"


def test_the_stage_writes_its_records_once_and_again_when_a_data_set_changes(home):
    first = quality.run_quality("smoke")
    record = home / "runs/smoke/quality.csv"
    written = record.read_bytes()
    assert first.summary["n"].max() == 12
    assert "diffusion deterministic 12" in first.sample()
    record.touch()
    changed = record.stat().st_mtime_ns
    assert quality.run_quality("smoke").tests.equals(first.tests)
    assert record.stat().st_mtime_ns == changed
    path = dataset_path(get_preset("smoke"), "libero_object/0", Arm("diffusion", "deterministic"))
    write_data_set(path, [t for t in arms(seed=5) if t.source == "diffusion"])
    quality.run_quality("smoke")
    assert record.read_bytes() != written


def test_a_part_is_measured_on_its_own_data_and_leaves_the_whole_s_tables(home):
    preset = get_preset("laptop")
    for task in ("libero_object/0", "libero_goal/0"):
        for source in ("diffusion", "gaussian"):
            path = dataset_path(preset, task, Arm(source, "deterministic"))
            path.parent.mkdir(parents=True, exist_ok=True)
            own = [dataclasses.replace(t, task=task) for t in arms() if t.source == source]
            write_data_set(path, own)
    whole = quality.run_quality("laptop").summary
    kept = (home / "runs/laptop/quality.csv").read_bytes()
    part = quality.run_quality("laptop:libero_goal")
    assert set(whole["task"]) - {"all"} == {"libero_object/0", "libero_goal/0"}
    assert set(part.summary["task"]) - {"all"} == set(part.units["task"]) == {"libero_goal/0"}
    assert (home / "runs/laptop/quality.csv").read_bytes() == kept
    assert quality.run_quality("laptop").summary.equals(whole)


def test_what_varies_from_the_same_start_is_measured_on_the_repeated_ones_alone(home):
    before = quality.run_quality("smoke").summary
    assert not before["measure"].str.startswith("own_").any()
    path = dataset_path(
        get_preset("smoke"), "libero_object/0", Arm("diffusion", "deterministic"), repeated=True
    )
    path.parent.mkdir(parents=True)
    same = [dataclasses.replace(t, start_state=f"fresh/1/{k % 2}") for k, t in enumerate(arms(8.0))]
    write_data_set(path, [t for t in same if t.source == "diffusion"])
    after = quality.run_quality("smoke").summary
    own = after[after["measure"].str.startswith("own_")]
    assert set(own["measure"]) == {"own_position_variance", "own_action_variance"}
    assert set(own["source"]) == {"diffusion"}
    assert (own["value"] > 0).all()
    rest = after[~after["measure"].str.startswith("own_")].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before)


def test_an_arm_with_one_success_is_left_out_and_told(home, capsys):
    path = dataset_path(get_preset("smoke"), "libero_object/0", Arm("diffusion", "stochastic"))
    path.parent.mkdir(parents=True)
    only = next(arms())
    write_data_set(path, [dataclasses.replace(only, source="diffusion", mode="stochastic")])
    arms_left = set(map(tuple, quality.run_quality("smoke").summary[["source", "mode"]].to_numpy()))
    assert arms_left == {("diffusion", "deterministic"), ("gaussian", "deterministic")}
    assert "diffusion-stochastic on libero_object/0 has 1 success" in capsys.readouterr().out


def test_a_record_is_not_replaced_by_one_of_fewer_data_sets(home):
    quality.run_quality("smoke")
    record = home / "runs/smoke/quality.csv"
    written = record.read_bytes()
    gaussian, other = (
        dataset_path(get_preset("smoke"), "libero_object/0", Arm(source, "deterministic"))
        for source in ("gaussian", "diffusion")
    )
    gaussian.unlink()
    write_data_set(other, [t for t in arms(seed=5) if t.source == "diffusion"])
    lost = "are not here: gaussian-deterministic on libero_object/0. Make them again"
    with pytest.raises(UserError, match=lost):
        quality.run_quality("smoke")
    assert record.read_bytes() == written
    record.unlink()
    assert set(quality.run_quality("smoke").summary["source"]) == {"diffusion"}


def test_a_count_of_one_per_task_enters_no_test():
    units = quality.measure(list(arms(3.0)), CONFIG)
    several = pd.concat([units.assign(task=f"libero_object/{k}") for k in range(8)])
    assert "mode_count" in set(several["measure"])
    assert "mode_count" not in set(quality.compare(several, CONFIG)["measure"])


def test_the_stage_says_which_notebook_to_run_when_there_are_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    with pytest.raises(UserError, match="run notebook 02 first"):
        quality.run_quality("smoke")


def test_an_episode_without_observations_is_measured_from_its_joints():
    states = np.zeros((41, 20))
    states[:, 0] = np.arange(41) / 20
    states[:, 1:8] = [0, -0.16, 0, -2.44, 0, 2.23, 0.78]
    states[:, 1] = 2 * np.linalg.norm(minimum_jerk(), axis=1)
    episode = Episode(
        **{"task": "a", "instruction": "", "start_state": "", "seed": 0, "source": "human"},
        **{"mode": "recorded", "success": True, "states": states, "actions": np.zeros((40, 7))},
        **{"rewards": np.eye(40)[-1], "fixtures": np.zeros((0, 7))},
    )
    found = Trajectory.from_episode(episode, "demo_3")
    states[7:, 0] -= 0.25  # its own time counts: here it goes back
    with pytest.raises(UserError, match="demo_3: time does not rise"):
        Trajectory.from_episode(episode, "demo_3")
    exact, _ = quality.panda_forward_kinematics(states[:, 1:8])
    assert np.array_equal(found.position, exact)
    assert found.start_state == "demo_3"


def test_a_measure_is_a_line_of_the_table_and_a_function(monkeypatch):
    lift = report.Measure("Lift", "m", 0)
    monkeypatch.setattr(report, "MEASURES", {**report.MEASURES, "lift": lift})
    monkeypatch.setitem(report.COMPUTED, "lift", lambda t: float(np.ptp(t.position[:, 2])))
    units = report.measure(list(arms(n=6)), CONFIG)
    rows = units[units["measure"] == "lift"]
    assert len(rows) == 12
    assert rows["value"].between(0.15, 0.25).all()  # two thirds of a way of 30 cm
    assert "lift" in set(report.summarise(units, CONFIG)["measure"])


def test_a_restored_run_has_no_data_sets_and_says_how_to_get_some(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    with pytest.raises(UserError, match="run notebook 02 first"):
        dataset_files("smoke")
    artifacts.write_json(artifacts.runs_dir("smoke") / artifacts.EVIDENCE, {"of": "smoke"})
    with pytest.raises(UserError, match=r"restored from git, which keeps no data sets.*--force"):
        dataset_files("smoke")
