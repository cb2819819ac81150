"""The simulator as gymnasium environments: ``diffrl/<suite>-<index>-v0`` for every task.

    import gymnasium, diffrl.sim.env
    env = gymnasium.make("diffrl/libero_object-0-v0", start="official")
    envs = gymnasium.make_vec("diffrl/libero_object-0-v0", num_envs=16)

``gymnasium.make("diffrl.sim.env:diffrl/libero_object-0-v0")`` needs no import of this module.

An episode terminates with success (reward 1), is truncated by the task's step limit, and truncated
with ``info["error"]`` where the physics diverged. Copy i of a vector environment that was reset
with seed s behaves, bit for bit, like a single one that was reset with seed s + i.

`copy.deepcopy` and pickle give an environment that continues bit for bit.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError, whole
from diffrl.sim.camera import CAMERAS, Renderer, check_picture
from diffrl.sim.observation import Observation
from diffrl.sim.pictures import Detail
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import StartStates, fresh_start_states, official_start_states
from diffrl.sim.tasks import PRO_SUITES, SUITES, suite_tasks

Start = Literal["fresh", "official"]
FPS = 20  # control steps a second

_SEED = "The seed of a reset"
_METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}


class _Body:
    """What both faces share: a simulator, the start-state policy, observations, cameras."""

    def __init__(
        self,
        scenes: list[Scene],
        start: Start | StartStates,
        cameras: Sequence[str],
        image_size: int,
        detail: Detail,
        max_steps: int | list[int] | None,
        render_mode: str | None,
        threads: int | None,
    ):
        if isinstance(cameras, str):
            raise UserError(f"cameras is {cameras!r}: give a list, for instance [{CAMERAS[0]!r}].")
        unknown = [camera for camera in cameras if camera not in CAMERAS]
        if unknown:
            raise UserError(f"There is no camera {unknown[0]!r}: choose from {', '.join(CAMERAS)}.")
        if not isinstance(start, StartStates) and start not in ("fresh", "official"):
            raise UserError(f"start is {start!r}: use 'fresh', 'official' or a StartStates.")
        if render_mode not in (None, *_METADATA["render_modes"]):
            raise UserError(f"render_mode is {render_mode!r}: use 'rgb_array', or None.")
        check_picture(image_size, detail)
        self.scenes, self.start = scenes, start
        self._fresh = isinstance(start, str) and start == "fresh"
        self.cameras, self.image_size, self.detail = tuple(cameras), image_size, detail
        self.simulator = Simulator(scenes, len(scenes), threads, max_steps)
        self.renderers: dict[str, Renderer] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: all but the renderers, which it makes when it draws."""
        return self.__dict__ | {"renderers": {}}

    def spec(self, spec: EnvSpec | None) -> EnvSpec | None:
        """gymnasium's description of this environment, with the step limit that holds in it.

        It is not registered with the id: gymnasium would add a limit of its own, which no
        `max_steps` could lengthen.
        """
        if spec is not None:
            spec = copy.copy(spec)
            spec.max_episode_steps = int(self.simulator.limits.max())
        return spec

    def space(self) -> spaces.Dict:
        """The observation space of one copy."""
        arrays = Observation.empty(self.scenes, 1).arrays()
        parts: dict[str, spaces.Space] = {
            name: spaces.Box(-np.inf, np.inf, a.shape[1:], a.dtype) for name, a in arrays.items()
        }
        shape = (self.image_size, self.image_size, 3)
        for camera in self.cameras:
            parts[f"{camera}_image"] = spaces.Box(0, 255, shape, np.uint8)
        return spaces.Dict(parts)

    def wanted(self, options: dict[str, Any] | None, known: Sequence[str]) -> list[int | None]:
        """The number of the start state that `reset(options={"start": …})` asks for, per copy.

        Raises UserError for an option that is not `known`, too.
        """
        for name in options or {}:
            if name not in known:
                raise UserError(f"reset knows no option {name!r}: it takes {', '.join(known)}.")
        given, n = (options or {}).get("start"), len(self.scenes)
        if given is None:
            return [None] * n
        numbers = np.asarray(given)
        whole = np.issubdtype(numbers.dtype, np.integer) and numbers.shape in ((), (n,))
        if not whole or self._fresh:
            raise UserError(
                f"options={{'start': {given!r}}}: give a number, or one for each of {n} copies, to "
                "an environment with start='official' or a StartStates; fresh ones are drawn by "
                "reset(seed=…)."
            )
        return np.broadcast_to(numbers, n).tolist()

    def draw(self, copy: int, generator: np.random.Generator, wanted: int | None) -> StartStates:
        """One start state for a copy: number `wanted`, or one drawn by its generator."""
        scene = self.scenes[copy]
        if self._fresh:
            return fresh_start_states(scene, 1, seed=int(generator.integers(2**31)))
        given = official_start_states(scene) if isinstance(self.start, str) else self.start
        number = int(generator.integers(len(given))) if wanted is None else wanted
        if not 0 <= number < len(given):
            raise UserError(f"Start state {number} was asked for; there are 0 to {len(given) - 1}.")
        return given[number]

    def observe(self) -> dict[str, np.ndarray]:
        """Everything in the observation space, as new arrays with one row a copy."""
        rows = {name: array.copy() for name, array in self.simulator.observation.arrays().items()}
        return rows | {f"{camera}_image": self.images(camera) for camera in self.cameras}

    def images(self, camera: str) -> np.ndarray:
        """(n, size, size, 3) what a camera sees now, in LIBERO's orientation."""
        states, fixtures = self.simulator.states(), self.simulator.fixtures()
        images = []
        for scene, state, poses in zip(self.scenes, states, fixtures):
            renderer = self._renderer(scene)
            state, poses = state[: scene.state_size], poses[: len(scene.fixture_names)]
            images.append(renderer.render(state, poses, camera))
        return np.stack(images)

    def _renderer(self, scene: Scene) -> Renderer:
        if scene.task.id not in self.renderers:
            self.renderers[scene.task.id] = Renderer(scene, self.image_size, self.detail)
        return self.renderers[scene.task.id]

    def close(self) -> None:
        self.simulator.close()
        for renderer in self.renderers.values():
            renderer.close()


def _action_space() -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)


def _seed(seed: Any) -> int | None:
    return None if seed is None else whole(seed, _SEED, least=0)


def _checked(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the actions of one step; a chunk, which the simulator would play, is refused."""
    actions = np.asarray(actions)
    if actions.shape != shape:
        raise UserError(f"step: actions have shape {actions.shape}; expected {shape}.")
    return actions


class LiberoEnv(gymnasium.Env):
    """One task.

    Args:
        task: e.g. "libero_object/0".
        start: where episodes begin: "fresh" (LIBERO's placement sampler, for training), "official"
            (its 50 start states, for evaluation) or a `StartStates`. `reset(seed=…)` seeds the
            draw; ``reset(options={"start": i})`` takes number i of those that are not fresh.
        cameras: images in the observation, as "agentview_image" …: any of `CAMERAS`.
        image_size, detail: see `diffrl.sim.camera.Renderer`.
        max_steps: control steps an episode may take, at least 1; default: the task's own limit.
            `env.spec.max_episode_steps` tells it. (gymnasium's own `max_episode_steps` shortens
            episodes only.)
        render_mode: "rgb_array" (upright, for people) or None.

    Raises:
        UserError: one of these does not exist.
    """

    metadata = _METADATA

    def __init__(
        self,
        task: str,
        start: Start | StartStates = "fresh",
        cameras: Sequence[str] = (),
        image_size: int = 128,
        detail: Detail = "exact",
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        scene = load_scene(task)
        settings = (start, cameras, image_size, detail, max_steps, render_mode)
        self._body = _Body([scene], *settings, threads=1)
        self.scene, self.render_mode = scene, render_mode
        self.action_space, self.observation_space = _action_space(), self._body.space()
        self._ended = True
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """How gymnasium made this environment; None where it did not."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = self._body.spec(spec)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode (10 settle steps included); the info names its start state.

        Raises:
            UserError: the seed is no whole number, or an option is unknown or does not fit.
        """
        wanted = self._body.wanted(options, ("start",))
        super().reset(seed=_seed(seed))
        start = self._body.draw(0, self.np_random, wanted[0])
        self._body.simulator.reset(start)
        self._ended = False
        info = {"start_state": start.ids[0], "instruction": self.scene.instruction}
        return self._observation(), info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """Execute one action (7,) in [-1, 1] for 1/20 s.

        Raises:
            UserError: the action has a wrong shape, is not finite, or lies beyond [-1, 1].
            gymnasium.error.ResetNeeded: the episode has ended.
        """
        if self._ended:
            raise gymnasium.error.ResetNeeded("The episode has ended, or none has begun: reset().")
        step = self._body.simulator.step(_checked(action, (ACTION_SIZE,))[None])
        error = bool(self._body.simulator.error[0])  # in this step, or while settling
        info = {"success": bool(step.success[0]), "error": error}
        cut = bool(step.timeout[0]) or error
        self._ended = info["success"] or cut
        return self._observation(), float(step.reward[0]), info["success"], cut, info

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: rows[0] for name, rows in self._body.observe().items()}

    def render(self) -> np.ndarray | None:
        """Return agentview, upright, (image_size, image_size, 3) uint8."""
        return self._body.images(CAMERAS[0])[0, ::-1] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """End the threads and free the renderer."""
        self._body.close()


class LiberoVectorEnv(VectorEnv):
    """`num_envs` copies of one task, or one copy of each of several, stepped by threads.

    Autoreset is gymnasium's "next step": the call after an episode's end ignores that copy's action
    and returns the first observation of its next episode, with reward 0.

    Args:
        task: of all copies, or a list with one for each; then observations are padded with zeros.
        num_envs: copies.
        threads: default: all cores; the results do not depend on it.
        start, cameras, image_size, detail, max_steps, render_mode: as in `LiberoEnv`.
        max_episode_steps: gymnasium's own limit, which shortens episodes only.
    """

    metadata = _METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        task: str | Sequence[str],
        num_envs: int = 1,
        threads: int | None = None,
        start: Start | StartStates = "fresh",
        cameras: Sequence[str] = (),
        image_size: int = 128,
        detail: Detail = "exact",
        max_steps: int | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ):
        tasks = [task] * whole(num_envs, "num_envs") if isinstance(task, str) else list(task)
        if len(tasks) != num_envs:
            raise UserError(f"{len(tasks)} tasks for num_envs={num_envs}: give one task, or each.")
        scenes = [load_scene(one) for one in tasks]
        limits: int | list[int] | None = max_steps
        if max_episode_steps is not None:
            most = whole(max_episode_steps, "max_episode_steps")
            own = [scene.task.max_steps if max_steps is None else max_steps for scene in scenes]
            limits = [min(most, limit) for limit in own]
        settings = (start, cameras, image_size, detail, limits, render_mode)
        self._body = _Body(scenes, *settings, threads)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_action_space = _action_space()
        self.single_observation_space = self._body.space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self._ended = np.zeros(num_envs, bool)
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """How gymnasium made this environment; None where it did not."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = self._body.spec(spec)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode in every copy; copy i is seeded with seed + i, or with its own seed.

        ``options={"start": …}`` is as in `LiberoEnv`: one number for all copies, or one for each.
        ``options={"reset_mask": …}`` (num_envs,) bool begins an episode in the copies marked True
        only; the others keep theirs, and their generators (gymnasium's own vector environments do
        the same).

        Raises:
            UserError: a seed is no whole number, or an option is unknown or does not fit.
            gymnasium.error.ResetNeeded: a mask leaves out copies that no episode has begun in.
        """
        wanted = self._body.wanted(options, ("start", "reset_mask"))
        mask = self._mask(options)
        seeds = self._seeds(seed)
        known: list[Any] = list(self._generators) or [None] * self.num_envs
        self._generators = [
            old if old and (one is None or not chosen) else np_random(one)[0]
            for one, old, chosen in zip(seeds, known, mask)
        ]
        self._ended[mask] = False
        info = self._begin(np.flatnonzero(mask), wanted)
        return self._body.observe(), info

    def _mask(self, options: dict[str, Any] | None) -> np.ndarray:
        """(num_envs,) the copies that a reset is for."""
        given = (options or {}).get("reset_mask")
        if given is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(given)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise UserError(
                f"options={{'reset_mask': {given!r}}}: give an array of {self.num_envs} truth "
                "values, one for each copy, at least one of them True."
            )
        if not self._generators and not mask.all():
            raise gymnasium.error.ResetNeeded("The first reset() is for all copies: no reset_mask.")
        return mask

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if np.ndim(seed) == 0:
            first = whole(seed, _SEED, least=0)
            return [first + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise UserError(f"{len(seed)} seeds were given for {self.num_envs} copies.")
        return [_seed(one) for one in seed]

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute actions (num_envs, 7); copies whose episode has ended begin the next one.

        Raises:
            UserError: the actions have a wrong shape, are not finite, or lie beyond [-1, 1].
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if not self._generators:
            raise gymnasium.error.ResetNeeded("No episode has begun: call reset() first.")
        actions = _checked(actions, (self.num_envs, ACTION_SIZE))
        step = self._body.simulator.step(actions)  # the ended copies are frozen
        error = self._body.simulator.error & ~self._ended  # in this step, or while settling
        begun = self._begin(np.flatnonzero(self._ended)) if self._ended.any() else {}
        truncations = step.timeout | error
        self._ended = step.success | truncations
        everywhere = np.ones(self.num_envs, bool)
        info = begun | {"success": step.success, "error": error}
        info |= {"_success": everywhere, "_error": everywhere}
        return self._body.observe(), step.reward, step.success.copy(), truncations, info

    def _begin(
        self, copies: np.ndarray, wanted: list[int | None] | None = None
    ) -> dict[str, np.ndarray]:
        """Begin episodes in some copies; return their start states and tasks, as vector info."""
        wanted = wanted or [None] * self.num_envs
        starts = {c: self._body.draw(c, self._generators[c], wanted[c]) for c in copies}
        for task in dict.fromkeys(start.task for start in starts.values()):
            same = [c for c in copies if starts[c].task == task]
            together = StartStates.concatenate([starts[c] for c in same])
            self._body.simulator.reset(together, copies=same)
        begun = np.zeros(self.num_envs, bool)
        begun[copies] = True
        names, instructions = np.full((2, self.num_envs), None, object)
        names[copies] = [starts[c].ids[0] for c in copies]
        instructions[copies] = [self._body.scenes[c].instruction for c in copies]
        info = {"start_state": names, "instruction": instructions}
        return info | {"_start_state": begun, "_instruction": begun.copy()}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return each copy's agentview, upright, (image_size, image_size, 3) uint8."""
        upright = self.render_mode == "rgb_array"
        return tuple(self._body.images(CAMERAS[0])[:, ::-1]) if upright else None

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads and free the renderers."""
        self._body.close()


def env_id(task_id: str) -> str:
    """Return the gymnasium id of a task: "libero_object/0" -> "diffrl/libero_object-0-v0"."""
    return f"diffrl/{task_id.replace('/', '-')}-v0"


def register_envs() -> None:
    """Register every task of LIBERO and LIBERO-PRO; done when this module is imported."""
    for suite in SUITES + PRO_SUITES:
        for task in suite_tasks(suite):
            if env_id(task.id) not in gymnasium.registry:
                gymnasium.register(
                    env_id(task.id),
                    entry_point="diffrl.sim.env:LiberoEnv",
                    vector_entry_point="diffrl.sim.env:LiberoVectorEnv",
                    kwargs={"task": task.id},
                )


register_envs()
