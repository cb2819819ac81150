"""Playing planned trials: a policy and a simulator's copies, decision by decision.

Images are rendered only when the policy decides, and only for robots that still play.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffrl.base.errors import UserError
from diffrl.data.media import write_mp4
from diffrl.evaluation.protocol import Policy, Trial
from diffrl.sim.pictures import Pictures
from diffrl.sim.play import Playing
from diffrl.sim.play import play as play_starts
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import start_states

if TYPE_CHECKING:
    from diffrl.sim.camera import Renderer


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
    actor = _Evaluated(policy, scene, outcomes)
    count = min(copies, len(trials)) if getattr(policy, "together", True) else 1
    with Simulator(scene, count, threads=1) as simulator:
        wanted = [keep is not None and keep(trial) for trial in trials]
        for played in play_starts(simulator, starts, actor, keep=wanted.__getitem__):
            outcome = outcomes[played.number]
            outcome.status, outcome.message = played.status, played.message
            outcome.steps, outcome.fixtures = played.steps, played.fixtures
            outcome.states = played.states or None
            if report is not None:
                report(outcome)
    return outcomes


class _Evaluated:
    """The actor of `play`: a `Policy`, the pictures that it wants, and the time that it takes."""

    def __init__(self, policy: Policy, scene: Scene, outcomes: Sequence[Outcome]):
        self.policy, self.scene, self.outcomes = policy, scene, outcomes
        self.chunk = policy.chunk
        self.renderer: Renderer | None = None
        if policy.cameras:
            self.renderer = renderer_of(scene.task.id, Pictures(policy.image_size, policy.detail))

    def begin(self, playing: Playing) -> None:
        outcome = self.outcomes[playing.number]
        outcome.seconds = -time.perf_counter()
        self.policy.begin(outcome.trial, self.scene.instruction)

    def end(self, playing: Playing) -> None:
        outcome = self.outcomes[playing.number]
        outcome.seconds += time.perf_counter()
        self.policy.end(outcome.trial)

    def act(self, simulator: Simulator, playing: Sequence[Playing]) -> np.ndarray:
        trials = [self.outcomes[one.number].trial for one in playing]
        copies = [one.copy for one in playing]
        observation = simulator.observation.rows(copies)
        actions = self.policy.act(observation, self._images(simulator, copies), trials)
        expected = (len(playing), self.policy.chunk, 7)
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
        for one, trial in zip(playing, trials):
            if message := self.policy.failures.pop(trial, None):
                one.status, one.message = "error", message
        clipped: np.ndarray = np.clip(actions, -1, 1)
        return clipped

    def _images(self, simulator: Simulator, copies: Sequence[int]) -> np.ndarray | None:
        if self.renderer is None:
            return None
        states, fixtures = simulator.states(), simulator.fixtures()
        views = [
            [self.renderer.render(states[c], fixtures[c], camera=k) for k in self.policy.cameras]
            for c in copies
        ]
        return np.array(views)  # (n, cameras, size, size, 3)


@functools.lru_cache(maxsize=1)
def renderer_of(task: str, pictures: Pictures) -> "Renderer":
    """Return a task's renderer; the last one that was asked for stays open."""
    from diffrl.sim.camera import Renderer  # policies without eyes need no renderer

    return Renderer(load_scene(task), pictures.size, pictures.detail)


def film(outcome: Outcome, folder: Path, pictures: Pictures) -> Path:
    """Write a trial's agentview as an MP4 at 20 Hz; its states are rendered now."""
    name = f"{outcome.trial.task}-{outcome.trial.start_state}-{outcome.status}".replace("/", "-")
    renderer = renderer_of(outcome.trial.task, pictures)
    path = folder / f"{name}.mp4"
    assert outcome.fixtures is not None  # its states were kept
    fixtures = outcome.fixtures
    frames = (renderer.render(state, fixtures) for state in outcome.states or ())
    write_mp4(path, (frame[::-1] for frame in frames))  # OpenGL's first row is the lowest
    return path
