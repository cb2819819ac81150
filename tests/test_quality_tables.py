"""From files to tables: comparisons, records, and the refusal of what cannot be measured."""

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from quality_samples import CONFIG, arms, arrays_file, minimum_jerk, trajectory, write_data_set

from diffrl import quality, statistics
from diffrl.__main__ import main as command_line
from diffrl.data.episode import Episode
from diffrl.data.generate import dataset_path
from diffrl.errors import UserError
from diffrl.quality import consistency, smoothness
from diffrl.quality.report import compare_over_tasks, over_tasks
from diffrl.quality.trajectory import Trajectory, control_rate


# -- tables ----------------------------------------------------------------------------------------
def test_a_planted_difference_is_found_and_an_absent_one_is_not():
    for effect, significant in ((3.0, True), (1.0, False)):
        units = quality.measure(list(arms(effect)), CONFIG)
        tests = quality.compare(units, CONFIG).set_index("measure")
        assert (tests.loc["jerk_rms", "p_holm"] < 0.05) == significant
        assert tests.loc["jerk_rms", "test"] == "paired sign flip"
        assert np.all(tests["p_holm"] >= tests["p"])
    assert quality.compare(units, CONFIG, pairs=[(("a", "b"), ("c", "d"))]).empty


def test_what_notebook_03_says_of_laptop_is_what_the_records_say():
    """Its prose (and README's) has no numbers to compare, so each claim is repeated here."""
    folder = Path(__file__).parent.parent / "results" / "laptop"
    tests = pd.read_csv(folder / "quality_tests.csv").set_index(["first", "second", "measure"])
    tests = tests.sort_index()

    def better(first, second, *measures, sign=1):
        rows = tests.loc[(first, second)].loc[list(measures)]
        upwards = np.array([1 if name in dimensionless else -1 for name in measures])
        told_apart = rows["p_holm"] < 0.05
        return (told_apart & (sign * upwards * rows["difference"] > 0)).all()

    jerks = ("jerk_rms", "jerk_mean", "angular_jerk_rms")
    dimensionless = ("ldlj", "ldlj_cartesian", "sparc")
    consistent = ("action_variance", "warped_action_variance", "conditional_action_variance")
    consistent += ("position_variance",)
    for mode in ("deterministic", "stochastic"):
        gaussian, diffusion = f"gaussian/{mode}", f"diffusion/{mode}"
        claims = (*jerks, *dimensionless, "action_change", "conditional_action_variance")
        assert better(diffusion, gaussian, *claims, sign=-1)
        assert better(diffusion, gaussian, "steps", "gripper_switches")
    noisy = ("diffusion/deterministic", "gaussian/stochastic")
    assert better(*noisy, "position_variance", "warped_position_variance")
    assert (tests.loc[noisy].loc[["jerk_rms", "jerk_mean"], "difference"] > 0).all()
    for policy in ("gaussian/deterministic", "diffusion/deterministic"):
        assert better(policy, "operator/recorded", *consistent, *dimensionless, "angular_jerk_rms")
        corrected = tests.loc[(policy, "operator/recorded"), "p_holm"]
        assert (corrected.loc[["warped_position_variance", "endpoint_variance"]] > 0.05).all()
    assert better("gaussian/deterministic", "operator/recorded", *jerks)
    noise = ("diffusion/deterministic", "diffusion/stochastic")
    assert better(*noise, *consistent, *jerks, *dimensionless)
    ours = tests.loc[("diffusion/deterministic", "operator/recorded")]
    assert (ours.loc[["jerk_rms", "jerk_mean"], "difference"] > 0).all()
    values = pd.read_csv(folder / "quality.csv").set_index(["measure", "source", "mode", "task"])
    values = values.sort_index()
    for mode in ("deterministic", "stochastic"):
        of = {p: values["value"].loc[("jerk_rms", p, mode)] for p in ("diffusion", "gaussian")}
        less = (of["gaussian"] < of["diffusion"]).drop("all")
        assert sorted(less.index[~less]) == ["libero_goal/0", "libero_goal/7"]
        assert len(less) == 15


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


def test_what_readme_says_of_jerk_and_speed_is_what_the_records_say():
    root = Path(__file__).parent.parent
    table = pd.read_csv(root / "results" / "laptop" / "quality.csv")
    rows = table[(table["task"] != "all") & (table["mode"] == "deterministic")]
    means = rows.pivot_table(index="task", columns=["measure", "source"], values="value")

    def log_ratio(name):
        return np.log(means[name]["diffusion"] / means[name]["gaussian"])

    jerk, time, length = map(log_ratio, ("jerk_rms", "steps", "path_length"))
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    for gaps, said in (
        (jerk, "{:.2f} times as large (95 % interval over fifteen tasks {:.2f} to {:.2f})"),
        (-3 * time, "accounts for {:.2f} [{:.2f}, {:.2f}]"),
        (jerk + 3 * time - length, "(jerk·T³/L) {:.2f} [{:.2f}, {:.2f}] is left"),
    ):
        assert said.format(*np.exp(statistics.interval_over_tasks(gaps))) in readme


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
    assert tests["p_holm"].to_numpy() == pytest.approx(statistics.holm(tests["p"]), rel=1e-6)
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
        path = dataset_path("libero_object/0", source, "deterministic", "smoke")
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
    path = dataset_path("libero_object/0", "diffusion", "deterministic", "smoke")
    write_data_set(path, [t for t in arms(seed=5) if t.source == "diffusion"])
    quality.run_quality("smoke")
    assert record.read_bytes() != written


def test_what_varies_from_the_same_start_is_measured_on_the_repeated_ones_alone(home):
    before = quality.run_quality("smoke").summary
    assert not before["measure"].str.startswith("own_").any()
    path = dataset_path("libero_object/0", "diffusion", "deterministic", "smoke", repeated=True)
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
    path = dataset_path("libero_object/0", "diffusion", "stochastic", "smoke")
    path.parent.mkdir(parents=True)
    only = next(arms())
    write_data_set(path, [dataclasses.replace(only, source="diffusion", mode="stochastic")])
    arms_left = set(map(tuple, quality.run_quality("smoke").summary[["source", "mode"]].to_numpy()))
    assert arms_left == {("diffusion", "deterministic"), ("gaussian", "deterministic")}
    assert "diffusion stochastic on libero_object/0 has 1 success" in capsys.readouterr().out


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


# -- bad input and files ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": np.zeros((3, 3)), "actions": np.zeros((3, 7))}, "at least 4"),
        ({"position": np.full((9, 3), np.nan)}, "first at step 0"),
        ({"actions": np.zeros((4, 7))}, "do not belong to 4 actions"),
        ({"rate": 0.0}, "control rate 0.0"),
        ({"actions": np.zeros((8, 14))}, r"actions \(8, 14\); expected \(8, 7\)"),
        ({"opening": np.zeros(8)}, r"opening \(8,\); expected \(9,\)"),
        ({"quaternion": np.zeros((9, 4))}, "quaternion is zero"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_name(change, message):
    arrays = {"position": np.zeros((9, 3)), "actions": np.zeros((8, 7)), "rate": 20.0} | change
    with pytest.raises(UserError, match=f"demo_7.*{message}"):
        Trajectory(**arrays, label="demo_7")


def test_mixed_control_rates_and_a_single_trajectory_are_refused():
    path = minimum_jerk()
    with pytest.raises(UserError, match="20 Hz, 50 Hz"):
        quality.measure([trajectory(path), trajectory(path, rate=50.0)], CONFIG)
    with pytest.raises(UserError, match="need at least two"):
        quality.measure([trajectory(path)], CONFIG)
    with pytest.raises(UserError, match="only one"):
        consistency.dispersion(np.zeros((1, 1)), ["a"])


def test_time_must_rise_evenly():
    assert control_rate(np.arange(5) / 20 + 0.5, "x") == 20
    with pytest.raises(UserError, match="demo_1: time does not rise"):
        control_rate([0, 0.05, 0.05, 0.1], "demo_1")
    with pytest.raises(UserError, match=r"0\.05 to 0\.1 s"):
        control_rate([0, 0.05, 0.15, 0.2], "demo_1")


def test_time_that_a_file_holds_must_rise_evenly_in_it(tmp_path):
    uneven = np.r_[np.arange(20), np.arange(20)][:, None] / 20  # two episodes, concatenated
    env_args = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
    path = arrays_file(tmp_path / "low_dim.hdf5", minimum_jerk(), env_args=env_args)
    assert quality.read_trajectories(path)[0].rate == 20
    for name, values in (("states", np.c_[uneven, uneven]), ("timestamp", uneven[:, 0])):
        with h5py.File(path, "a") as file:
            file["demo_1"][name] = values
        with pytest.raises(UserError, match=r"low_dim\.hdf5, demo_1: time does not rise"):
            quality.read_trajectories(path)
        with h5py.File(path, "a") as file:
            del file["demo_1"][name]
    path = arrays_file(tmp_path / "mine.hdf5", minimum_jerk())
    with h5py.File(path, "a") as file:
        for demo in file.values():
            demo["timestamp"] = np.arange(40) / 10
    assert {t.rate for t in quality.read_trajectories(path)} == {10}
    for scale, told in ((1e-4, "Are they in seconds"), (2e-3, "it says 20 Hz")):
        with h5py.File(path, "a") as file:
            file.attrs["control_freq_hz"] = 20
            for demo in file.values():
                demo["timestamp"][...] = np.arange(40) * scale
        with pytest.raises(UserError, match=told):
            quality.read_trajectories(path)
        assert {t.rate for t in quality.read_trajectories(path, rate=20)} == {20}


def test_clocks_of_one_file_that_differ_by_a_hair_are_one_rate(tmp_path):
    path = arrays_file(tmp_path / "mine.hdf5", minimum_jerk())
    with h5py.File(path, "a") as file:
        for number, demo in enumerate(file.values()):
            drift = 1 + 1e-4 * number
            demo["timestamp"] = (drift * np.arange(40) / 20).astype(np.float32)
    found = quality.read_trajectories(path)
    assert {t.rate for t in found} == {20}
    assert len(quality.measure(found, CONFIG))


def test_files_of_one_name_in_two_folders_are_two_tasks_and_other_starts(tmp_path):
    found = []
    for task in ("Lift", "Can"):
        (tmp_path / task).mkdir()
        env_args = json.dumps({"env_name": task, "env_kwargs": {"control_freq": 20}})
        path = arrays_file(tmp_path / task / "low_dim.hdf5", minimum_jerk(), env_args=env_args)
        found += quality.read_trajectories(path)
    assert {t.task for t in found} == {"Lift", "Can"}
    assert len({t.start_state for t in found}) == len(found)


def test_forward_kinematics_reproduces_poses_recorded_in_the_simulator():
    joints = [
        [0.0124883, -0.1087159, 0.0164136, -2.5662258, 0.012669, 2.253382, 0.8035892],
        [0.0738392, 1.0205355, 0.0239247, -0.8787553, -0.0172629, 1.8381693, 0.804123],
        [-0.013757, 0.5864987, 0.1177395, -1.7273061, -0.2799013, 2.2871196, -1.5494742],
    ]
    positions = [
        [-0.2009333, 0.0125475, 0.1935067],
        [0.1750904, 0.0673592, 0.1737212],
        [0.0666965, 0.041856, 0.1492784],
    ]
    computed, _ = quality.panda_forward_kinematics(joints)
    assert computed == pytest.approx(np.array(positions), abs=1e-6)


def test_the_command_prints_a_table_csv_and_json_of_any_file(tmp_path, capsys):
    path = arrays_file(tmp_path / "mine.hdf5", minimum_jerk(), control_freq_hz=20)
    assert command_line(["quality", str(path)]) == 0
    assert "Jerk, RMS [m/s³]" in capsys.readouterr().out
    assert command_line(["quality", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert command_line(["quality", str(path), "--csv"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    columns = "source,mode,task,measure,value,low,high,n,low_tasks,high_tasks,p_tasks"
    assert header == columns
    assert len(lines) == len(rows)
    jerk = {r["measure"]: r["value"] for r in rows if r["task"] == "mine"}["jerk_rms"]
    exact = [smoothness.jerk(minimum_jerk()[:40] * (1 + i / 10), 20) for i in range(3)]
    assert jerk == pytest.approx(np.mean([np.sqrt(np.mean(j**2)) for j in exact]))


def test_positions_are_computed_from_joints_where_they_are_missing(tmp_path):
    joints = np.tile([0, -0.16, 0, -2.44, 0, 2.23, 0.78], (40, 1))
    joints[:, 0] = np.linalg.norm(minimum_jerk()[:40], axis=1)  # the base turns the arm
    found = quality.read_trajectories(arrays_file(tmp_path / "j.hdf5", joints=joints), rate=20)
    radius = np.hypot(found[0].position[:, 0] + 0.6, found[0].position[:, 1])
    assert np.ptp(radius) < 1e-12
    assert found[0].quaternion is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"demos": 0}, "holds no demonstrations"),
        ({"control_freq_hz": 20}, "no end-effector position"),
        ({"positions": minimum_jerk()}, "--rate 20"),
    ],
)
def test_a_file_that_cannot_be_measured_is_refused_on_the_command_line(
    tmp_path, capsys, content, message
):
    path = arrays_file(tmp_path / "bad.hdf5", **content)
    assert command_line(["quality", str(path)]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "bad.hdf5" in error


def spoil(path, how):
    """Write a sound file of arrays, then one thing that is wrong into it."""
    arrays_file(path, minimum_jerk(), control_freq_hz=20)
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"] if "data" in file else file["demo_0"]
        how(demo)


def put(name, data):
    def change(demo):
        if name in demo:
            del demo[name]
        demo[name] = data

    return change


def instead_of_position(name, data):
    def change(demo):
        del demo["eef_pos"]
        demo[name] = data

    return change


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (instead_of_position("joint_pos", np.zeros((40, 9))), "expected (N, 7)"),
        (instead_of_position("eef_pos", np.zeros((40, 7))), "eef_pos (40, 7); expected (N, 3)"),
        (put("eef_pos", 100 * minimum_jerk()[:40]), "in metres"),
        (put("gripper_qpos", np.zeros((39, 2))), "opening (39,)"),
        (put("eef_quat", h5py.SoftLink("/nowhere")), "never followed"),
        (put("eef_quat", h5py.ExternalLink("other.hdf5", "/a")), "never followed"),
        (lambda demo: demo.create_dataset("eef_quat", (10**10, 4), "f4", chunks=(1, 4)), "claims"),
        (lambda demo: demo.create_group("eef_quat"), "is a group"),
    ],
)
def test_a_strange_array_is_refused_with_file_and_place(tmp_path, how, message):
    spoil(tmp_path / "odd.hdf5", how)
    with pytest.raises(UserError) as refused:
        quality.read_trajectories(tmp_path / "odd.hdf5")
    assert message in str(refused.value)
    assert "odd.hdf5" in str(refused.value)
    assert "demo_0" in str(refused.value)


def test_a_demonstration_that_lies_in_another_file_is_refused(tmp_path):
    arrays_file(tmp_path / "other.hdf5", minimum_jerk(), control_freq_hz=20)
    arrays_file(tmp_path / "linked.hdf5", minimum_jerk(), control_freq_hz=20)
    with h5py.File(tmp_path / "linked.hdf5", "a") as file:
        del file["demo_1"]
        file["demo_1"] = h5py.ExternalLink("other.hdf5", "/demo_1")
    with pytest.raises(UserError, match=r"linked\.hdf5: demo_1: it is a link"):
        quality.read_trajectories(tmp_path / "linked.hdf5")


def test_the_failures_of_a_file_of_arrays_are_known_by_its_attribute_or_rewards(tmp_path):
    def mark(demo):
        demo.attrs["success"] = False
        others = [demo.parent[name] for name in ("demo_1", "demo_2")]
        for other, rewards in zip(others, (np.zeros(39), np.linspace(0, 0.5, 39))):
            other["rewards"] = rewards  # only zeros: no success; dense ones do not tell

    spoil(tmp_path / "a.hdf5", mark)
    found = quality.read_trajectories(tmp_path / "a.hdf5")
    assert [t.success for t in found] == [False, False, None]


def test_states_of_which_nobody_says_whose_they_are_give_no_position(tmp_path):
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["states"] = np.zeros((9, 7)), np.zeros((9, 20))
    with pytest.raises(UserError, match="nothing says that its states are a Panda's"):
        quality.read_trajectories(tmp_path / "bare.hdf5")


def test_a_file_that_is_no_hdf5_or_missing_is_refused(tmp_path, capsys):
    (tmp_path / "text.hdf5").write_text("hello")
    assert command_line(["quality", str(tmp_path / "text.hdf5")]) == 1
    assert command_line(["quality", str(tmp_path / "none.hdf5")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "text.hdf5" in error
    assert "there is no such" in error


def test_measuring_again_gives_the_same_bytes():
    tables = [
        quality.summarise(quality.measure(list(arms()), CONFIG), CONFIG).to_csv() for _ in range(2)
    ]
    assert tables[0] == tables[1]
