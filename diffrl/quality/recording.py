"""One demonstration of a file that is not ours: which of its arrays are what quality measures.

Arrays are found by the names that LIBERO, its raw collector, robosuite, robomimic and plain
recordings use. Images, depth, masks, groups of states and whatever else a file holds stay unread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import h5py
import numpy as np

from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.data.demo import quaternions
from diffrl.data.integrity import find_array, own_group
from diffrl.quality.description import Description, agreed_rate, describe
from diffrl.quality.trajectory import (
    Trajectory,
    control_rate,
    enough_samples,
    panda_forward_kinematics,
)

MAX_ROWS = 1_000_000  # of one demonstration: 14 hours at 20 Hz; more is no demonstration
_REACH = 10.0  # m; no arm moves so far, so larger paths are not in metres
_SAME_HAND = 0.01  # m, between the stored path and the Panda's, up to a translation

# (name, width, columns) of arrays with one row a step; None as width: any. robomimic's names first,
# then plain ones, then LIBERO's.
_POSITION = (
    *((name, 3, slice(3)) for name in ("obs/robot0_eef_pos", "obs/eef_pos", "eef_pos")),
    *((name, 3, slice(3)) for name in ("obs/ee_pos", "ee_pos")),
    ("obs/ee_states", 6, slice(3)),
    ("robot_states", 9, slice(2, 5)),
)  # m
_QUATERNION = (
    *((name, 4, slice(4)) for name in ("obs/robot0_eef_quat", "obs/eef_quat", "eef_quat")),
    ("robot_states", 9, slice(5, 9)),
)  # xyzw
_AXIS_ANGLE = (("obs/ee_ori", 3, slice(3)), ("obs/ee_states", 6, slice(3, 6)))  # rad
_JOINTS = tuple(
    (name, None, slice(None))
    for name in ("obs/robot0_joint_pos", "obs/joint_pos", "joint_pos", "obs/joint_states")
)  # rad
_GRIPPER = (
    *((name, None, slice(None)) for name in ("obs/robot0_gripper_qpos", "obs/gripper_qpos")),
    *((name, None, slice(None)) for name in ("gripper_qpos", "obs/gripper_states")),
    ("robot_states", 9, slice(2)),
)  # m
_TIME = tuple(
    (name, None, slice(None)) for name in ("obs/timestamp", "timestamp", "timestamps", "time")
)  # s
_ARM, _FINGERS = slice(1, 8), slice(8, 10)  # of robosuite's flat states: time, arm, gripper, …


@dataclass(frozen=True)
class Recording:
    """One demonstration as its file stores it; `trajectory` still without actions and success."""

    trajectory: Trajectory
    actions: np.ndarray  # (T, any width), as stored
    description: Description
    rewards: np.ndarray | None
    dones: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays in memory."""
        arrays = (*vars(self.trajectory).values(), self.actions, self.rewards, self.dones)
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def read_recording(
    data: h5py.Group,
    key: str,
    path: Path,
    name: str,
    rate: float | None,
    tell: Callable[[str], object],
) -> Recording:
    """Read the demonstration `key` of an open file; arguments as in `read_trajectories`.

    Raises:
        UserError: it cannot be measured; the message names the file, the demonstration and why.
    """
    demo, label = own_group(data, key, path), f"{path}, {key}"
    description = describe(data, demo, path)
    stored = _array(demo, (("actions", None, slice(None)),), path)
    states = _flat_states(demo, path) if description.is_robosuite else None
    position, quaternion, from_states = _pose(demo, description, states, path, label, tell)
    enough_samples(len(position), label)
    actions = np.zeros((len(position), 0)) if stored is None else stored
    told = _told_rate(demo, path, states, len(position), from_states, label, tell)
    trajectory = Trajectory(
        position=position,
        actions=actions if actions.shape[1] == ACTION_SIZE else actions[:, :0],
        rate=agreed_rate(description.stated_rates, told, rate, label),
        quaternion=quaternion,
        opening=_opening(demo, path, states, description),
        task=description.task(path, data),
        source=description.source(name),
        start_state=f"{name}/{key}",  # another file's is another
        label=label,
        late=1 if description.observes_late and not from_states else 0,
    )
    rewards, dones = (_array(demo, ((k, 1, slice(1)),), path) for k in ("rewards", "dones"))
    return Recording(trajectory, actions, description, rewards, dones)


def _pose(
    demo: h5py.Group,
    description: Description,
    states: np.ndarray | None,
    path: Path,
    label: str,
    tell: Callable[[str], object],
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Position (N, 3) m, quaternion (N, 4) or None, and whether both are of the flat states."""
    position, quaternion = _array(demo, _POSITION, path), _array(demo, _QUATERNION, path)
    if quaternion is None and (turns := _array(demo, _AXIS_ANGLE, path)) is not None:
        quaternion = quaternions(turns)
    if quaternion is not None and description.environment.startswith("Isaac"):
        quaternion = None
        tell("the order of Isaac's quaternions differs by version: no angular jerk is measured.")
    joints = _array(demo, _JOINTS, path)
    panda = description.robot == "Panda"
    of_states = False
    if position is None and joints is None and panda and _holds_arm(states):
        joints, of_states = states[:, _ARM], True
    if position is None and (joints is None or not _is_panda(joints, description)):
        raise UserError(_no_position(demo, joints, description, path, label))
    if joints is not None and _is_panda(joints, description):
        computed, turned = panda_forward_kinematics(joints)
        if position is None and not panda:
            tell("it names no robot; its positions are computed from the joints as a Panda's.")
        position = computed if position is None else position
        if quaternion is None and _same_path(computed, position):
            quaternion = turned
    assert position is not None  # it is stored, or was computed
    if np.ptp(position, axis=0).max(initial=0) > _REACH:
        raise UserError(
            f"{label}: its positions span {np.ptp(position, axis=0).max():.4g}. Are they in "
            "metres? Store metres."
        )
    return position, quaternion, of_states


def _holds_arm(states: np.ndarray | None) -> TypeGuard[np.ndarray]:
    return states is not None and bool(states.shape[1] == _FINGERS.stop)


def _is_panda(joints: np.ndarray, description: Description) -> bool:
    return bool(joints.shape[1] == 7) and description.robot in (None, "Panda")


def _same_path(computed: np.ndarray, position: np.ndarray) -> bool:
    """Whether the Panda's kinematics put the hand where the file has it, up to a translation."""
    if computed.shape != position.shape:
        return False
    offset = computed - position
    return bool(np.abs(offset - offset.mean(axis=0)).max() < _SAME_HAND)


def _no_position(
    demo: h5py.Group, joints: np.ndarray | None, description: Description, path: Path, label: str
) -> str:
    """Why there is no position, in words."""
    names = ", ".join(name for name, *_ in _POSITION)
    why = f"no end-effector position ({names})"
    for name, width, _ in _POSITION:
        if (item := find_array(demo, name, path)) is not None:
            why = f"{name} {item.shape}; expected (N, {width})"
            break
    if joints is None:
        names = ", ".join(name for name, *_ in _JOINTS)
        why += f", and no joints from which to compute it ({names})"
        if "states" in demo:
            why += "; nothing says that its states are a Panda's in robosuite"
    elif joints.shape[1] != 7:
        why += f", and joints {joints.shape}; expected (N, 7), the Panda's"
    else:
        why += f", and its robot is {description.robot}; only the Panda's kinematics are known"
    return f"{label}: {why}. Store the position."


def _opening(
    demo: h5py.Group, path: Path, states: np.ndarray | None, description: Description
) -> np.ndarray | None:
    """The distance (N,) m between two fingers; None for other hands."""
    fingers = _array(demo, _GRIPPER, path)
    if fingers is None and _holds_arm(states) and description.robot == "Panda":
        fingers = states[:, _FINGERS]
    if fingers is None or fingers.shape[1] > 2:
        return None
    opening: np.ndarray = np.abs(fingers).sum(axis=1)
    return opening


def _told_rate(
    demo: h5py.Group,
    path: Path,
    states: np.ndarray | None,
    rows: int,
    from_states: bool,
    label: str,
    tell: Callable[[str], object],
) -> float | None:
    """The rate (Hz) of the time stamps, or of the time in robosuite's states; None without any."""
    time = _array(demo, _TIME, path)
    if time is None and states is not None:
        time = states[:, :1]
        steps = np.diff(time[:, 0])
        if not from_states and len(steps) > 2 and steps[0] > 1.5 * steps[1] > 0:
            # Rollouts regenerated from a start state (OpenVLA's "no_noops") store that state, then
            # settle: the arm's positions were seen afterwards and are even.
            time = time[1:]
            tell("its first time step is longer: the settling of a regenerated rollout, left out.")
            rows -= 1
    if time is None:
        return None
    if abs(len(time) - rows) > 1:
        raise UserError(f"{label}: {len(time)} time stamps do not belong to {rows} positions.")
    return control_rate(time[:, 0], label)


def _flat_states(demo: h5py.Group, path: Path) -> np.ndarray | None:
    """Time, arm and gripper (N, ≤ 10) of robosuite's flat states; None for groups and others."""
    if isinstance(demo.get("states", getlink=True), h5py.HardLink) and isinstance(
        demo["states"], h5py.Group
    ):
        return None
    states = _array(demo, (("states", None, slice(_FINGERS.stop)),), path)
    return states if states is not None and states.shape[1] > 0 else None


def _array(
    demo: h5py.Group, columns: Sequence[tuple[str, int | None, slice]], path: Path
) -> np.ndarray | None:
    """The first of these `columns` (name, width, slice) that is there, (N, d) float64.

    Shapes are checked before anything is read.
    """
    for name, width, chosen in columns:
        item = find_array(demo, name, path)
        if item is None or item.ndim not in (1, 2):
            continue
        if width not in (None, item.shape[1] if item.ndim == 2 else 1):
            continue
        if len(item) > MAX_ROWS:
            raise UserError(
                f"{path}: {item.name.lstrip('/')}: {len(item)} rows, more than {MAX_ROWS}. Split "
                "the recording into demonstrations."
            )
        values = item[:, chosen] if item.ndim == 2 else item[()][:, None]
        return np.asarray(values, float)
    return None


# -- actions ---------------------------------------------------------------------------------------
def commands(
    stored: list[np.ndarray], description: Description, path: Path, tell: Callable[[str], object]
) -> tuple[list[np.ndarray], bool]:
    """Return the actions of a file as LIBERO's commands, (T, 7) in [-1, 1] – or all as (T, 0).

    And whether the seventh is known to open and close the gripper.

    They are clipped where the file names the controller that does so. Whatever else is not plainly
    a command is left out, and a note says so: measures in other units would look like LIBERO's.
    """
    clips = description.clips()
    widths = sorted({actions.shape[1] for actions in stored})
    beyond = [float(np.abs(a).max(initial=0)) for a in stored]
    far = sum(peak > 1 + 1e-6 for peak in beyond)
    why = ""
    if widths == [0]:
        why = "it stores no actions"
    elif widths != [ACTION_SIZE]:
        why = f"its actions have {' or '.join(map(str, widths))} numbers, not {ACTION_SIZE}"
    elif clips is False:
        why = "its controller is not robosuite's OSC_POSE with relative goals in [-1, 1]"
    elif far and clips is None:
        why = f"its actions reach {max(beyond):.4g}, beyond [-1, 1], and it names no controller"
    if why:
        tell(f"{path}: {why}: measures of actions are left out.")
        return [actions[:, :0] for actions in stored], False
    if far:
        tell(
            f"{path}: actions of {far} of {len(stored)} episodes leave [-1, 1] (up to "
            f"{max(beyond):.4g}) and are clipped, as robosuite's OSC_POSE does."
        )
    elif clips is None:
        tell(f"{path}: it names no controller; its actions, all in [-1, 1], are taken as commands.")
    return _signed_gripper([np.clip(actions, -1, 1) for actions in stored], path, tell)


def _signed_gripper(
    found: list[np.ndarray], path: Path, tell: Callable[[str], object]
) -> tuple[list[np.ndarray], bool]:
    """Gripper commands that a file writes from 0 to 1 become those from -1 to 1."""
    values = np.concatenate([actions[:, 6] for actions in found])
    if values.min(initial=0) < 0:
        return found, True
    if values.min() < 0.5 < values.max():
        tell(f"{path}: its gripper commands lie between 0 and 1: read as from -1 to 1.")
        return [np.c_[actions[:, :6], 2 * actions[:, 6] - 1] for actions in found], True
    tell(
        f"{path}: its gripper commands, {values.min():.4g} to {values.max():.4g}, do not tell "
        "open from closed: gripper switches are left out."
    )
    return found, False
