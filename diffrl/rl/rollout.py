"""Rollouts for measuring: each start state is played once, and nothing depends on the batch.

A trial's noise comes from its own generator, and the network runs on blocks of one size: with
another number of rows a matrix product may round differently, and after a contact so may success.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from diffrl.data.episode import WIDTHS, Episode
from diffrl.policy import ChainPolicy, Mode, trial_generator
from diffrl.policy.decide import decide
from diffrl.policy.features import Features
from diffrl.sim.observation import observe
from diffrl.sim.scene import Scene
from diffrl.sim.simulator import Simulator, Step
from diffrl.sim.starts import StartStates

COPIES = 50  # robots simulated at once, at most
DETAIL = "reduced"  # of the images that an image policy sees


@dataclass
class Trial:
    """What became of one start state."""

    start_state: str
    mode: Mode
    seed: int
    success: bool = False
    error: bool = False  # the physics diverged; such a trial enters no rate
    steps: int = 0  # control steps
    episode: Episode | None = None  # if it was recorded


@dataclass
class _Play:
    """A trial under way on one copy of the simulator."""

    trial: Trial
    noise: torch.Generator
    tail: torch.Tensor  # (1, cross_fade, 7) of the last plan
    states: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)

    def note(self, step: Step, copy: int, actions: np.ndarray) -> None:
        """Enter what a chunk (chunk, 7) did to this trial."""
        executed = int(step.steps[copy])
        self.trial.steps += executed
        self.trial.success |= bool(step.success[copy])
        if step.states is not None:
            size = len(self.states[0])
            self.states.extend(step.states[copy, :executed, :size].copy())
            self.actions.extend(actions[:executed])


class Senses:
    """Features of some copies of a simulator, images included where the policy wants them."""

    def __init__(self, policy: ChainPolicy, scene: Scene, simulator: Simulator):
        self.policy, self.simulator = policy, simulator
        self.renderer = None
        if policy.cameras:
            from diffrl.sim.camera import Renderer  # states need no renderer, nor its libraries

            self.renderer = Renderer(scene, size=policy.layout.image_size, detail=DETAIL)

    def __call__(self, copies) -> Features:
        """Return the features of the given copies (m,), in their order."""
        observation = self.simulator.observation.rows(copies)
        if self.renderer is None:
            return self.policy.features(observation)
        states, fixtures = self.simulator.states(), self.simulator.fixtures()
        camera = self.policy.cameras[0]
        images = [self.renderer.render(states[i], fixtures[i], camera) for i in copies]
        return self.policy.features(observation, np.stack(images))


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
) -> list[Trial]:
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
    n = min(len(start_states), COPIES)
    trials = [Trial(name, mode, seed) for name in start_states.ids]
    waiting = deque(range(len(trials)))
    free, plays = list(range(n)), {}  # copies without a trial; copy -> trial under way
    with Simulator(scene, n, threads=threads, max_steps=max_steps) as simulator:
        senses = Senses(policy, scene, simulator)
        while waiting or plays:
            chosen = [waiting.popleft() for _ in free[: len(waiting)]]
            plays |= _begin(policy, simulator, start_states, trials, chosen, free[: len(chosen)])
            active = sorted(plays)
            actions = np.zeros((n, policy.chunk, 7))
            noises, tails = zip(*((plays[c].noise, plays[c].tail) for c in active))
            actions[active], tails = decide(policy, senses(active), noises, tails, mode)
            for copy, tail in zip(active, tails):
                plays[copy].tail = tail
            step = simulator.step(actions, record=record)
            for copy in active:
                plays[copy].note(step, copy, actions[copy])
                plays[copy].trial.error |= bool(simulator.error[copy])  # or while settling
            free = [copy for copy in active if simulator.done[copy]]
            fixtures = simulator.fixtures() if record else None
            for copy in free:
                play = plays.pop(copy)
                if record and play.actions:
                    play.trial.episode = _episode(policy, scene, play, mode, fixtures[copy])
    return trials


def _begin(
    policy: ChainPolicy,
    simulator: Simulator,
    start_states: StartStates,
    trials: list[Trial],
    chosen: list[int],
    copies: list[int],
) -> dict[int, _Play]:
    """Reset `copies` to the chosen start states; return their plays by copy."""
    if not chosen:
        return {}
    simulator.reset(start_states[chosen], copies=copies)
    states = simulator.states()
    task = start_states.task
    return {
        copy: _Play(
            trial,
            trial_generator(task, trial.start_state, trial.seed),
            policy.no_tail(1),
            [states[copy]],
        )
        for copy, trial in zip(copies, (trials[index] for index in chosen))
    }


def _episode(
    policy: ChainPolicy, scene: Scene, play: _Play, mode: Mode, fixtures: np.ndarray
) -> Episode:
    states = np.stack(play.states)
    rewards = np.zeros(len(play.actions))
    rewards[-1] = play.trial.success
    observation = observe(scene, states, fixtures)
    return Episode(
        task=scene.task.id,
        instruction=scene.instruction,
        start_state=play.trial.start_state,
        seed=play.trial.seed,
        source=policy.config.algorithm,
        mode=mode,
        success=play.trial.success,
        states=states,
        actions=np.stack(play.actions),
        rewards=rewards,
        fixtures=fixtures,
        observations={name: getattr(observation, name) for name in WIDTHS},
    )


def success_rate(trials: Sequence[Trial]) -> float:
    """Return the share of successes; trials that ended in an error do not count."""
    successes = [trial.success for trial in trials if not trial.error]
    return float(np.mean(successes)) if successes else 0.0


def fair(trials: Sequence[Trial]) -> int:
    """Return how many trials count: those without an error."""
    return sum(not trial.error for trial in trials)


def attainable(trials: Sequence[Trial], total: int) -> float:
    """Return the success rate of `total` trials if all that are still to be played succeed."""
    left = total - len(trials)
    successes = sum(trial.success and not trial.error for trial in trials)
    return (successes + left) / max(fair(trials) + left, 1)
