"""PPO over a policy's chain of Gaussian steps (DPPO, Ren et al. 2024, arXiv 2409.00588).

An environment step is a decision o → plan; the plan's chain has S steps that share its advantage.
`gae`, `clip_range`, `actor_loss` are pure; `update` is one iteration of learning.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from diffrl.base.errors import TrainingError
from diffrl.policy import ChainPolicy
from diffrl.policy.features import Features, concatenate, select
from diffrl.presets import RLConfig
from diffrl.rl.collect import Batch

EPSILON = 1e-8  # beside a standard deviation
IMAGES_AT_ONCE = 1024  # decisions of an image policy that one forward pass sees
SHARDS = 2  # parts of a minibatch, which two cores work on side by side; not a number of threads


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns (T, n), generalised advantage estimation.

    Schulman et al. 2016 (arXiv 1506.02438), eq. 16. All arguments are (T, n); `next_values` is V
    of the observation that the decision led to, *before* any reset, and 0 where the episode ended
    for good (success): so a time-out bootstraps and a success does not. Where `ended`, the sum
    over later decisions is cut.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_values[t] - values[t]
        running = delta + gamma * gae_lambda * torch.where(ended[t], 0.0, running)
        advantages[t] = running
    return advantages, advantages + values


def clip_range(steps: int, first: float, last: float, rate: float) -> Tensor:
    """Return PPO's clip (S,) per step: exponential from `first` (noisiest) to `last` (DPPO).

    With one step there is only `last`.
    """
    if steps == 1:
        return torch.tensor([last])
    share = torch.arange(steps) / (steps - 1)
    return first + (last - first) * torch.expm1(rate * share) / math.expm1(rate)


def actor_loss(
    log_prob: Tensor, old: Tensor, advantages: Tensor, clip: Tensor, gamma_denoising: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return PPO's clipped loss and what to watch.

    log_prob, old: (m, S); advantages: (m,), `normalised`; clip: (S,). Step s has its advantage
    discounted by γ_denoising^(S−1−s): the early, noisy steps matter less to the outcome (DPPO).
    """
    steps = log_prob.shape[1]
    discount = gamma_denoising ** torch.arange(steps - 1, -1, -1)
    weighted = advantages[:, None] * discount
    ratio = (log_prob - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * weighted, clipped * weighted).mean()
    with torch.no_grad():
        watch = {
            "approx_kl": ((ratio - 1) - (log_prob - old)).mean(),
            "clipfrac": ((ratio - 1).abs() > clip).float().mean(0),
        }
    return loss, watch


def normalised(advantages: Tensor) -> Tensor:
    """Return advantages (m,) with mean 0 and deviation 1."""
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + EPSILON)


@torch.no_grad()
def batch_values(critic: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return V of each decision's observation and of the one it led to, both (T, n)."""
    value = functools.partial(_in_blocks, critic)
    values = value(batch.features).view(batch.rewards.shape)
    next_values = torch.cat([values[1:], value(batch.next_features)[None]])
    next_values = torch.where(batch.ended, 0.0, next_values)
    if batch.last_features is not None:
        next_values[batch.truncated] = value(batch.last_features)
    return values, next_values


def _in_blocks(function: Callable[..., Tensor], features: Features, *others: Tensor) -> Tensor:
    """Call function(features, *others) on all rows; on a block at a time, if they hold images."""
    if not looks(features):
        return function(features, *others)
    blocks = torch.arange(len(features["state"])).split(IMAGES_AT_ONCE)
    parts = [function(select(features, b), *(other[b] for other in others)) for b in blocks]
    return torch.cat(parts)


def looks(features: Features) -> bool:
    """Whether features hold pictures, or what a frozen encoder makes of them."""
    return "image" in features or "cells" in features


def augmented(policy: ChainPolicy, batch: Batch, generator: torch.Generator) -> Batch:
    """Return the batch as an iteration learns from it: its pictures augmented, each once.

    Before π_old and V are computed, as in DPPO: were each minibatch shifted anew, its log-density
    would differ from the old one, which is of other images, before any update.
    """
    if not looks(batch.features):
        return batch
    blocks = torch.arange(len(batch.features["state"])).split(IMAGES_AT_ONCE)
    parts = [policy.augment(select(batch.features, block), generator) for block in blocks]
    return dataclasses.replace(batch, features=concatenate(parts))


class RewardScaler:
    """Divides rewards by the running deviation of the discounted return, clipped at ±10 (DPPO).

    Of n copies: R_t = r_t + γ R_{t−1}, from zero where an episode begins. Mean and variance of all
    R so far are merged batch by batch (Chan et al. 1979), beginning with variance 1 of `PRIOR`
    samples, as in gym's and DPPO's `RunningMeanStd`.
    """

    LIMIT, PRIOR = 10.0, 1e-4

    def __init__(self, copies: int, gamma: float):
        self.gamma = gamma
        self.returns = torch.zeros(copies, dtype=torch.float64)
        self.mean, self.variance, self.count = 0.0, 1.0, self.PRIOR

    def begin(self) -> None:
        """All copies begin new episodes."""
        self.returns.zero_()

    def __call__(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Take in rewards (T, n) and whether each ended an episode; return the rewards scaled."""
        seen = []
        for reward, end in zip(rewards.double(), ended):
            self.returns = reward + self.gamma * self.returns
            seen.append(self.returns)
            self.returns = torch.where(end, 0.0, self.returns)
        self._merge(torch.stack(seen))
        scale = math.sqrt(self.variance + EPSILON)
        return (rewards / scale).clamp(-self.LIMIT, self.LIMIT)

    def _merge(self, values: Tensor) -> None:
        count, mean = values.numel(), float(values.mean())
        total, change = self.count + count, mean - self.mean
        squares = self.variance * self.count + float(values.var(correction=0)) * count
        squares += change**2 * self.count * count / total
        self.mean += change * count / total
        self.variance, self.count = squares / total, total

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs."""
        return {name: getattr(self, name) for name in ("returns", "mean", "variance", "count")}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name, value in state.items():
            setattr(self, name, value)


def update(
    policy: ChainPolicy,
    critic: nn.Module,
    optimisers: dict[str, torch.optim.Optimizer],
    batch: Batch,
    config: RLConfig,
    clip_last: float,
    generator: torch.Generator,
    learn_actor: bool = True,
    threads: int = 1,
) -> dict[str, float]:
    """Improve policy and critic on one batch; return the diagnostics.

    A minibatch holds whole decisions, each with all its S steps, so an observation is encoded once;
    steps before the S that are trained count as if they were.

    Args:
        policy: improved in place, unless `learn_actor` is false (the critic's warm-up).
        critic: improved in place.
        optimisers: "actor" and "critic".
        batch: of the policy as it is.
        config: epochs, minibatch, discounts.
        clip_last: PPO's clip at the last step, which differs between the algorithms.
        generator: of the minibatches and the augmentation.
        learn_actor: whether the policy learns.
        threads: that work on the parts of a minibatch; they change nothing but the time.

    Raises:
        TrainingError: a loss is not finite; the caller's checkpoint is from before this update.
    """
    batch = augmented(policy, batch, generator)
    values, next_values = batch_values(critic, batch)
    advantages, returns = gae(
        batch.rewards, values, next_values, batch.ended, config.gamma, config.gae_lambda
    )
    chains = batch.chains.flatten(0, 1)
    with torch.no_grad():
        old = _in_blocks(policy.log_prob, batch.features, chains)
    first = clip_last * config.clip_first / config.clip
    clip = clip_range(policy.steps, first, clip_last, config.clip_rate)
    pairs = _Pairs(batch.features, chains, old, advantages.flatten(), returns.flatten())
    learn = functools.partial(_minibatch, policy, critic, pairs, clip, config.gamma_denoising)
    rows_at_once = max(1, config.minibatch // config.sampling_steps)
    watched: list[dict[str, Tensor]] = []
    with _Workers(threads) as workers:
        for _ in range(config.epochs):
            for rows in torch.randperm(len(chains), generator=generator).split(rows_at_once):
                watch = learn(rows, optimisers, learn_actor, workers)
                if learn_actor:
                    learn_actor = float(watch["approx_kl"]) <= config.target_kl
                watched.append(watch)
    return _diagnostics(watched, values.flatten(), returns.flatten())


@dataclasses.dataclass
class _Pairs:
    """What an update learns from: N decisions with their chains (N, S + 1, H, A)."""

    features: Features
    chains: Tensor
    old: Tensor  # (N, S) log-densities before the update
    advantages: Tensor  # (N,)
    returns: Tensor  # (N,)


class _Workers:
    """Calls a function on some items, in their order, on as many threads as there are."""

    def __init__(self, threads: int):
        own = torch.get_num_threads()  # of a product: a new thread would take every core
        self.pool = (
            ThreadPoolExecutor(
                min(threads, SHARDS), initializer=torch.set_num_threads, initargs=(own,)
            )
            if threads > 1
            else None
        )

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Return function(item) of each."""
        return list((self.pool.map if self.pool else map)(function, items))


def _minibatch(
    policy: ChainPolicy,
    critic: nn.Module,
    pairs: _Pairs,
    clip: Tensor,
    gamma_denoising: float,
    rows: Tensor,
    optimisers: dict[str, torch.optim.Optimizer],
    learn_actor: bool,
    workers: _Workers,
) -> dict[str, Tensor]:
    """One step of both optimisers on `rows`; return what to watch.

    The minibatch is cut into `SHARDS` parts whatever the threads, and their losses and gradients
    are added in order, so the bytes are the same on any number of threads.
    """
    advantages = normalised(pairs.advantages[rows])
    parameters = {name: o.param_groups[0]["params"] for name, o in optimisers.items()}

    def part(share: Tensor) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, Tensor]]:
        own, weight = rows[share], len(share) / len(rows)
        features = select(pairs.features, own)
        losses = {"critic": 0.5 * (critic(features) - pairs.returns[own]).square().mean()}
        watch: dict[str, Tensor] = {}
        if learn_actor:
            log_prob = policy.log_prob(features, pairs.chains[own])
            losses["actor"], watch = actor_loss(
                log_prob, pairs.old[own], advantages[share], clip, gamma_denoising
            )
        watch |= {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        gradients = {
            name: torch.autograd.grad(weight * loss, parameters[name], allow_unused=True)
            for name, loss in losses.items()
        }
        return gradients, {name: weight * value for name, value in watch.items()}

    shares = [share for share in torch.arange(len(rows)).tensor_split(SHARDS) if len(share)]
    gradients, seen = zip(*workers.map(part, shares))
    watch = {name: sum(one[name] for one in seen) for name in seen[0]}
    for name in gradients[0]:
        _step(optimisers[name], watch[f"{name}_loss"], [one[name] for one in gradients])
    return watch


def _step(
    optimiser: torch.optim.Optimizer, loss: Tensor, gradients: list[tuple[Tensor, ...]]
) -> None:
    """Take a step along the sum of some parts' gradients; a weight that none uses has None."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"PPO's loss is {loss.item()}: lower rl.actor_learning_rate or "
            "rl.critic_learning_rate. The last checkpoint is from before this update."
        )
    for parameter, *parts in zip(optimiser.param_groups[0]["params"], *gradients):
        parameter.grad = None if parts[0] is None else sum(parts[1:], parts[0])
    optimiser.step()


def _diagnostics(
    watched: list[dict[str, Any]], values: Tensor, returns: Tensor
) -> dict[str, float]:
    """Return the means of what was watched; a clip fraction per step of the chain."""
    row: dict[str, float] = {}
    for name in ("actor_loss", "critic_loss", "approx_kl"):
        seen = [float(watch[name]) for watch in watched if name in watch]
        row[name] = sum(seen) / len(seen) if seen else math.nan
    fractions = [watch["clipfrac"] for watch in watched if "clipfrac" in watch]
    if fractions:
        mean = torch.stack(fractions).mean(0).tolist()
        row |= {f"clipfrac_{step}": value for step, value in enumerate(mean)}
    unexplained = (returns - values).var() / (returns.var() + EPSILON)
    return row | {"explained_variance": 1 - float(unexplained)}


def noise_scale(iteration: int, config: RLConfig) -> float:
    """Return the exploration noise of an iteration, as a multiple of the policy's own.

    Linear from `noise_start` to 1, over the share `noise_anneal` of the iterations: wide steps find
    the way early, and late ones are as small as those of the data that the expert will leave.
    """
    last = config.noise_anneal * config.iterations
    done = min(1.0, iteration / last) if last else 1.0
    return config.noise_start + (1 - config.noise_start) * done


def learning_rate(base: float, iteration: int, config: RLConfig, warmup: int = 0) -> float:
    """Return the learning rate of an iteration: constant, or a cosine to zero at the end.

    Over the first `warmup` iterations in which the policy learns it rises linearly: Adam's first
    steps have full length whatever the gradient, which can throw a clone off its course.
    """
    if warmup:
        base *= min(1.0, max(1, iteration - config.critic_warmup + 1) / (warmup + 1))
    if config.annealing == "constant":
        return base
    return base * 0.5 * (1 + math.cos(math.pi * iteration / config.iterations))
