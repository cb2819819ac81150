"""Small policies for their tests."""

import torch

from diffrl import policy as policies
from diffrl.policy.features import Layout

LAYOUT = Layout("libero_object/0", objects=3, goals=2, joints=1)


def make(algorithm="diffusion", layout=LAYOUT, **settings):
    torch.set_num_threads(1)
    settings = {"width": 32, **settings}
    policy = policies.make_policy(policies.PolicyConfig(algorithm, **settings), layout, seed=3)
    with torch.no_grad():  # as after some training: outputs beyond the clip at ±1, too
        for parameter in policy.parameters():
            parameter.mul_(2)
    return policy


def draw(policy, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = {"state": torch.randn(n, policy.layout.size, generator=generator)}
    return features, policy.noise(generator, n)
