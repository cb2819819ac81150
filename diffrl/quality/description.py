"""What a file of demonstrations says of itself: task, robot, controller, rate, success.

Readers of LIBERO, robosuite and robomimic find these in different attributes and arrays; whatever
a file does not say stays None here. Nothing is guessed from numbers alone.
"""

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from diffrl.base.errors import UserError
from diffrl.data.demo import task_of, told_success
from diffrl.data.episode import IMAGES
from diffrl.data.integrity import own_group, text_or_number
from diffrl.sim.tasks import SUITES, suite_tasks

ROBOSUITE = 1  # robomimic's number of that kind of environment
RATE_TOLERANCE = 0.05  # a real clock drifts by less; jerk then errs by 16 % at most (our choice)
_WANTED = (
    *("task", "source", "success", "controller", "env", "env_args", "env_info"),
    *("control_freq_hz", "control_freq", "fps", "bddl_file_name", "problem_info"),
)
_LIBERO_ARRAYS = {"robot_states"} | {
    f"obs/{name}"
    for name in ("ee_states", "ee_pos", "ee_ori", "gripper_states", "joint_states", *IMAGES)
}
_ENOUGH = 3  # of these names: a real robot's file may have one of them by chance (our choice)


@dataclass(frozen=True)
class Description:
    """The attributes of one demonstration and of its file, the demonstration's own first.

    attrs: those of `_WANTED` that are there, as text or numbers; libero: whether the arrays have
    LIBERO's names.
    """

    attrs: dict[str, Any]
    libero_names: bool

    @cached_property
    def env_args(self) -> dict[str, Any]:
        """robomimic's description of the environment, else robosuite's (``env_info``)."""
        return self._json("env_args") or {"env_kwargs": self._json("env_info")}

    @property
    def _kwargs(self) -> dict[str, Any]:
        found = self.env_args.get("env_kwargs")
        return found if isinstance(found, dict) else {}

    @property
    def is_libero(self) -> bool:
        """Whether LIBERO made it: its attributes or the names of its arrays say so."""
        return self.libero_names or "problem_info" in self.attrs

    @property
    def observes_late(self) -> bool:
        """Whether LIBERO's create_dataset.py wrote it: it plays an action, then looks."""
        return self.libero_names and {"problem_info", "env_args"} <= self.attrs.keys()

    @property
    def is_robosuite(self) -> bool:
        """Whether ``states`` are robosuite's flat ones: time, positions, velocities."""
        return self.is_libero or self.env_args.get("type") == ROBOSUITE or bool(self._robosuite)

    @property
    def _robosuite(self) -> dict[str, Any]:
        return self._json("env_info")

    @property
    def robot(self) -> str | None:
        """The robot's name, several joined by "+"; None if nobody says."""
        robots = self._kwargs.get("robots")
        if isinstance(robots, str):
            return robots
        if isinstance(robots, list) and robots:
            return "+".join(map(str, robots))
        return "Panda" if self.is_libero else None

    @property
    def environment(self) -> str:
        """The environment's name, "" if nobody says."""
        found = self.env_args.get("env_name") or self.attrs.get("env") or ""
        return str(found)

    def task(self, path: Path, data: h5py.Group) -> str:
        """The task: as the file says, LIBERO's id where it is LIBERO's, else the file's name."""
        if "task" in self.attrs:
            return str(self.attrs["task"])
        if {"bddl_file_name", "problem_info"} <= self.attrs.keys():
            with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
                return task_of(data)["task"]
        name = path.stem.removesuffix("_demo")
        if self.is_libero or self.environment.startswith("Libero_"):  # shared by many tasks
            ids = [task.id for s in SUITES for task in suite_tasks(s) if task.name == name]
            return ids[0] if len(ids) == 1 else name
        return self.environment or name

    def source(self, name: str) -> str:
        """Who acted: as the file says, people in LIBERO's own files, else `name`."""
        if self.attrs.get("source"):
            return str(self.attrs["source"])
        if "problem_info" in self.attrs:
            return "human" if "env_args" in self.attrs else "teleoperation"
        return name

    @property
    def stated_rates(self) -> list[float]:
        """Every control rate (Hz) that the attributes say; frames a second if they say no other."""
        said = [self.attrs.get(name) for name in ("control_freq_hz", "control_freq")]
        rates = _positive(*said, self._kwargs.get("control_freq"))
        return rates or _positive(self.attrs.get("fps"))

    def success(self) -> bool | None:
        """What the attribute ``success`` says; None if it is not there or says something else."""
        return told_success(self.attrs.get("success"))

    def clips(self) -> bool | None:
        """Whether the controller takes shares of a motion in [-1, 1] and clips what is beyond.

        That is robosuite's OSC_POSE with relative goals (LIBERO's). False: the file names another
        controller, whose actions are something else. None: it names none.
        """
        if found := _controllers(self._kwargs.get("controller_configs")):
            return all(map(_is_relative_pose, found))
        named = self.attrs.get("controller")
        if isinstance(named, str):
            return "OSC_POSE" in named
        return True if self.is_libero else None

    def _json(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            found = json.loads(self.attrs[name])
            return found if isinstance(found, dict) else {}
        return {}


def _positive(*values: Any) -> list[float]:
    """Those of `values` that are a positive finite number, or the text of one."""
    rates = []
    for value in values:
        with contextlib.suppress(TypeError, ValueError):
            rates += [float(value)] if 0 < float(value) < np.inf else []
    return rates


def describe(data: h5py.Group, demo: h5py.Group, path: Path) -> Description:
    """Read what `demo` and the group that holds it say."""
    attrs = _attributes(data) | _attributes(demo)
    names = set(demo.keys())
    if "obs" in names:
        names |= {f"obs/{name}" for name in own_group(demo, "obs", path)}
    return Description(attrs, len(names & _LIBERO_ARRAYS) >= _ENOUGH)


def _attributes(group: h5py.Group) -> dict[str, Any]:
    """The wanted attributes that are one text or number; objects are never loaded."""
    found: dict[str, Any] = {}
    for name in _WANTED:
        if name not in group.attrs:
            continue
        if text_or_number(group, name):
            value = group.attrs[name]
            value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
            value = value.decode(errors="replace") if isinstance(value, bytes) else value
            found |= {} if isinstance(value, np.ndarray) else {name: value}
    return found


def _controllers(configs: Any) -> list[dict[str, Any]]:
    """Every controller in robosuite's ``controller_configs``, alone, per arm or per body part."""
    if isinstance(configs, list):
        return [found for config in configs for found in _controllers(config)]
    if not isinstance(configs, dict):
        return []
    parts = configs.get("body_parts")
    if isinstance(parts, dict):  # robosuite 1.5; the gripper's is no motion
        return [found for part in parts.values() for found in _controllers(part)]
    return [configs] if "type" in configs else []


def _is_relative_pose(controller: dict[str, Any]) -> bool:
    """Whether it is OSC_POSE with relative goals and inputs in [-1, 1]."""
    relative = controller.get("control_delta", True) is not False
    relative &= controller.get("input_type", "delta") == "delta"
    limits = ((controller.get("input_min", -1), -1), (controller.get("input_max", 1), 1))
    return controller["type"] == "OSC_POSE" and relative and all(_all_equal(*x) for x in limits)


def _all_equal(values: Any, limit: int) -> bool:
    """Whether a limit that is one number or one per command is `limit` throughout."""
    return all(value == limit for value in (values if isinstance(values, list) else [values]))


def successes(
    said: list[bool | None], rewards: list[np.ndarray | None], dones: list[np.ndarray | None]
) -> list[bool | None]:
    """Which demonstrations of one file succeeded; None where nothing tells.

    The attribute first, then sparse rewards (0 and 1, or -1 and 0), then ``dones``. Dense rewards
    tell nothing. ``dones`` that are 1 at the end of every demonstration only mark ends (robomimic's
    done_mode 1 and 2); where some demonstration lacks that, they mark success (done_mode 0).
    """
    ends = [d is None or d.size == 0 or bool(d.ravel()[-1]) for d in dones]
    told = [_by_dones(d, marks_ends=all(ends)) for d in dones]
    sparse = [_by_rewards(r) for r in rewards]
    return [
        next((value for value in found if value is not None), None)
        for found in zip(said, sparse, told)
    ]


def _by_rewards(rewards: np.ndarray | None) -> bool | None:
    if rewards is None or rewards.size == 0:
        return None
    if np.isin(rewards, (0.0, 1.0)).all():
        return bool(rewards.any())
    if np.isin(rewards, (-1.0, 0.0)).all():
        return bool((rewards == 0).any())
    return None


def _by_dones(dones: np.ndarray | None, marks_ends: bool) -> bool | None:
    if dones is None or dones.size == 0:
        return None
    early = bool(dones.ravel()[:-1].any())
    return early or None if marks_ends else bool(dones.any())


def agreed_rate(stated: list[float], told: float | None, given: float | None, label: str) -> float:
    """The control rate (Hz): what the attributes say, the time stamps tell, and the user gives.

    Raises UserError when they contradict each other, or when none is there. A rate that the user
    gives decides between two that contradict each other, but against neither alone.
    """
    usable = told if told is None or 1 <= told <= 1000 else None  # else hardly in seconds
    known = [*stated, *([usable] if usable else [])]
    if given is not None:
        if not (np.isfinite(given) and given > 0):
            raise UserError(f"--rate {given:g} is no control rate: give Hz, more than 0.")
        if known and not any(_close(given, rate) for rate in known):
            raise UserError(
                f"{label}: --rate {given:g} contradicts the file, which says "
                f"{' and '.join(f'{rate:g} Hz' for rate in known)}. Leave --rate out."
            )
        return given
    if told is not None and usable is None:
        raise UserError(
            f"{label}: its time stamps rise {told:g} times a second. Are they in seconds? Say the "
            "rate: --rate 20 (LIBERO's)."
        )
    if known and not _close(max(known), min(known)):
        other = "another attribute says" if told is None else "its time stamps rise at"
        raise UserError(
            f"{label}: it says {known[0]:g} Hz, but {other} {known[-1]:g} Hz. Say which: "
            "--rate 20 (LIBERO's)."
        )
    if not known:
        raise UserError(
            f"{label}: it does not say its control rate. Pass it: --rate 20 (LIBERO's)."
        )
    return known[0]


def _close(first: float, second: float) -> bool:
    return abs(first / second - 1) <= RATE_TOLERANCE
