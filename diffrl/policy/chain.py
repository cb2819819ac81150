"""A policy as a chain of Gaussian steps: what the diffusion and the Gaussian policy share.

A decision is a plan x of H control steps in scaled actions. It arises in S steps
x_{s+1} ~ N(μ_s(o, x_s), σ_s² C), s = 0 … S − 1, so its log-probability is a sum of S Gaussians
(DPPO, Ren et al. 2024, arXiv 2409.00588, eq. 4.2). The diffusion policy denoises in S steps; the
Gaussian policy is the chain of length one. PPO sees nothing else of either.

Whatever device the weights are on, arguments and results lie on the CPU, where the robots are.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from diffrl.base.arm import Mode
from diffrl.base.artifacts import added
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.policy.features import (
    Features,
    Layout,
    on_device,
    proprioception,
    state_features,
    tail_columns,
)
from diffrl.policy.nets import make_encoder, random_shift
from diffrl.policy.vision import encode, frozen_encoder
from diffrl.presets import RLConfig, check_choices
from diffrl.sim.observation import Observation

LOG_PROB_RANGE = (-5.0, 2.0)  # of an element's log-density; DPPO's
NOISE_LIMIT = 3.0  # standard deviations; DPPO clips its noise there
LEAST_RANGE = 0.05  # of an action dimension that the demonstrations hardly use


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What a saved policy needs to be built again; fields as in `CloneConfig` and `RLConfig`.

    Their defaults are there alone. Only what was `added` has its neutral value here, too, as files
    of earlier versions do not name it.
    """

    algorithm: str  # a name that `diffrl.policy.policy_class` knows
    network: Literal["mlp", "unet", "residual"]
    width: int
    horizon: int
    chunk: int
    cross_fade: int
    noise_correlation: float
    noise_everywhere: bool = added(False)
    training_steps: int
    sampling_steps: int
    finetuned_steps: int | None
    prediction: Literal["epsilon", "x0"]
    spacing: Literal["leading", "trailing"]
    sigma_floor: float
    gaussian_std: float
    log_prob_floor: float | None = added(None)
    log_prob_clamp: bool = added(False)
    feature_noise: float = added(0.0)

    def __post_init__(self) -> None:
        check_choices(self)
        if not 1 <= self.chunk <= self.chunk + self.cross_fade <= self.horizon:
            raise UserError(
                f"A policy that predicts {self.horizon} steps (clone.horizon) cannot execute "
                f"{self.chunk} (clone.chunk) and blend {self.cross_fade} more (rl.cross_fade): "
                "horizon must be at least their sum."
            )
        if not 0 <= self.noise_correlation < 1:
            raise UserError(
                f"rl.noise_correlation is {self.noise_correlation}: it must lie in [0, 1)."
            )
        trained = self.sampling_steps if self.finetuned_steps is None else self.finetuned_steps
        if not 1 <= trained <= self.sampling_steps <= self.training_steps:
            raise UserError(
                "rl.finetuned_steps ≤ rl.sampling_steps ≤ rl.training_steps must hold, each ≥ 1; "
                f"they are {trained}, {self.sampling_steps}, {self.training_steps}. Without "
                "rl.finetuned_steps (None) all sampling steps are trained."
            )


class ChainPolicy(nn.Module):
    """Base of both policies: scaling, noise, sampling, log-probability, cross-fade.

    A subclass sets `steps` (S that PPO trains), `prefix` (steps before them that it does not),
    and gives `transition` and `loss`.
    """

    own_settings: ClassVar[Mapping[str, str]] = {}  # setting of RL -> the one that this class has
    random_start: ClassVar[bool] = True  # whether a deterministic plan depends on the noise

    steps: int
    prefix: int = 0
    low: Tensor  # (7,) the demonstrations' range, and the noise's factor and its inverse (H, H)
    high: Tensor
    factor: Tensor
    whiten: Tensor
    noise_scale: float = 1.0  # of the exploration noise; RL alone changes it, and no file keeps it
    latent_scale: float = 1.0  # of the first latent when it acts; one data arm alone has 0 here

    def __init__(self, config: PolicyConfig, layout: Layout):
        super().__init__()
        self.config, self.layout = config, layout
        if layout.tail not in (0, config.cross_fade):
            raise UserError(
                f"The policy blends {config.cross_fade} steps (rl.cross_fade) and observes "
                f"{layout.tail} of them: it must observe all or none."
            )
        self.horizon, self.chunk = config.horizon, config.chunk
        self.encoder = make_encoder(layout)
        self.register_buffer("low", -torch.ones(ACTION_SIZE))
        self.register_buffer("high", torch.ones(ACTION_SIZE))
        factor = noise_factor(config.horizon, config.noise_correlation)
        self.register_buffer("factor", factor, persistent=False)  # L with C = L Lᵀ
        self.register_buffer("whiten", torch.linalg.inv(factor), persistent=False)

    @classmethod
    def setting(cls, config: RLConfig, name: str) -> Any:
        """Return a setting of RL, such as "clip", or what this class has in its place."""
        return getattr(config, cls.own_settings.get(name, name))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.low.device

    # -- what a subclass gives

    def transition(
        self, condition: Tensor, latent: Tensor, step: Tensor, mode: Mode, scored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Condition (n, C), latent (n, H, A), step (n,) → mean (n, H, A), std broadcastable.

        Steps count over `prefix + steps`. `scored`: the std is for a log-density, not to sample.
        """
        raise NotImplementedError

    def exploration(self) -> float:
        """Deviation of the noise that a stochastic plan ends with, in plan units."""
        raise NotImplementedError

    def loss(self, features: Features, plans: Tensor, generator: torch.Generator) -> Tensor:
        """Cloning loss of scaled plans (n, H, A): a scalar."""
        raise NotImplementedError

    # -- observations and actions

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras whose images `features` needs."""
        return self.layout.cameras

    def features(self, observation: Observation, images: np.ndarray | None = None) -> Features:
        """Return the features of an observation of n rows, and of pictures if there are cameras.

        images: (n, cameras, S, S, 3) uint8, upside down as LIBERO's.

        Raises:
            UserError: the observation is of another scene, or images are missing.
        """
        self.layout.check(observation)
        if not self.layout.image_size:
            return {"state": torch.from_numpy(state_features(observation))}
        if images is None:
            raise UserError(
                f"The policy of {self.layout.task} sees images: render "
                f"{' and '.join(self.cameras)}."
            )
        state = torch.from_numpy(proprioception(observation)).float()
        if self.layout.frozen:
            seen = encode(frozen_encoder(str(self.device)), images)
            return {"state": state, "cells": torch.from_numpy(seen)}
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images[:, 0], -1, 1)))
        return {"state": state, "image": image}

    def with_tail(self, features: Features, tail: Tensor) -> Features:
        """Return features that hold the last plan's tail (n, cross_fade, A), if it is observed.

        `execute` plays a part of the last plan, so without its tail neither policy nor critic
        sees all that decides what happens next.
        """
        if not self.layout.tail:
            return features
        return {**features, "state": torch.cat([features["state"], tail_columns(tail)], dim=1)}

    def augment(self, features: Features, generator: torch.Generator) -> Features:
        """Return features as a training step sees them: images shifted, or cells with noise.

        Cells have unit variance; `feature_noise` is in its units (our choice: what is cached cannot
        be shifted).
        """
        if "image" in features:
            return {**features, "image": random_shift(features["image"], generator)}
        if "cells" in features and self.config.feature_noise:
            cells = features["cells"]
            noise = torch.randn(cells.shape, generator=generator)
            return {**features, "cells": cells + (self.config.feature_noise * noise).half()}
        return features

    def fit(self, features: Features, actions: Tensor) -> None:
        """Take the normalisers from the demonstrations: rows of features, actions (T, 7)."""
        self.encoder.fit(features)
        low, high = actions.amin(0), actions.amax(0)
        spare = (LEAST_RANGE - (high - low)).clamp(min=0) / 2
        self.low.copy_((low - spare).clamp(min=-1))
        self.high.copy_((high + spare).clamp(max=1))

    def scaled(self, actions: Tensor) -> Tensor:
        """Actions (..., 7) → plan units: the demonstrations' range becomes [-1, 1]."""
        low, high = self.low.to(actions.device), self.high.to(actions.device)
        return 2 * (actions - low) / (high - low) - 1

    def unscaled(self, plan: Tensor) -> Tensor:
        """Plan units → actions within the demonstrations' range, which lies in [-1, 1]."""
        low, high = self.low.to(plan.device), self.high.to(plan.device)
        return low + (plan.clamp(-1, 1) + 1) / 2 * (high - low)

    # -- the chain

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Noise that one decision consumes: the initial latent, then one per step."""
        return 1 + self.prefix + self.steps, self.horizon, ACTION_SIZE

    def noise(self, generator: torch.Generator, n: int) -> Tensor:
        """Draw standard noise (n, *noise_shape), clipped at three deviations."""
        draw = torch.randn((n, *self.noise_shape), generator=generator)
        return draw.clamp(-NOISE_LIMIT, NOISE_LIMIT)

    def correlate(self, noise: Tensor) -> Tensor:
        """White noise (..., H, A) → noise L ε of covariance C = L Lᵀ over the control steps."""
        return torch.einsum("ij,...ja->...ia", self.factor, noise)

    def first_latent(self, noise: Tensor) -> Tensor:
        """Latent (n, H, A) that the chain starts from, given the noise (n, H, A)."""
        return noise

    @torch.no_grad()
    def sample(
        self, features: Features, noise: Tensor, mode: Mode = "stochastic"
    ) -> tuple[Tensor, Tensor]:
        """Return plans (n, H, A) and the chain (n, S + 1, H, A) of the trained steps' latents.

        A pure function of its arguments. "deterministic" takes each step's mean under η = 0;
        the initial latent of a diffusion stays random.
        """
        condition, noise = self._condition(features), noise.to(self.device)
        latent = self.latent_scale * self.first_latent(noise[:, 0])
        correlated = self.correlate(noise[:, 1:])
        chain = [latent]
        for index in range(self.prefix + self.steps):
            step = torch.full((len(latent),), index, device=self.device)
            latent, std = self.transition(condition, latent, step, mode)
            if mode == "stochastic":
                latent = latent + std * correlated[:, index]
            chain.append(latent)
        return latent.cpu(), torch.stack(chain[self.prefix :], dim=1).cpu()

    def log_prob(self, features: Features, chain: Tensor) -> Tensor:
        """Return the log-density (n, S) of each step of a chain (n, S + 1, H, A).

        It is the mean over control steps and action dimensions, as in DPPO, so that a clip range
        means the same for every chunk; over the steps that are executed, and blended ones too.

        A step's density is N(x; μ, σ² C) with C = L Lᵀ: z = L⁻¹ (x − μ) / σ is white and
        |∂z/∂x| = Π 1 / (σ L_ii), so log p = Σ log N(z_i; 0, 1) − log(σ L_ii). That holds whether
        or not the first latent and the cloning's noise have the covariance C, too.
        """
        n, steps, chain = len(chain), self.steps, chain.to(self.device)
        condition = self._condition(features).repeat_interleave(steps, dim=0)
        before, after = chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1)
        step = self.prefix + torch.arange(steps, device=self.device).repeat(n)
        mean, std = self.transition(condition, before, step, "stochastic", scored=True)
        white = torch.einsum("ij,nja->nia", self.whiten, (after - mean) / std)
        scale = std.log() + self.factor.diagonal().log()[:, None]
        density = -0.5 * white**2 - scale - 0.5 * math.log(2 * math.pi)
        if self.config.log_prob_clamp:  # each element's, given those before it in its dimension
            density = density.clamp(*LOG_PROB_RANGE)
        scored = self.chunk + self.config.cross_fade
        return density[:, :scored].mean(dim=(1, 2)).view(n, steps).cpu()

    def _condition(self, features: Features) -> Tensor:
        condition: Tensor = self.encoder(on_device(features, self.device))
        return condition

    def freeze_prefix(self) -> None:
        """Copy what was cloned into the steps that PPO leaves alone, if there are any."""

    # -- execution

    def no_tail(self, n: int) -> Tensor:
        """The tail of robots without a plan yet: (n, cross_fade, A) of NaN."""
        return torch.full((n, self.config.cross_fade, ACTION_SIZE), math.nan)

    def execute(self, plan: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions (n, chunk, 7) of plans (n, H, A), and the plans' own tails.

        The first `cross_fade` steps move linearly from the last plan's `tail` to the new plan,
        so that a decision does not begin with a jump (as temporal ensembling does in ACT).
        """
        fade = self.config.cross_fade
        head = plan[:, : self.chunk]
        if fade:
            weight = (torch.arange(fade) + 1.0)[:, None] / (fade + 1)
            start = plan[:, :fade]
            blend = torch.where(tail.isnan(), start, tail + weight * (start - tail))
            head = torch.cat([blend, plan[:, fade : self.chunk]], dim=1)[:, : self.chunk]
        return self.unscaled(head), plan[:, self.chunk : self.chunk + fade]


def noise_factor(horizon: int, correlation: float) -> Tensor:
    """Return the lower Cholesky factor (H, H) of C_ij = ρ^|i−j|: AR(1) noise of unit variance."""
    lag = torch.arange(horizon)[:, None] - torch.arange(horizon)
    covariance = torch.tensor(correlation, dtype=torch.float64) ** lag.abs()
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor.float()


def trial_generator(task: str, start_state: str, seed: int) -> torch.Generator:
    """Return the noise generator of one trial: of (task, start state, seed) and nothing else."""
    key = hashlib.sha256(f"{task}|{start_state}|{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big", signed=True))
