"""Commands of sources against the published moments of the human sets."""

import data_samples as samples
import numpy as np
import pytest

from diffrl.demonstrator.commands import command_statistics, human_statistics
from diffrl.sim.tasks import SUITES


def test_idle_steps_do_not_count():
    busy = samples.sample_episode(0, length=40)
    busy.actions[:, 6] = 1.0
    idle = samples.sample_episode(1, length=40)
    idle.actions[:] = 0.0
    idle.actions[:, 6] = -1.0
    alone, both = command_statistics([busy]), command_statistics([busy, idle])
    np.testing.assert_allclose(both["std"][:6], alone["std"][:6])
    np.testing.assert_allclose(alone["mean"][:6], busy.actions[:, :6].mean(axis=0))


@pytest.mark.parametrize("suite", SUITES)
def test_the_human_gripper_follows_our_sign(suite):
    table = human_statistics(suite)
    if suite == "libero_90":
        assert table is None  # nobody published them
    else:
        gripper = table.iloc[6]
        assert abs(gripper["mean"]) < 1  # both signs occur
        np.testing.assert_allclose(gripper["std"] ** 2 + gripper["mean"] ** 2, 1, atol=0.01)
