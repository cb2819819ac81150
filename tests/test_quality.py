"""The measures agree with theory and with their authors' code."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_samples import minimum_jerk, trajectory
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from diffrl import quality
from diffrl.base import intervals
from diffrl.base.errors import UserError
from diffrl.benchmark.quality import random_trajectory
from diffrl.quality import consistency, smoothness

STEADY = {"deadline": None, "derandomize": True}  # the same examples in every run
GOLDEN = json.loads((Path(__file__).parent / "data/smoothness_golden.json").read_text())["cases"]


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


def test_no_measure_of_a_trajectory_loops_over_its_time_steps():
    lines = []

    def count(frame, event, argument):
        lines[-1] += event == "line"
        return count

    for steps in (100, 3200):
        path = random_trajectory(steps, 0)
        lines.append(0)
        sys.settrace(count)
        quality.trajectory_measures(path)
        sys.settrace(None)
    assert 0 < lines[1] < 1.2 * lines[0]  # lines of Python that were run


# -- one trajectory: properties --------------------------------------------------------------------
def wandering(seed, n=60):
    """A smooth random path (n, 3) that never stands still."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, n)[:, None]
    waves = sum(rng.normal(size=3) * np.sin(k * np.pi * t + rng.normal(size=3)) for k in (1, 2, 3))
    return 0.1 * waves + t * [[0.3, 0.1, 0.2]]


seeds = st.integers(0, 10_000)


@settings(max_examples=40, **STEADY)
@given(seeds, st.floats(-3, 3), st.floats(-1, 1))
def test_rotation_and_translation_change_nothing(seed, angle, shift):
    path, turn = wandering(seed), Rotation.from_rotvec([angle, 0.3, -angle / 2])
    hand = Rotation.from_rotvec(wandering(seed + 1))
    turned = turn.apply(path) + [shift, 2 * shift, 0.5]
    before = quality.trajectory_measures(trajectory(path, quaternion=hand.as_quat()))
    after = quality.trajectory_measures(trajectory(turned, quaternion=(turn * hand).as_quat()))
    assert after["angular_jerk_rms"] > 0
    assert after == pytest.approx(before, rel=1e-6, nan_ok=True)


@settings(max_examples=40, **STEADY)
@given(seeds, st.floats(0.1, 20), st.floats(0.3, 3))
def test_dimensionless_measures_ignore_amplitude_and_duration(seed, amplitude, slower):
    path, rate = wandering(seed), 20.0
    before = quality.trajectory_measures(trajectory(path))
    after = quality.trajectory_measures(trajectory(amplitude * path, rate=rate / slower))
    for name in ("ldlj", "ldlj_cartesian", "path_ratio"):
        assert after[name] == pytest.approx(before[name], rel=1e-6)
    assert after["jerk_rms"] == pytest.approx(before["jerk_rms"] * amplitude / slower**3, rel=1e-6)


def test_sparc_converges_with_the_rate_on_a_movement():
    # Not on any path: a lobe of the spectrum at the threshold is counted or not by a hair.
    fine, *coarse = (
        smoothness.sparc(smoothness.speed_profile(minimum_jerk(2, rate), rate), rate)
        for rate in (400, 100, 20)
    )
    assert coarse == pytest.approx([fine, fine], abs=0.01)


@pytest.mark.parametrize("slower", [1.5, 2.0, 4.0])
def test_sparc_ignores_amplitude_and_duration_of_a_movement(slower):
    speed = smoothness.speed_profile(minimum_jerk(2, 100), 100)
    slow = 3 * smoothness.speed_profile(minimum_jerk(2 * slower, 100), 100)
    assert smoothness.sparc(slow, 100) == pytest.approx(smoothness.sparc(speed, 100), abs=0.01)


@settings(max_examples=40, **STEADY)
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
    for name in ("ldlj", "sparc"):  # of the speed alone; SPARC passes over what is small
        assert np.all(np.diff([m[name] for m in found]) < 0.01), name
        assert found[-1][name] < found[0][name], name


@settings(max_examples=40, **STEADY)
@given(seeds)
def test_resampling_finer_converges(seed):
    coarse, fine = wandering(seed, 201), wandering(seed, 801)
    a = quality.trajectory_measures(trajectory(coarse, rate=100))
    b = quality.trajectory_measures(trajectory(fine, rate=400))
    assert a["jerk_rms"] == pytest.approx(b["jerk_rms"], rel=0.05)
    assert a["ldlj_cartesian"] == pytest.approx(b["ldlj_cartesian"], abs=0.1)


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
def test_two_start_states_make_one_value_not_two_equal_ones():
    squared = np.array([[0.0, 8.0], [8.0, 0.0]])
    _, data = consistency.dispersion(squared, ["a", "b"])
    np.testing.assert_equal(data, [4.0, np.nan])


def test_dispersion_is_the_variance_and_its_jackknife_has_the_standard_error():
    profiles = np.random.default_rng(0).normal(size=(30, 7, 3))
    _, data = consistency.dispersion(consistency.squared_distances(profiles), range(30))
    variance = profiles.var(axis=0, ddof=1).sum(axis=1).mean()
    assert data.mean() == pytest.approx(variance)
    left_out = [np.delete(profiles, i, 0).var(axis=0, ddof=1).sum(axis=1).mean() for i in range(30)]
    assert data == pytest.approx(30 * variance - 29 * np.array(left_out))


def test_variances_of_equal_sources_differ_significantly_no_more_often_than_stated():
    rng, p_values = np.random.default_rng(0), []
    for trial in range(150):
        starts = rng.normal(size=(20, 1, 3))  # shared, so the two arms are paired
        pair = (starts + rng.normal(size=(20, 1, 3)) for _ in range(2))
        a, b = (consistency.dispersion(consistency.squared_distances(x), range(20)) for x in pair)
        p_values.append(intervals.sign_flip_test(a[1] - b[1], resamples=300, seed=trial))
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1
    assert 0.12 <= np.mean(np.array(p_values) < 0.2) <= 0.28


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


@settings(max_examples=40, **STEADY)
@given(seeds)
def test_warped_distance_is_symmetric_and_zero_to_itself(seed):
    paths = np.stack([wandering(seed + k, 25) for k in range(3)])
    warped, _ = consistency.warped_distances(paths, paths)
    back, _ = consistency.warped_distances(paths[::-1].copy(), paths[::-1].copy())
    assert warped == pytest.approx(back[::-1, ::-1], rel=1e-6, abs=1e-12)
    assert np.all(np.diag(warped) == 0)
    assert np.all(warped <= consistency.squared_distances(paths) + 1e-12)


def test_conditional_action_variance_sees_contradiction_but_not_a_feedback_law():
    rng = np.random.default_rng(0)
    states = [rng.uniform(0, 0.1, (80, 3)) for _ in range(20)]
    law = [-2 * s for s in states]
    noisy = [a + rng.normal(0, 0.5, a.shape) for a in law]
    clean = consistency.conditional_action_variance(states, law, 8).mean()
    assert clean < 0.01
    dirty = consistency.conditional_action_variance(states, noisy, 8).mean()
    assert dirty == pytest.approx(3 * 0.5**2 + clean, rel=0.1)


def test_the_dimensionless_jerk_is_blind_to_speed_and_size_and_that_of_the_closed_form():
    slow, quick = minimum_jerk(20.0), minimum_jerk(10.0)
    found = smoothness.dimensionless_jerk(slow, 20)
    assert found == pytest.approx(np.sqrt(720), rel=1e-2)
    assert smoothness.dimensionless_jerk(quick, 20) == pytest.approx(found, rel=2e-2)
    assert smoothness.dimensionless_jerk(3 * slow, 20) == pytest.approx(found)
    assert np.isnan(smoothness.dimensionless_jerk(np.zeros((9, 3)), 20))


def test_a_trajectory_that_dwells_near_a_state_is_one_neighbour_and_not_ten():
    at = [np.zeros((1, 1)), np.zeros((10, 1)), np.full((1, 1), 0.1), np.full((1, 1), 0.2)]
    commands = [7.0, 1.0, 3.0, 5.0]
    actions = [np.full((len(s), 1), a) for s, a in zip(at, commands)]
    found = consistency.conditional_action_variance(at, actions, 3)
    # By hand: the first meets actions {1, 3, 5}, the one that dwells {7, 3, 5}: variance 4 each;
    # the others {7, 1, 5} and {7, 1, 3}: 28/3. Ten steps of the dwelling one would say 0.
    assert found == pytest.approx([4, 4, 28 / 3, 28 / 3])


def test_more_neighbours_than_other_trajectories_are_refused_however_long_they_are():
    states = [np.zeros((100, 3))] * 3
    with pytest.raises(UserError, match="only 2 others"):
        consistency.conditional_action_variance(states, states, 3)


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
