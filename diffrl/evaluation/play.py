"""Playing planned trials: a policy and a simulator's copies, decision by decision.

Images are rendered only when the policy decides, and only for robots that still play.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffrl.base.errors import UserError
from diffrl.data.media import write_mp4
from diffrl.evaluation.protocol import SETTLE, Policy, Trial
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator, Step
from diffrl.sim.starts import StartStates, start_states


@dataclass
class Outcome:
    """What became of one trial."""

    trial: Trial
    status: str = "running"  # then success, failure or error
    steps: int = 0  # control steps after settling
    seconds: float = 0.0  # from its reset to its end, other trials of the batch running meanwhile
    message: str = ""  # of an error
    states: list[np.ndarray] | None = None  # (steps + 1) of (state_size,), if they were wanted
    fixtures: np.ndarray | None = None  # (k, 7)


def play(
    policy: Policy,
    trials: Sequence[Trial],
    copies: int,
    keep: Callable[[Trial], bool] | None = None,
    report: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Play trials of one task, up to `copies` at once; outcomes in the order of `trials`.

    Images are rendered only when the policy decides, and only for robots that still play. `keep`
    tells whose states are to be kept, `report` gets each outcome as soon as it is known.

    Raises:
        UserError: the policy's actions have a wrong shape or are not finite.
    """
    scene = load_scene(trials[0].task)
    starts = start_states(scene, [trial.start_state for trial in trials])
    outcomes = [Outcome(trial) for trial in trials]
    waiting = deque(range(len(trials)))
    n = min(copies, len(trials)) if getattr(policy, "together", True) else 1
    with Simulator(scene, n, threads=1) as simulator:
        stage = _Stage(policy, scene, simulator, keep or _never, report or _never)
        while waiting or stage.playing:
            for copy in stage.free()[: len(waiting)]:
                index = waiting.popleft()
                stage.begin(copy, outcomes[index], starts[index])
            stage.advance()
    return outcomes


def _never(*_) -> bool:
    return False


class _Stage:
    """A simulator's copies and the trials that are playing on them."""

    def __init__(
        self,
        policy: Policy,
        scene: Scene,
        simulator: Simulator,
        keep: Callable,
        report: Callable,
    ):
        self.policy, self.scene, self.simulator = policy, scene, simulator
        self.keep, self.report = keep, report
        self.playing: dict[int, Outcome] = {}  # by copy
        self.renderer = None
        if policy.cameras:
            self.renderer = _renderer(scene.task.id, policy.image_size, policy.detail)

    def free(self) -> list[int]:
        return [copy for copy in range(self.simulator.n) if copy not in self.playing]

    def begin(self, copy: int, outcome: Outcome, start: StartStates) -> None:
        outcome.seconds = -time.perf_counter()
        self.policy.begin(outcome.trial, self.scene.instruction)
        self.simulator.reset(start, copies=[copy], settle=SETTLE)
        self.playing[copy] = outcome
        if self.simulator.error[copy]:
            self.end(copy, "error", "the physics diverged while the start state settled")
        elif self.keep(outcome.trial):
            outcome.states = [self.simulator.states()[copy]]
            outcome.fixtures = self.simulator.fixtures()[copy]

    def end(self, copy: int, status: str, message: str = "") -> None:
        outcome = self.playing.pop(copy)
        outcome.status, outcome.message = status, message
        outcome.seconds += time.perf_counter()
        self.policy.end(outcome.trial)
        self.simulator.done[copy] = True
        self.report(outcome)

    def advance(self) -> None:
        """Let the policy decide once for every trial under way, and execute its chunks."""
        active = sorted(self.playing)
        if not active:
            return
        decided = self._decide(active)
        for copy in active:
            if message := self.policy.failures.pop(self.playing[copy].trial, None):
                self.end(copy, "error", message)
        active = sorted(self.playing)
        actions = np.zeros((self.simulator.n, self.policy.chunk, 7))
        for copy in active:
            actions[copy] = decided[copy]
        record = any(outcome.states is not None for outcome in self.playing.values())
        step = self.simulator.step(actions, record=record)
        for copy in active:
            self._note(copy, step)

    def _note(self, copy: int, step: Step) -> None:
        outcome, executed = self.playing[copy], int(step.steps[copy])
        outcome.steps += executed
        if outcome.states is not None:
            outcome.states.extend(step.states[copy, :executed].copy())
        if step.error[copy]:
            self.end(copy, "error", "the physics diverged")
        elif step.success[copy]:
            self.end(copy, "success")
        elif step.timeout[copy]:
            self.end(copy, "failure")

    def _decide(self, active: list[int]) -> dict[int, np.ndarray]:
        trials = [self.playing[copy].trial for copy in active]
        observation = self.simulator.observation.rows(active)
        actions = self.policy.act(observation, self._images(active), trials)
        expected = (len(active), self.policy.chunk, 7)
        if np.shape(actions) != expected:
            raise UserError(
                f"The actions of {type(self.policy).__name__} have the shape {np.shape(actions)}; "
                f"expected {expected}: (trials, control steps, dx dy dz drx dry drz gripper)."
            )
        sound = [t in self.policy.failures or np.isfinite(a).all() for t, a in zip(trials, actions)]
        if not all(sound):
            raise UserError(
                f"{type(self.policy).__name__} gave actions that are not finite in "
                f"{trials[sound.index(False)]}: its weights or its inputs are broken."
            )
        return dict(zip(active, np.clip(actions, -1, 1)))

    def _images(self, active: list[int]) -> np.ndarray | None:
        if self.renderer is None:
            return None
        states, fixtures = self.simulator.states(), self.simulator.fixtures()
        views = [
            [self.renderer.render(states[c], fixtures[c], camera=k) for k in self.policy.cameras]
            for c in active
        ]
        return np.array(views)  # (n, cameras, size, size, 3)


@functools.lru_cache(maxsize=1)
def _renderer(task: str, size: int, detail: str):
    from diffrl.sim.camera import Renderer  # policies without eyes need no renderer

    return Renderer(load_scene(task), size=size, detail=detail)


def film(outcome: Outcome, folder: Path, detail: str, size: int = 256) -> Path:
    """Write a trial's agentview as an MP4 at 20 Hz; its states are rendered now."""
    name = f"{outcome.trial.task}-{outcome.trial.start_state}-{outcome.status}".replace("/", "-")
    renderer = _renderer(outcome.trial.task, size, detail)
    path = folder / f"{name}.mp4"
    frames = (renderer.render(state, outcome.fixtures) for state in outcome.states)
    write_mp4(path, (frame[::-1] for frame in frames))  # OpenGL's first row is the lowest
    return path
