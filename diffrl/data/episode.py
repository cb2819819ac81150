"""One episode: what the simulator was in and what the robot did, step by step.

States, not pictures, are the record: everything else can be computed from them again.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from diffrl.base.arm import MODES, SOURCES
from diffrl.base.control import CONTROL_HZ
from diffrl.base.errors import UserError

IMAGES = ("agentview_rgb", "eye_in_hand_rgb")  # LIBERO's names of the two cameras' frames
WIDTHS = {
    "eef_pos": (3,),
    "eef_quat": (4,),
    "gripper_qpos": (2,),
    "joint_pos": (7,),
    "object_pos": (None, 3),
    "object_quat": (None, 4),
}  # shape of one row; None: as many as the task has objects
# LIBERO stores (joins) these in one array: what is there of the second needs all of the first.
_TOGETHER = (
    ({"eef_pos", "eef_quat", "gripper_qpos"}, {"eef_pos", "eef_quat"}),
    ({"object_pos", "object_quat"}, {"object_pos", "object_quat"}),
)
_TASK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_,-]*(/[A-Za-z0-9_,-]+)?")


@dataclass(eq=False)
class Episode:
    """What happened in one trial of T control steps (20 Hz).

    ``states`` and ``observations`` have L rows: row t is what the robot was in *before* action t.
    L = T + 1 with the final state; L = T in files that never recorded it (LIBERO's own).

    Attributes:
        task: ``"libero_object/0"``, or a name of its own for a task outside LIBERO.
        instruction: the sentence that the robot is given.
        start_state: id of the start state, ``""`` when unknown.
        seed: of the policy's noise in this trial.
        source: who acted, one of `SOURCES`, or a policy class of one's own.
        mode: how its actions were chosen, one of `MODES`.
        success: whether the task's goal was reached.
        states: (L, 1 + nq + nv) float64, MuJoCo's time [s], qpos, qvel.
        actions: (T, 7) float64 in [-1, 1]; ±1 is ±0.05 m, ±0.5 rad, gripper closed/open.
        rewards: (T,) float64, 0 or 1; 1 in the step that reached the goal.
        fixtures: (k, 7) float64, position [m] and quaternion (w, x, y, z) of what stands fixed.
        observations: L rows each: `WIDTHS`' float64 arrays (positions in m, angles in rad,
            quaternions x, y, z, w) and `IMAGES` (L, H, W, 3) uint8, OpenGL's way up as in LIBERO.
        policy: which expert acted, e.g. ``"diffusion-seed0"``.
        attempt: its number in the plan of attempts that made the data set.
        model_file: MuJoCo XML of the scene, where the file that it came from holds one.
    """

    task: str
    instruction: str
    start_state: str
    seed: int
    source: str
    mode: str
    success: bool
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    fixtures: np.ndarray
    observations: dict[str, np.ndarray] = field(default_factory=dict)
    policy: str = ""
    attempt: int = 0
    model_file: str = ""

    @property
    def length(self) -> int:
        """T, the number of control steps."""
        return len(self.actions)

    @property
    def metadata(self) -> dict[str, str | int | bool]:
        """Everything that is not an array, as plain Python values."""
        names = "task instruction start_state seed source mode success policy attempt model_file"
        return {name: getattr(self, name) for name in names.split()}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name, observations as ``observations/<key>``, in a fixed order."""
        own = {name: getattr(self, name) for name in ("states", "actions", "rewards", "fixtures")}
        return own | {f"observations/{k}": v for k, v in sorted(self.observations.items())}

    def checksum(self) -> str:
        """Return the SHA-256 (hex) of all values, shapes, types and metadata."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for name, array in self.arrays.items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (place, what is wrong) for each rule that the episode breaks."""
        yield from self._metadata_problems()
        yield from _array_problems("actions", self.actions, (self.length, 7))
        rows = len(self.states)
        if self.length == 0 or rows not in (self.length, self.length + 1):
            yield "states", f"has {rows} rows for {self.length} actions; T or T + 1 with T > 0 fit"
        yield from _array_problems("states", self.states, (rows, None))
        yield from _array_problems("rewards", self.rewards, (self.length,))
        yield from _array_problems("fixtures", self.fixtures, (None, 7))
        for name, array in self.observations.items():
            place = f"observations/{name}"
            if name in IMAGES:
                yield from _array_problems(place, array, (rows, None, None, 3), np.uint8)
            elif name in WIDTHS:
                yield from _array_problems(place, array, (rows, *WIDTHS[name]))
            else:
                yield place, f"is unknown; known are {', '.join((*WIDTHS, *IMAGES))}"
        for group, first in _TOGETHER:
            if first & self.observations.keys() and (lost := group - self.observations.keys()):
                yield (
                    f"observations/{min(lost)}",
                    f"is missing; {', '.join(sorted(group))} go together",
                )

    def validate(self) -> "Episode":
        """Return the episode itself if it keeps all rules.

        Raises:
            UserError: it does not; the message names the first place and the number of others.
        """
        problems = list(self.problems()) or list(self.value_problems())
        if problems:
            place, what = problems[0]
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(
                f"An episode of {self.task} ({self.source}, start state {self.start_state!r}) is "
                f"not valid: {place} {what}{more}. Correct what made it; it was not stored."
            )
        return self

    def value_problems(self) -> Iterator[tuple[str, str]]:
        """Yield (place, what is wrong) for values out of range, once all shapes are right."""
        beyond = np.abs(self.actions).max(axis=1) > 1
        if beyond.any():
            step = int(beyond.argmax())
            yield "actions", f"leave [-1, 1] at step {step}: {np.abs(self.actions[step]).max():.4g}"
        if not np.isin(self.rewards, (0, 1)).all():
            yield "rewards", "are not all 0 or 1"
        elif self.success != bool(self.rewards[-1] == 1):
            yield "success", "contradicts the last reward: 1 if and only if the trial succeeded"
        irregular = np.abs(np.diff(self.states[:, 0]) - 1 / CONTROL_HZ) > 1e-3
        if irregular.any():
            step = int(irregular.argmax())
            yield "states", f"do not follow each other by 1/{CONTROL_HZ} s after step {step}"
        quaternions = {"fixtures": self.fixtures[:, 3:]}
        for name in ("eef_quat", "object_quat"):
            if name in self.observations:
                quaternions[f"observations/{name}"] = self.observations[name]
        for place, values in quaternions.items():
            with np.errstate(over="ignore"):  # a damaged number may be huge
                length = np.linalg.norm(values, axis=-1)
            if values.size and np.abs(length - 1).max() > 1e-3:
                yield place, "holds a quaternion whose length is not 1"

    def _metadata_problems(self) -> Iterator[tuple[str, str]]:
        if not _TASK.fullmatch(self.task):
            yield (
                "task",
                f"is {self.task!r}; letters, digits, '_', ',', '-' and one '/' are allowed",
            )
        if not self.source.isidentifier():
            known = ", ".join(SOURCES)
            yield "source", f"is {self.source!r}; it must be a word, such as {known}"
        if self.mode not in MODES:
            yield "mode", f"is {self.mode!r}; it must be one of {', '.join(MODES)}"
        for name in ("seed", "attempt"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                yield name, f"is {getattr(self, name)!r}; it must be a whole number from 0"
        if type(self.success) is not bool:
            yield "success", f"is {self.success!r}; it must be True or False"


def _array_problems(
    place: str, array: np.ndarray, shape: tuple[int | None, ...], dtype: type = np.float64
) -> Iterator[tuple[str, str]]:
    if array.dtype != dtype:
        yield place, f"is {array.dtype}, not {np.dtype(dtype)}"
    elif array.ndim != len(shape) or any(w not in (None, g) for w, g in zip(shape, array.shape)):
        wanted = tuple("any" if width is None else width for width in shape)
        yield place, f"has the shape {array.shape}, not {wanted}"
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        yield place, f"holds NaN or infinity in row {row}"
