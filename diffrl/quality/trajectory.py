"""What quality is measured on: one end-effector trajectory with its actions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from diffrl.base.arm import Arm
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.data.episode import Episode

MIN_SAMPLES = 4  # a third difference needs four positions

# Panda, modified Denavit-Hartenberg: a (m), d (m), alpha (rad) of joints 1-7 (Franka's manual).
_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = np.pi / 2 * np.array((0, -1, 1, 1, -1, 1, 1))
_TOOL = 0.2035  # m along the flange axis to robosuite's grip site
_TOOL_ANGLE = -np.pi / 4  # rad about it, robosuite's mount of the hand
_BASE = (-0.6, 0.0, 0.0)  # m, robot base in a table-top arena; measures ignore a translation


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run, as arrays at an even rate.

    position (N, 3) m: end-effector, N = T or T+1; actions (T, 7) in [-1, 1], the last the gripper,
    or (T, 0) where a file's actions are no such commands: then their measures are left out;
    rate Hz; quaternion (N, 4) xyzw; opening (N,) m between the fingers; objects (N, K, 3) m;
    success None where the file does not tell; grips whether the sign of the gripper's command means
    open or close; row t was seen before action t + late, where late is 1 in LIBERO's own files.
    Raises UserError when an array is too short, not finite, or of another shape; `label` names it.

    >>> line = np.linspace([0, 0, 0], [0.3, 0, 0.4], 21)  # half a metre in one second
    >>> trajectory = Trajectory(line, np.zeros((20, 7)), rate=20)
    >>> from diffrl.quality.smoothness import trajectory_measures
    >>> measures = trajectory_measures(trajectory)
    >>> round(measures["path_length"], 6), measures["steps"]
    (0.5, 20.0)
    """

    position: np.ndarray
    actions: np.ndarray
    rate: float
    quaternion: np.ndarray | None = None
    opening: np.ndarray | None = None
    objects: np.ndarray | None = None
    task: str = "task"
    source: str = "unknown"
    mode: str = "recorded"
    start_state: str = ""
    success: bool | None = True
    label: str = "trajectory"
    grips: bool = True
    late: int = 0

    def __post_init__(self) -> None:
        n, steps = len(self.position), len(self.actions)
        enough_samples(n, self.label)
        if self.position.shape != (n, 3) or n - steps not in (0, 1):
            raise UserError(
                f"{self.label}: positions {self.position.shape} do not belong to {steps} actions; "
                "expected (T, 3) or (T+1, 3)."
            )
        if self.actions.shape not in ((steps, ACTION_SIZE), (steps, 0)):
            raise UserError(
                f"{self.label}: actions {self.actions.shape}; expected ({steps}, {ACTION_SIZE}): "
                "six motion commands and the gripper, in [-1, 1]."
            )
        for name, shape in (("quaternion", (n, 4)), ("opening", (n,))):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise UserError(f"{self.label}: {name} {array.shape}; expected {shape}.")
        if self.quaternion is not None and not self.quaternion.any(axis=1).all():
            raise UserError(f"{self.label}: a quaternion is zero, which is no orientation.")
        if not (np.isfinite(self.rate) and self.rate > 0):
            raise UserError(f"{self.label}: control rate {self.rate} Hz; expected more than 0.")
        for name in ("position", "actions", "quaternion", "opening", "objects"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array))[0][0])
                raise UserError(
                    f"{self.label}: {name} holds NaN or infinity, first at step {row}. Repair or "
                    "leave out this episode; interpolating would invent smoothness."
                )

    @property
    def arm(self) -> Arm:
        """What a comparison holds against another."""
        return Arm(self.source, self.mode)

    @property
    def has_commands(self) -> bool:
        """Whether its actions are LIBERO's commands, so that measures of actions are defined."""
        return bool(self.actions.shape[1] > 0)

    @classmethod
    def from_episode(cls, episode: Episode, label: str = "episode") -> "Trajectory":
        """A trajectory out of a `diffrl.data.episode.Episode`.

        Without observations (LIBERO's raw collector) the end-effector is computed from the joints.
        """
        seen, states = episode.observations, episode.states
        position, quaternion = seen.get("eef_pos"), seen.get("eef_quat")
        if position is None or quaternion is None:
            position, quaternion = panda_forward_kinematics(states[:, 1:8])  # qpos, arm first
        gripper = seen.get("gripper_qpos", states[:, 8:10])
        return cls(
            position=position,
            actions=episode.actions,
            rate=control_rate(states[:, 0], label),
            quaternion=quaternion,
            opening=np.abs(gripper).sum(axis=1),
            objects=seen.get("object_pos"),
            task=episode.task,
            source=episode.source,
            mode=episode.mode,
            start_state=episode.start_state or label,
            success=episode.success,
            label=label,
        )


def enough_samples(count: int, label: str) -> None:
    """Raise UserError unless `count` positions suffice for a third difference."""
    if count < MIN_SAMPLES:
        raise UserError(
            f"{label}: {count} positions; jerk is a third difference and needs at least "
            f"{MIN_SAMPLES}. Leave this episode out."
        )


def control_rate(time: ArrayLike, label: str) -> float:
    """Rate (Hz) of the time stamps (N,) s. Raises UserError when they are not even and rising."""
    steps = np.diff(np.asarray(time, float))
    if len(steps) == 0 or not np.isfinite(steps).all() or steps.min() <= 0:
        raise UserError(
            f"{label}: time does not rise at every step. Were episodes concatenated, or frames "
            "stored twice? Split or repair them first."
        )
    if steps.max() > 1.5 * steps.min():
        raise UserError(
            f"{label}: time steps from {steps.min():.4g} to {steps.max():.4g} s. Differences need "
            "an even rate: resample, or measure the recording from before frames were cut."
        )
    return float(np.round(1 / np.mean(steps), 6))


def panda_forward_kinematics(joints: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Grip-site pose of the Panda: joints (N, 7) rad → position (N, 3) m, quaternion (N, 4) xyzw.

    Craig's modified Denavit-Hartenberg transforms; base as in LIBERO's table-top scenes.
    """
    joints = np.asarray(joints, float)
    rotation, position = np.eye(3), np.tile(np.array(_BASE), (len(joints), 1))
    for a, d, alpha, angle in zip(_A, _D, _ALPHA, joints.T, strict=True):
        position = position + rotation @ np.array([a, -d * np.sin(alpha), d * np.cos(alpha)])
        twist = Rotation.from_euler("x", alpha).as_matrix()
        turn = Rotation.from_euler("z", angle[:, None]).as_matrix()  # (N, 3, 3)
        rotation = rotation @ twist @ turn
    position = position + rotation @ np.array([0, 0, _TOOL])
    mount = Rotation.from_euler("z", _TOOL_ANGLE)
    return position, (Rotation.from_matrix(rotation) * mount).as_quat()
