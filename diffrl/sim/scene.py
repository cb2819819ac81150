"""Scene: everything about a task that does not change while it is simulated.

`load_scene` compiles a task once through LIBERO (3-8 s) and keeps the result in the cache folder, a
few MB a task. From the cache neither LIBERO nor robosuite is imported.
"""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import mujoco
import numpy as np

from diffrl.base.artifacts import cache_dir
from diffrl.base.errors import UserError
from diffrl.base.scale import map_tasks
from diffrl.sim.cache import made_once, read_cached, write_cached
from diffrl.sim.tasks import PRO_SUITES, SUITES, Task, get_task, suite_tasks

MAGIC = b"diffrl scene 1\n"


@dataclass(frozen=True, eq=False)
class Scene:
    """A compiled task.

    `model` is the physics face (MjModel). `meta` holds names and the goal; `arrays` the start
    states: `official` (50, state_size), `layout_qpos` (P, nq), `layout_fixtures` (P, k, 7),
    `layout_usable` (at most P) indices of the layouts that fresh start states are drawn from.
    A state is [time, qpos, qvel], LIBERO's flattened MjSimState.

    >>> scene = load_scene("libero_object/0")
    >>> scene.instruction
    'pick up the alphabet soup and place it in the basket'
    """

    task: Task
    model: mujoco.MjModel = field(repr=False)
    meta: dict = field(repr=False)
    arrays: dict = field(repr=False)

    def __deepcopy__(self, memo: dict) -> "Scene":
        """Return itself: nothing changes a scene, and simulators find their models by it."""
        return self

    @property
    def instruction(self) -> str:
        """The sentence that a VLA is given."""
        return self.task.instruction

    @property
    def object_names(self) -> tuple[str, ...]:
        """The K movable objects, then the fixtures, in LIBERO's order."""
        return tuple(self.meta["objects"])

    @property
    def fixture_names(self) -> tuple[str, ...]:
        """The k fixtures (cabinets, stoves, racks) whose poses belong to a start state."""
        return tuple(self.meta["fixtures"])

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """LIBERO's goal: a conjunction of (predicate, name, ...)."""
        return tuple((t["predicate"], *t["names"]) for t in self.meta["goal"])

    @property
    def goal_names(self) -> tuple[str, ...]:
        """Objects and regions that the goal names, each once, in goal order (G)."""
        return tuple(dict.fromkeys(name for _, *names in self.goal for name in names))

    @property
    def state_size(self) -> int:
        """Length of a flattened state: 1 + nq + nv."""
        return 1 + self.model.nq + self.model.nv

    @property
    def home_qpos(self) -> np.ndarray:
        """(7,) arm joints (rad) after LIBERO's reset; the controller's null space pulls to them."""
        return np.array(self.meta["home_joints"])

    @cached_property
    def object_bodies(self) -> np.ndarray:
        """(K,) body ids of `object_names`."""
        return np.array([self.body_id(name) for name in self.object_names])

    @cached_property
    def fixture_bodies(self) -> np.ndarray:
        """(k,) body ids of `fixture_names`."""
        return np.array([self.body_id(name) for name in self.fixture_names], int)

    @cached_property
    def arm_qpos(self) -> np.ndarray:
        """(7,) addresses of the arm's joints in qpos."""
        return self._addresses(self.meta["arm_joints"])

    @cached_property
    def gripper_qpos(self) -> np.ndarray:
        """(2,) addresses of the fingers' joints in qpos."""
        return self._addresses(self.meta["gripper_joints"])

    @cached_property
    def fixture_qpos(self) -> np.ndarray:
        """(J,) addresses of the fixtures' joints (drawers, doors, knobs) in qpos."""
        return self._addresses(self.meta["fixture_joints"])

    def body_id(self, name: str) -> int:
        """Body id of an object or fixture (by LIBERO's name) or of any body of the model."""
        return self.model.body(self.meta["objects"].get(name, name)).id

    def site_id(self, name: str) -> int:
        """Site id of a region or any other site."""
        return self.model.site(name).id

    def picture_xml(self) -> str:
        """MJCF of LIBERO's full model, with the asset folders of this installation."""
        from diffrl.sim.compiler import asset_roots

        xml = self.arrays["picture_xml"].tobytes().decode()
        for mark, root in asset_roots().items():
            xml = xml.replace(mark, root)
        return xml

    def _addresses(self, joints) -> np.ndarray:
        return np.array([int(self.model.joint(name).qposadr[0]) for name in joints], int)


@lru_cache(maxsize=16)
def load_scene(task_id: str) -> Scene:
    """The scene of a task, from the cache or compiled now.

    Raises UserError for an unknown task, a missing LIBERO file, or a cache file whose content does
    not match its hash (never trusted, never silently replaced).
    """
    from diffrl.sim.compiler import compile_task, installed_key

    task = get_task(task_id)
    key = hashlib.sha256((installed_key() + task.id).encode()).hexdigest()
    path = cache_dir() / "scenes" / f"{task.suite}-{task.index}-{key[:12]}.scene"
    with made_once(path) as missing:
        if missing:
            _write(path, key.encode(), *_compiled(compile_task, task))
    meta, arrays = _read(path, key.encode())
    name = "physics.mjb"
    model = mujoco.MjModel.from_binary_path(name, {name: arrays.pop("physics").tobytes()})
    return Scene(task, model, meta, arrays)


def _compiled(compile_task: Callable, task: Task) -> tuple[dict, dict]:
    try:
        return compile_task(task)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is missing, so {task.id} cannot be compiled: `python -m diffrl "
            "doctor` compares LIBERO's files with the official ones and says how to fix them."
        ) from error


def _write(path: Path, key: bytes, meta: dict, arrays: dict) -> None:
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(buffer, meta=text, **arrays)
    write_cached(path, MAGIC, key, buffer.getvalue())


def _read(path: Path, key: bytes) -> tuple[dict, dict]:
    data = read_cached(path, MAGIC, key)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop("meta").tobytes()), arrays


def tasks_command(suite: str = "all", compile: bool = False) -> None:
    """Print LIBERO's tasks, each with its id and instruction.

    Args:
        suite: a suite, `all` (the 130 tasks) or `pro` (LIBERO-PRO's 160 entries).
        compile: also compile each task, and print its bodies, its goal and whether that worked.
    """
    groups = {"all": SUITES, "pro": PRO_SUITES}.get(suite, (suite,))
    tasks = [task for name in groups for task in suite_tasks(name)]
    if not compile:
        for task in tasks:
            print(f"{task.id:<28} {task.instruction}")
        return
    rows = map_tasks(_compiled_row, [task.id for task in tasks], description="compile")
    failed = sum(not fine for fine, _ in rows)
    for _, row in rows:
        print(row)
    print(f"{len(tasks) - failed} of {len(tasks)} tasks compile")
    if failed:
        sys.exit(1)


def _compiled_row(task_id: str) -> tuple[bool, str]:
    """Compile one task; whether that worked, and its row of the table."""
    try:
        scene = load_scene(task_id)
    except (UserError, ValueError, RuntimeError) as error:  # not implemented, too
        return False, f"{task_id:<28} failed: {error}"
    goal = " & ".join(f"{p}({', '.join(a)})" for p, *a in scene.goal)
    return True, f"{task_id:<28} {scene.model.nbody:>3} bodies  ok  {goal}"
