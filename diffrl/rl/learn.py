"""The loop: collect, learn, measure now and then, and be able to go on after a kill."""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffrl.base.scale import cores
from diffrl.policy import ChainPolicy
from diffrl.policy.nets import Critic
from diffrl.presets import Physics, RLConfig
from diffrl.rl.collect import Batch, Collector
from diffrl.rl.ppo import RewardScaler, learning_rate, noise_scale, update
from diffrl.rl.rollout import Rollout, fair
from diffrl.sim.scene import Scene

WALL_CLOCK = ("seconds_collect", "seconds_update", "sps")  # columns that differ between runs
Play = Callable[[ChainPolicy, int, int], list[Rollout]]  # a policy, from held-out state a on, n
Note = Callable[[list[Rollout]], dict[str, float]]


@dataclasses.dataclass
class Candidate:
    """A measured policy that may be the best: its weights and what became of its trials."""

    iteration: int
    weights: dict[str, Any]
    first: float = 0.0  # success of the first look
    played: int = 0
    fair: int = 0  # of them; those that ended in an error enter no rate
    successes: int = 0

    @property
    def success(self) -> float:
        """Success in all trials so far."""
        return self.successes / max(self.fair, 1)

    def attainable(self, total: int) -> float:
        """Success in `total` trials if all that are still to be played succeed."""
        left = total - self.played
        return (self.successes + left) / max(self.fair + left, 1)


class Learner:
    """A policy that learns from its own experience; all of its state can be saved.

    Args:
        policy: the clone; improved in place.
        scene: of its task.
        config: the settings of RL.
        seed: of the critic's weights, the noise, the minibatches and the start states.
        threads: of the simulator and the update; they change nothing but the time.
    """

    def __init__(
        self,
        policy: ChainPolicy,
        scene: Scene,
        config: RLConfig,
        seed: int = 0,
        threads: int | None = None,
    ):
        self.policy, self.config = policy, config
        self.clip = policy.setting(config, "clip")
        self.base_rate = policy.setting(config, "actor_learning_rate")
        self.threads = cores() if threads is None else threads
        if policy.device.type == "cuda":
            self.threads = 1  # of the update: the GPU does both parts of a minibatch
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            privileged = config.critic == "state" and bool(policy.cameras)
            self.critic = Critic(policy.layout, privileged=privileged).to(policy.device)
        if not privileged:
            self.critic.encoder.load_state_dict(policy.encoder.state_dict())
        trained = [p for p in policy.parameters() if p.requires_grad]
        rates = {"actor": self.base_rate, "critic": config.critic_learning_rate}
        weights = {"actor": trained, "critic": list(self.critic.parameters())}
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(weights[name], lr=rate, fused=True)
            for name, rate in rates.items()
        }
        self.collector = Collector(policy, scene, config, seed, threads)
        self.generator = torch.Generator().manual_seed(seed)
        self.iteration = self.control_steps = 0
        self.diagnostics: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None  # weights of the best confirmed policy
        self.best_success, self.best_iteration = -1.0, 0  # its confirmed success
        self.candidates: list[Candidate] = []  # what may be better, and is not confirmed yet
        self.misled = False  # success in training physics was not the policy's own
        self.scaler = RewardScaler(config.copies, config.gamma) if config.reward_scaling else None
        self.seconds = 0.0  # of learning and measuring, kills not counted

    def iterate(self) -> dict[str, Any]:
        """One iteration: collect a batch, improve on it; return its diagnostics."""
        self._set_rates()
        self.policy.noise_scale = noise_scale(self.iteration, self.config)
        self.collector.use(self.physics)
        began = time.perf_counter()
        begins = self.collector.begins
        batch = self.collector.collect(self.generator)
        collected = time.perf_counter()
        if self.critic.privileged and not self.iteration:
            self.critic.fit(batch.features)
        learn_actor = self.iteration >= self.config.critic_warmup
        learned = update(
            self.policy,
            self.critic,
            self.optimisers,
            self._scaled(batch, begins),
            self.config,
            self.clip,
            self.generator,
            learn_actor,
            self.threads,
        )
        ended = time.perf_counter()
        self.iteration += 1
        self.control_steps += batch.steps
        self.seconds += ended - began
        row: dict[str, Any] = {"iteration": self.iteration, "control_steps": self.control_steps}
        row["physics"] = self.collector.simulator.physics
        row |= self._outcomes(batch) | learned
        row |= {"learning_rate": self.optimisers["actor"].param_groups[0]["lr"]}
        row |= {"seconds_collect": collected - began, "seconds_update": ended - collected}
        row |= {"sps": batch.steps / (ended - began), "measured": 0, "measured_success": math.nan}
        row["played"] = 0
        row |= {"confirmed": 0, "confirmed_success": math.nan}
        self.diagnostics.append(row)
        return row

    @property
    def physics(self) -> Physics:
        """What the next iteration is played in."""
        return "exact" if self.misled else self.config.physics_at(self.iteration)

    def _scaled(self, batch: Batch, begins: bool) -> Batch:
        """The batch as PPO values it: with scaled rewards, if `reward_scaling` asks for it."""
        if self.scaler is None:
            return batch
        if begins:
            self.scaler.begin()
        return dataclasses.replace(batch, rewards=self.scaler(batch.rewards, batch.ended))

    def _set_rates(self) -> None:
        config, rates = self.config, {}
        rates["actor"] = learning_rate(self.base_rate, self.iteration, config, config.warmup)
        rates["critic"] = learning_rate(config.critic_learning_rate, self.iteration, config)
        for name, rate in rates.items():
            self.optimisers[name].param_groups[0]["lr"] = rate

    def _outcomes(self, batch: Batch) -> dict[str, Any]:
        """What happened to the robots: of fair episodes that ended, NaN if none did."""
        ended = len(batch.successes)
        return {
            "episodes": ended,
            "success": float(np.mean(batch.successes)) if ended else math.nan,
            "length": float(np.mean(batch.lengths)) if ended else math.nan,
            "return": float(batch.rewards.sum()) / ended if ended else math.nan,
            "errors": batch.errors,
            "sigma": self.policy.exploration(),
        }

    def measure(self, play: Play, note: Note = lambda trials: {}) -> float:
        """Take a first look at the policy, on `measure_starts` states; return its success.

        What training needs to know now is whether the target is reached: a second look, on up to
        `confirm_starts` states, goes on for as long as it may be. Whether the policy is the best
        is left to `decide`.
        """
        config, target = self.config, self.config.target_success
        new = Candidate(self.iteration, copy.deepcopy(self.policy.state_dict()))
        trials = self._play_on(new, play, config.measure_starts)
        new.first = new.success
        self.diagnostics[-1] |= {"measured": new.fair, "measured_success": new.first}
        self.diagnostics[-1] |= note(trials)
        self._check_physics(new)
        whole = self._look_again(new, play, math.inf if target is None else target)
        self.diagnostics[-1]["control_steps"] = self.control_steps
        if not whole and new.first >= self.best_success:
            self.candidates.append(new)
        return new.first

    def _check_physics(self, measured: Candidate) -> None:
        """Leave training physics for good if it misleads: success in it is not the measured one's.

        A policy can learn to lean on a thing that only training physics holds in its place. Its
        exploration noise costs success, so that training's, since the last measurement, is not
        above the measured one unless the physics makes it so. That noise explains less success, but
        none ever, of a policy that is measured to succeed, gives it nothing to learn from. Fisher's
        exact test, one-sided (our choice).
        """
        limit = self.config.physics_check
        before = itertools.takewhile(lambda row: not row["played"], self.diagnostics[-2::-1])
        rows = [self.diagnostics[-1], *before]
        if limit is None or any(row["physics"] != "training" for row in rows):
            return
        misled = _p_value(rows, measured, "greater") < limit
        if not any(row["success"] > 0 for row in self.diagnostics):
            misled |= _p_value(self.diagnostics, measured, "less") < limit
        self.misled = misled

    def decide(self, play: Play) -> None:
        """Find the best of the policies that were measured, the latest of equals.

        The best is chosen by its success on all `confirm_starts`, the same states for each policy
        (our choice). The best first look has its second one first. There is none for a policy
        whose first look is behind the best one's success; and a second look ends when success on
        all states that are left could not bring it up to that any more. If the target is reached,
        that policy is it.
        """
        for candidate in sorted(self.candidates, key=lambda c: (-c.first, -c.iteration)):
            if candidate.first >= self.best_success and not self.reached:
                self.policy.load_state_dict(candidate.weights)
                self._look_again(candidate, play, self.best_success)
        self.candidates = []

    def _look_again(self, candidate: Candidate, play: Play, wanted: float) -> bool:
        """Play on while success may still be `wanted`; tell whether all states were played.

        If so, the candidate may be the best.
        """
        total = max(self.config.confirm_starts, self.config.measure_starts)
        while (left := total - candidate.played) > 0:
            if candidate.attainable(total) < wanted:
                return False
            self._play_on(candidate, play, min(left, self.config.measure_starts))
        row = {"confirmed": candidate.fair, "confirmed_success": candidate.success}
        self.diagnostics[candidate.iteration - 1] |= row
        if (candidate.success, candidate.iteration) >= (self.best_success, self.best_iteration):
            self.best, self.best_success = candidate.weights, candidate.success
            self.best_iteration = candidate.iteration
        return True

    def _play_on(self, candidate: Candidate, play: Play, count: int) -> list[Rollout]:
        began = time.perf_counter()
        trials = play(self.policy, candidate.played, count)
        self.seconds += time.perf_counter() - began
        self.control_steps += sum(trial.steps for trial in trials)
        candidate.played += len(trials)
        self.diagnostics[candidate.iteration - 1]["played"] = candidate.played
        candidate.fair += fair(trials)
        candidate.successes += sum(trial.success and not trial.error for trial in trials)
        return trials

    @property
    def finished(self) -> bool:
        """Whether all iterations are done, or the target is reached."""
        return self.reached or self.iteration >= self.config.iterations

    @property
    def reached(self) -> bool:
        """Whether a policy's confirmed success is that of `target_success`."""
        target = self.config.target_success
        return target is not None and self.best_success >= target

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to go on exactly as if nothing had happened."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "collector": self.collector.state(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "control_steps": self.control_steps,
            "diagnostics": self.diagnostics,
            "best": self.best,
            "best_success": self.best_success,
            "best_iteration": self.best_iteration,
            "misled": self.misled,
            "candidates": [vars(candidate) for candidate in self.candidates],
            "seconds": self.seconds,
            "scaler": self.scaler and self.scaler.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.collector.restore(state["collector"])
        self.generator.set_state(state["generator"])
        for name in ("iteration", "control_steps", "diagnostics", "seconds"):
            setattr(self, name, state[name])
        self.best, self.best_success = state["best"], state["best_success"]
        self.best_iteration = state["best_iteration"]
        self.misled = state.get("misled", state.get("flattered", False))  # as it was called
        self.candidates = [Candidate(**fields) for fields in state["candidates"]]
        if self.scaler:
            self.scaler.restore(state["scaler"])


def _p_value(rows: list[dict[str, Any]], measured: Candidate, alternative: str) -> float:
    """Fisher's p of success in the training episodes of some iterations against a measurement."""
    from scipy.stats import fisher_exact  # large: loaded where it is needed

    ended = sum(row["episodes"] for row in rows)
    good = sum(round(row["success"] * row["episodes"]) for row in rows if row["episodes"])
    table = [(good, ended - good), (measured.successes, measured.fair - measured.successes)]
    return float(fisher_exact(table, alternative=alternative).pvalue)


def improve(
    learner: Learner,
    play: Play,
    save: Callable[[], None] = lambda: None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    note: Note = lambda trials: {},
) -> float:
    """Run iterations until `learner.finished`; its policy ends as the best measured one.

    Returns that policy's confirmed success. `play` plays held-out start states, `note` makes
    of their trials what goes into the row beside success, `report` gets each row of diagnostics,
    and `save` is called every `checkpoint_every` iterations.
    """
    config = learner.config
    while not learner.finished:
        row = learner.iterate()
        last = learner.iteration == config.iterations
        if last or learner.iteration % config.measure_every == 0:
            learner.measure(play, note)
        report(row)  # before the state is saved: after a kill no row is missing
        if last or learner.iteration % config.checkpoint_every == 0:
            save()
    if learner.candidates:
        learner.decide(play)
        save()
    if learner.best is not None:
        learner.policy.load_state_dict(learner.best)
    learner.policy.noise_scale = 1.0
    learner.collector.close()
    return learner.best_success
