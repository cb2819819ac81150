"""On-policy data: many robots play side by side, each at another moment of its episode.

The paper's "diverse buffer" [S], as we read it: every episode has a start state of its own, and
resets are staggered, so a batch mixes all phases of many episodes. Copies keep playing from one
iteration to the next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl.policy import ChainPolicy
from diffrl.policy.features import Features, concatenate, privileged
from diffrl.presets import RLConfig
from diffrl.rl.rollout import Senses
from diffrl.sim.scene import Scene
from diffrl.sim.simulator import Physics, Simulator
from diffrl.sim.starts import fresh_start_states

TRAINING_STARTS = 1_000_000  # start-state seeds from here on: no other stage draws them


@dataclass
class Batch:
    """One iteration: T decisions of n copies, and what PPO needs to value them.

    Attributes:
        features: T·n rows, decision-major.
        chains: (T, n, S + 1, H, A) latents of the trained steps.
        rewards: (T, n) 1 in the decision that reached the goal.
        ended: (T, n) whether the episode ended in this decision, however it did.
        truncated: (T, n) whether it ended by the time limit: its value is bootstrapped.
        last_features: rows of the truncated decisions' last observations, in order.
        next_features: n rows, the observations after decision T.
        successes, lengths: of the episodes that ended without an error, in control steps.
        steps: control steps executed, resets' settling not counted.
        errors: episodes that ended because the physics diverged, while settling or later.
    """

    features: Features
    chains: Tensor
    rewards: Tensor
    ended: Tensor
    truncated: Tensor
    last_features: Features | None
    next_features: Features
    successes: list[bool]
    lengths: list[int]
    steps: int
    errors: int


class Collector:
    """n copies of a scene that a policy plays in; all of its state can be saved.

    With `config.staggered` the first episodes are cut at evenly spread moments, which sets the
    copies apart for good; without, all copies start afresh in each iteration.
    """

    def __init__(
        self,
        policy: ChainPolicy,
        scene: Scene,
        config: RLConfig,
        seed: int,
        threads: int | None = None,
    ):
        self.policy, self.scene, self.config = policy, scene, config
        self.limit = config.max_steps or scene.task.max_steps
        self.threads = threads
        self.privileged = config.critic == "state" and bool(policy.cameras)
        self._simulate(config.physics_at(0))
        self.start_seed = TRAINING_STARTS + seed
        self.episodes = 0  # begun so far: the number of the next fresh start state
        self.tail = policy.no_tail(config.copies)
        self.deadline = np.full(config.copies, self.limit)
        self._copies = np.arange(config.copies)

    def _simulate(self, physics: Physics) -> None:
        """Begin anew in a simulator of this physics."""
        config = self.config
        substeps = config.substeps if physics == "training" else None
        self.simulator = Simulator(
            self.scene, config.copies, self.threads, self.limit, physics, substeps
        )
        self.senses = Senses(self.policy, self.scene, self.simulator)
        self.fresh = True

    def use(self, physics: Physics) -> None:
        """Go on in this physics; a change of it begins all episodes anew."""
        if physics != self.simulator.physics:
            self.close()
            self._simulate(physics)

    def collect(self, generator: torch.Generator) -> Batch:
        """Play `config.decisions` decisions on every copy; stochastic, noise of `generator`."""
        self._begin()
        features, last, rows = self._observe(self._copies), [], []
        successes: list[bool] = []
        lengths: list[int] = []
        seen, chains, steps, errors = [], [], 0, 0
        for _ in range(self.config.decisions):
            noise = self.policy.noise(generator, len(self._copies))
            plan, chain = self.policy.sample(features, noise, "stochastic")
            actions, self.tail = self.policy.execute(plan, self.tail)
            step = self.simulator.step(actions.double().numpy())
            late = ~self.simulator.done & (self.simulator.elapsed >= self.deadline)
            truncated, ended = step.timeout | late, self.simulator.done | late
            seen.append(features)
            chains.append(chain)
            rows.append((step.reward, ended.copy(), truncated))
            fair = ended & ~self.simulator.error  # an error enters no rate
            steps, errors = steps + int(step.steps.sum()), errors + int((ended & ~fair).sum())
            successes.extend(step.success[fair].tolist())
            lengths.extend(self.simulator.elapsed[fair].tolist())
            if truncated.any():
                last.append(self._observe(np.flatnonzero(truncated)))
            if ended.any():
                self._reset(np.flatnonzero(ended))
            features = self._observe(self._copies)
        rewards, ends, cuts = (torch.from_numpy(np.stack(column)) for column in zip(*rows))
        return Batch(
            features=concatenate(seen),
            chains=torch.stack(chains),
            rewards=rewards.float(),
            ended=ends,
            truncated=cuts,
            last_features=concatenate(last) if last else None,
            next_features=features,
            successes=successes,
            lengths=lengths,
            steps=steps,
            errors=errors,
        )

    def _observe(self, copies: np.ndarray) -> Features:
        """What policy and critic see of some copies: the tails of their last plans, too."""
        features = self.policy.with_tail(self.senses(copies), self.tail[copies])
        if self.privileged:
            observation = self.simulator.observation.rows(copies)
            tail = self.tail[copies][:, : self.policy.layout.tail]
            features["privileged"] = privileged(observation, tail)
        return features

    @property
    def begins(self) -> bool:
        """Whether the next batch begins with new episodes on all copies."""
        return self.fresh or not self.config.staggered

    def _begin(self) -> None:
        """Start the first episodes, with staggered deadlines; or all anew, each time."""
        if self.begins:
            self.fresh = False
            self._reset(self._copies)
            if self.config.staggered:
                share = (1 + self._copies) / len(self._copies)
                self.deadline = np.ceil(share * self.limit).astype(int)

    def _reset(self, copies: np.ndarray) -> None:
        """Begin an episode on each of `copies`, from the next fresh start states."""
        starts = fresh_start_states(self.scene, len(copies), self.start_seed, first=self.episodes)
        self.episodes += len(copies)
        self.simulator.reset(starts, copies=copies)
        self.tail[copies] = np.nan
        self.deadline[copies] = self.limit

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to go on exactly as if nothing had happened."""
        return {
            "physics": self.simulator.physics,
            "simulator": self.simulator.snapshot(),
            "episodes": self.episodes,
            "tail": self.tail,
            "deadline": self.deadline,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.use(state["physics"])
        self.simulator.restore(state["simulator"])
        self.fresh = False
        self.episodes = state["episodes"]
        self.tail, self.deadline = state["tail"], state["deadline"]

    def close(self) -> None:
        """End the simulator's threads, and whoever draws."""
        self.simulator.close()
        self.senses.close()
