"""Decisions of a policy for several trials at once, the same in any company."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from diffrl.policy import ChainPolicy, Mode
from diffrl.policy.features import Features

BLOCK = 16  # rows of one forward pass


def decide(
    policy: ChainPolicy,
    features: Features,
    noises: Sequence[torch.Generator],
    tails: Sequence[torch.Tensor],
    mode: Mode,
) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Return the actions (m, chunk, 7) of m trials, and the tails of their new plans.

    Each trial has its own generator and the tail (1, cross_fade, 7) of its last plan, which joins
    the features if the policy observes it.
    """
    features = policy.with_tail(features, torch.cat(list(tails)))
    noise = torch.cat([policy.noise(generator, 1) for generator in noises])

    def sample(noise: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return policy.sample(dict(zip(features, values)), noise, mode)[0]

    plans = in_blocks(sample, noise, *features.values(), block=BLOCK)
    done = [policy.execute(plan[None], tail) for plan, tail in zip(plans, tails)]
    actions, tails = zip(*done)
    return torch.cat(actions).double().numpy(), list(tails)


def in_blocks(
    function: Callable[..., torch.Tensor], *tensors: torch.Tensor, block: int
) -> torch.Tensor:
    """Apply `function` to the rows of `tensors` in blocks of exactly `block`, padded with zeros.

    A matrix product of another size may round differently, and after a contact so may success.
    """
    parts = []
    for first in range(0, len(tensors[0]), block):
        rows = [t[first : first + block] for t in tensors]
        missing = block - len(rows[0])
        padded = [torch.cat([r, r.new_zeros(missing, *r.shape[1:])]) for r in rows]
        parts.append(function(*padded)[: block - missing])
    return torch.cat(parts)
