"""One demonstration as LIBERO lays it out in HDF5: an `Episode` to a group, and back.

Names and conventions: LIBERO's `create_dataset.py` and raw collector, robomimic 0.3, and what
those lack for our purpose – ``fixtures``, ``final`` (the state after the last action), metadata
and a checksum.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

import h5py
import numpy as np

from diffrl.data.episode import IMAGES, WIDTHS, Episode
from diffrl.data.model_xml import body_poses
from diffrl.sim.tasks import SUITES, suite_tasks

DAMAGE = (OSError, RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError)

_PROPRIOCEPTION = {"ee_pos", "ee_ori", "ee_states", "joint_states", "gripper_states"}
_KEYS = {  # layout: (keys that each demo must have, keys that it may have)
    "diffrl": ({"actions", "states", "rewards", "dones", "fixtures"}, {"robot_states", "obs"}),
    "libero": ({"actions", "states", "rewards", "dones", "obs"}, {"robot_states"}),
    "collector": ({"actions", "states"}, set()),
}
_ATTRS = ("episode", "checksum", "num_samples", "init_state")  # of each demo of ours
_RENAMED = {"joint_pos": "joint_states", "gripper_qpos": "gripper_states"}


# -- to the file -----------------------------------------------------------------------------------
def write_demo(group: h5py.Group, episode: Episode) -> None:
    """Write `episode` into an empty group."""
    length = episode.length
    for name, values in frames(episode).items():
        group[name] = values[:length]
        if len(values) > length:
            group[f"final/{name}"] = values[length:]
    group["actions"], group["fixtures"] = episode.actions, episode.fixtures
    group["rewards"] = episode.rewards.astype(np.uint8)
    group["dones"] = (np.arange(length) == length - 1).astype(np.uint8)
    metadata = episode.metadata
    if model_file := metadata.pop("model_file"):
        group.attrs["model_file"] = model_file
    group.attrs["episode"] = json.dumps(metadata, sort_keys=True)
    group.attrs["checksum"] = episode.checksum()
    group.attrs["num_samples"] = length
    group.attrs["init_state"] = episode.states[0]


def frames(episode: Episode) -> dict[str, np.ndarray]:
    """Return the arrays that have one row per state, under LIBERO's names."""
    obs, rows = episode.observations, {"states": episode.states}
    if {"gripper_qpos", "eef_pos", "eef_quat"} <= obs.keys():
        robot = (obs["gripper_qpos"], obs["eef_pos"], obs["eef_quat"])
        rows["robot_states"] = np.concatenate(robot, axis=1)
    if {"eef_pos", "eef_quat"} <= obs.keys():
        rows["obs/ee_pos"], rows["obs/ee_ori"] = obs["eef_pos"], axis_angle(obs["eef_quat"])
        rows["obs/ee_states"] = np.hstack((rows["obs/ee_pos"], rows["obs/ee_ori"]))
    if {"object_pos", "object_quat"} <= obs.keys():
        objects = np.concatenate((obs["object_pos"], obs["object_quat"]), axis=2)  # (L, K, 7)
        rows["obs/object"] = objects.reshape(len(objects), -1)
    for name in (*_RENAMED, *IMAGES):
        if name in obs:
            rows[f"obs/{_RENAMED.get(name, name)}"] = obs[name]
    return rows


def axis_angle(quaternions: np.ndarray) -> np.ndarray:
    """Turn (n, 4) quaternions (x, y, z, w) into (n, 3) axis × angle [rad], as robosuite does.

    The angle is 2·acos(w) in [0, 2π]: the sign of the quaternion is kept.
    """
    w = np.clip(quaternions[:, 3:], -1, 1)
    sine = np.sqrt(1 - w**2)
    scale = np.divide(2 * np.arccos(w), sine, out=np.zeros_like(sine), where=sine > 1e-9)
    return quaternions[:, :3] * scale


def quaternions(axis_angles: np.ndarray) -> np.ndarray:
    """Undo `axis_angle`: (n, 3) → (n, 4)."""
    angle = np.linalg.norm(axis_angles, axis=1, keepdims=True)
    axis = np.divide(axis_angles, angle, out=np.zeros_like(axis_angles), where=angle > 0)
    return np.hstack((axis * np.sin(angle / 2), np.cos(angle / 2)))


# -- from the file ---------------------------------------------------------------------------------
def key_problems(group: h5py.Group, layout: str) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for keys of a demo that are missing or do not belong there."""
    if isinstance(group, h5py.Dataset):
        yield "", "it is an array, not an episode"
        return
    for name, item in group.items():
        if isinstance(item, h5py.Group) != (name in ("obs", "final")):
            yield name, "it is an array in place of a group, or a group in place of an array"
            return
    required, allowed = _KEYS[layout]
    keys = set(group) - ({"final"} if layout == "diffrl" else set())
    yield from ((key, "it is missing") for key in sorted(required - keys))
    yield from ((key, "it does not belong here") for key in sorted(keys - required - allowed))
    known = _PROPRIOCEPTION | {*IMAGES} | ({"object"} if layout == "diffrl" else set())
    observed = set(group.get("obs", {}))
    for key in sorted(observed - known):
        yield f"obs/{key}", f"it is unknown; known are {', '.join(sorted(known))}"
    for key in sorted(_PROPRIOCEPTION - observed if layout == "libero" else ()):
        yield f"obs/{key}", "it is missing"
    if "final" in group:
        expected = {"states", *({"robot_states", "obs"} & keys)}
        if set(group["final"]) != expected or set(group["final"].get("obs", {})) != observed:
            yield "final", "it does not hold the same arrays as the steps before it"
    if layout == "diffrl":
        for name in _ATTRS:
            if name not in group.attrs:
                yield f"@{name}", "it is missing"


def read_demo(group: h5py.Group, layout: str) -> Episode:
    """Return the episode of a demo whose keys are right; its values are still to be checked.

    Raises:
        one of DAMAGE or UserError: the group cannot be read.
    """
    rows = {name: _rows(group, name) for name in _frame_names(group)}
    actions = group["actions"][()]
    if layout == "collector":  # the controller clips what it is given (robosuite's scale_action)
        actions = np.clip(actions, -1, 1)
    if "rewards" in group:
        rewards = group["rewards"][()].astype(np.float64)
    else:
        rewards = np.zeros(len(actions))
        rewards[-1:] = told_success(group.attrs.get("success")) is not False
    if layout == "diffrl":
        metadata = json.loads(group.attrs["episode"])
    else:
        source = "human" if layout == "libero" else "teleoperation"
        metadata = {"start_state": "", "seed": 0, "source": source, "mode": "recorded"}
        metadata |= task_of(group.parent) | {"success": bool(rewards[-1] == 1)}
    return Episode(
        **metadata,
        model_file=_model_file(group),
        states=rows.pop("states"),
        actions=actions,
        rewards=rewards,
        fixtures=group["fixtures"][()] if "fixtures" in group else np.zeros((0, 7)),
        observations=_observations(rows),
    )


def told_success(said: object) -> bool | None:
    """What a demo's attribute ``success`` says; None if it is not there or says something else."""
    if isinstance(said, np.ndarray) and said.size == 1:
        said = said.item()
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    return known.get(str(said).lower())


def task_of(data: h5py.Group) -> dict[str, str]:
    """Return ``task`` and ``instruction`` of a LIBERO file, from its task file's name.

    Only the name is used; the file is not opened. Tasks that are not LIBERO's keep that name.
    """
    bddl = PurePosixPath(data.attrs["bddl_file_name"])
    language = json.loads(data.attrs["problem_info"])["language_instruction"]
    instruction = " ".join(language) if isinstance(language, list) else str(language).strip('"')
    if bddl.parent.name in SUITES:
        for task in suite_tasks(bddl.parent.name):
            if task.name == bddl.stem:
                return {"task": task.id, "instruction": task.instruction}
    return {"task": bddl.stem, "instruction": instruction}


def value_problems(group: h5py.Group, episode: Episode, layout: str) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) where the demo contradicts the episode that was read from it."""
    if int(group.attrs.get("num_samples", episode.length)) != episode.length:
        yield "@num_samples", f"it is not the number of actions, {episode.length}"
    start = group.attrs.get("init_state")
    if start is not None and not np.array_equal(start, episode.states[0]):
        yield "@init_state", "it is not the first state"
    for name in {"rewards", "dones"} & set(group):
        if group[name].dtype != np.uint8:
            yield name, f"it is {group[name].dtype}, not uint8"
    last = np.arange(episode.length) == episode.length - 1
    if "dones" in group and not np.array_equal(group["dones"][()], last):
        yield "dones", "they are not 1 in the last step alone"
    derived = frames(episode)
    for name in _frame_names(group):
        stored, values = _rows(group, name), derived.get(name)
        if values is None or stored.shape != values.shape or stored.dtype != values.dtype:
            yield name, "its shape or type is not that of the other arrays"
        elif not (np.array_equal if layout == "diffrl" else _close)(stored, values):
            yield name, "it contradicts the other arrays"
    if layout == "diffrl" and group.attrs["checksum"] != episode.checksum():
        yield "@checksum", "the episode is not the one that was written"


def _close(stored: np.ndarray, values: np.ndarray) -> bool:
    """Official files come from other arithmetic than ours (robosuite's scalars)."""
    return np.allclose(stored, values, rtol=0, atol=1e-6)


def _model_file(group: h5py.Group) -> str:
    xml = group.attrs.get("model_file", "")
    if xml:
        body_poses(xml)  # refuses what is no plain MuJoCo XML
    return xml


def _frame_names(group: h5py.Group) -> list[str]:
    top = [name for name in ("states", "robot_states") if name in group]
    return top + [f"obs/{name}" for name in group.get("obs", {})]


def _rows(group: h5py.Group, name: str) -> np.ndarray:
    rows = group[name][()]
    final = group.get(f"final/{name}")
    return rows if final is None else np.concatenate((rows, final[()]))


def _observations(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `frames` for everything but the states."""
    back = {new: old for old, new in _RENAMED.items()} | {"ee_pos": "eef_pos"}
    found = {name.removeprefix("obs/"): values for name, values in rows.items()}
    obs = {back.get(name, name): found[name] for name in (*back, *IMAGES) if name in found}
    if "robot_states" in found:
        obs["eef_quat"] = found["robot_states"][:, 5:9]
    elif "ee_ori" in found:
        obs["eef_quat"] = quaternions(found["ee_ori"])
    if "object" in found:
        objects = found["object"].reshape(len(found["object"]), -1, 7)
        obs["object_pos"], obs["object_quat"] = objects[..., :3].copy(), objects[..., 3:].copy()
    return {name: obs[name] for name in (*WIDTHS, *IMAGES) if name in obs}
