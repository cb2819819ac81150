"""Small policies, batches and clones for the tests of RL."""

from policy_samples import config_of

from diffrl import policy as policies
from diffrl.policy.features import Layout

LAYOUT = Layout("libero_object/0", objects=1, goals=1, joints=0)


def make(algorithm, **settings):
    config = config_of(algorithm, width=32, horizon=4, chunk=4, **settings)
    return policies.make_policy(config, LAYOUT, seed=1)
