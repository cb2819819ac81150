"""Behaviour cloning: a policy from few demonstrations, stopped when it is good enough for RL.

A clone that already succeeds always leaves RL nothing to show, one that never does leaves it
nothing to learn from: training stops at a set success, measured on fresh start states of which no
data set and no final evaluation has any. But not too early: a clone of a hundred optimiser steps is
blurry, and RL did not improve it, while one of few demonstrations that was trained to be sharp
improved at once.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl.base.errors import TrainingError, UserError
from diffrl.data.episode import Episode
from diffrl.policy import ChainPolicy
from diffrl.policy.features import Features, concatenate, select
from diffrl.presets import CloneConfig
from diffrl.rl.rollout import Rollout, fair, painters_of, success_rate
from diffrl.sim.observation import observe
from diffrl.sim.scene import Scene

Measure = Callable[[ChainPolicy], Sequence[Rollout]]  # trials of a clone


def demonstration_rows(
    policy: ChainPolicy, scene: Scene, episodes: Sequence[Episode]
) -> tuple[Features, Tensor]:
    """Return the features of each decision (m rows) and the actions that follow (m, H, 7).

    After an episode's end its last action is repeated.

    Raises:
        UserError: there are no demonstrations, or one is of another task.
    """
    if not episodes:
        raise UserError(
            f"There are no demonstrations of {scene.task.id}: raise demonstrations.count or "
            "demonstrations.max_attempts in the preset, or lower demonstrations.noise."
        )
    features, plans = [], []
    painters = painters_of(policy, scene)
    for episode in episodes:
        if episode.task != scene.task.id:
            raise UserError(
                f"A demonstration of {episode.task} cannot be cloned for {scene.task.id}."
            )
        length = episode.length
        states = episode.states[:length]
        observation = observe(scene, states, episode.fixtures)
        fixtures = np.broadcast_to(episode.fixtures, (length, *episode.fixtures.shape))
        images = painters.draw(states, fixtures) if painters else None
        seen = policy.features(observation, images)
        features.append(policy.with_tail(seen, policy.no_tail(length)))  # nobody planned
        steps = np.arange(length)[:, None] + np.arange(policy.horizon)
        actions = episode.actions[np.minimum(steps, length - 1)]
        plans.append(torch.from_numpy(actions).float())
    if painters:
        painters.close()
    return concatenate(features), torch.cat(plans)


class Clone:
    """Cloning under way: Adam, cosine learning rate, an average of the weights (EMA)."""

    def __init__(
        self,
        policy: ChainPolicy,
        features: Features,
        plans: Tensor,
        config: CloneConfig,
        seed: int = 0,
    ):
        from diffusers.training_utils import EMAModel  # diffusers takes seconds to import

        policy.fit(features, plans[:, 0])
        self.policy, self.config = policy, config
        self.features, self.plans = features, policy.scaled(plans)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.ema = EMAModel(self.parameters, decay=config.ema)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.seconds = 0.0  # of training and measuring, and of what came before; kills not counted
        self.curve: list[dict[str, Any]] = []  # of each measurement: steps, loss, success

    def train(self, steps: int) -> float:
        """Take `steps` optimiser steps; return their mean loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        total = 0.0
        for _ in range(steps):
            size = (self.config.batch,)
            rows = torch.randint(0, len(self.plans), size, generator=self.generator)
            features = self.policy.augment(select(self.features, rows), self.generator)
            loss = self.policy.loss(features, self.plans[rows], self.generator)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"The cloning loss is {loss.item()} at step {self.steps}: lower "
                    "clone.learning_rate. An expert that was there before is untouched."
                )
            decay = 0.5 * (1 + math.cos(math.pi * self.steps / self.config.steps))
            self.optimiser.param_groups[0]["lr"] = self.config.learning_rate * decay
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.ema.step(self.parameters)
            self.steps += 1
            total += loss.item()
        return total / max(steps, 1)

    def averaged(self) -> "_Averaged":
        """Return a context in which the policy has the averaged weights."""
        return _Averaged(self)

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "seconds": self.seconds,
            "curve": self.curve,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name in ("policy", "optimiser", "ema"):
            getattr(self, name).load_state_dict(state[name])
        self.ema.to(self.policy.device)  # the others move what they load by themselves
        self.generator.set_state(state["generator"])
        for name in ("steps", "seconds", "curve"):
            setattr(self, name, state[name])

    def finished(self) -> bool:
        """Whether success has reached its target, or the steps are used up."""
        success = self.curve[-1]["success"] if self.curve else -1.0
        return success >= self.config.target_success or self.steps >= self.config.steps


class _Averaged:
    def __init__(self, clone: Clone):
        self.clone = clone

    def __enter__(self) -> ChainPolicy:
        self.clone.ema.store(self.clone.parameters)
        self.clone.ema.copy_to(self.clone.parameters)
        self.clone.policy.freeze_prefix()
        return self.clone.policy

    def __exit__(self, *exception: object) -> None:
        self.clone.ema.restore(self.clone.parameters)


def fit_clone(
    clone: Clone,
    measure: Measure,
    save: Callable[[], None] = lambda: None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> float:
    """Train until success reaches `target_success`, or the steps are used up.

    The policy ends with the averaged weights. Returns the last measured success.

    Args:
        clone: fresh, or restored from a checkpoint.
        measure: plays a policy on held-out start states; trials with an error do not count.
        save: called after each measurement.
        report: called with each row of the curve.

    Raises:
        TrainingError: the loss is not finite, or the finished clone never succeeds.
    """
    config = clone.config
    while not clone.finished():
        began = time.perf_counter()
        goal = max(config.first_measure, math.ceil(config.measure_growth * clone.steps))
        goal = min(max(goal, clone.steps + 1), config.steps)
        loss = clone.train(goal - clone.steps)
        with clone.averaged() as policy:
            trials = measure(policy)
        row = {"steps": clone.steps, "loss": loss, "success": success_rate(trials)}
        clone.curve.append(row | {"measured": fair(trials)})
        clone.seconds += time.perf_counter() - began
        report(row)
        save()
    success = float(clone.curve[-1]["success"])
    if success == 0:
        raise TrainingError(
            f"The clone of {clone.policy.layout.task} never succeeded on its "
            f"{config.measure_starts} held-out start states after {clone.steps} steps: RL "
            "from a sparse reward cannot start there. Raise demonstrations.count or clone.steps."
        )
    clone.ema.copy_to(clone.parameters)
    clone.policy.freeze_prefix()
    return success
