"""Policies that see through a frozen encoder, and critics that see more than they do."""

import dataclasses

import numpy as np
import pytest
import torch
from policy_samples import LAYOUT, make
from test_policy import observation

from diffrl import policy as policies
from diffrl.base.errors import UserError
from diffrl.evaluation.policies import Expert
from diffrl.policy.nets import CellEncoder, Critic
from diffrl.presets import CloneConfig
from diffrl.rl import ppo
from diffrl.rl.collect import Batch
from diffrl.rl.ppo import actor_loss, augmented, update

SIZE = 64  # pixels
FROZEN = LAYOUT.seen_by(CloneConfig(encoder="frozen", image_size=SIZE))
BOTH = dataclasses.replace(FROZEN, wrist=True)


def images(n, cameras=1, seed=0):
    shape = (n, cameras, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_cells_with_their_places_decide_the_plan(network):
    policy = make(layout=FROZEN, network=network)
    scene = np.zeros((2, 1, SIZE, SIZE, 3), np.uint8)
    scene[0, :, 8:24, 8:24], scene[1, :, 40:56, 40:56] = 255, 255  # one thing in two places
    seen = observation(1).__dict__
    twice = type(observation(1))(**{name: np.repeat(rows, 2, 0) for name, rows in seen.items()})
    features = policy.features(twice, scene)
    assert features["cells"].shape == (2, 1, (SIZE // 16) ** 2, 272)
    assert features["cells"].dtype == torch.float16
    noise = policy.noise(torch.Generator().manual_seed(0), 1).expand(2, *policy.noise_shape)
    first, second = policy.sample(features, noise, "deterministic")[0]
    assert (first - second).abs().max() > 1e-3


def test_the_wrists_camera_is_an_option_of_the_frozen_encoder_alone():
    assert FROZEN.cameras == ("agentview",)
    assert BOTH.cameras == ("agentview", "robot0_eye_in_hand")
    policy = make("gaussian", BOTH)
    assert policy.features(observation(2), images(2, 2))["cells"].shape[1] == 2
    with pytest.raises(UserError, match="render agentview and robot0_eye_in_hand"):
        policy.features(observation(2))
    with pytest.raises(UserError, match=r"clone\.wrist is set, but encoder 'image'"):
        CloneConfig(encoder="image", wrist=True)
    with pytest.raises(UserError, match=r"clone\.image_size is 100"):
        CloneConfig(encoder="frozen", image_size=100)


def test_a_saved_policy_leaves_the_frozen_weights_in_their_wheel_and_keeps_the_detail(tmp_path):
    layout = dataclasses.replace(FROZEN, detail="exact")
    policy = make("gaussian", layout)
    assert isinstance(policy.encoder, CellEncoder)
    assert not any("coarse" in name or "stem" in name for name in policy.state_dict())
    policies.save(tmp_path, policy)
    again, noise = policies.load(tmp_path), torch.zeros(2, *policy.noise_shape)
    plans = [p.sample(p.features(observation(2), images(2)), noise)[0] for p in (policy, again)]
    assert torch.equal(*plans)
    expert = Expert(tmp_path)
    assert (expert.cameras, expert.image_size, expert.detail) == (("agentview",), SIZE, "exact")


def test_features_get_noise_in_training_alone():
    policy = make(layout=FROZEN, feature_noise=0.5)
    features = policy.features(observation(4), images(4))
    generator = torch.Generator().manual_seed(0)
    noisy = policy.augment(features, generator)
    change = (noisy["cells"].float() - features["cells"].float()).flatten()
    assert float(change.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noisy["state"], features["state"])
    plain = make(layout=FROZEN)
    assert plain.augment(features, generator) is features


def pixel_batch(policy, privileged):
    """Four decisions of two copies that look at random pictures."""
    generator = torch.Generator().manual_seed(0)
    features = policy.features(observation(8), images(8))
    if privileged:
        rows = torch.randn(8, policy.layout.blind.size, generator=generator)
        features["privileged"] = rows
    _, chains = policy.sample(features, policy.noise(generator, 8), "stochastic")
    ended = torch.zeros(4, 2, dtype=torch.bool)
    return Batch(
        features=features,
        chains=chains.view(4, 2, *chains.shape[1:]),
        rewards=torch.rand(4, 2, generator=generator),
        ended=ended,
        truncated=ended,
        last_features=None,
        next_features={key: value[:2] for key, value in features.items()},
        successes=[],
        lengths=[],
        steps=8,
        errors=0,
    )


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_the_ratio_is_one_before_the_first_update_of_a_policy_that_looks(
    monkeypatch, algorithm, privileged
):
    policy = make(algorithm, FROZEN, feature_noise=0.3)
    torch.manual_seed(0)
    critic = Critic(policy.layout, privileged=privileged)
    batch, ratios = pixel_batch(policy, privileged), []

    def spy(new, old, *others):
        ratios.append((new - old).exp())
        return actor_loss(new, old, *others)

    monkeypatch.setattr(ppo, "actor_loss", spy)
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-6),  # of 1e-4 the ratio is infinite
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-4),
    }
    config = ppo.RLConfig(epochs=2, target_kl=1e9)
    generator = torch.Generator().manual_seed(1)
    seen = augmented(policy, batch, generator).features["cells"]
    assert not torch.equal(seen, batch.features["cells"])  # it is augmented indeed
    update(policy, critic, optimisers, batch, config, 0.04, generator)
    shards = len(ratios) // 2
    torch.testing.assert_close(
        torch.cat(ratios[:shards]), torch.ones(8, policy.steps), atol=1e-5, rtol=0
    )
    assert (torch.cat(ratios[shards:]) - 1).abs().max() > 1e-3


def test_a_privileged_critic_sees_the_state_and_not_the_pictures():
    policy = make(layout=FROZEN)
    critic = Critic(policy.layout, privileged=True)
    features = pixel_batch(policy, privileged=True).features
    critic.fit(features)
    value = critic(features)
    assert torch.equal(critic({"privileged": features["privileged"]}), value)
    moved = {**features, "privileged": features["privileged"] + 1}
    assert not torch.equal(critic(moved), value)
    noise = policy.noise(torch.Generator().manual_seed(0), 8)
    plan = policy.sample(features, noise)[0]
    assert torch.equal(policy.sample(moved, noise)[0], plan)  # the policy does not
