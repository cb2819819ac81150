"""Measures of one trajectory: pure functions on arrays, no loop over time.

Derivatives are finite differences at the control rate: at 20 Hz a third difference multiplies
position noise by 8000, so compare trajectories of one rate only, and never filtered with raw ones.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diffrl.quality.trajectory import Trajectory

Floats = NDArray[np.floating]

_MOTION = slice(0, 6)  # translation and rotation commands; the seventh is the gripper


def jerk(position: Floats, rate: float) -> Floats:
    """|d³x/dt³|, third differences: position (N, 3) m at rate Hz → (N-3,) m/s³."""
    size: Floats = np.linalg.norm(np.diff(position, 3, axis=0), axis=1)
    return size * rate**3


def speed_profile(position: Floats, rate: float) -> Floats:
    """|dx/dt|: position (N, 3) m at rate Hz → (N-1,) m/s."""
    step: Floats = np.linalg.norm(np.diff(position, axis=0), axis=1)
    return step * rate


def angular_jerk(quaternion: Floats, rate: float) -> Floats:
    """|d²ω/dt²| with ω the angular velocity in the world frame.

    quaternion (N, 4) xyzw, either sign → (N-3,) rad/s³.
    """
    rotation = Rotation.from_quat(quaternion)
    velocity = (rotation[1:] * rotation[:-1].inv()).as_rotvec() * rate  # (N-1, 3) rad/s
    size: Floats = np.linalg.norm(np.diff(velocity, 2, axis=0), axis=1)
    return size * rate**2


def ldlj(speed: Floats, rate: float) -> float:
    """Log dimensionless jerk of a speed profile; larger (closer to 0) is smoother.

    -ln( T³ / v_peak² · ∫ (d²v/dt²)² dt ), Balasubramanian et al. 2012 and 2015, the authors' own
    discretisation (T = samples / rate). speed (N,) m/s. NaN for a still trajectory.
    """
    peak = np.max(np.abs(speed), initial=0.0)
    if peak == 0 or len(speed) < 3:
        return np.nan
    squared = np.sum(np.diff(speed, 2) ** 2) * rate**3  # ∫ … dt
    return _minus_log((len(speed) / rate) ** 3 / peak**2 * squared)


def ldlj_cartesian(position: Floats, rate: float) -> float:
    """Log dimensionless jerk of a 3-D path: the jerk is a vector, so turning counts as well.

    -ln( T³ / v_peak² · ∫ |d³x/dt³|² dt ), Hogan & Sternad 2009; T = (N-1) / rate, the integral is
    the mean times T. position (N, 3) m. For a straight line it converges to `ldlj` of its speed.
    """
    peak = np.max(speed_profile(position, rate), initial=0.0)
    if peak == 0:
        return np.nan
    duration = (len(position) - 1) / rate
    return _minus_log(duration**4 / peak**2 * np.mean(jerk(position, rate) ** 2))


def dimensionless_jerk(position: Floats, rate: float) -> float:
    """RMS jerk · T³ / L: jerk of the same movement brought to one duration and one length.

    What is left when nothing but the speed differs is equal (Hogan & Sternad 2009, their measure
    with the length L of the path in place of the amplitude: our choice). position (N, 3) m; T =
    (N-1) / rate. NaN for a still trajectory.
    """
    length = path_length(position)
    duration = (len(position) - 1) / rate
    return float(_rms(jerk(position, rate)) * duration**3 / length) if length > 0 else np.nan


def sparc(
    speed: Floats, rate: float, *, padding: int = 4, cutoff: float = 10.0, threshold: float = 0.05
) -> float:
    """Spectral arc length of a speed profile; ≤ 0, closer to 0 is smoother.

    Arc length of the normalised magnitude spectrum up to the last frequency below `cutoff` (Hz)
    whose magnitude reaches `threshold` (Balasubramanian et al. 2015, its constants). The signal is
    zero-padded to 2^padding times the next power of two. speed (N,) m/s. NaN for a still one.
    """
    if not np.any(speed):
        return np.nan
    size = 2 ** (int(np.ceil(np.log2(len(speed)))) + padding)
    magnitude = np.abs(np.fft.rfft(speed, size))
    magnitude = magnitude[: int(np.floor(cutoff * size / rate + 1e-9)) + 1] / magnitude.max()
    above = np.flatnonzero(magnitude >= threshold)
    magnitude = magnitude[above[0] : above[-1] + 1]
    return -float(np.sum(np.hypot(1 / (len(magnitude) - 1), np.diff(magnitude))))


def action_change(actions: Floats) -> float:
    """Mean |a_t - a_{t-1}| of the six motion commands: actions (T, 7) → share of full command."""
    return float(np.mean(np.abs(np.diff(actions[:, _MOTION], axis=0))))


def boundary_share(actions: Floats, chunk: int) -> float:
    """Share of Σ|a_t - a_{t-1}|² that falls where one executed chunk meets the next.

    actions (T, 7) from decisions of `chunk` steps. Even motion has 1 / chunk.
    """
    squared = np.sum(np.diff(actions[:, _MOTION], axis=0) ** 2, axis=1)  # (T-1,)
    total = squared.sum()
    return float(squared[chunk - 1 :: chunk].sum() / total) if total > 0 else np.nan


def path_length(position: Floats) -> float:
    """Length of the path: position (N, 3) m → m."""
    return float(np.sum(np.linalg.norm(np.diff(position, axis=0), axis=1)))


def path_ratio(position: Floats) -> float:
    """Path length over the straight line from first to last position; ≥ 1. NaN if they coincide."""
    straight = np.linalg.norm(position[-1] - position[0])
    return float(path_length(position) / straight) if straight > 0 else np.nan


def idle_share(actions: Floats, tolerance: float = 1e-4) -> float:
    """Share of steps that command nothing: motion below `tolerance`, gripper as before.

    The no-op of OpenVLA's data preparation. actions (T, 7); the first step has no "before".
    """
    still = np.linalg.norm(actions[1:, _MOTION], axis=1) < tolerance
    return float(np.mean(still & (actions[1:, 6] == actions[:-1, 6])))


def still_share(position: Floats, rate: float, threshold: float = 0.01) -> float:
    """Share of time with the end-effector slower than `threshold` (m/s, our choice): 1 cm/s.

    A policy never commands exactly nothing, so `idle_share` alone cannot show that it waits.
    """
    return float(np.mean(speed_profile(position, rate) < threshold))


def gripper_switches(actions: Floats) -> int:
    """How often the gripper command changes sign: actions (T, 7); 1 is a grasp, 2 a release too."""
    sign = np.sign(actions[:, 6])
    return int(np.count_nonzero(np.diff(sign[sign != 0])))


def trajectory_measures(trajectory: Trajectory) -> dict[str, float]:
    """All measures of one trajectory, name → value (units: `diffrl.quality.MEASURES`).

    NaN marks what is undefined (a still trajectory, no orientation or no commands stored).
    """
    position, actions, rate = trajectory.position, trajectory.actions, trajectory.rate
    speed, third = speed_profile(position, rate), jerk(position, rate)
    commands = trajectory.has_commands
    turning = np.nan
    if trajectory.quaternion is not None:
        turning = _rms(angular_jerk(trajectory.quaternion, rate))
    return {
        "jerk_rms": _rms(third),
        "jerk_mean": float(third.mean()),
        "angular_jerk_rms": turning,
        "ldlj": ldlj(speed, rate),
        "ldlj_cartesian": ldlj_cartesian(position, rate),
        "sparc": sparc(speed, rate),
        "dimensionless_jerk": dimensionless_jerk(position, rate),
        "action_change": action_change(actions) if commands else np.nan,
        "path_length": path_length(position),
        "path_ratio": path_ratio(position),
        "steps": float(len(actions)),
        "idle_share": idle_share(actions) if commands else np.nan,
        "still_share": still_share(position, rate),
        "gripper_switches": float(gripper_switches(actions))
        if commands and trajectory.grips
        else np.nan,
    }


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _minus_log(value: float | np.floating) -> float:
    return float(-np.log(value)) if value > 0 else np.inf  # no jerk at all: infinitely smooth
