"""Checkpoints come back bit by bit, or are refused."""

import math

import numpy as np
import pytest
import torch

from diffrl.base import checkpoint
from diffrl.base.errors import UserError

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    net = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    tree = {
        "optimiser": optimiser.state_dict(),
        "arrays": [np.arange(6.0).reshape(2, 3), np.array([True, False]), np.int64(3) + np.eye(2)],
        "strided": torch.arange(6).view(2, 3).T,
        "numbers": (1, 0.1, math.pi, None, "text", True),
        3: {"nan": math.nan, "empty": torch.zeros(2, 0)},
    }
    checkpoint.save(tmp_path / "c.safetensors", tree, "key")
    again = checkpoint.load(tmp_path / "c.safetensors", "key")
    assert again["numbers"] == tree["numbers"]
    assert math.isnan(again[3]["nan"])
    assert again[3]["empty"].shape == (2, 0)
    assert torch.equal(again["strided"], tree["strided"])
    for found, expected in zip(again["arrays"], tree["arrays"]):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    other = torch.optim.Adam(net.parameters(), lr=0.5)
    other.load_state_dict(again["optimiser"])
    assert str(other.state_dict()) == str(optimiser.state_dict())


def test_tensors_that_share_memory_are_saved_whole(tmp_path):
    weight = torch.ones(3)
    checkpoint.save(tmp_path / "c.safetensors", {"a": weight, "b": weight[:2]}, "key")
    again = checkpoint.load(tmp_path / "c.safetensors", "key")
    assert torch.equal(again["b"], torch.ones(2))


def test_a_broken_checkpoint_and_one_of_other_settings_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": torch.ones(50)}, "mine")
    whole = path.read_bytes()
    with pytest.raises(UserError, match=r"c\.safetensors belongs to other settings"):
        checkpoint.load(path, "other")
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"c\.safetensors cannot be read"):
        checkpoint.load(path, "mine")
    assert path.read_bytes() == whole[:-20]


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": 1}, "key")
    with pytest.raises(TypeError, match="cannot hold a set"):
        checkpoint.save(path, {"a": {1, 2}}, "key")
    assert checkpoint.load(path, "key") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
