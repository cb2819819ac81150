"""Small policies for their tests, and the variants of the experiments."""

import torch

from diffrl import policy as policies
from diffrl.experiments import EXPERIMENTS
from diffrl.policy.features import Layout
from diffrl.presets import CloneConfig, RLConfig

SHAPE = ("network", "width", "horizon", "chunk", "feature_noise")  # of `CloneConfig`
LAYOUT = Layout("libero_object/0", objects=3, goals=2, joints=1)


def config_of(algorithm="diffusion", **settings):
    """A policy's settings: those of a new preset with DPPO's noise, and the given ones."""
    shape = CloneConfig(**{name: settings.pop(name) for name in SHAPE if name in settings})
    rl = RLConfig(**{"sigma_floor": 0.1, "gaussian_std": 0.1, **settings})
    return policies.make_config(algorithm, shape, rl)


def make(algorithm="diffusion", layout=LAYOUT, **settings):
    torch.set_num_threads(1)
    policy = policies.make_policy(config_of(algorithm, **{"width": 32, **settings}), layout, seed=3)
    with torch.no_grad():  # as after some training: outputs beyond the clip at ±1, too
        for parameter in policy.parameters():
            parameter.mul_(2)
    return policy


def draw(policy, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = {"state": torch.randn(n, policy.layout.size, generator=generator)}
    return features, policy.noise(generator, n)


# ---- small policies, batches and clones for the tests of RL --------------------------------------


SMALL = Layout("libero_object/0", objects=1, goals=1, joints=0)


def make_small(algorithm, **settings):
    config = config_of(algorithm, width=32, horizon=4, chunk=4, **settings)
    return policies.make_policy(config, SMALL, seed=1)


# ---- runs for the tests of experiments -----------------------------------------------------------


ARMS = {arm.name: arm for chosen in EXPERIMENTS.values() for arm in chosen.variants}
