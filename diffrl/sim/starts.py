"""Start states: where an episode begins, fixtures included.

LIBERO stores 50 start states a task as [time, qpos, qvel], but its cabinets, stoves and racks stand
in the model, are redrawn at every reset and are in no file. Here their poses belong to the start
state. The official state i gets the fixtures of a layout drawn from (task, i, seed): LIBERO's own
distribution, fixed once. Training uses fresh states (LIBERO's placement sampler and N(0, 0.02 rad)
on the arm), so that nothing is ever tuned on the official ones. Layouts in which things overlap so
far that physics throws them apart are left out (`diffrl.sim.compiler`).
"""

import functools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffrl.base.errors import UserError
from diffrl.sim.scene import Scene, load_scene

ARM_NOISE = 0.02  # rad, standard deviation: robosuite's default initialization noise


@dataclass(frozen=True, eq=False)
class StartStates:
    """n start states of one task.

    `states` (n, 1+nq+nv) is LIBERO's flattened [time, qpos, qvel]; `fixtures` (n, k, 7) holds the
    fixtures' positions (m) and quaternions (wxyz) in the order of `Scene.fixture_names`.
    `ids` are `official/<i>` or `fresh/<seed>/<k>`.

    >>> none = np.zeros((3, 0, 7))
    >>> starts = StartStates("libero_object/0", ("a", "b", "c"), np.zeros((3, 92)), none)
    >>> starts[1:].ids
    ('b', 'c')
    >>> len(StartStates.concatenate([starts, starts[:1]]))
    4
    """

    task: str
    ids: tuple[str, ...]
    states: np.ndarray
    fixtures: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index) -> "StartStates":
        """Some of them: an int, slice, list or array of indices."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        ids = tuple(self.ids[i] for i in rows)
        return StartStates(self.task, ids, self.states[rows], self.fixtures[rows])

    @staticmethod
    def concatenate(parts: list["StartStates"]) -> "StartStates":
        """Several sets of one task as one. Raises UserError when the tasks differ."""
        if len({part.task for part in parts}) != 1:
            tasks = sorted({part.task for part in parts})
            raise UserError(f"Start states of different tasks cannot be joined: {tasks}.")
        ids = tuple(name for part in parts for name in part.ids)
        states = np.concatenate([part.states for part in parts])
        return StartStates(
            parts[0].task, ids, states, np.concatenate([part.fixtures for part in parts])
        )


def official_start_states(scene: Scene, seed: int = 0) -> StartStates:
    """LIBERO's 50 start states with fixtures drawn from (task, i, seed). For evaluation only."""
    states = scene.arrays["official"]
    layouts = scene.arrays["layout_fixtures"]
    rows = [_generator(scene, 0, seed, i).integers(len(layouts)) for i in range(len(states))]
    suffix = "" if seed == 0 else f"/fixtures-{seed}"
    ids = tuple(f"official/{i}{suffix}" for i in range(len(states)))
    return StartStates(scene.task.id, ids, states.copy(), layouts[rows])


def fresh_start_states(scene: Scene, n: int, seed: int, first: int = 0) -> StartStates:
    """States `first` ... `first + n - 1` of the endless sequence that belongs to `seed`.

    State k depends on (task, seed, k) alone: a layout of LIBERO's placement sampler plus
    N(0, ARM_NOISE) on the arm joints. Raises UserError for n < 0.
    """
    if n < 0:
        raise UserError(f"fresh_start_states: n must not be negative, it is {n}.")
    layouts, usable = scene.arrays["layout_qpos"], scene.arrays["layout_usable"]
    states = np.zeros((n, scene.state_size))
    rows = np.empty(n, int)
    for row in range(n):
        generator = _generator(scene, 1, seed, first + row)
        rows[row] = usable[generator.integers(len(usable))]
        states[row, 1 : 1 + scene.model.nq] = layouts[rows[row]]
        states[row, 1 + scene.arm_qpos] += generator.normal(0, ARM_NOISE, 7)
    ids = tuple(f"fresh/{seed}/{first + row}" for row in range(n))
    return StartStates(scene.task.id, ids, states, scene.arrays["layout_fixtures"][rows])


def distance_to_official(scene: Scene, used: Sequence[str]) -> float:
    """Return how near the layouts of fresh start states, by id, come to an official one.

    It is the largest difference in any coordinate of the things (m, rad), least over all pairs; the
    arm, whose noise is drawn for each state, does not count. 0 would be a layout of the evaluation;
    infinity: no id is that of a fresh one (people's recordings have others).
    """
    things = np.setdiff1d(np.arange(1, scene.state_size), 1 + scene.arm_qpos)
    official, least = official_start_states(scene).states[:, things], np.inf
    for name in used:
        kind, *place = name.split("/")
        if kind != "fresh":
            continue
        seed, number = place
        fresh = fresh_start_states(scene, 1, int(seed), first=int(number)).states[:, things]
        least = min(least, np.abs(fresh - official).max(axis=1).min())
    return float(least)


def _generator(scene: Scene, kind: int, seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(scene.task.id.encode()), kind, seed, index])


def start_states(scene: Scene, names: Sequence[str]) -> StartStates:
    """Return the start states called `names`: official/<i>[/fixtures-<seed>], fresh/<seed>/<k>.

    Raises:
        UserError: a name is none of these.
    """
    return StartStates.concatenate([_start_state(scene, name) for name in names])


def _start_state(scene: Scene, name: str) -> StartStates:
    if found := re.fullmatch(r"official/(\d+)(?:/fixtures-(\d+))?", name):
        index, seed = int(found[1]), int(found[2] or 0)
        official = _official(scene.task.id, seed)
        if index < len(official):
            return official[index]
    if found := re.fullmatch(r"fresh/(\d+)/(\d+)", name):
        return fresh_start_states(scene, 1, int(found[1]), int(found[2]))
    raise UserError(
        f"{scene.task.id} has no start state {name!r}: it is official/<0-49>, possibly with "
        "/fixtures-<seed>, or fresh/<seed>/<k>."
    )


@functools.lru_cache(maxsize=8)
def _official(task: str, seed: int) -> StartStates:
    return official_start_states(load_scene(task), seed)
