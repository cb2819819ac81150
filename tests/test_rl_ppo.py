"""PPO's arithmetic over a policy's chain."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from policy_samples import SMALL, config_of, make_small

from diffrl import policy as policies
from diffrl.base.errors import UserError
from diffrl.policy.nets import Critic
from diffrl.presets import ALGORITHMS, RLConfig
from diffrl.rl import ppo
from diffrl.rl.collect import Batch
from diffrl.rl.ppo import (
    RewardScaler,
    actor_loss,
    augmented,
    batch_values,
    clip_range,
    gae,
    learning_rate,
    noise_scale,
    normalised,
    update,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_critic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Critic(SMALL)


def plain_gae(rewards, values, next_values, ended, gamma, lam):
    """Sum over later decisions of the same episode, written as the definition has it."""
    advantages = np.zeros_like(rewards)
    for robot in range(rewards.shape[1]):
        for t in range(len(rewards)):
            weight, k = 1.0, t
            while True:
                delta = rewards[k, robot] + gamma * next_values[k, robot] - values[k, robot]
                advantages[t, robot] += weight * delta
                if ended[k, robot] or k + 1 == len(rewards):
                    break
                weight, k = weight * gamma * lam, k + 1
    return advantages


def test_gae_equals_a_plain_loop_with_successes_time_outs_and_staggered_starts():
    rng = np.random.default_rng(0)
    rewards, values = np.zeros((9, 4)), rng.random((9, 4))
    next_values = np.concatenate([values[1:], rng.random((1, 4))])
    ended = np.zeros((9, 4), bool)
    for t, robot in ((2, 0), (6, 0), (4, 1), (8, 2)):  # success
        ended[t, robot], rewards[t, robot], next_values[t, robot] = True, 1.0, 0.0
    for t, robot in ((1, 1), (5, 2)):  # time-out: the value of the last observation
        ended[t, robot], next_values[t, robot] = True, rng.random()
    arguments = [torch.from_numpy(x) for x in (rewards, values, next_values, ended)]
    advantages, returns = gae(*arguments, gamma=0.9, gae_lambda=0.8)
    expected = plain_gae(rewards, values, next_values, ended, 0.9, 0.8)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-12)


def test_with_lambda_one_a_success_is_worth_its_discounted_reward():
    rewards = torch.tensor([[0.0], [0.0], [1.0]])
    zeros, ended = torch.zeros(3, 1), torch.tensor([[False], [False], [True]])
    _, returns = gae(rewards, zeros, zeros, ended, gamma=0.5, gae_lambda=1.0)
    assert returns.flatten().tolist() == [0.25, 0.5, 1.0]


class FirstColumn(torch.nn.Module):
    """A critic that reads the value off the observation."""

    def forward(self, features):
        return features["state"][:, 0]


def make_batch(policy, decisions=6, robots=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = decisions * robots
    state = torch.randn(n, SMALL.size, generator=generator)
    _, chains = policy.sample({"state": state}, policy.noise(generator, n), "stochastic")
    grid = (decisions, robots)
    return Batch(
        features={"state": state},
        chains=chains.view(*grid, *chains.shape[1:]),
        rewards=torch.zeros(grid),
        ended=torch.zeros(grid, dtype=torch.bool),
        truncated=torch.zeros(grid, dtype=torch.bool),
        last_features=None,
        next_features={"state": torch.randn(robots, SMALL.size, generator=generator)},
        successes=[],
        lengths=[],
        steps=n * 4,
        errors=0,
    )


def test_a_success_is_not_bootstrapped_and_a_time_out_by_its_own_last_observation():
    batch = make_batch(make_small("gaussian"))
    batch.ended[2, 1] = batch.ended[3, 4] = True  # a success, a time-out
    batch.truncated[3, 4] = True
    batch.last_features = {"state": torch.full((1, SMALL.size), 7.0)}
    values, next_values = batch_values(FirstColumn(), batch)
    expected = torch.cat([values[1:], batch.next_features["state"][:, 0][None]])
    expected[2, 1], expected[3, 4] = 0.0, 7.0
    assert torch.equal(next_values, expected)


def test_the_clip_range_grows_exponentially_from_the_noisiest_step_to_the_last():
    clip = clip_range(5, first=0.001, last=0.01, rate=3.0)
    assert clip[0] == pytest.approx(0.001)
    assert clip[-1] == pytest.approx(0.01)
    middle = 0.001 + 0.009 * (math.exp(1.5) - 1) / (math.exp(3.0) - 1)
    assert float(clip[2]) == pytest.approx(middle)


def test_one_trained_step_has_the_last_clip():
    assert clip_range(1, 0.001, 0.01, 3.0).tolist() == [pytest.approx(0.01)]


def test_the_loss_and_its_gradient_equal_a_case_computed_by_hand():
    # Two decisions, advantages 3 and 1: normalised 1 and -1. Two steps, discounts 1/2 and 1.
    # Ratios: 1.5 (clipped at 1.2), 1.1; 0.5 (clipped at 0.8), 1.3 (worse, so not clipped).
    ratio = torch.tensor([[1.5, 1.1], [0.5, 1.3]], dtype=torch.float64)
    log_prob = ratio.log().requires_grad_()
    loss, watch = actor_loss(
        log_prob,
        torch.zeros_like(log_prob),
        normalised(torch.tensor([3.0, 1.0], dtype=torch.float64)),
        torch.tensor([0.2, 0.2], dtype=torch.float64),
        gamma_denoising=0.5,
    )
    terms = [0.5 * 1.2, 1.1, -0.5 * 0.8, -1.3]
    assert loss.item() == pytest.approx(-sum(terms) / 4)
    loss.backward()
    # d(-A r)/d(log r) = -A r where the unclipped term is the smaller one, 0 where it is clipped
    expected = [[0.0, -1.1 / 4], [0.0, 1.3 / 4]]
    torch.testing.assert_close(log_prob.grad, torch.tensor(expected, dtype=torch.float64))
    kl = sum(r - 1 - math.log(r) for r in (1.5, 1.1, 0.5, 1.3)) / 4
    assert float(watch["approx_kl"]) == pytest.approx(kl)
    assert watch["clipfrac"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_makes_rewarded_plans_likelier(algorithm):
    policy, critic = make_small(algorithm), Critic(SMALL)
    batch = make_batch(policy, decisions=40, robots=8)
    batch.ended[:] = True
    good = batch.chains[:, :, -1].mean(dim=(2, 3)) > 0
    batch.rewards = good.float()
    chains = batch.chains.flatten(0, 1)

    def log_prob():
        with torch.no_grad():
            return policy.log_prob(batch.features, chains)[:, -1]

    before = log_prob()
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    config = RLConfig(minibatch=500)
    row = update(
        policy, critic, optimisers, batch, config, config.clip, torch.Generator().manual_seed(0)
    )
    gain = log_prob() - before
    assert gain[good.flatten()].mean() > gain[~good.flatten()].mean() + 1e-3
    assert row["approx_kl"] > 0
    assert [name for name in row if name.startswith("clipfrac")] == [
        f"clipfrac_{step}" for step in range(policy.steps)
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_gives_the_same_bytes_on_any_number_of_threads(algorithm):
    def weights(threads):
        policy, critic = make_small(algorithm), make_critic()
        optimisers = {
            "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
            "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
        }
        config, generator = RLConfig(minibatch=155, epochs=3), torch.Generator().manual_seed(0)
        batch = make_batch(policy)
        update(policy, critic, optimisers, batch, config, 0.04, generator, threads=threads)
        return torch.cat([p.detach().flatten() for m in (policy, critic) for p in m.parameters()])

    alone = weights(1)
    assert all(torch.equal(weights(threads), alone) for threads in (2, 3, 8))


def test_the_parts_of_a_minibatch_add_up_to_its_whole_gradient(monkeypatch):
    gradients = []
    for shards in (1, 2, 3):
        monkeypatch.setattr(ppo, "SHARDS", shards)
        policy, critic = make_small("diffusion"), make_critic()
        optimisers = {
            "actor": torch.optim.SGD(policy.parameters(), lr=0.0),
            "critic": torch.optim.SGD(critic.parameters(), lr=0.0),
        }
        batch, config = make_batch(policy), RLConfig(minibatch=10_000, epochs=1)
        update(policy, critic, optimisers, batch, config, 0.04, torch.Generator().manual_seed(0))
        parts = [p.grad.flatten() for m in (policy, critic) for p in m.parameters()]
        gradients.append(torch.cat(parts))
    assert gradients[0].abs().max() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_in_the_critic_s_warm_up_the_policy_stays_as_it_is():
    policy, critic = make_small("diffusion"), Critic(SMALL)
    before = [p.clone() for p in policy.parameters()]
    critic_before = [p.clone() for p in critic.parameters()]
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(policy)
    row = update(policy, critic, optimisers, batch, RLConfig(), 0.04, generator, learn_actor=False)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(critic_before, critic.parameters()))
    assert math.isnan(row["actor_loss"])


def test_a_loss_that_is_not_finite_is_told_with_the_setting_to_change():
    policy, critic = make_small("diffusion"), Critic(SMALL)
    batch = make_batch(policy)
    batch.rewards[0, 0] = math.nan
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters()),
        "critic": torch.optim.Adam(critic.parameters()),
    }
    with pytest.raises(UserError, match=r"nan: lower rl\.actor_learning_rate"):
        update(policy, critic, optimisers, batch, RLConfig(), 0.04, torch.Generator())


def test_the_exploration_noise_falls_linearly_to_the_policys_own():
    config = RLConfig(iterations=10, noise_start=2.0, noise_anneal=0.4)
    scales = [noise_scale(iteration, config) for iteration in (0, 1, 4, 9)]
    assert scales == pytest.approx([2, 1.75, 1, 1])
    assert noise_scale(0, RLConfig(noise_anneal=0.0, noise_start=2.0)) == 1


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_scaled_noise_spreads_the_plans_and_enters_their_probability(algorithm):
    policy = make_small(algorithm)
    own = policy.exploration()
    policy.noise_scale = 2.0
    assert policy.exploration() == pytest.approx(2 * own)
    condition = policy.encoder({"state": torch.zeros(1, SMALL.size)})
    latent, last = torch.zeros(1, policy.horizon, 7), torch.tensor([policy.steps - 1])
    _, std = policy.transition(condition, latent, last, "stochastic")
    assert float(std.detach().mean()) == pytest.approx(2 * own)


def test_the_learning_rate_is_constant_or_a_cosine_to_zero():
    cosine = RLConfig(annealing="cosine", iterations=10)
    assert learning_rate(2.0, 7, RLConfig(iterations=10)) == 2.0
    assert learning_rate(2.0, 0, cosine) == 2.0
    assert learning_rate(2.0, 5, cosine) == pytest.approx(1.0)
    assert learning_rate(2.0, 10, cosine) == pytest.approx(0.0)


def test_the_learning_rate_rises_over_the_first_iterations_in_which_the_policy_learns():
    config = RLConfig(critic_warmup=1)
    rates = [learning_rate(1.0, iteration, config, warmup=3) for iteration in range(6)]
    assert rates == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_rewards_are_divided_by_the_running_deviation_of_the_discounted_return():
    scaler = RewardScaler(copies=2, gamma=0.5)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    found = scaler(rewards, ended)
    # returns: copy 0: 1, .5, then an episode begins: 1; copy 1: 0, 1, .5
    returns = np.array([1, 0.5, 1, 0, 1, 0.5])
    weight = 1e-4  # of the prior: mean 0, variance 1
    total = weight + 6
    mean = returns.sum() / total
    variance = (weight * (1 + mean**2) + ((returns - mean) ** 2).sum()) / total
    assert scaler.variance == pytest.approx(variance)
    np.testing.assert_allclose(found, rewards / math.sqrt(variance + 1e-8), rtol=1e-6)
    assert scaler.returns.tolist() == [1.0, 0.5]
    again = RewardScaler(2, 0.5)
    again.restore(scaler.state())
    more = torch.tensor([[0.0, 1.0]]), torch.tensor([[False, True]])
    assert torch.equal(again(*more), scaler(*more))
    assert again.returns.tolist() == [0.5, 0.0]
    again.begin()
    assert again.returns.tolist() == [0.0, 0.0]


def test_scaled_rewards_are_clipped_at_ten():
    scaler = RewardScaler(1, 0.99)
    rewards = torch.zeros(1000, 1)
    rewards[-1] = 1.0  # a rare success: the deviation is small
    assert float(scaler(rewards, torch.zeros(1000, 1, dtype=torch.bool))[-1]) == 10.0


def test_an_image_policys_ratio_is_one_before_its_first_step(monkeypatch):
    layout = dataclasses.replace(SMALL, image_size=32)
    config = config_of("diffusion", width=16, horizon=4, chunk=4)
    policy, critic = policies.make_policy(config, layout, seed=1), Critic(layout)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    features = {"state": torch.randn(8, layout.size, generator=generator), "image": pixels}
    _, chains = policy.sample(features, policy.noise(generator, 8), "stochastic")
    batch = dataclasses.replace(
        make_batch(make_small("diffusion"), 4, 2),
        features=features,
        chains=chains.view(4, 2, *chains.shape[1:]),
        next_features={key: value[:2] for key, value in features.items()},
    )
    ratios = []

    def spy(new, old, *others):
        ratios.append((new - old).exp())
        return actor_loss(new, old, *others)

    monkeypatch.setattr(ppo, "actor_loss", spy)
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    update(policy, critic, optimisers, batch, RLConfig(epochs=2), 0.04, generator)
    first, second = torch.cat(ratios[: ppo.SHARDS]), torch.cat(ratios[ppo.SHARDS :])
    torch.testing.assert_close(first, torch.ones(8, policy.steps), atol=1e-5, rtol=0)
    assert (second - 1).abs().max() > 1e-3
    seen = augmented(policy, batch, generator).features["image"]
    assert not torch.equal(seen, pixels)  # it is augmented indeed
