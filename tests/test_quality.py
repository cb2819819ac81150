"""The measures agree with theory, with their authors' code, and refuse what cannot be measured."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from diffrl import quality
from diffrl.__main__ import main as command_line
from diffrl.errors import UserError
from diffrl.presets import QualityConfig
from diffrl.quality import consistency, smoothness
from diffrl.quality.trajectory import Trajectory, control_rate

GOLDEN = json.loads((Path(__file__).parent / "data/smoothness_golden.json").read_text())["cases"]
CONFIG = QualityConfig(phases=40, neighbours=5, resamples=200)


def minimum_jerk(duration=2.0, rate=20.0, distance=0.3, direction=(1, 2, 2)):
    """Positions (N, 3) m of Flash & Hogan's point-to-point movement along a straight line."""
    t = np.linspace(0, 1, round(duration * rate) + 1)
    unit = np.array(direction) / np.linalg.norm(direction)
    return distance * (10 * t**3 - 15 * t**4 + 6 * t**5)[:, None] * unit


def trajectory(position, actions=None, **changes):
    if actions is None:
        actions = np.zeros((len(position) - 1, 7))
    return Trajectory(position=position, actions=actions, rate=changes.pop("rate", 20.0), **changes)


def arms(effect=1.0, n=12, seed=0):
    """Two arms on the same start states; `effect` scales the tremor of the Gaussian one."""
    rng = np.random.default_rng(seed)
    for index in range(n):
        start = rng.normal(0, 0.01, 3)
        for source, tremor in (("diffusion", 1e-4), ("gaussian", effect * 1e-4)):
            position = minimum_jerk() + start + rng.normal(0, tremor, (41, 3))
            actions = np.c_[np.diff(position, axis=0), np.zeros((40, 3)), np.full(40, -1.0)]
            actions[20:, 6] = 1
            state = f"fresh/0/{index}"
            kind = {"source": source, "mode": "deterministic", "start_state": state}
            yield trajectory(position, 20 * actions, **kind)


# -- one trajectory: theory ------------------------------------------------------------------------
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_sparc_and_ldlj_agree_with_their_authors_implementation(case):
    speed = np.array(case["speed"])
    assert smoothness.sparc(speed, case["fs"]) == pytest.approx(case["sparc"], abs=1e-9)
    assert smoothness.ldlj(speed, case["fs"]) == pytest.approx(case["ldlj"], abs=1e-9)


@pytest.mark.parametrize(("distance", "duration"), [(0.3, 2.0), (0.05, 0.7)])
def test_minimum_jerk_converges_to_its_closed_forms(distance, duration):
    exact = {  # of 10τ³ - 15τ⁴ + 6τ⁵: ∫ x⃛² = 720, ∫ |x⃛| = 40/√3, peak speed 15/8
        "jerk_rms": np.sqrt(720) * distance / duration**3,
        "jerk_mean": 40 / np.sqrt(3) * distance / duration**3,
        "ldlj": -np.log(720 / (15 / 8) ** 2),
        "ldlj_cartesian": -np.log(720 / (15 / 8) ** 2),
        "path_length": distance,
    }
    errors = []
    for rate in (20.0, 80.0, 320.0):
        path = trajectory(minimum_jerk(duration, rate, distance), rate=rate)
        measured = quality.trajectory_measures(path)
        errors.append([abs(measured[k] / v - 1) for k, v in exact.items() if k != "path_length"])
        assert measured["path_length"] == pytest.approx(distance)
        assert measured["path_ratio"] == pytest.approx(1)
    assert np.all(np.diff(errors, axis=0) < 0)  # finer sampling is nearer, in every measure
    assert np.max(errors[-1]) < 0.03


def test_sparc_of_minimum_jerk_equals_the_arc_length_of_its_fourier_integral():
    def magnitude(f):  # |∫ v(t) e^{-2πift} dt| of 30 t²(1-t)², symmetric about 1/2
        return abs(
            quad(lambda t: 30 * t**2 * (1 - t) ** 2 * np.cos(np.pi * f * (2 * t - 1)), 0, 1)[0]
        )

    frequency = np.linspace(0, 10, 2001)
    spectrum = np.array([magnitude(f) for f in frequency])
    spectrum = spectrum[: np.flatnonzero(spectrum >= 0.05)[-1] + 1]
    exact = -np.sum(np.hypot(1 / (len(spectrum) - 1), np.diff(spectrum)))
    speed = smoothness.speed_profile(minimum_jerk(2, 200), 200)
    assert smoothness.sparc(speed, 200, padding=6) == pytest.approx(exact, abs=2e-3)


def test_constant_speed_has_no_jerk_and_a_straight_path():
    measured = quality.trajectory_measures(trajectory(np.linspace(0, 1, 50)[:, None] * [[1, 1, 0]]))
    assert measured["jerk_rms"] < 1e-10
    assert measured["path_ratio"] == pytest.approx(1)


def test_turning_at_constant_speed_counts_in_the_path_but_not_in_the_speed_measure():
    angle = np.linspace(0, 2 * np.pi, 400)
    circle = 0.1 * np.c_[np.cos(angle), np.sin(angle), 0 * angle]
    speed = smoothness.speed_profile(circle, 100)
    assert smoothness.ldlj(speed, 100) > 10  # the speed does not change …
    exact = -np.log((2 * np.pi) ** 4)  # … |x⃛| = ω³r, T = 2π/ω, v = ωr
    assert smoothness.ldlj_cartesian(circle, 100) == pytest.approx(exact, abs=1e-2)


def test_angular_jerk_of_a_minimum_jerk_turn_is_its_closed_form_whatever_the_sign():
    angle = np.linalg.norm(minimum_jerk(2, 200, 1.0), axis=1)
    turn = Rotation.from_rotvec(angle[:, None] * [[0, 0.6, 0.8]]) * Rotation.from_euler("x", 1.0)
    quaternion = turn.as_quat()
    rms = np.sqrt(np.mean(smoothness.angular_jerk(quaternion, 200) ** 2))
    assert rms == pytest.approx(np.sqrt(720) / 8, rel=0.02)
    quaternion[::2] *= -1
    assert np.sqrt(np.mean(smoothness.angular_jerk(quaternion, 200) ** 2)) == pytest.approx(rms)


# -- one trajectory: properties --------------------------------------------------------------------
def wandering(seed, n=60):
    """A smooth random path (n, 3) that never stands still."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, n)[:, None]
    waves = sum(rng.normal(size=3) * np.sin(k * np.pi * t + rng.normal(size=3)) for k in (1, 2, 3))
    return 0.1 * waves + t * [[0.3, 0.1, 0.2]]


seeds = st.integers(0, 10_000)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(-3, 3), st.floats(-1, 1))
def test_rotation_and_translation_change_nothing(seed, angle, shift):
    path = wandering(seed)
    turned = Rotation.from_rotvec([angle, 0.3, -angle / 2]).apply(path)
    turned += [shift, 2 * shift, 0.5]
    before = quality.trajectory_measures(trajectory(path))
    after = quality.trajectory_measures(trajectory(turned))
    assert after == pytest.approx(before, rel=1e-6, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.1, 20), st.floats(0.3, 3))
def test_dimensionless_measures_ignore_amplitude_and_duration(seed, amplitude, slower):
    path, rate = wandering(seed), 20.0
    before = quality.trajectory_measures(trajectory(path))
    after = quality.trajectory_measures(trajectory(amplitude * path, rate=rate / slower))
    for name in ("ldlj", "ldlj_cartesian", "path_ratio"):
        assert after[name] == pytest.approx(before[name], rel=1e-6)
    assert after["jerk_rms"] == pytest.approx(before["jerk_rms"] * amplitude / slower**3, rel=1e-6)


@pytest.mark.parametrize("slower", [1.5, 2.0, 4.0])
def test_sparc_ignores_amplitude_and_duration_of_a_movement(slower):
    speed = smoothness.speed_profile(minimum_jerk(2, 100), 100)
    slow = 3 * smoothness.speed_profile(minimum_jerk(2 * slower, 100), 100)
    assert smoothness.sparc(slow, 100) == pytest.approx(smoothness.sparc(speed, 100), abs=0.01)


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(3, 9))
def test_more_tremor_is_never_smoother(seed, frequency):
    t = np.arange(61)[:, None] / 20
    direction = np.random.default_rng(seed).normal(size=(1, 3))
    tremor = np.sin(2 * np.pi * frequency * t) * direction / np.linalg.norm(direction)
    found = [
        quality.trajectory_measures(trajectory(minimum_jerk(3) + size * tremor))
        for size in (0, 5e-4, 2e-3, 8e-3)
    ]
    for name, sign in {
        "jerk_rms": 1,
        "jerk_mean": 1,
        "path_length": 1,
        "ldlj_cartesian": -1,
    }.items():
        assert np.all(sign * np.diff([m[name] for m in found]) > 0), name


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_resampling_finer_converges(seed):
    coarse, fine = wandering(seed, 201), wandering(seed, 801)
    a = quality.trajectory_measures(trajectory(coarse, rate=100))
    b = quality.trajectory_measures(trajectory(fine, rate=400))
    assert a["jerk_rms"] == pytest.approx(b["jerk_rms"], rel=0.05)
    assert a["ldlj_cartesian"] == pytest.approx(b["ldlj_cartesian"], abs=0.1)
    assert a["sparc"] == pytest.approx(b["sparc"], abs=0.1)


def test_action_measures_count_what_their_names_say():
    actions = np.zeros((10, 7))
    actions[:, 6] = [-1, -1, -1, 1, 1, 1, 1, 0, -1, -1]
    actions[5:, 0] = 0.6
    assert smoothness.gripper_switches(actions) == 2
    assert smoothness.action_change(actions) == pytest.approx(0.6 / 54)
    assert smoothness.idle_share(actions) == pytest.approx(3 / 9)  # steps 1, 2 and 4
    assert smoothness.boundary_share(actions, 5) == 1
    assert smoothness.boundary_share(actions, 4) == 0


def test_a_still_trajectory_is_undefined_where_nothing_can_be_said():
    measured = quality.trajectory_measures(trajectory(np.ones((20, 3))))
    assert measured["jerk_rms"] == measured["path_length"] == 0
    assert measured["still_share"] == measured["idle_share"] == 1
    for name in ("ldlj", "ldlj_cartesian", "sparc", "path_ratio", "angular_jerk_rms"):
        assert np.isnan(measured[name]), name


# -- many trajectories -----------------------------------------------------------------------------
def test_dispersion_is_the_variance_and_its_jackknife_has_the_standard_error():
    profiles = np.random.default_rng(0).normal(size=(30, 7, 3))
    _, data = consistency.dispersion(consistency.squared_distances(profiles), range(30))
    variance = profiles.var(axis=0, ddof=1).sum(axis=1).mean()
    assert data.mean() == pytest.approx(variance)
    left_out = [np.delete(profiles, i, 0).var(axis=0, ddof=1).sum(axis=1).mean() for i in range(30)]
    assert data == pytest.approx(30 * variance - 29 * np.array(left_out))


def test_own_and_data_variance_are_kept_apart():
    rng = np.random.default_rng(1)
    starts = np.repeat(np.arange(200), 4)
    values = rng.normal(0, 3, 200)[starts] + rng.normal(0, 1, 800)
    squared = consistency.squared_distances(values[:, None, None])
    own, data = consistency.dispersion(squared, starts)
    assert own.mean() == pytest.approx(1, rel=0.1)  # the policy's own
    assert data.mean() == pytest.approx(10, rel=0.2)  # with the start states'
    assert np.isnan(consistency.dispersion(squared, range(800))[0]).all()


def test_time_warping_removes_a_difference_of_timing_alone():
    t = np.linspace(0, 1, 100)
    path = np.c_[np.sin(3 * t), t, t**2]
    late = np.c_[np.sin(3 * t**2), t**2, t**4]
    profiles = np.stack([path, late])
    warped, actions = consistency.warped_distances(profiles, profiles)
    assert warped[0, 1] < 0.01 * consistency.squared_distances(profiles)[0, 1]
    assert actions[0, 1] == pytest.approx(warped[0, 1])


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_warped_distance_is_symmetric_and_zero_to_itself(seed):
    paths = np.stack([wandering(seed + k, 25) for k in range(3)])
    warped, _ = consistency.warped_distances(paths, paths)
    back, _ = consistency.warped_distances(paths[::-1].copy(), paths[::-1].copy())
    assert warped == pytest.approx(back[::-1, ::-1], rel=1e-6, abs=1e-12)
    assert np.all(np.diag(warped) == 0)
    assert np.all(warped <= 25 * consistency.squared_distances(paths) + 1e-12)


def test_conditional_action_variance_sees_contradiction_but_not_a_feedback_law():
    rng = np.random.default_rng(0)
    states = [rng.uniform(0, 0.1, (80, 3)) for _ in range(20)]
    law = [-2 * s for s in states]
    noisy = [a + rng.normal(0, 0.5, a.shape) for a in law]
    clean = consistency.conditional_action_variance(states, law, 8).mean()
    assert clean < 0.01
    dirty = consistency.conditional_action_variance(states, noisy, 8).mean()
    assert dirty == pytest.approx(3 * 0.5**2 + clean, rel=0.1)


def test_ways_are_counted_once_each_and_strays_not_at_all():
    t = np.linspace(0, 1, 30)[:, None]
    rng = np.random.default_rng(0)
    left = [np.c_[t, 0.2 * np.sin(np.pi * t), 0 * t] + rng.normal(0, 0.002, 3) for _ in range(9)]
    right = [p * [1, -1, 1] for p in left]
    stray = [np.c_[t, 0 * t, 0.5 * np.sin(np.pi * t)]]
    count = lambda paths: consistency.mode_count(  # noqa: E731
        consistency.squared_distances(np.stack(paths))
    )
    assert [count(left), count(left + right), count(left + right + stray)] == [1, 2, 2]


def test_only_the_objects_that_a_task_moves_are_picked():
    moves = np.zeros((20, 3, 3))
    moves[:, 1, 0] = np.linspace(0, 0.3, 20)
    assert consistency.moved_objects([moves, moves, 0 * moves]).tolist() == [False, True, False]


# -- tables ----------------------------------------------------------------------------------------
def test_a_planted_difference_is_found_and_an_absent_one_is_not():
    for effect, significant in ((3.0, True), (1.0, False)):
        units = quality.measure(list(arms(effect)), CONFIG)
        tests = quality.compare(units, CONFIG).set_index("measure")
        assert (tests.loc["jerk_rms", "p_holm"] < 0.05) == significant
        assert tests.loc["jerk_rms", "test"] == "paired sign flip"
        assert np.all(tests["p_holm"] >= tests["p"])
    assert quality.compare(units, CONFIG, pairs=[(("a", "b"), ("c", "d"))]).empty


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
    assert list(summary) == ["source", "mode", "task", "measure", "value", "low", "high", "n"]
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


# -- bad input and files ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": np.zeros((3, 3)), "actions": np.zeros((3, 7))}, "at least 4"),
        ({"position": np.full((9, 3), np.nan)}, "first at step 0"),
        ({"actions": np.zeros((4, 7))}, "do not belong to 4 actions"),
        ({"rate": 0.0}, "control rate 0.0"),
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


def arrays_file(path, positions=None, joints=None, demos=3, **attrs):
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        for index in range(demos):
            demo = file.create_group(f"demo_{index}")
            demo["actions"] = np.random.default_rng(index).uniform(-1, 1, (40, 7))
            if positions is not None:
                demo["eef_pos"] = positions[:40] * (1 + index / 10)
            if joints is not None:
                demo["joint_pos"] = joints + index / 100
    return path


def test_the_command_prints_a_table_csv_and_json_of_any_file(tmp_path, capsys):
    path = arrays_file(tmp_path / "mine.hdf5", minimum_jerk(), control_freq_hz=20)
    assert command_line(["quality", str(path)]) == 0
    assert "Jerk, RMS [m/s³]" in capsys.readouterr().out
    assert command_line(["quality", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert command_line(["quality", str(path), "--csv"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "source,mode,task,measure,value,low,high,n"
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


def test_a_file_that_is_no_hdf5_or_missing_is_refused(tmp_path, capsys):
    (tmp_path / "text.hdf5").write_text("hello")
    assert command_line(["quality", str(tmp_path / "text.hdf5")]) == 1
    assert command_line(["quality", str(tmp_path / "none.hdf5")]) == 1
    error = capsys.readouterr().err
    assert "text.hdf5" in error
    assert "there is no such" in error


def test_measuring_again_gives_the_same_bytes():
    tables = [
        quality.summarise(quality.measure(list(arms()), CONFIG), CONFIG).to_csv() for _ in range(2)
    ]
    assert tables[0] == tables[1]
