"""From HDF5 files of demonstrations – anybody's – to trajectories.

A data set of ours is read by its own strict reader (seal, checksums). Of every other file only
what is measured is read, by the names that LIBERO, its raw collector, robosuite, robomimic and
plain recordings use; their other contents (images, depth, masks, groups of states) stay unread.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from diffrl.data import safety
from diffrl.data.episode import Episode
from diffrl.data.hdf5 import inspect_file
from diffrl.data.layout import DAMAGE, quaternions
from diffrl.data.safety import Finding, find_array, own_group
from diffrl.errors import UserError
from diffrl.quality.description import (
    Description,
    agreed_rate,
    describe,
    successes,
)
from diffrl.quality.trajectory import (
    ACTION_SIZE,
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


def tell_user(line: str) -> None:
    """Print one line beside the results."""
    print(f"Note: {line}", file=sys.stderr)


@dataclass(frozen=True)
class _Demo:
    """One demonstration as its file stores it; `trajectory` still without actions and success."""

    trajectory: Trajectory
    actions: np.ndarray  # (T, any width), as stored
    description: Description
    rewards: np.ndarray | None
    dones: np.ndarray | None


# -- files -----------------------------------------------------------------------------------------
def read_files(paths: list[Path], *, tell: Callable = tell_user, **options) -> list[Trajectory]:
    """Read several files; `options` are those of `read_trajectories`.

    Files of one name from different folders are different arms and start states, never pooled. The
    same file is read once. With ``skip_bad`` a file without one good episode is left out and told.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.resolve() in files:
            tell(f"{path} is {files[path.resolve()]}, which is measured already.")
        files.setdefault(path.resolve(), path)
    names = _distinct_names(list(files))
    found: dict[Path, list[Trajectory]] = {}
    refused = None
    for real, path in files.items():
        try:
            found[real] = read_trajectories(path, name=names[real], tell=tell, **options)
        except UserError as error:
            if not options.get("skip_bad"):
                raise
            tell(f"left out: {error}")
            refused = error
    if refused and not found:
        raise refused
    return [t for part in _separate_arms(found, names, tell).values() for t in part]


def _distinct_names(files: list[Path]) -> dict[Path, str]:
    """Folder and stem of each file, with as many folders as it takes to be the only one."""
    names = {}
    for file in files:
        for depth in range(2, len(file.parts) + 1):
            tail = file.parts[-depth:]
            if sum(other.parts[-depth:] == tail for other in files) == 1:
                break
        names[file] = Path(*tail).with_suffix("").as_posix()
    return names


def _separate_arms(found, names, tell) -> dict[Path, list[Trajectory]]:
    """Name the folder in the source wherever another file of the same name has the same arm."""
    arms = {file: {(t.arm, t.task) for t in part} for file, part in found.items()}
    separate = dict(found)
    for file, part in found.items():
        others = [f for f in found if f != file and f.name == file.name and arms[f] & arms[file]]
        if others:
            folder = names[file].rpartition("/")[0]
            separate[file] = [replace(t, source=f"{t.source} ({folder})") for t in part]
            tell(f"{file.name} is in several folders: that of {folder} is an arm of its own.")
    return separate


def read_trajectories(
    path,
    *,
    rate: float | None = None,
    source: str | None = None,
    skip_bad: bool = False,
    name: str | None = None,
    tell: Callable = tell_user,
) -> list[Trajectory]:
    """Read every demonstration of an HDF5 file: ours, LIBERO's, its raw collector's, or arrays.

    "Arrays" are groups ``demo*``, at the top or under ``data``, with an end-effector position or a
    Panda's joints, named as in robomimic, LIBERO or plainly.

    Args:
        path: the file.
        rate: control rate [Hz] of a file that does not say its own; it must not contradict it.
        source: replaces what the file says.
        skip_bad: leave out, and tell, episodes that cannot be measured.
        name: of a file that names no source; default: its folder and its stem.
        tell: gets a line for everything that is measured otherwise than a reader would expect.

    Raises:
        UserError: with the file's name, for anything that cannot be measured.
    """
    path = Path(path)
    name = name or Path(*path.resolve().parts[-2:]).with_suffix("").as_posix()
    try:
        ours = _is_ours(path)
        found = _ours(path, rate, skip_bad, tell) if ours else None
        found = found or _anybodys(path, name, rate, skip_bad, tell)
    except DAMAGE as error:
        raise UserError(
            f"{path}: cannot be read as HDF5 of demonstrations ({error}). Is the path right, the "
            "file complete?"
        ) from error
    _tell_success(found, path, tell)
    found = _one_rate(found)
    return [replace(t, source=source) for t in found] if source else found


def _is_ours(path: Path) -> bool:
    """Whether it is a data set of ours. Raises UserError when it is no HDF5 file at all."""
    foreign = not path.is_file() or not h5py.is_hdf5(path)
    for finding in safety.check_bytes(path) if foreign else ():
        raise UserError(str(finding))
    with h5py.File(path, "r") as file:
        data = own_group(file, "data", path) if "data" in file else file
        return "diffrl_format" in data.attrs


def _ours(path: Path, rate, skip_bad: bool, tell: Callable) -> list[Trajectory]:
    """Read a data set of ours: whole and sound, or with `skip_bad` its sound episodes."""
    found: list[Trajectory] = []
    first_problem = None
    for item in inspect_file(path):
        try:
            if isinstance(item, Finding):
                raise UserError(str(item))
            found.append(_from_ours(item, f"{path.name}, episode {len(found)}", rate))
        except UserError as error:
            if not skip_bad:
                raise
            tell(f"left out: {error}")
            first_problem = first_problem or error
    if not found:
        raise first_problem or UserError(f"{path}: holds no demonstrations (data/demo_0, …).")
    return found


def _from_ours(episode: Episode, label: str, rate: float | None) -> Trajectory:
    trajectory = Trajectory.from_episode(episode, label)
    return replace(trajectory, rate=agreed_rate(None, trajectory.rate, rate, label))


def _one_rate(found: list[Trajectory]) -> list[Trajectory]:
    """One rate for a file whose clocks differ by a hair, as those of real time and float32 do."""
    rates = np.array([t.rate for t in found])
    middle = float(np.median(rates))
    if len(set(rates)) == 1 or np.abs(rates / middle - 1).max() > 0.02:
        return found
    return [replace(t, rate=float(f"{middle:.3g}")) for t in found]


def _tell_success(found: list[Trajectory], path: Path, tell: Callable) -> None:
    count = len(found)
    if failed := sum(t.success is False for t in found):
        tell(f"{path}: {failed} of {count} episodes failed; quality is defined on successes.")
    if unknown := sum(t.success is None for t in found):
        tell(
            f"{path}: it does not tell whether {unknown} of {count} episodes succeeded (no "
            "attribute `success`, no sparse rewards, no telling `dones`); they are measured."
        )


# -- one file that is not ours ---------------------------------------------------------------------
def _anybodys(path: Path, name: str, rate, skip_bad: bool, tell: Callable) -> list[Trajectory]:
    demos: list[_Demo] = []
    first_problem = None
    once = _once(path, tell)
    with h5py.File(path, "r") as file:
        data = own_group(file, "data", path) if "data" in file else file
        keys = sorted((k for k in data if k.startswith("demo")), key=lambda k: (len(k), k))
        if not keys:
            held = ", ".join(sorted(data)[:5]) or "nothing"
            raise UserError(f"{path}: holds no demonstrations (data/demo_0, …) but {held}.")
        for key in keys:
            try:
                demos.append(_read_demo(data, key, path, name, rate, once))
            except (*DAMAGE, UserError) as error:
                problem = _named(error, path, key)
                if not skip_bad:
                    raise problem from error
                tell(f"left out: {problem}")
                first_problem = first_problem or problem
    if not demos:
        raise first_problem
    actions = _commands([d.actions for d in demos], demos[0].description, path, tell)
    success = successes(
        [d.description.success() for d in demos],
        [d.rewards for d in demos],
        [d.dones for d in demos],
    )
    return [
        replace(demo.trajectory, actions=commands, success=succeeded)
        for demo, commands, succeeded in zip(demos, actions, success)
    ]


def _once(path: Path, tell: Callable) -> Callable:
    """A `tell` that names the file and says the same of many episodes only once."""
    said = set()

    def speak(line: str) -> None:
        if line not in said:
            said.add(line)
            tell(f"{path}: {line}")

    return speak


def _named(error: Exception, path: Path, key: str) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{path}: {key}: it cannot be read ({error}). --skip-bad leaves it out.")


def _read_demo(data: h5py.Group, key: str, path: Path, name: str, rate, tell: Callable) -> _Demo:
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
        rate=agreed_rate(description.stated_rate(label), told, rate, label),
        quaternion=quaternion,
        opening=_opening(demo, path, states, description),
        task=description.task(path, data),
        source=description.source(name),
        start_state=f"{name}/{key}",  # another file's is another
        label=label,
    )
    rewards, dones = (_array(demo, ((k, 1, slice(1)),), path) for k in ("rewards", "dones"))
    return _Demo(trajectory, actions, description, rewards, dones)


def _pose(demo, description: Description, states, path, label, tell):
    """Position (N, 3) m, quaternion (N, 4) or None, and whether both are of the flat states."""
    position, quaternion = _array(demo, _POSITION, path), _array(demo, _QUATERNION, path)
    if quaternion is None and (turns := _array(demo, _AXIS_ANGLE, path)) is not None:
        quaternion = quaternions(turns)
    if quaternion is not None and description.environment.startswith("Isaac"):
        quaternion = None
        tell("the order of Isaac's quaternions differs by version: no angular jerk is measured.")
    joints = _array(demo, _JOINTS, path)
    of_states = position is None and joints is None and _holds_arm(states)
    joints = states[:, _ARM] if of_states else joints
    if position is None and (joints is None or not _is_panda(joints, description)):
        raise UserError(_no_position(demo, joints, description, path, label))
    if joints is not None and _is_panda(joints, description):
        computed, turned = panda_forward_kinematics(joints)
        position = computed if position is None else position
        if quaternion is None and _same_path(computed, position):
            quaternion = turned
    if np.ptp(position, axis=0).max(initial=0) > _REACH:
        raise UserError(
            f"{label}: its positions span {np.ptp(position, axis=0).max():.4g}. Are they in "
            "metres? Store metres."
        )
    return position, quaternion, of_states


def _holds_arm(states: np.ndarray | None) -> bool:
    return states is not None and states.shape[1] == _FINGERS.stop


def _is_panda(joints: np.ndarray, description: Description) -> bool:
    return joints.shape[1] == 7 and description.robot in (None, "Panda")


def _same_path(computed: np.ndarray, position: np.ndarray) -> bool:
    """Whether the Panda's kinematics put the hand where the file has it, up to a translation."""
    if computed.shape != position.shape:
        return False
    offset = computed - position
    return bool(np.abs(offset - offset.mean(axis=0)).max() < _SAME_HAND)


def _no_position(demo, joints, description: Description, path, label) -> str:
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


def _opening(demo, path, states, description: Description) -> np.ndarray | None:
    """The distance (N,) m between two fingers; None for other hands."""
    fingers = _array(demo, _GRIPPER, path)
    if fingers is None and _holds_arm(states) and description.robot == "Panda":
        fingers = states[:, _FINGERS]
    if fingers is None or fingers.shape[1] > 2:
        return None
    return np.abs(fingers).sum(axis=1)


def _told_rate(demo, path, states, rows: int, from_states: bool, label, tell) -> float | None:
    """The rate (Hz) of the time stamps, or of the time in robosuite's states; None without any."""
    time = _array(demo, _TIME, path)
    if time is None and states is not None:
        time = states[:, :1]
        steps = np.diff(time[:, 0])
        if not from_states and len(steps) > 2 and steps[0] > 1.5 * steps[1] > 0:
            # Rollouts regenerated from a start state (OpenVLA's "no_noops") store that state, then
            # settle: the arm's positions were seen afterwards and are even.
            time = time[1:]
            tell("the time before the first step is longer: taken as settling, as regenerated.")
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


def _array(demo: h5py.Group, columns, path: Path) -> np.ndarray | None:
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
def _commands(
    stored: list[np.ndarray], description: Description, path: Path, tell: Callable
) -> list[np.ndarray]:
    """Return the actions of a file as LIBERO's commands, (T, 7) in [-1, 1] – or all as (T, 0).

    They are clipped where the file names the controller that does so. Whatever else is not plainly
    a command is left out, and told: measures in other units would look like LIBERO's.
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
        return [actions[:, :0] for actions in stored]
    if far:
        tell(
            f"{path}: actions of {far} of {len(stored)} episodes leave [-1, 1] (up to "
            f"{max(beyond):.4g}) and are clipped, as robosuite's OSC_POSE does."
        )
    elif clips is None:
        tell(f"{path}: it names no controller; its actions, all in [-1, 1], are taken as commands.")
    return _signed_gripper([np.clip(actions, -1, 1) for actions in stored], path, tell)


def _signed_gripper(commands: list[np.ndarray], path: Path, tell: Callable) -> list[np.ndarray]:
    """Gripper commands that a file writes as 0 and 1 become -1 and 1."""
    values = {float(value) for actions in commands for value in np.unique(actions[:, 6])}
    if values != {0.0, 1.0}:
        return commands
    tell(f"{path}: its gripper commands are 0 and 1: read as -1 and 1.")
    return [np.c_[actions[:, :6], 2 * actions[:, 6] - 1] for actions in commands]
