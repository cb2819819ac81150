"""Tools of the field open our files (`make readers` installs robomimic; lerobot: check-lerobot)."""

import importlib.util
import sys
from pathlib import Path

import data_samples as samples
import numpy as np
import pytest

from diffrl.data.hdf5 import write_episodes

READERS = Path(__file__).resolve().parent.parent / "build" / "readers"
if READERS.is_dir():
    sys.path.append(str(READERS))  # last: nothing of it may replace what is installed
KEYS = ("ee_pos", "ee_ori", "gripper_states", "joint_states", "object")


@pytest.mark.skipif(
    importlib.util.find_spec("robomimic") is None, reason="`make readers` installs robomimic"
)
@pytest.mark.parametrize("mask", ["train", "valid", "success", None])
def test_robomimic_yields_our_steps_in_batches(tmp_path, mask):
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset
    from torch.utils.data import DataLoader

    episodes = [samples.sample_episode(seed) for seed in range(10)]
    write_episodes(tmp_path / "a_demo.hdf5", episodes, samples.ATTRS)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(KEYS)}})
    data = SequenceDataset(
        str(tmp_path / "a_demo.hdf5"),
        obs_keys=KEYS,
        dataset_keys=("actions", "rewards", "dones"),
        seq_length=4,
        filter_by_attribute=mask,
        load_next_obs=False,
    )
    chosen = {"train": episodes[:9], "valid": episodes[9:]}.get(mask, episodes)
    assert len(data) == sum(episode.length for episode in chosen)
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    actions = np.concatenate([episode.actions for episode in chosen])
    np.testing.assert_array_equal(batch["actions"][:, 0].numpy(), actions)
    for key, name in (("ee_pos", "eef_pos"), ("joint_states", "joint_pos")):
        expected = np.concatenate([e.observations[name][: e.length] for e in chosen])
        np.testing.assert_array_equal(batch["obs"][key][:, 0].numpy(), expected)
    assert batch["rewards"][:, 0].sum() == len(chosen)
