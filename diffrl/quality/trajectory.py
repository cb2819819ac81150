"""What quality is measured on: one end-effector trajectory with its actions, from any HDF5 file."""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from diffrl.data.hdf5 import read_episodes
from diffrl.data.layout import DAMAGE
from diffrl.data.safety import own_group, read_array
from diffrl.errors import UserError

ROBOSUITE = 1  # robomimic's number of that kind of environment
MIN_SAMPLES = 4  # a third difference needs four positions
ACTION_SIZE = 7

# Panda, modified Denavit-Hartenberg: a (m), d (m), alpha (rad) of joints 1-7 (Franka's manual).
_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = np.pi / 2 * np.array((0, -1, 1, 1, -1, 1, 1))
_TOOL = 0.2035  # m along the flange axis to robosuite's grip site
_TOOL_ANGLE = -np.pi / 4  # rad about it, robosuite's mount of the hand
_BASE = (-0.6, 0.0, 0.0)  # m, robot base in a table-top arena; measures ignore a translation

# Arrays of files that are neither LIBERO's nor ours: robomimic's names, then plain ones.
_POSITION = ("obs/robot0_eef_pos", "obs/eef_pos", "eef_pos")  # (N, 3) m
_NO_ATTRIBUTES = """it stores LIBERO's states without LIBERO's attributes, as the sets that were
 replayed for OpenVLA ("no_noops"). There the idle steps are cut out, so differences over time mean
 nothing: measure the original files."""
_QUATERNION = ("obs/robot0_eef_quat", "obs/eef_quat", "eef_quat")  # (N, 4) xyzw
_JOINTS = ("obs/robot0_joint_pos", "obs/joint_pos", "joint_pos")  # (N, 7) rad
_TIME = ("obs/timestamp", "timestamp", "timestamps", "time")  # (N,) s
_GRIPPER = ("obs/robot0_gripper_qpos", "obs/gripper_qpos", "gripper_qpos")  # (N, 2) m


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One successful (or failed) run, as arrays at an even rate.

    position (N, 3) m: end-effector, N = T or T+1; actions (T, 7) in [-1, 1], the last the gripper;
    rate Hz; quaternion (N, 4) xyzw; opening (N,) m between the fingers; objects (N, K, 3) m.
    Raises UserError when an array is too short, not finite, or of another shape; `label` names it.
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
    success: bool = True
    label: str = "trajectory"

    def __post_init__(self):
        n, steps = len(self.position), len(self.actions)
        if n < MIN_SAMPLES:
            raise UserError(
                f"{self.label}: {n} positions; jerk is a third difference and needs at least "
                f"{MIN_SAMPLES}. Leave this episode out."
            )
        if self.position.shape != (n, 3) or n - steps not in (0, 1):
            raise UserError(
                f"{self.label}: positions {self.position.shape} do not belong to {steps} actions; "
                "expected (T, 3) or (T+1, 3)."
            )
        if self.actions.shape != (steps, ACTION_SIZE):
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
    def arm(self) -> tuple[str, str]:
        """(source, mode): what a comparison holds against another."""
        return self.source, self.mode

    @classmethod
    def from_episode(cls, episode, label: str = "episode") -> "Trajectory":
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


def control_rate(time, label: str) -> float:
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


def panda_forward_kinematics(joints):
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


def read_trajectories(path, *, rate: float | None = None, source: str | None = None):
    """Read every demonstration of an HDF5 file: ours, LIBERO's, its raw collector's, or arrays.

    "Arrays" are groups ``demo*``, at the top or under ``data``, with actions and an end-effector
    position or joints, named as in robomimic or plainly. `source` replaces what the file says;
    `rate` (Hz) is for arrays that do not say theirs. Returns a list of Trajectory.
    Raises UserError, with the file's name, for anything that cannot be measured.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    try:
        with h5py.File(path, "r") as file:
            group = own_group(file, "data", path) if "data" in file else file
            demos = sorted((k for k in group if k.startswith("demo")), key=lambda k: (len(k), k))
            for name in demos:
                own_group(group, name, path)
            if not demos:
                raise UserError(f"{path}: holds no demonstrations (data/demo_0, …).")
            states = "states" in group[demos[0]]
            plain = not states or _array(group[demos[0]], _POSITION, path) is not None
            if not plain and not len(group.attrs):
                raise UserError(f"{path}: {' '.join(_NO_ATTRIBUTES.split())}")
            found = [_from_arrays(group, k, path, rate) for k in demos] if plain else None
    except DAMAGE as error:
        raise UserError(
            f"{path}: cannot be read as HDF5 of demonstrations ({error}). Is the path right, the "
            "file complete?"
        ) from error
    if found is None:
        pairs = enumerate(read_episodes(path))
        found = [Trajectory.from_episode(e, f"{path.name}, episode {i}") for i, e in pairs]
    found = _one_rate(found)
    return [replace(t, source=source) for t in found] if source else found


def _one_rate(found: list[Trajectory]) -> list[Trajectory]:
    """One rate for a file whose clocks differ by a hair, as those of real time and float32 do."""
    rates = np.array([t.rate for t in found])
    middle = float(np.median(rates))
    if len(set(rates)) == 1 or np.abs(rates / middle - 1).max() > 0.02:
        return found
    return [replace(t, rate=float(f"{middle:.3g}")) for t in found]


def _from_arrays(group, name, path, rate) -> Trajectory:
    demo, label = group[name], f"{path.name}, {name}"
    attrs = {**group.attrs, **demo.attrs}
    actions = _array(demo, ("actions",), path)
    if actions is None:
        raise UserError(f"{label}: no actions; is this a demonstration file?")
    position, quaternion = _array(demo, _POSITION, path), _array(demo, _QUATERNION, path)
    joints, gripper = _array(demo, _JOINTS, path), _array(demo, _GRIPPER, path)
    if joints is not None and joints.shape[1:] != (7,):
        raise UserError(f"{label}: joints {joints.shape}; expected (N, 7), the Panda's.")
    if gripper is not None and gripper.ndim == 1:
        gripper = gripper[:, None]
    if joints is not None and (position is None or quaternion is None):
        computed = panda_forward_kinematics(joints)
        position = computed[0] if position is None else position
        quaternion = computed[1] if quaternion is None else quaternion
    if position is None:
        raise UserError(
            f"{label}: no end-effector position ({', '.join(_POSITION)}), and no joints from which "
            f"to compute it ({', '.join(_JOINTS)}). Store one of them."
        )
    time, states = _array(demo, _TIME, path), _array(demo, ("states",), path)
    flat = states is not None and states.ndim == 2 and states.shape[1] > 0
    if time is None and flat and _env_args(attrs).get("type") == ROBOSUITE:
        time = states[:, 0]  # robosuite's flat state begins with it
    told = None if time is None else control_rate(time.ravel(), label)
    stem = path.stem.removesuffix("_demo")
    return Trajectory(
        position=position,
        actions=actions,
        rate=rate or _stated_rate(attrs, label, told),
        quaternion=quaternion,
        opening=None if gripper is None else np.abs(gripper).sum(axis=1),
        task=str(attrs.get("task") or _env_args(attrs).get("env_name") or stem),
        source=str(attrs.get("source", path.stem)),
        start_state=f"{path.parent.name}/{path.stem}/{name}",  # another file's is another
        success=_succeeded(attrs, _array(demo, ("rewards",), path)),
        label=label,
    )


def _succeeded(attrs, rewards) -> bool:
    """What the file says, or its rewards if they are 0 and 1; assumed where nothing tells."""
    if "success" in attrs:
        return str(attrs["success"]).lower() in ("true", "1", "1.0")
    sparse = rewards is not None and np.isin(rewards, (0.0, 1.0)).all()
    return bool(rewards.any()) if sparse else True


def _env_args(attrs) -> dict:
    """robomimic's description of the environment, if there is one."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = json.loads(attrs["env_args"])
        return found if isinstance(found, dict) else {}
    return {}


def _stated_rate(attrs, label, told: float | None) -> float:
    """The rate that the file says, else that of its time stamps, `told`; they must agree."""
    stated = None
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        stated = float(_env_args(attrs)["env_kwargs"]["control_freq"])
    if "control_freq_hz" in attrs:
        stated = float(attrs["control_freq_hz"])
    if told is not None and not 1 <= told <= 1000:
        raise UserError(
            f"{label}: its time stamps rise {told:g} times a second. Are they in seconds? Say the "
            "rate: --rate 20 (LIBERO's)."
        )
    if stated and told and abs(told / stated - 1) > 0.1:
        raise UserError(
            f"{label}: it says {stated:g} Hz, but its time stamps rise at {told:g} Hz. Say which: "
            "--rate 20 (LIBERO's)."
        )
    if stated or told:
        return stated or told
    raise UserError(f"{label}: it does not say its control rate. Pass it: --rate 20 (LIBERO's).")


def _array(demo, names, path):
    """The first of these arrays that is there, as float64."""
    arrays = (read_array(demo, name, path) for name in names)
    return next((array for array in arrays if array is not None), None)
