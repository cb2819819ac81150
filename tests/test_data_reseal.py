"""A data set that its owner changed on purpose gets a new seal, if it is sound."""

import os

import data_samples as samples
import h5py
import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.data import reseal as room
from diffrl.data.hdf5 import read_episodes, validate_file, write_episodes
from diffrl.data.reseal import reseal


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a+b demo.hdf5"
    write_episodes(path, [samples.sample_episode(seed) for seed in range(4)], samples.ATTRS)
    return path


def change(path, function):
    with h5py.File(path, "r+") as file:
        function(file)
    assert validate_file(path), "the change was not noticed"


def put(file, key, values):
    file[key][...] = values


def refused(path, told):
    """It is refused, and neither it nor its folder has changed."""
    before = path.read_bytes()
    with pytest.raises(UserError, match=told):
        reseal(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_changed_actions_are_sealed_again_and_their_episode_is_named(path):
    change(path, lambda file: put(file, "data/demo_2/actions", 0.25))
    with pytest.raises(UserError, match="reseal"):
        read_episodes(path)
    assert reseal(path) == ["demo_2: its content"]
    assert validate_file(path) == []
    assert (read_episodes(path)[2].actions == 0.25).all()
    assert os.listdir(path.parent) == [path.name]


def test_a_removed_episode_leaves_the_counts_and_the_masks(path):
    lengths = [episode.length for episode in read_episodes(path)]

    def remove(file):
        del file["data/demo_3"]

    change(path, remove)
    changes = reseal(path)
    assert validate_file(path) == []
    assert [episode.length for episode in read_episodes(path)] == lengths[:3]
    assert "data@num_demos: 3 in place of 4" in changes
    assert f"data@total: {sum(lengths[:3])} in place of {sum(lengths)}" in changes
    assert any(line.startswith("mask/valid: 0 episodes") for line in changes)


def test_a_changed_attribute_is_sealed_again(path):
    def tag(file):
        file["data"].attrs["tag"] = "mine"

    change(path, tag)
    assert reseal(path) == ["no episode: attributes or the file's own structure"]
    assert validate_file(path) == []


def test_a_seal_that_is_right_stays_as_it_is(path):
    before = os.stat(path)
    assert reseal(path) == []
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda file: put(file, "data/demo_1/actions", np.nan), "demo_1"),
        (lambda file: put(file, "data/demo_1/actions", 3.0), "demo_1"),
        (lambda file: put(file, "data/demo_0/dones", 0), "demo_0/dones"),
        (lambda file: file.move("data/demo_1", "data/demo_9"), "gapless"),
        (lambda file: file["data/demo_1"].pop("states"), "demo_1"),
        (lambda file: file.__setitem__("data/demo_1/x", h5py.ExternalLink("/x", "y")), "link"),
    ],
)
def test_a_file_that_is_not_sound_is_left_as_it_is(path, function, told):
    with h5py.File(path, "r+") as file:
        function(file)
    refused(path, told)


def test_what_never_had_a_seal_gets_none(path, tmp_path):
    with h5py.File(path, "r") as file, h5py.File(tmp_path / "plain.hdf5", "w") as plain:
        file.copy("data", plain)
    with pytest.raises(UserError, match="has no seal"):
        reseal(tmp_path / "plain.hdf5")
    with pytest.raises(UserError, match="no such file"):
        reseal(tmp_path / "none.hdf5")
    path.write_bytes(path.read_bytes()[:700])
    refused_text = "cut off|not sound|cannot be"
    (tmp_path / "plain.hdf5").unlink()
    refused(path, refused_text)


def test_the_command_goes_on_after_a_file_that_is_refused(path, tmp_path, capsys):
    change(path, lambda file: put(file, "data/demo_0/actions", 0.5))
    assert room.main((tmp_path / "none.hdf5", path)) == 1
    told = capsys.readouterr().out
    assert "none.hdf5: not sealed" in told
    assert "sealed again" in told
    assert "changed: demo_0: its content" in told
    assert room.main((path,)) == 0
    assert "its seal is right" in capsys.readouterr().out


def test_a_kill_amid_sealing_leaves_the_old_file(path, monkeypatch):
    change(path, lambda file: put(file, "data/demo_0/actions", 0.5))
    monkeypatch.setattr(room.integrity, "seal", lambda file: 1 / 0)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        reseal(path)
    assert path.read_bytes() == before
