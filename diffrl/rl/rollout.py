"""Rollouts for measuring: each start state is played once, and nothing depends on the batch.

A trial's noise comes from its own generator, and the network runs on blocks of one size: with
another number of rows a matrix product may round differently, and after a contact so may success.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffrl.base.scale import cores
from diffrl.data.episode import WIDTHS, Episode
from diffrl.policy import ChainPolicy, Mode, trial_generator
from diffrl.policy.decide import decide
from diffrl.policy.features import Features
from diffrl.sim.observation import observe
from diffrl.sim.play import Playing, play
from diffrl.sim.scene import Scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import StartStates

if TYPE_CHECKING:
    from diffrl.sim.painters import Painters

COPIES = 50  # robots simulated at once, at most


@dataclass
class Rollout:
    """What became of one start state."""

    start_state: str
    mode: Mode
    seed: int
    success: bool = False
    error: bool = False  # the physics diverged; such a trial enters no rate
    steps: int = 0  # control steps
    episode: Episode | None = None  # if it was recorded


class Senses:
    """Features of some copies of a simulator, images included where the policy wants them."""

    def __init__(self, policy: ChainPolicy, scene: Scene, simulator: Simulator):
        self.policy, self.simulator = policy, simulator
        self.painters = painters_of(policy, scene)

    def __call__(self, copies: Sequence[int] | np.ndarray) -> Features:
        """Return the features of the given copies (m,), in their order."""
        observation = self.simulator.observation.rows(copies)
        if self.painters is None:
            return self.policy.features(observation)
        states, fixtures = self.simulator.states()[copies], self.simulator.fixtures()[copies]
        return self.policy.features(observation, self.painters.draw(states, fixtures))

    def close(self) -> None:
        """End the processes that draw, if there are any."""
        if self.painters is not None:
            self.painters.close()


def painters_of(policy: ChainPolicy, scene: Scene) -> "Painters | None":
    """Return who draws what a policy sees; None for a policy without cameras."""
    if not policy.cameras:
        return None
    from diffrl.sim.painters import Painters  # states need no renderer, nor its libraries

    layout = policy.layout
    workers = cores() if policy.device.type == "cuda" else 0
    return Painters(scene.task.id, layout.cameras, layout.image_size, layout.detail, workers)


def rollout(
    policy: ChainPolicy,
    scene: Scene,
    start_states: StartStates,
    mode: Mode = "deterministic",
    seed: int = 0,
    *,
    threads: int | None = None,
    record: bool = False,
    max_steps: int | None = None,
) -> list[Rollout]:
    """Play each start state once; the trials come back in the start states' order.

    Args:
        policy: whose decisions are executed.
        scene: of the policy's task.
        start_states: n of them; each is settled before the policy acts.
        mode: "deterministic" or "stochastic".
        seed: of the trials' noise.
        threads: of the simulator; they change nothing but the time.
        record: whether each trial carries its episode.
        max_steps: control steps per trial; default: the task's protocol limit.
    """
    trials = [Rollout(name, mode, seed) for name in start_states.ids]
    copies = min(len(start_states), COPIES)
    with Simulator(scene, copies, threads=threads, max_steps=max_steps) as simulator:
        senses = Senses(policy, scene, simulator)
        actor = _Expert(policy, senses, trials, start_states.task)
        for played in play(simulator, start_states, actor, keep=lambda number: record):
            trial = trials[played.number]
            trial.success, trial.error = played.status == "success", played.status == "error"
            trial.steps = played.steps
            if played.actions:
                trial.episode = _episode(policy, scene, trial, played)
        senses.close()
    return trials


class _Expert:
    """The actor of `rollout`: a generator and the last plan's tail (1, cross_fade, 7) a trial."""

    def __init__(self, policy: ChainPolicy, senses: Senses, trials: list[Rollout], task: str):
        self.policy, self.senses, self.trials, self.task = policy, senses, trials, task
        self.chunk = policy.chunk
        self.memory: dict[int, tuple[torch.Generator, torch.Tensor]] = {}

    def begin(self, playing: Playing) -> None:
        trial = self.trials[playing.number]
        noise = trial_generator(self.task, trial.start_state, trial.seed)
        self.memory[playing.number] = noise, self.policy.no_tail(1)

    def act(self, simulator: Simulator, playing: Sequence[Playing]) -> np.ndarray:
        noises, tails = zip(*(self.memory[one.number] for one in playing))
        features = self.senses([one.copy for one in playing])
        mode = self.trials[0].mode
        actions, ends = decide(self.policy, features, noises, tails, mode)
        self.memory |= dict(zip((one.number for one in playing), zip(noises, ends)))
        return actions

    def end(self, playing: Playing) -> None:
        del self.memory[playing.number]


def _episode(policy: ChainPolicy, scene: Scene, trial: Rollout, played: Playing) -> Episode:
    assert played.fixtures is not None  # it has begun
    states, fixtures = np.stack(played.states), played.fixtures
    rewards = np.zeros(len(played.actions))
    rewards[-1] = trial.success
    observation = observe(scene, states, fixtures)
    return Episode(
        task=scene.task.id,
        instruction=scene.instruction,
        start_state=trial.start_state,
        seed=trial.seed,
        source=policy.config.algorithm,
        mode=trial.mode,
        success=trial.success,
        states=states,
        actions=np.stack(played.actions),
        rewards=rewards,
        fixtures=fixtures,
        observations={name: getattr(observation, name) for name in WIDTHS},
    )


def success_rate(trials: Sequence[Rollout]) -> float:
    """Return the share of successes; trials that ended in an error do not count."""
    successes = [trial.success for trial in trials if not trial.error]
    return float(np.mean(successes)) if successes else 0.0


def fair(trials: Sequence[Rollout]) -> int:
    """Return how many trials count: those without an error."""
    return sum(not trial.error for trial in trials)
