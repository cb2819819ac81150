"""Strangers' files of demonstrations are measured with the right values, or refused with reason."""

import dataclasses
import json
import tempfile
from pathlib import Path

import data_samples as samples
import file_variations as variations
import h5py
import numpy as np
import pytest
from quality_samples import CONFIG, arms, read, robomimic_file, wander, write_data_set

from diffrl import quality
from diffrl.__main__ import main as command_line
from diffrl.base.errors import UserError
from diffrl.data.hdf5 import validate_file
from diffrl.quality import description

FILES = 130  # of each layout


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where the machine has one: a file system's own speed is not tested."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("layout", variations.LAYOUTS)
def test_any_legal_file_is_measured_rightly_or_refused_with_the_true_reason(layout, memory):
    measured = refused = 0
    for seed in range(FILES):
        path = memory / f"{seed}.hdf5"
        sample = variations.write(layout, np.random.default_rng((seed, len(layout))), path)
        good = [demo for demo in sample.demos if not demo.refusals]
        bad = [demo for demo in sample.demos if demo.refusals]
        lines = []
        with_seed = f"{layout} {seed}"
        if bad and not (sample.options.get("skip_bad") and good):
            with pytest.raises(UserError) as refusal:
                quality.read_trajectories(path, **sample.options, tell=lines.append)
            reasons = [reason for demo in bad for reason in demo.refusals]
            assert any(reason in str(refusal.value) for reason in reasons), (with_seed, refusal)
            assert path.name in str(refusal.value), with_seed
            refused += 1
        else:
            found = quality.read_trajectories(path, **sample.options, tell=lines.append)
            assert len(found) == len(good), with_seed
            assert_right(found, good, sample, lines, with_seed)
            assert sum("left out: " in line for line in lines) == len(bad), with_seed
            measured += 1
        path.unlink()
    assert min(measured, refused) > FILES / 10  # neither of the two is all that was tried


def assert_right(found, demos, sample, lines, seed):
    """The values are those that were computed from the arrays as stored."""
    commands = variations.measured_actions(demos, sample.clips)
    known = variations.known_success(demos)
    assert [t.success for t in found] == known, seed
    for trajectory, demo, actions in zip(found, demos, commands, strict=True):
        got = quality.trajectory_measures(trajectory)
        assert trajectory.rate == pytest.approx(sample.rate, rel=1e-6), seed
        close = {"rel": 1e-6, "abs": 1e-9}
        assert got["jerk_rms"] == pytest.approx(
            variations.jerk_rms(demo.position, sample.rate), **close
        ), seed
        assert got["path_length"] == pytest.approx(variations.path_length(demo.position)), seed
        assert got["steps"] == demo.steps, seed
        if actions is None:
            assert np.isnan([got[k] for k in ("action_change", "idle_share")]).all(), seed
        else:
            change = np.abs(actions[1:, :6] - actions[:-1, :6]).mean()
            assert got["action_change"] == pytest.approx(change), seed
            switches = np.count_nonzero(actions[1:, 6] * actions[:-1, 6] < 0)
            assert got["gripper_switches"] == switches, seed
    if any(k is None for k in known):
        assert any("does not tell" in line for line in lines), seed
    if commands[0] is None:
        assert any("measures of actions are left out" in line for line in lines), seed
    elif any(np.abs(d.actions).max() > 1.01 for d in demos):
        assert any("are clipped" in line for line in lines), seed


def regenerated(path, cut=None):
    """OpenVLA's no-op-filtered set: no attributes, the first state from before the settling."""
    with h5py.File(path, "w") as file:
        for number in (0, 1, 3):  # the replay of demo_2 failed
            demo, time = file.create_group(f"data/demo_{number}"), 0.6 + np.arange(50) / 20
            time[0] = 0.05
            if cut:
                time[cut:] += 0.4
            demo["states"] = np.c_[time, np.zeros((50, 40))]
            demo["actions"] = np.zeros((50, 7))
            demo["obs/ee_pos"], demo["obs/ee_ori"] = wander(number, 50), np.full((50, 3), 0.1)
            demo["obs/joint_states"] = np.zeros((50, 7))
            demo["obs/agentview_depth"] = np.ones((50, 2, 2, 1), np.float32)
            demo["rewards"] = (np.arange(50) == 49).astype(np.uint8)
    return path


def test_regenerated_rollouts_without_no_ops_are_measured_at_20_hz(tmp_path):
    found, told = read(regenerated(tmp_path / "no_noops_demo.hdf5"))
    assert [t.rate for t in found] == [20, 20, 20]
    assert [t.success for t in found] == [True] * 3
    assert "settling" in told
    assert np.array_equal(found[2].position, wander(3, 50))


def test_recordings_from_which_steps_were_cut_are_refused(tmp_path):
    path = regenerated(tmp_path / "cut_demo.hdf5", cut=20)
    with pytest.raises(UserError, match="from before frames were cut"):
        read(path)


def test_an_official_file_with_a_gap_is_sound_and_measured(tmp_path):
    episodes = [samples.sample_episode(seed, 40, images=2) for seed in range(3)]
    path = tmp_path / "gap_demo.hdf5"
    samples.write_official(path, episodes)
    with h5py.File(path, "a") as file:
        file.move("data/demo_1", "data/demo_7")
    assert validate_file(path) == []
    found, _ = read(path)
    assert [t.start_state.rpartition("/")[2] for t in found] == ["demo_0", "demo_2", "demo_7"]
    assert {(t.task, t.source, t.rate) for t in found} == {(samples.TASK, "human", 20)}
    assert np.array_equal(found[2].position, episodes[1].observations["eef_pos"][:-1])


def test_a_file_without_liberos_attributes_is_told_what_is_missing_and_no_more(tmp_path):
    problems = validate_file(regenerated(tmp_path / "bare_demo.hdf5"))
    assert {f.place for f in problems} == {
        *("data@num_demos", "data@problem_info", "data@env_args", "data@bddl_file_name")
    }
    assert all("missing" in f.problem and "quality" in f.remedy for f in problems)


def test_one_of_liberos_names_alone_does_not_make_a_real_robots_file_liberos(tmp_path):
    own = {"obs/ee_pos": lambda i, n: wander(i, n), "obs/robot0_eef_pos": None}
    millimetres = {"actions": lambda i, n: np.full((n, 7), 12.0)}
    found, told = read(robomimic_file(tmp_path / "real.hdf5", **own, **millimetres))
    assert "its actions reach 12, beyond [-1, 1], and it names no controller" in told
    assert not found[0].has_commands


def test_the_states_of_another_robot_are_not_taken_for_a_pandas(tmp_path):
    states = {"states": lambda i, n: np.c_[np.arange(n) / 20, np.zeros((n, 30))]}
    panda = {"env_kwargs": {"robots": ["Panda"]}, "obs/robot0_eef_pos": None}
    found, _ = read(robomimic_file(tmp_path / "panda.hdf5", **states, **panda))
    assert found[0].position.shape == (40, 3)
    for robots in ({"robots": ["Sawyer"]}, {}):
        other = {"env_kwargs": robots, "obs/robot0_eef_pos": None}
        with pytest.raises(UserError, match="no end-effector position"):
            read(robomimic_file(tmp_path / "other.hdf5", **states, **other))


def test_orientation_comes_from_joints_only_where_they_put_the_hand_in_its_place(tmp_path):
    rng = np.random.default_rng(0)
    joints = variations.poses_of_joints(rng, 40)
    hand = variations.hand_of_panda(joints) + [0.1, 0, 0.4]  # another base
    for place, known in ((hand, True), (wander(0, 40), False)):
        change = {"obs/robot0_eef_pos": place, "obs/robot0_joint_pos": joints}
        change = {key: lambda i, n, value=value: value for key, value in change.items()}
        found, _ = read(robomimic_file(tmp_path / "a.hdf5", **change))
        assert (found[0].quaternion is not None) == known


@pytest.mark.parametrize("width", [1, 4, 14])
def test_jerk_needs_no_actions_and_other_widths_leave_their_measures_out(tmp_path, width, capsys):
    actions = {"actions": lambda i, n: np.full((n, width), 0.5)}
    usual = read(robomimic_file(tmp_path / "seven.hdf5"))[0][0]
    path = robomimic_file(tmp_path / "other.hdf5", **actions)
    got = quality.trajectory_measures(read(path)[0][0])
    assert got["jerk_rms"] == quality.trajectory_measures(usual)["jerk_rms"]
    assert command_line(["quality", str(path), "--csv"]) == 0
    printed = capsys.readouterr()
    measures = {line.split(",")[3] for line in printed.out.splitlines()[1:]}
    assert not {m for m in measures if "action" in m} | {"idle_share"} & measures
    assert {"jerk_rms", "warped_position_variance", "mode_count", "steps"} <= measures
    assert f"its actions have {width} numbers, not 7: measures of actions are left out" in (
        printed.err
    )


OSC = variations.OSC_POSE


LEFT_OUT = "measures of actions are left out"


@pytest.mark.parametrize(
    ("controller", "peak", "told"),
    [
        (OSC, 1.0, ""),
        (OSC, 1.7, "up to 1.7) and are clipped"),
        (OSC | {"input_max": [1.0] * 6, "input_min": [-1.0] * 6}, 1.7, "are clipped"),
        (OSC | {"input_max": 0.05}, 0.05, LEFT_OUT),
        (OSC | {"control_delta": False}, 0.5, LEFT_OUT),
        (OSC | {"input_type": "absolute"}, 0.5, LEFT_OUT),
        ({"type": "JOINT_VELOCITY"}, 0.5, LEFT_OUT),
        ([OSC, {"type": "JOINT_VELOCITY"}], 0.5, LEFT_OUT),
        (None, 1.0, "it names no controller; its actions, all in [-1, 1], are taken as commands"),
        (None, 1.2, "its actions reach 1.2, beyond [-1, 1], and it names no controller"),
    ],
)
def test_actions_are_commands_are_clipped_or_are_left_out_and_a_line_says_which(
    tmp_path, controller, peak, told
):
    stored = np.random.default_rng(0).uniform(-1, 1, (40, 7))
    stored[3, 2] = peak
    env_kwargs = {} if controller is None else {"controller_configs": controller}
    actions = {"actions": lambda i, n: stored if i == 1 else 0.01 * stored}
    found, lines = read(robomimic_file(tmp_path / "a.hdf5", env_kwargs=env_kwargs, **actions))
    assert told in lines
    assert bool(lines) == bool(told)
    left_out = LEFT_OUT in lines
    assert [t.actions.shape[1] for t in found] == [0 if left_out else 7] * 3  # the whole file
    if not left_out:
        assert np.array_equal(found[1].actions, np.clip(stored, -1, 1))


def test_gripper_commands_of_0_and_1_are_read_as_signs(tmp_path):
    actions = {"actions": lambda i, n: np.c_[np.zeros((n, 6)), np.arange(n) // 10 % 2]}
    found, told = read(robomimic_file(tmp_path / "a.hdf5", **actions))
    assert quality.trajectory_measures(found[0])["gripper_switches"] == 3
    assert "between 0 and 1: read as from -1 to 1" in told


@pytest.mark.parametrize("near_one", [1.0, 0.9, 0.99999994])
def test_gripper_commands_between_0_and_1_count_as_those_of_both_signs(tmp_path, near_one):
    def closing(index, n):
        share = np.clip(np.convolve(np.arange(n) // 10 % 2, np.ones(3) / 3, "same"), 0, near_one)
        return np.c_[np.zeros((n, 6)), share]

    found, told = read(robomimic_file(tmp_path / "a.hdf5", actions=closing))
    assert quality.trajectory_measures(found[0])["gripper_switches"] == 3
    assert "between 0 and 1: read as from -1 to 1" in told


@pytest.mark.parametrize("always", [0.0, 0.3, 1.0])
def test_gripper_commands_that_never_change_sides_are_not_counted_and_it_is_told(tmp_path, always):
    actions = {"actions": lambda i, n: np.c_[np.zeros((n, 6)), np.full(n, always)]}
    found, told = read(robomimic_file(tmp_path / "a.hdf5", **actions))
    values = quality.trajectory_measures(found[0])
    assert np.isnan(values["gripper_switches"])
    assert np.isfinite(values["action_change"])
    assert "do not tell open from closed: gripper switches are left out" in told


def by_feedback(seed, steps=60):
    """An episode whose actions depend on nothing but where the hand is."""
    episode = samples.sample_episode(seed, steps, images=4)
    path = [np.random.default_rng(seed).normal([0, 0, 1], 0.03)]
    actions = np.zeros((steps, 7))
    for action in actions:
        law = 3 * ([0.1, 0.1, 0.9] - path[-1]) + 0.8 * np.sign(np.sin(60 * path[-1]))
        action[:3] = np.clip(law, -1, 1)
        path.append(path[-1] + 0.02 * action[:3])
    seen = episode.observations | {"eef_pos": np.array(path)}
    seen |= {"eef_quat": np.tile([1.0, 0, 0, 0], (steps + 1, 1))}
    seen |= {"gripper_qpos": np.full((steps + 1, 2), 0.04)}
    return dataclasses.replace(episode, actions=actions, observations=seen)


def test_the_state_before_an_action_is_found_in_libero_s_own_files_too(tmp_path):
    episodes = [by_feedback(seed) for seed in range(12)]
    with h5py.File(tmp_path / "arrays.hdf5", "w") as file:  # from the second action on
        for index, episode in enumerate(episodes):
            demo, seen = file.create_group(f"data/demo_{index}"), episode.observations
            demo["actions"] = episode.actions[1:]
            demo["obs/eef_pos"] = seen["eef_pos"][1:-1]
            demo["obs/gripper_qpos"] = seen["gripper_qpos"][1:-1]
    late = [{k: np.r_[v[1:], v[-1:]] for k, v in e.observations.items()} for e in episodes]
    official = [dataclasses.replace(e, observations=seen) for e, seen in zip(episodes, late)]
    samples.write_official(tmp_path / "official.hdf5", official)
    found = []
    for name in ("arrays", "official"):
        units = quality.measure(read(tmp_path / f"{name}.hdf5", rate=20.0)[0], CONFIG)
        found.append(units[units["measure"] == "conditional_action_variance"]["value"].to_numpy())
    np.testing.assert_allclose(*found)


def test_too_few_episodes_for_neighbours_and_too_few_neighbours_are_told(tmp_path, capsys):
    path = robomimic_file(tmp_path / "a.hdf5", demos=4)
    command_line(["quality", str(path), "--neighbours", "4"])
    told = " ".join(capsys.readouterr().err.split())
    assert "action variance given the state is left out; it needs more than 4 episodes" in told
    command_line(["quality", str(path), "--neighbours", "3"])
    assert "left out; it needs" not in capsys.readouterr().err
    for few in ("1", "0", "-3"):
        assert command_line(["quality", str(path), "--neighbours", few]) == 1
        told = capsys.readouterr().err
        assert f"neighbours is {few}: give a whole number that is at least 2" in " ".join(
            told.split()
        )


ENDS, NEVER = [0, 0, 1], [0, 0, 0]


@pytest.mark.parametrize(
    ("rewards", "dones", "success"),
    [
        ([ENDS, NEVER], [ENDS, ENDS], [True, False]),  # sparse rewards
        ([[-1, -1, 0], [-1, -1, -1]], [NEVER, NEVER], [True, False]),
        ([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]], [ENDS, NEVER], [True, False]),  # dense: dones tell …
        ([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]], [ENDS, ENDS], [None, None]),  # … unless they mark ends
        ([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]], [[0, 1, 1], ENDS], [True, None]),
        ([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]], [None, None], [None, None]),
        ([None, None], [NEVER, ENDS], [False, True]),
        ([None, None], [None, None], [None, None]),
    ],
)
def test_success_comes_from_sparse_rewards_or_telling_dones_and_else_is_unknown(
    rewards, dones, success
):
    def arrays(lists):
        return [None if values is None else np.array(values, float) for values in lists]

    assert description.successes([None, None], arrays(rewards), arrays(dones)) == success
    said = description.successes([False, True], arrays(rewards), arrays(dones))
    assert said == [False, True]  # the attribute goes before all


def test_dense_rewards_are_told_to_be_unknown_and_failures_are_not_measured(tmp_path):
    dense = {"rewards": lambda i, n: np.linspace(0, 0.4 + i / 5, n)}
    found, told = read(robomimic_file(tmp_path / "a.hdf5", **dense))
    assert [t.success for t in found] == [None] * 3
    assert "does not tell whether 3 of 3 episodes succeeded" in told
    assert len(quality.select(found, 9)) == 3
    fails = {"dones": lambda i, n: np.full(n, 0) if i else (np.arange(n) == n - 1).astype(int)}
    found, told = read(robomimic_file(tmp_path / "a.hdf5", **dense, **fails))
    assert [t.success for t in found] == [True, False, False]
    assert "2 of 3 episodes failed" in told
    assert len(quality.select(found, 9)) == 1


def test_a_rate_that_contradicts_the_file_is_refused(tmp_path):
    ours, official = tmp_path / "ours.hdf5", tmp_path / "official.hdf5"
    write_data_set(ours, list(arms(n=2)))
    samples.write_official(official, [samples.sample_episode(images=2)])
    for path in (ours, official, robomimic_file(tmp_path / "rm.hdf5")):
        with pytest.raises(UserError, match=f"{path.name}.*--rate 50 contradicts the file.*20 Hz"):
            read(path, rate=50)
        assert {t.rate for t in read(path, rate=20)[0]} == {20}
    for rate in (0, -20, np.nan):
        with pytest.raises(UserError, match="is no control rate"):
            read(ours, rate=rate)


def test_a_given_rate_decides_between_two_that_a_file_says(tmp_path):
    clock = {"timestamp": lambda i, n: np.arange(n) / 10}
    path = robomimic_file(tmp_path / "a.hdf5", **clock)
    with pytest.raises(UserError, match="it says 20 Hz, but its time stamps rise at 10 Hz"):
        read(path)
    assert {t.rate for t in read(path, rate=10)[0]} == {10}
    with h5py.File(path, "a") as file:
        file["data"].attrs["fps"] = 30  # of its cameras
    assert {t.rate for t in read(path, rate=20)[0]} == {20}
    with pytest.raises(UserError, match=r"--rate 30 contradicts the file.*20 Hz and 10 Hz"):
        read(path, rate=30)


def test_float32_files_give_the_values_of_float64_and_compare_with_them(tmp_path):
    found = []
    for kind in (np.float32, np.float64):
        change = {
            "obs/robot0_eef_pos": lambda i, n, kind=kind: wander(i, n).astype(kind),
            "states": lambda i, n, kind=kind: np.c_[100 + np.arange(n) / 20].astype(kind),
        }
        path = robomimic_file(tmp_path / f"{np.dtype(kind)}.hdf5", demos=2, **change)
        with h5py.File(path, "a") as file:
            kwargs = {"controller_configs": OSC}
            env = {"type": 1, "env_name": "Lift", "env_kwargs": kwargs}  # no rate but the clock's
            file["data"].attrs["env_args"] = json.dumps(env)
        found.append(read(path)[0])
    single, double = (quality.trajectory_measures(part[0]) for part in found)
    assert single == pytest.approx(double, rel=1e-3, nan_ok=True)
    assert len(quality.measure(found[0] + found[1], CONFIG))  # one rate, though a clock is rounded
