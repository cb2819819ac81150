"""Files that cannot be measured are refused with file and place."""

import json

import h5py
import numpy as np
import pytest
from quality_samples import CONFIG, arms, arrays_file, minimum_jerk, trajectory

from diffrl import quality
from diffrl.__main__ import main as command_line
from diffrl.base.errors import UserError
from diffrl.quality import consistency, smoothness
from diffrl.quality.trajectory import Trajectory, control_rate


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
