"""DiffusionPolicy: plans by denoising, one Gaussian per denoising step."""

import copy

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from diffrl.base.arm import Mode
from diffrl.base.control import ACTION_SIZE
from diffrl.policy.chain import ChainPolicy, PolicyConfig
from diffrl.policy.features import Features, Layout
from diffrl.policy.nets import MLPDenoiser, ResidualDenoiser, UNetDenoiser

LEAST_VARIANCE = 1e-12  # before a square root; such a σ is below the floor anyway


def make_schedule(config: PolicyConfig) -> DDIMScheduler:
    """Return diffusers' schedule: cosine (Nichol & Dhariwal 2021), DDIM time steps."""
    schedule: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=config.training_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample" if config.prediction == "x0" else "epsilon",
        timestep_spacing=config.spacing,
    )
    schedule.set_timesteps(config.sampling_steps)
    return schedule


def schedule_constants(config: PolicyConfig) -> dict[str, Tensor]:
    """Return what eqs. 12 and 16 of DDIM need, for each of the `sampling_steps` (η = 1)."""
    schedule = make_schedule(config)
    alphas = schedule.alphas_cumprod  # ᾱ_t of all times
    before = schedule.timesteps - config.training_steps // config.sampling_steps
    alpha = alphas[schedule.timesteps]
    alpha_next = torch.where(before >= 0, alphas[before], schedule.final_alpha_cumprod)
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)  # eq. 16
    sigma = variance.clamp(min=LEAST_VARIANCE).sqrt()
    return {
        "alphas": alphas,
        "times": schedule.timesteps,
        "alpha": alpha,
        "alpha_next": alpha_next,
        "sigma": sigma,
    }


class DiffusionPolicy(ChainPolicy):
    """The plan is denoised in `sampling_steps` DDIM steps (Song et al. 2021, arXiv 2010.02502).

    With as many sampling as training steps and η = 1 it is DDPM. PPO trains the last
    `finetuned_steps` of them (all by default); the ones before use a frozen copy of the clone.

    Every sampling step adds σ L ε, of covariance σ² C over the control steps. With
    `noise_everywhere` so do the forward process, x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) L ε, and the first
    latent, L ε. In y = L⁻¹ x that is the usual diffusion with white noise, and eq. 12 is linear in
    x, so it holds unchanged in x with L ε in the place of ε. Without, as in DPPO, both are white,
    and the steps' noise is one that cloning has not seen (but for ρ = 0, where C is 1).

    >>> from diffrl.policy import make_config, make_policy
    >>> from diffrl.presets import get_preset
    >>> smoke = get_preset("smoke")
    >>> config = make_config("diffusion", smoke.clone, smoke.rl)
    >>> policy = make_policy(config, Layout("libero_object/0", objects=7, goals=1, joints=0))
    >>> noise = policy.noise(torch.Generator().manual_seed(0), 3)
    >>> rows = {"state": torch.zeros(3, policy.layout.size)}
    >>> plans, chain = policy.sample(rows, noise)
    >>> plans.shape == (3, policy.horizon, 7)
    True
    """

    schedule_alphas: Tensor  # of `schedule_constants`
    schedule_times: Tensor
    schedule_alpha: Tensor
    schedule_alpha_next: Tensor
    schedule_sigma: Tensor

    def __init__(self, config: PolicyConfig, layout: Layout):
        super().__init__(config, layout)
        self.steps = config.finetuned_steps or config.sampling_steps
        self.prefix = config.sampling_steps - self.steps
        size = self.encoder.size
        if config.network == "unet":
            self.denoiser: nn.Module = UNetDenoiser(size, config.horizon, ACTION_SIZE)
        elif config.network == "residual":
            self.denoiser = ResidualDenoiser(size, config.horizon, ACTION_SIZE, config.width)
        else:
            self.denoiser = MLPDenoiser(size, config.horizon, ACTION_SIZE, config.width)
        self.frozen: nn.Module | None = None
        if self.prefix:
            self.frozen = copy.deepcopy(self.denoiser).requires_grad_(False)
        for name, value in schedule_constants(config).items():
            self.register_buffer(f"schedule_{name}", value, persistent=False)

    def freeze_prefix(self) -> None:
        """Copy the denoiser into the steps that PPO leaves alone, if there are any."""
        if self.frozen is not None:
            self.frozen.load_state_dict(self.denoiser.state_dict())

    def first_latent(self, noise: Tensor) -> Tensor:
        """White noise, or noise of the steps' covariance: see the class."""
        return self.correlate(noise) if self.config.noise_everywhere else noise

    def exploration(self) -> float:
        """The deviation of the last step's noise, in plan units."""
        return max(float(self.schedule_sigma[-1]), self._floor)

    @property
    def _floor(self) -> float:
        return self.noise_scale * self.config.sigma_floor

    def transition(
        self, condition: Tensor, latent: Tensor, step: Tensor, mode: Mode, scored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One denoising step, DDIM eq. 12; see the base class for shapes.

        x0 is clipped to ±1 and the noise recomputed from it. Stochastic: η = 1, and σ at least
        `sigma_floor` (DPPO), but the mean's direction keeps the true σ. Deterministic: η = 0.
        A density that is `scored` has a floor of its own if `log_prob_floor` is set (DPPO).
        """
        network = self.denoiser
        if self.frozen is not None and int(step[0]) < self.prefix:
            network = self.frozen
        output = network(latent, condition, self.schedule_times[step].float())
        alpha = self.schedule_alpha[step, None, None]
        alpha_next = self.schedule_alpha_next[step, None, None]
        sigma = self.schedule_sigma[step, None, None]
        if self.config.prediction == "x0":
            clean = output
        else:
            clean = (latent - (1 - alpha).sqrt() * output) / alpha.sqrt()
        clean = clean.clamp(-1, 1)
        noise = (latent - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        true_sigma = sigma if mode == "stochastic" else torch.zeros_like(sigma)
        direction = (1 - alpha_next - true_sigma**2).clamp(min=0).sqrt()
        mean = alpha_next.sqrt() * clean + direction * noise
        own = self.config.log_prob_floor if scored else None
        floor = self._floor if own is None else self.noise_scale * own
        return mean, true_sigma.clamp(min=floor)

    def loss(self, features: Features, plans: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the prediction at a random time (Ho et al. 2020, eq. 14).

        What ε-prediction predicts is the noise as it was added, with its covariance.
        """
        time = torch.randint(0, self.config.training_steps, (len(plans),), generator=generator)
        noise = torch.randn(plans.shape, generator=generator)
        plans, time, noise = (x.to(self.device) for x in (plans, time, noise))
        noise = self.first_latent(noise)
        alpha = self.schedule_alphas[time, None, None]
        noisy = alpha.sqrt() * plans + (1 - alpha).sqrt() * noise
        output = self.denoiser(noisy, self._condition(features), time.float())
        target = plans if self.config.prediction == "x0" else noise
        return nn.functional.mse_loss(output, target)


def leverage(config: PolicyConfig) -> list[float]:
    """Return, per denoising step, how far the network's output moves the mean, in deviations.

    |∂μ_s/∂output| / σ_s with η = 1 and the floored σ_s, where nothing is clipped. PPO's gradient
    is proportional to it: where it is small, exploring a step teaches the network next to nothing.
    """
    constants = schedule_constants(config)
    alpha, alpha_next, sigma = (constants[k] for k in ("alpha", "alpha_next", "sigma"))
    direction = (1 - alpha_next - sigma**2).clamp(min=0).sqrt()
    by_clean = alpha_next.sqrt() - direction * (alpha / (1 - alpha)).sqrt()  # ∂μ/∂x0, eq. 12
    scale = 1.0 if config.prediction == "x0" else ((1 - alpha) / alpha).sqrt()  # |∂x0/∂ε|
    return (by_clean.abs() * scale / sigma.clamp(min=config.sigma_floor)).tolist()
