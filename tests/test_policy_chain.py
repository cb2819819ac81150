"""The chain against diffusers and torch.distributions; noise and plans."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from policy_samples import LAYOUT, config_of, draw, make
from torch.distributions import MultivariateNormal, Normal

from diffrl import policy as policies
from diffrl.base.errors import UserError
from diffrl.policy.chain import NOISE_LIMIT, noise_factor
from diffrl.policy.diffusion import leverage
from diffrl.policy.nets import ResidualDenoiser
from diffrl.presets import CloneConfig, RLConfig


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "x0"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_chain_equals_diffusers_ddim_step_for_step(spacing, prediction, eta):
    policy = make(spacing=spacing, prediction=prediction, sigma_floor=0.0, noise_correlation=0.0)
    features, noise = draw(policy)
    mode = "stochastic" if eta else "deterministic"
    plan, chain = policy.sample(features, noise, mode)

    oracle = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing=spacing,
        prediction_type={"x0": "sample", "epsilon": "epsilon"}[prediction],
    )
    oracle.set_timesteps(5)
    latent, condition = noise[:, 0], policy.encoder(features)
    for index, time in enumerate(oracle.timesteps):
        with torch.no_grad():
            output = policy.denoiser(latent, condition, time.float().expand(len(latent)))
        latent = oracle.step(
            output,
            int(time),
            latent,
            eta=eta,
            use_clipped_model_output=True,
            variance_noise=noise[:, index + 1] if eta else None,
        ).prev_sample
        torch.testing.assert_close(chain[:, index + 1], latent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plan, latent, rtol=1e-4, atol=1e-5)


def test_as_many_sampling_as_training_steps_is_diffusers_ddpm():
    policy = make(training_steps=20, sampling_steps=20, sigma_floor=0.0, noise_correlation=0.0)
    oracle = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    oracle.set_timesteps(20)
    features, _ = draw(policy)
    latent = torch.randn(6, 8, 7, generator=torch.Generator().manual_seed(1))
    condition = policy.encoder(features)
    for index, time in enumerate(oracle.timesteps):
        step = torch.full((6,), index)
        with torch.no_grad():
            output = policy.denoiser(latent, condition, time.float().expand(6))
            mean, std = policy.transition(condition, latent, step, "stochastic")
        generator = torch.Generator().manual_seed(index)
        expected = oracle.step(output, int(time), latent, generator=generator).prev_sample
        draw_ = torch.randn(latent.shape, generator=torch.Generator().manual_seed(index))
        torch.testing.assert_close(mean + std * draw_, expected, rtol=1e-4, atol=1e-4)
        latent = expected


def test_only_the_last_steps_are_finetuned_and_the_others_use_the_frozen_clone():
    policy = make(finetuned_steps=2)
    policy.freeze_prefix()
    features, noise = draw(policy)
    _, chain = policy.sample(features, noise)
    assert chain.shape == (6, 3, 8, 7)
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(0.1)
    _, after = policy.sample(features, noise)
    assert torch.equal(after[:, 0], chain[:, 0])  # what the three frozen steps made
    assert not torch.equal(after[:, 1], chain[:, 1])
    policy.log_prob(features, chain).sum().backward()
    assert all(parameter.grad is None for parameter in policy.frozen.parameters())


def test_to_train_none_of_the_sampling_steps_is_refused():
    with pytest.raises(UserError, match=r"they are 0, 5, 100. Without rl.finetuned_steps"):
        policies.make_config("diffusion", CloneConfig(), RLConfig(finetuned_steps=0))


def test_the_noise_floor_bounds_sampling_and_log_probability_alike():
    policy = make(sigma_floor=0.1, noise_correlation=0.0)
    features, noise = draw(policy)
    quiet = noise.clone()
    quiet[:, -1] = 0
    plan, _ = policy.sample(features, noise)
    mean, chain = policy.sample(features, quiet)
    torch.testing.assert_close(plan - mean, 0.1 * noise[:, -1])  # true σ is 0 at the last step
    peak = policy.log_prob(features, chain)[:, -1]
    torch.testing.assert_close(peak, Normal(0, 0.1).log_prob(torch.zeros(6)))


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_white_log_probability_equals_torch_distributions(algorithm):
    policy = make(algorithm, noise_correlation=0.0, chunk=4)
    features, noise = draw(policy)
    _, chain = policy.sample(features, noise)
    found = policy.log_prob(features, chain)
    assert found.shape == (6, policy.steps)
    condition = policy.encoder(features)
    for step in range(policy.steps):
        mean, std = policy.transition(
            condition, chain[:, step], torch.full((6,), step), "stochastic"
        )
        density = Normal(mean, std).log_prob(chain[:, step + 1])
        torch.testing.assert_close(found[:, step], density[:, :4].mean(dim=(1, 2)))


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_correlated_log_probability_equals_a_multivariate_normal(algorithm):
    policy = make(algorithm, noise_correlation=0.8)
    features, noise = draw(policy)
    _, chain = policy.sample(features, noise)
    found = policy.log_prob(features, chain)
    lags = torch.arange(8)[:, None] - torch.arange(8)
    covariance = 0.8 ** lags.abs().float()
    condition = policy.encoder(features)
    for step in range(policy.steps):
        mean, std = policy.transition(
            condition, chain[:, step], torch.full((6,), step), "stochastic"
        )
        error = ((chain[:, step + 1] - mean) / std).transpose(1, 2)  # (n, A, H)
        normal = MultivariateNormal(torch.zeros(8), covariance)
        density = normal.log_prob(error) / 8 - torch.log(std).expand_as(mean).mean(1)
        torch.testing.assert_close(found[:, step], density.mean(1), rtol=1e-4, atol=1e-4)


def test_correlated_noise_has_unit_variance_and_the_asked_correlation():
    factor = noise_factor(8, 0.8)
    draws = torch.randn(200_000, 8, generator=torch.Generator().manual_seed(0)) @ factor.T
    lags = torch.arange(8)[:, None] - torch.arange(8)
    torch.testing.assert_close(draws.T.cov(), 0.8 ** lags.abs().float(), atol=0.02, rtol=0)
    assert torch.equal(noise_factor(8, 0.0), torch.eye(8))


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_deterministic_plan_depends_on_the_first_latent_alone(algorithm):
    policy = make(algorithm)
    features, noise = draw(policy)
    plan, _ = policy.sample(features, noise, "deterministic")
    other = noise.clone()
    other[:, 1:] = 0
    assert torch.equal(policy.sample(features, other, "deterministic")[0], plan)
    other[:, 0] += 1
    changed = not torch.equal(policy.sample(features, other, "deterministic")[0], plan)
    assert changed == (algorithm == "diffusion")
    assert plan.abs().max() <= 1


def test_noise_is_clipped_at_three_deviations():
    policy = make()
    noise = policy.noise(torch.Generator().manual_seed(0), 500)
    assert noise.abs().max() == NOISE_LIMIT
    assert noise.shape == (500, 6, 8, 7)


def test_a_trial_s_noise_depends_on_task_start_state_and_seed_alone():
    def first(*key):
        return torch.randn(8, generator=policies.trial_generator(*key))

    reference = first("libero_object/0", "official/3", 1)
    assert torch.equal(first("libero_object/0", "official/3", 1), reference)
    others = [("libero_object/1", "official/3", 1), ("libero_object/0", "official/4", 1)]
    for key in [*others, ("libero_object/0", "official/3", 2)]:
        assert not torch.equal(first(*key), reference)


def test_the_demonstrations_range_becomes_the_plan_s_unit_range():
    policy = make()
    actions = torch.rand(100, 7, generator=torch.Generator().manual_seed(0)) * 0.6 - 0.2
    actions[:, 4] = 0.01  # a dimension that is not used
    actions[:, 6] = torch.where(actions[:, 6] > 0, 1.0, -1.0)
    policy.fit({"state": torch.randn(100, LAYOUT.size)}, actions)
    plan = policy.scaled(actions)
    assert plan.min() == -1
    assert plan.max() == 1
    assert plan[:, 4].abs().max() < 1e-5
    torch.testing.assert_close(policy.unscaled(plan), actions)
    wild = policy.unscaled(10 * torch.randn(50, 8, 7))
    assert (wild <= actions.amax(0) + 0.05).all()
    assert wild.abs().max() <= 1


def test_cross_fade_moves_linearly_from_the_last_plan_to_the_new_one():
    policy = make(horizon=12, chunk=8, cross_fade=4)
    old, new = torch.zeros(2, 12, 7), torch.full((2, 12, 7), 0.5)
    first, tail = policy.execute(old, policy.no_tail(2))
    assert (first == 0).all()  # no plan before: nothing is blended
    actions, tail = policy.execute(new, tail)
    assert actions.shape == (2, 8, 7)
    torch.testing.assert_close(actions[0, :5, 0], torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert (tail == 0.5).all()  # the plan's own, not blended


def test_without_cross_fade_the_plan_is_executed_as_it_is():
    policy = make()
    plan = torch.rand(3, 8, 7) * 2 - 1
    actions, tail = policy.execute(plan, policy.no_tail(3))
    assert torch.equal(actions, policy.unscaled(plan))
    assert tail.shape == (3, 0, 7)


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_cloning_loss_falls_on_a_plan_that_follows_from_the_features(algorithm):
    policy = make(algorithm, width=64)
    generator = torch.Generator().manual_seed(0)
    features = {"state": torch.randn(64, LAYOUT.size, generator=generator)}
    plans = torch.tanh(features["state"][:, :1, None].expand(64, 8, 7))
    optimiser = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = policy.loss(features, plans, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "x0"])
def test_leverage_is_the_derivative_of_a_step_s_mean_by_the_output(spacing, prediction):
    policy = make(spacing=spacing, prediction=prediction)

    class Output(torch.nn.Module):
        def forward(self, plan, condition, time):
            return self.value.expand_as(plan)

    policy.denoiser = Output()
    for step, expected in enumerate(leverage(policy.config)):
        value = torch.tensor(1e-5, requires_grad=True)
        policy.denoiser.value = value
        constants = policy.schedule_alpha[step].sqrt()
        latent = torch.full((1, 8, 7), 0.01) * constants  # so that x0 is not clipped
        mean, std = policy.transition(torch.zeros(1, 3), latent, torch.tensor([step]), "stochastic")
        (slope,) = torch.autograd.grad(mean.mean(), value)
        assert float(slope.abs() / std) == pytest.approx(expected, rel=1e-3)


def test_one_covariance_everywhere_is_that_of_latents_steps_and_the_cloning_noise():
    rho, settings = 0.8, {"noise_everywhere": True, "noise_correlation": 0.8, "horizon": 4}
    policy = make(chunk=4, **settings)
    expected = rho ** (torch.arange(4)[:, None] - torch.arange(4)).abs().float()  # C_ij = ρ^|i−j|
    white = torch.randn(20_000, 4, 7, generator=torch.Generator().manual_seed(0))

    def covariance(x):
        return torch.einsum("nia,nja->ij", x, x) / (x.shape[0] * x.shape[2])

    torch.testing.assert_close(covariance(policy.first_latent(white)), expected, atol=0.02, rtol=0)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, plan, condition, time):
            seen.append(plan)
            return plan

    policy.denoiser = Spy()
    features = {"state": torch.zeros(20_000, LAYOUT.size)}
    generator = torch.Generator().manual_seed(1)
    policy.loss(features, torch.zeros(20_000, 4, 7), generator)  # x_t = √(1 − ᾱ_t) L ε
    time = torch.randint(0, 100, (20_000,), generator=torch.Generator().manual_seed(1))
    scale = (1 - policy.schedule_alphas[time]).sqrt()[:, None, None]
    torch.testing.assert_close(covariance(seen[0] / scale), expected, atol=0.02, rtol=0)
    other = make(chunk=4, **settings | {"noise_everywhere": False})
    assert torch.equal(other.first_latent(white), white)


def test_with_one_covariance_a_perfect_denoiser_keeps_the_forward_process_s_covariance():
    """In y = L⁻¹ x it is the usual diffusion: from x_t the steps give x_{t−1} of q, with C."""
    policy = make(chunk=4, horizon=4, noise_everywhere=True, sigma_floor=0.0)
    clean = torch.full((20_000, 4, 7), 0.3)

    class Perfect(torch.nn.Module):
        def forward(self, plan, condition, time):
            return torch.full_like(plan, 0.3)

    policy.denoiser = Perfect()
    noise = torch.randn((20_000, *policy.noise_shape), generator=torch.Generator().manual_seed(0))
    # the first latent stands for x_T, of which q has a share of the plan left: begin there exactly
    alpha = policy.schedule_alpha[0]
    start = alpha.sqrt() * clean + (1 - alpha).sqrt() * policy.correlate(noise[:, 0])
    policy.first_latent = lambda noise: start
    _, chain = policy.sample({"state": torch.zeros(20_000, LAYOUT.size)}, noise)
    lag = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    for step in range(policy.steps - 1):
        alpha = policy.schedule_alpha_next[step]
        x = chain[:, step + 1] - alpha.sqrt() * clean
        found = torch.einsum("nia,nja->ij", x, x) / (20_000 * 7)
        torch.testing.assert_close(found, (1 - alpha) * 0.8 ** lag.float(), atol=0.02, rtol=0)


def test_the_observed_tail_ends_the_row_and_a_clone_does_not_react_to_it():
    layout = dataclasses.replace(LAYOUT, tail=2)
    config = config_of("diffusion", width=32, horizon=6, chunk=4, cross_fade=2)
    policy = policies.make_policy(config, layout)
    rows = {"state": torch.ones(2, LAYOUT.size)}
    tail = torch.full((2, 2, 7), 0.25)
    tail[1] = np.nan  # no plan yet
    seen = policy.with_tail(rows, tail)["state"]
    assert seen.shape == (2, layout.size) == (2, LAYOUT.size + 15)
    assert seen[0, -15:].tolist() == [0.25] * 14 + [1.0]
    assert seen[1, -15:].tolist() == [0.0] * 15
    noise = policy.noise(torch.Generator().manual_seed(0), 2)
    noise[1] = noise[0]
    plan, _ = policy.sample({"state": seen}, noise)
    assert torch.equal(plan[0], plan[1])
    with torch.no_grad():
        policy.encoder.gain += 0.1  # as RL may learn
    plan, _ = policy.sample({"state": seen}, noise)
    assert not torch.equal(plan[0], plan[1])
    blind = policies.make_policy(config, LAYOUT)
    assert blind.with_tail(rows, tail) is rows


def test_rl_can_learn_to_use_the_tail_from_its_first_step():
    layout = dataclasses.replace(LAYOUT, tail=2)
    policy = policies.make_policy(
        config_of("gaussian", width=32, horizon=6, chunk=4, cross_fade=2), layout
    )
    rows = policy.with_tail({"state": torch.zeros(3, LAYOUT.size)}, torch.ones(3, 2, 7))
    _, chain = policy.sample(rows, policy.noise(torch.Generator().manual_seed(0), 3))
    policy.log_prob(rows, chain).sum().backward()
    assert (policy.encoder.gain.grad != 0).all()


def test_a_policy_that_observes_another_tail_than_it_blends_is_refused():
    config = config_of("diffusion", width=32, horizon=6, chunk=4, cross_fade=1)
    with pytest.raises(UserError, match=r"blends 1 steps \(rl.cross_fade\) and observes 2"):
        policies.make_policy(config, dataclasses.replace(LAYOUT, tail=2))


def test_the_residual_net_is_dppos_mlp():
    """Linear, one block x + W₂ mish(W₁ mish(x)), linear; the time over 16 → 32 → 16 with Mish."""
    net = ResidualDenoiser(condition=5, horizon=2, actions=7, width=12)
    sizes = {name: tuple(p.shape) for name, p in net.named_parameters() if p.ndim == 2}
    assert list(sizes.values()) == [(32, 16), (16, 32), (12, 35), (12, 12), (12, 12), (14, 12)]
    plan, condition, time = torch.randn(3, 2, 7), torch.randn(3, 5), torch.tensor([0.0, 1.0, 2.0])
    first, block, last = net.layers
    x = first(torch.cat([plan.flatten(1), net.time(time), condition], dim=1))
    mish = torch.nn.functional.mish
    x = x + block.layers[3](mish(block.layers[1](mish(x))))
    assert torch.equal(net(plan, condition, time), last(x).view(3, 2, 7))


def test_each_element_of_the_log_probability_is_clamped_as_dppo_does():
    settings = {"noise_correlation": 0.0, "sigma_floor": 0.05}
    plain, clamped = make(**settings), make(**settings, log_prob_clamp=True)
    features, noise = draw(plain)
    _, chain = plain.sample(features, noise)
    chain[0, -1, 0, 0] += 10.0  # far off, and the σ of .05 make densities beyond 2 elsewhere
    means, stds = [], []
    for step in range(plain.steps):
        index = torch.full((len(chain),), step)
        mean, std = plain.transition(
            plain._condition(features), chain[:, step], index, "stochastic"
        )
        means.append(mean)
        stds.append(std.expand_as(mean))
    expected = Normal(torch.stack(means, 1), torch.stack(stds, 1)).log_prob(chain[:, 1:])
    assert (expected < -5).any()
    assert (expected > 2).any()
    found = clamped.log_prob(features, chain)
    torch.testing.assert_close(found, expected.clamp(-5, 2).mean(dim=(2, 3)), atol=2e-5, rtol=1e-4)


def test_the_density_has_a_floor_of_its_own_if_one_is_set():
    settings = {"noise_correlation": 0.0, "sigma_floor": 0.05}
    same, own = make(**settings), make(**settings, log_prob_floor=0.2)
    features, noise = draw(same)
    plan, chain = same.sample(features, noise)
    assert torch.equal(own.sample(features, noise)[0], plan)  # sampling has the other floor
    step = torch.full((len(chain),), own.steps - 1)
    mean, std = own.transition(own._condition(features), chain[:, -2], step, "stochastic")
    assert std.max() == pytest.approx(0.05)
    expected = Normal(mean, 0.2).log_prob(chain[:, -1]).mean(dim=(1, 2))
    torch.testing.assert_close(own.log_prob(features, chain)[:, -1], expected)


def test_a_zero_first_latent_leaves_a_noise_free_diffusion_nothing_to_vary():
    policy = make()
    features, first = draw(policy, seed=0)
    noises = first, draw(policy, seed=1)[1]
    plans = [policy.sample(features, noise, "deterministic")[0] for noise in noises]
    assert not torch.equal(*plans)
    policy.latent_scale = 0.0
    plans = [policy.sample(features, noise, "deterministic")[0] for noise in noises]
    assert torch.equal(*plans)
