"""GaussianPolicy: the rival, a plan drawn from one Gaussian around the network's output."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.policy.chain import ChainPolicy, PolicyConfig
from diffrl.policy.features import Features, Layout
from diffrl.policy.nets import mlp
from diffrl.presets import Mode

STD_RANGE = (0.01, 0.2)  # limits of the learnt deviation, DPPO's


class GaussianPolicy(ChainPolicy):
    """Mean tanh(MLP(o)), a learnt deviation per action dimension that does not depend on o.

    As the chain of length one it has the same noise, log-probability and cross-fade.
    """

    steps = 1
    random_start = False
    own_settings: ClassVar = {
        "clip": "gaussian_clip",
        "actor_learning_rate": "gaussian_learning_rate",
    }

    def __init__(self, config: PolicyConfig, layout: Layout):
        super().__init__(config, layout)
        if not STD_RANGE[0] <= config.gaussian_std <= STD_RANGE[1]:
            raise UserError(
                f"rl.gaussian_std is {config.gaussian_std}: it must lie in {list(STD_RANGE)}."
            )
        width = config.width
        self.layers = mlp((self.encoder.size, width, width, width, config.horizon * ACTION_SIZE))
        self.log_std = nn.Parameter(torch.full((ACTION_SIZE,), math.log(config.gaussian_std)))

    def first_latent(self, noise: Tensor) -> Tensor:
        """The chain has no latent: zeros."""
        return torch.zeros_like(noise)

    def exploration(self) -> float:
        """The mean deviation over the action dimensions, in plan units."""
        return float(self._std().mean().detach())

    def _std(self) -> Tensor:
        low, high = (math.log(limit) for limit in STD_RANGE)
        return self.noise_scale * self.log_std.clamp(low, high).exp()

    def transition(
        self, condition: Tensor, latent: Tensor, step: Tensor, mode: Mode, scored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The one step; latent and step are ignored. See the base class for shapes."""
        mean = torch.tanh(self.layers(condition)).view_as(latent)
        return mean, self._std()

    def loss(self, features: Features, plans: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the mean: maximum likelihood at a fixed deviation."""
        mean = torch.tanh(self.layers(self._condition(features))).view_as(plans)
        return nn.functional.mse_loss(mean, plans.to(self.device))
