"""Simulator: n copies of LIBERO scenes, stepped together on threads.

Each copy has its own MjData, and each thread a MjModel in which it places the copy's fixtures: the
results do not depend on the threads, and a core's cache holds one model, not many. A copy is frozen
when its episode ends: by success, by time-out, or by divergence (`error`), which never stops the
others.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import mujoco
import numpy as np

from diffrl.base.control import ACTION_SIZE, SETTLE_STEPS
from diffrl.base.errors import UserError, whole
from diffrl.base.scale import cores
from diffrl.sim.choices import Physics
from diffrl.sim.goals import Goal
from diffrl.sim.observation import Observation, Sensor, place_fixtures
from diffrl.sim.osc import GRIPPER_SPEED, SUBSTEPS, control_step
from diffrl.sim.scene import Scene
from diffrl.sim.starts import StartStates
from diffrl.sim.training import TrainingFace, training_face

SETTLE_ACTION = np.array([0.0, 0, 0, 0, 0, 0, -1])  # OpenVLA-OFT's and openpi's waiting action
_DIVERGED = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQACC + 1)
_FULL_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
CONTROL_PERIOD = 0.05  # s, LIBERO's 20 Hz
TRAINING_SUBSTEPS = 12  # of 4.17 ms; with 10 experts begin to lose success (our choice)


@dataclass(eq=False)
class Step:
    """What one call of `Simulator.step` did to each of n copies.

    `reward` (n,) is 1.0 in the call that reaches the goal; `success`, `timeout`, `error` (n,) tell
    how an episode ended in this call; `steps` (n,) control steps executed (0 for a frozen copy).
    `states` (n, chunk, state_size), if recorded, holds the state after each executed step.
    """

    reward: np.ndarray
    success: np.ndarray
    timeout: np.ndarray
    error: np.ndarray
    steps: np.ndarray
    states: np.ndarray | None = None


class _Copy:
    """One scene in motion, in exact physics or, with a `face`, in training physics."""

    def __init__(self, scene: Scene, face: TrainingFace | None = None, substeps: int = SUBSTEPS):
        self.scene, self.face = scene, face
        self.model = scene.model if face is None else face.model
        self.data = mujoco.MjData(self.model)
        self.fixtures = np.zeros((len(scene.fixture_names), 7))
        self.sensor = Sensor(scene)
        self.goal = Goal(self.model, scene.meta["goal"])
        self.goal_mat, self.grip = np.empty(9), np.empty(2)
        pace = (substeps, GRIPPER_SPEED * (SUBSTEPS / substeps))
        self._arguments = (*self._bind(scene.meta), *pace)
        if face is not None:
            self.poses = np.zeros((len(face.placed), 7))  # of the bodies without their joints
            self._qpos = np.zeros(scene.model.nq)  # the exact scene's positions
            self._scratch = mujoco.MjData(scene.model)

    def _bind(self, meta: dict) -> tuple:
        """The fixed arguments of `control_step`: views of MjData and addresses in them."""
        model, data, site = self.model, self.data, self.sensor.site
        motors = [model.actuator(name).id for name in meta["arm_actuators"]]
        fingers = [model.actuator(name).id for name in meta["gripper_actuators"]]
        dofs = [int(model.joint(name).dofadr[0]) for name in meta["arm_joints"]]
        return (
            data.qpos,
            data.qvel,
            data.ctrl,
            data.qfrc_bias,
            data.qM,
            data.cdof,
            data.subtree_com[model.body_rootid[model.site_bodyid[site]]],
            data.site_xpos[site],
            data.site_xmat[site],
            data.warning.number[_DIVERGED],
            np.array([int(model.joint(name).qposadr[0]) for name in meta["arm_joints"]]),
            np.array(dofs),
            _inertia_addresses(model, dofs),
            np.array(motors),
            np.array(fingers),
            model.actuator_ctrlrange[motors + fingers].copy(),
            self.scene.home_qpos,
            self.goal_mat,
            self.grip,
        )

    def reset(self, model: mujoco.MjModel, state: np.ndarray, settle: int) -> bool:
        data = self.data
        mujoco.mj_resetData(model, data)
        data.time, (qpos, qvel) = state[0], np.split(state[1:], [self.scene.model.nq])
        data.qpos[:] = qpos if self.face is None else qpos[self.face.qpos]
        data.qvel[:] = qvel if self.face is None else qvel[self.face.qvel]
        if self.face is not None:  # `settle_things` came before
            here, there = self.face.laid
            data.qpos[here] = self._qpos[there]
        # robosuite's first goal orientation is that of its own reset, not of the start state
        self.goal_mat[:] = self.scene.arrays["home_goal_matrix"].ravel()
        self.grip[:] = 0.0
        mujoco.mj_forward(model, data)
        data.qacc_warmstart[:] = 0.0
        return all(self.advance(model, SETTLE_ACTION) for _ in range(settle))

    def advance(self, model: mujoco.MjModel, action: np.ndarray) -> bool:
        """One control step; False if the state diverged."""
        return control_step(model._address, self.data._address, action, *self._arguments)

    def __reduce__(self):
        raise TypeError("a scene in motion holds views of its MjData: copy the whole Simulator")

    def settle_things(self, exact: mujoco.MjModel, state: np.ndarray) -> bool:
        """Let the things without joints stand where `exact` physics settles them from `state`.

        False if they diverge there. `exact` has this copy's fixtures in place.
        """
        assert self.face is not None  # exact physics places nothing
        settled, fine = self.face.settled_at(state), True
        if settled is None:  # no layout of the scene's own
            other = _Copy(self.scene)
            fine = other.reset(exact, state, SETTLE_STEPS)
            settled = other.data.qpos
        self.place_things(exact, settled)
        return fine

    def place_things(self, exact: mujoco.MjModel, qpos: np.ndarray) -> None:
        """Let the things without joints stand where the exact positions (nq,) have them."""
        assert self.face is not None  # exact physics places nothing
        self._qpos[:] = qpos
        self.poses[:] = self.face.poses(exact, self._scratch, qpos)

    def qpos(self) -> np.ndarray:
        """Positions of the exact scene, (nq,); a view."""
        if self.face is None:
            return self.data.qpos
        self._qpos[self.face.qpos] = self.data.qpos
        return self._qpos

    def sense(self, out: Observation, row: int) -> None:
        """Write the observation into row `row`."""
        self.sensor.read(self.data, out, row, self.qpos())

    def write_state(self, out: np.ndarray) -> None:
        """Write the state of the exact scene; what has no joint here has no velocity."""
        nq, data = self.scene.model.nq, self.data
        out[0], out[1 : 1 + nq] = data.time, self.qpos()
        if self.face is None:
            out[1 + nq :] = data.qvel
        else:
            out[1 + nq :] = 0.0
            out[1 + nq + self.face.qvel] = data.qvel


def _inertia_addresses(model: mujoco.MjModel, dofs: list[int]) -> np.ndarray:
    """(7, 7) where `qM`, which holds a tree's inertia by ancestors, has that of a chain of dofs."""
    where = np.zeros((len(dofs), len(dofs)), int)
    for i, dof in enumerate(dofs):
        address, ancestor = model.dof_Madr[dof], dof
        while ancestor >= 0:
            if ancestor in dofs:
                j = dofs.index(ancestor)
                where[i, j] = where[j, i] = address
            address, ancestor = address + 1, model.dof_parentid[ancestor]
    return where


class Simulator:
    """n copies of one scene, or of n scenes, stepped by `threads` threads (default: one per core).

    `max_steps` ends an episode as time-out after so many control steps (default: the task's own
    limit, `Task.max_steps`; a list has one for each copy). Use `reset`, then `step`; read
    `observation`. `limits` (n,) holds what that is for each copy.

    With `physics="training"` things that the goal does not need stand still (`TrainingFace`) and a
    control step takes `substeps` physics steps (default 12; LIBERO's and exact physics' are 25):
    cheaper, for policies that learn. Such a simulator records no states.

    `copy.deepcopy`, `copy.copy` and pickle give a simulator that continues bit for bit and shares
    nothing that moves; for many branches of one moment `snapshot` and `restore` are cheaper.

    >>> from diffrl.sim.scene import load_scene
    >>> from diffrl.sim.starts import official_start_states
    >>> scene = load_scene("libero_object/0")
    >>> with Simulator(scene, 2, threads=1) as simulator:
    ...     seen = simulator.reset(official_start_states(scene)[:2])
    ...     result = simulator.step(np.zeros((2, 7)))
    >>> result.success.tolist()
    [False, False]
    """

    def __init__(
        self,
        scenes: Scene | list[Scene],
        n: int,
        threads: int | None = None,
        max_steps: int | list[int] | None = None,
        physics: Physics = "exact",
        substeps: int | None = None,
    ):
        scenes = list(scenes) if isinstance(scenes, list | tuple) else [scenes] * n
        if whole(n, "n, the number of copies,") != len(scenes):
            raise UserError(f"Simulator: {len(scenes)} scenes given for n={n} copies; give n.")
        self.n, self.scenes = n, scenes
        self.threads = min(cores() if threads is None else whole(threads, "threads"), n)
        limits = max_steps if isinstance(max_steps, list) else [max_steps] * n
        self.physics, self.substeps = physics, _substeps(physics, substeps)
        faces = (
            {s: training_face(s, settle_layouts) for s in set(scenes)}
            if physics == "training"
            else {}
        )
        self._copies = [_Copy(scene, faces.get(scene), self.substeps) for scene in scenes]
        exact = {scene: scene.model for scene in scenes}
        played = exact | {scene: face.model for scene, face in faces.items()}
        self._models = [_own(played, CONTROL_PERIOD / self.substeps) for _ in range(self.threads)]
        self._exact = [_own(exact) for _ in range(self.threads if faces else 0)]
        self.limits = np.array(
            [
                scene.task.max_steps if limit is None else whole(limit, "max_steps")
                for scene, limit in zip(scenes, limits, strict=True)
            ]
        )
        # the caller is one of the threads
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        self._width = max(scene.state_size for scene in scenes)
        self.observation = Observation.empty(scenes, n)
        self.done = np.ones(n, bool)  # nothing moves before the first reset
        self.success, self.error = np.zeros(n, bool), np.zeros(n, bool)
        self.elapsed = np.zeros(n, int)

    @property
    def scene(self) -> Scene:
        """The scene of the first copy (of all, when one scene was given)."""
        return self.scenes[0]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __reduce__(self):
        """How it is copied and pickled: made anew, as views of MjData would stay the original's."""
        limits = self.limits.tolist()
        settings = (self.scenes, self.n, self.threads, limits, self.physics, self.substeps)
        return _continued, (settings, self.snapshot())

    def _map(self, function, items) -> None:
        """Call function(item, thread) on each; whichever thread is free takes the next item."""
        waiting = iter(items)

        def work(thread: int) -> None:
            for item in waiting:
                function(item, thread)

        others = [self._pool.submit(work, t) for t in range(1, self.threads)] if self._pool else []
        work(0)
        for other in others:
            other.result()

    def _model(self, c: int, thread: int) -> mujoco.MjModel:
        """The thread's model of copy c, with that copy's fixtures in place."""
        scene, moving = self.scenes[c], self._copies[c]
        model = self._models[thread][scene]
        if len(moving.fixtures):
            place_fixtures(scene, model, moving.fixtures)
        if moving.face is not None:
            model.body_pos[moving.face.placed], model.body_quat[moving.face.placed] = np.split(
                moving.poses, [3], axis=1
            )
        return model

    def _exact_model(self, c: int, thread: int) -> mujoco.MjModel:
        """The thread's model of copy c in exact physics, beside the training face."""
        model = self._exact[thread][self.scenes[c]]
        place_fixtures(self.scenes[c], model, self._copies[c].fixtures)
        return model

    # ---- episodes ------------------------------------------------------------------------

    def reset(self, starts: StartStates, copies=None, settle: int = SETTLE_STEPS) -> Observation:
        """Begin episodes at `starts` in `copies` (indices; default all), then settle.

        LIBERO stores start states before gravity has settled the objects: `settle` control steps
        of zeros with an open gripper come first and are not counted. Returns `observation`.
        Raises UserError when the number, the task or the shape of the start states does not fit.
        """
        copies = np.arange(self.n) if copies is None else np.atleast_1d(copies)
        if len(starts) != len(copies):
            raise UserError(f"reset: {len(starts)} start states for {len(copies)} copies.")
        for c in copies:
            self._check_start(starts, self.scenes[c])

        def begin(job, thread):
            row, c = job
            moving = self._copies[c]
            moving.fixtures[:] = starts.fixtures[row]
            fine, state = True, starts.states[row]
            if moving.face is not None:
                fine = moving.settle_things(self._exact_model(c, thread), state)
            fine &= moving.reset(self._model(c, thread), state, settle)
            moving.sense(self.observation, c)
            self.error[c] = self.done[c] = not fine

        self.success[copies], self.elapsed[copies] = False, 0
        self._map(begin, enumerate(copies))
        return self.observation

    @staticmethod
    def _check_start(starts: StartStates, scene: Scene) -> None:
        shape = (scene.state_size,), (len(scene.fixture_names), 7)
        given = starts.states.shape[1:], starts.fixtures.shape[1:]
        if starts.task != scene.task.id or shape != given:
            raise UserError(
                f"reset: start states of {starts.task} with shapes {given} do not fit a copy of "
                f"{scene.task.id} with shapes {shape}: draw them from that copy's scene."
            )
        if not np.isfinite(starts.states).all() or not np.isfinite(starts.fixtures).all():
            raise UserError(f"reset: a start state of {starts.task} is not finite.")

    def step(self, actions: np.ndarray, record: bool = False) -> Step:
        """Execute actions (n, 7) or chunks (n, chunk, 7), in [-1, 1], on all copies.

        ±1 is a goal offset of ±0.05 m or ±0.5 rad; the gripper's sign opens (-1) or closes (+1).
        A copy stops inside a chunk when its episode ends. `observation` is refreshed; as in LIBERO
        it is computed before the last physics step (2 ms). Raises UserError for a wrong shape,
        NaN, or a value beyond [-1, 1], and when states of training physics are to be recorded.
        """
        if record and self.physics != "exact":
            raise UserError(
                "step: what is played in training physics is not recorded, as it is not LIBERO's: "
                'play it with physics="exact".'
            )
        actions = self._check_actions(actions)
        chunk = actions.shape[1]
        never = np.zeros((3, self.n), bool)
        result = Step(np.zeros(self.n), never[0], never[1], never[2], np.zeros(self.n, int))
        if record:
            result.states = np.zeros((self.n, chunk, self._width))
        moving = np.flatnonzero(~self.done)
        self._map(lambda c, thread: self._run(c, actions[c], result, thread), moving)
        self.success |= result.success
        self.error |= result.error
        self.done |= result.success | result.timeout | result.error
        return result

    def _run(self, c: int, actions: np.ndarray, result: Step, thread: int) -> None:
        moving, scene, model = self._copies[c], self.scenes[c], self._model(c, thread)
        for t, action in enumerate(actions):
            if not moving.advance(model, action):
                result.error[c] = True
                return  # the observation stays that of the last sound state
            self.elapsed[c] += 1
            result.steps[c] += 1
            if result.states is not None:
                moving.write_state(result.states[c, t, : scene.state_size])
            if moving.goal(moving.data):
                result.success[c], result.reward[c] = True, 1.0
                break
            if self.elapsed[c] >= self.limits[c]:
                result.timeout[c] = True
                break
        moving.sense(self.observation, c)

    def _check_actions(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions, np.float64)
        if actions.ndim == 2:
            actions = actions[:, None]
        if actions.ndim != 3 or actions.shape[0] != self.n or actions.shape[2] != ACTION_SIZE:
            raise UserError(
                f"step: actions have shape {actions.shape}; expected ({self.n}, {ACTION_SIZE}) or "
                f"({self.n}, chunk, {ACTION_SIZE})."
            )
        if not np.isfinite(actions).all() or np.abs(actions).max(initial=0) > 1 + 1e-9:
            worst = np.unravel_index(np.argmax(~(np.abs(actions) <= 1)), actions.shape)
            raise UserError(
                f"step: action {actions[worst]} of copy {worst[0]}, step {worst[1]}, dimension "
                f"{worst[2]} is not in [-1, 1]: clip the policy's output."
            )
        return np.ascontiguousarray(actions)

    # ---- states --------------------------------------------------------------------------

    def states(self) -> np.ndarray:
        """(n, state_size) the current states [time, qpos, qvel], padded with zeros."""
        out = np.zeros((self.n, self._width))
        for row, moving in zip(out, self._copies, strict=True):
            moving.write_state(row[: moving.scene.state_size])
        return out

    def fixtures(self) -> np.ndarray:
        """(n, k, 7) the fixtures' poses, pos + quat wxyz, padded with zeros."""
        k = max(len(scene.fixture_names) for scene in self.scenes)
        out = np.zeros((self.n, k, 7))
        for row, moving in zip(out, self._copies, strict=True):
            row[: len(moving.fixtures)] = moving.fixtures
        return out

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to continue bit for bit, as arrays."""
        sizes = [mujoco.mj_stateSize(c.model, _FULL_STATE) for c in self._copies]
        physics = np.zeros((self.n, max(sizes)))
        for row, size, c in zip(physics, sizes, self._copies, strict=True):
            mujoco.mj_getState(c.model, c.data, row[:size], _FULL_STATE)
        things = {} if self.physics == "exact" else {"things": self.states()}
        return (
            things
            | {
                "physics": physics,
                "fixtures": self.fixtures(),
                "goal_mat": np.array([c.goal_mat for c in self._copies]),
                "grip": np.array([c.grip for c in self._copies]),
                "done": self.done.copy(),
                "success": self.success.copy(),
                "error": self.error.copy(),
                "elapsed": self.elapsed.copy(),
            }
            | {f"observation/{k}": v.copy() for k, v in self.observation.arrays().items()}
        )

    def restore(self, snapshot: dict[str, np.ndarray]) -> None:
        """Continue from a `snapshot` of a simulator with the same scenes."""
        for i, c in enumerate(self._copies):
            c.fixtures[:] = snapshot["fixtures"][i, : len(c.fixtures)]
            if c.face is not None:
                qpos = snapshot["things"][i, 1 : 1 + c.scene.model.nq]
                c.place_things(self._exact_model(i, 0), qpos)
            model = self._model(i, 0)
            state = snapshot["physics"][i, : mujoco.mj_stateSize(model, _FULL_STATE)]
            mujoco.mj_resetData(model, c.data)  # the state holds no warnings of a diverged branch
            mujoco.mj_setState(model, c.data, state, _FULL_STATE)
            c.goal_mat[:], c.grip[:] = snapshot["goal_mat"][i], snapshot["grip"][i]
            mujoco.mj_forward(model, c.data)  # positions, for whoever looks before stepping
            mujoco.mj_setState(model, c.data, state, _FULL_STATE)
        for name in ("done", "success", "error", "elapsed"):
            getattr(self, name)[:] = snapshot[name]
        for name, array in self.observation.arrays().items():
            array[:] = snapshot[f"observation/{name}"]


def _substeps(physics: str, substeps: int | None) -> int:
    known = get_args(Physics)
    if physics not in known:
        raise UserError(f"There is no physics {physics!r}: choose {' or '.join(known)}.")
    if physics == "training":
        return TRAINING_SUBSTEPS if substeps is None else whole(substeps, "substeps")
    if substeps not in (None, SUBSTEPS):
        raise UserError(
            f"Simulator: substeps is {substeps}, but exact physics takes LIBERO's {SUBSTEPS}: "
            'leave it out, or ask for physics="training".'
        )
    return SUBSTEPS


def _own(models: dict[Scene, mujoco.MjModel], timestep: float | None = None) -> dict:
    """Copies of models for one thread; with another time step, s, if one is given."""
    copies = {scene: copy.copy(model) for scene, model in models.items()}
    for model in copies.values():
        if timestep is not None and timestep != model.opt.timestep:
            model.opt.timestep = timestep
    return copies


def _continued(settings: tuple, snapshot: dict[str, np.ndarray]) -> Simulator:
    """Return a new simulator at a `snapshot`."""
    simulator = Simulator(*settings)
    simulator.restore(snapshot)
    return simulator


def settle_layouts(scene: Scene, settle: int = SETTLE_STEPS) -> np.ndarray:
    """Return the usable layouts as exact physics settles them, (P, nq); NaN for the others."""
    layouts, usable = scene.arrays["layout_qpos"], scene.arrays["layout_usable"]
    settled = np.full(layouts.shape, np.nan)
    copies = 64
    with Simulator(scene, copies) as simulator:
        for first in range(0, len(usable), copies):
            rows = usable[first : first + copies]
            states = np.zeros((len(rows), scene.state_size))
            states[:, 1 : 1 + scene.model.nq] = layouts[rows]
            fixtures = scene.arrays["layout_fixtures"][rows]
            ids = tuple(f"layout/{row}" for row in rows)
            starts = StartStates(scene.task.id, ids, states, fixtures)
            some = np.arange(len(rows))
            simulator.reset(starts, copies=some, settle=settle)
            sound = ~simulator.error[some]
            found = simulator.states()[some, 1 : 1 + scene.model.nq]
            settled[rows[sound]] = found[sound]
    return settled
