"""Data sets: what is written can be read again, by us and in LIBERO's own layouts."""

import errno
import fcntl
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import data_samples as samples
import h5py
import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.data import reseal as room
from diffrl.data.demo import axis_angle, quaternions
from diffrl.data.hdf5 import (
    EpisodeWriter,
    read_attributes,
    read_episodes,
    validate_file,
    write_episodes,
)
from diffrl.data.model_xml import body_poses
from diffrl.data.reseal import reseal

RAW = Path(__file__).resolve().parents[2] / "shared" / "teleop" / "raw"


def checksums(episodes):
    return [episode.checksum() for episode in episodes]


def write_with_writer(path, count, attrs=samples.ATTRS, first=0):
    with EpisodeWriter(path, samples.TASK, attrs) as writer:
        for seed in range(first, count):
            writer.append(samples.sample_episode(seed))


def test_what_is_written_is_read_again_bit_for_bit(tmp_path):
    episodes = [samples.sample_episode(seed, images=8) for seed in range(3)]
    write_episodes(tmp_path / "a.hdf5", episodes, samples.ATTRS)
    assert checksums(read_episodes(tmp_path / "a.hdf5", images=True)) == checksums(episodes)
    assert read_attributes(tmp_path / "a.hdf5") == samples.ATTRS
    assert validate_file(tmp_path / "a.hdf5") == []


def test_images_are_left_out_unless_asked_for(tmp_path):
    write_episodes(tmp_path / "a.hdf5", [samples.sample_episode(images=8)], samples.ATTRS)
    assert "agentview_rgb" not in read_episodes(tmp_path / "a.hdf5")[0].observations


def test_the_layout_is_liberos_with_robomimics_masks(tmp_path):
    episode = samples.sample_episode(images=8)
    write_episodes(tmp_path / "a.hdf5", [episode] * 20, samples.ATTRS)
    with h5py.File(tmp_path / "a.hdf5") as file:
        demo, length = file["data/demo_0"], episode.length
        lengths = {len(demo[key]) for key in ("states", "actions", "robot_states", "dones")}
        assert lengths | {len(rows) for rows in demo["obs"].values()} == {length}
        expected = axis_angle(episode.observations["eef_quat"])[:length]
        np.testing.assert_array_equal(demo["obs/ee_states"][:, 3:], expected)
        assert demo["rewards"].dtype == np.uint8
        assert demo["rewards"][-1] == demo["dones"][-1] == 1
        assert demo.attrs["num_samples"] == length
        assert file["data"].attrs["total"] == 20 * length
        assert file["mask/valid"][()].tolist() == [b"demo_9", b"demo_19"]
        assert len(file["mask/train"]) == 18
        assert len(file["mask/success"]) == 20


def test_the_same_episodes_give_the_same_bytes_at_another_time(tmp_path):
    write_with_writer(tmp_path / "a.hdf5", 4)
    time.sleep(1.1)  # HDF5's time stamps count seconds
    write_with_writer(tmp_path / "b.hdf5", 4)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_a_finished_file_can_be_continued_to_the_same_bytes(tmp_path):
    write_with_writer(tmp_path / "whole.hdf5", 5)
    write_with_writer(tmp_path / "parts.hdf5", 2)
    write_with_writer(tmp_path / "parts.hdf5", 5, first=2)
    assert (tmp_path / "whole.hdf5").read_bytes() == (tmp_path / "parts.hdf5").read_bytes()
    assert [path.name for path in sorted(tmp_path.glob("[!.]*"))] == ["parts.hdf5", "whole.hdf5"]


def test_a_file_begun_with_other_settings_is_not_continued(tmp_path):
    write_with_writer(tmp_path / "a.hdf5", 2)
    with pytest.raises(UserError, match=r"a\.hdf5.*other settings.*tag"):
        write_with_writer(tmp_path / "a.hdf5", 3, {**samples.ATTRS, "tag": "new"}, first=2)


def test_no_part_of_other_settings_gets_into_a_file(tmp_path):
    path, part = tmp_path / "a.hdf5", tmp_path / "a.hdf5.parts" / "000001.hdf5"
    with (
        pytest.raises(KeyboardInterrupt),
        EpisodeWriter(path, samples.TASK, samples.ATTRS) as writer,
    ):
        for seed in range(3):
            writer.append(samples.sample_episode(seed))
        raise KeyboardInterrupt
    write_episodes(part, [samples.sample_episode(7)], {**samples.ATTRS, "tag": "new"})
    with pytest.raises(UserError, match=r"000001\.hdf5 was begun with other settings.*tag"):
        EpisodeWriter(path, samples.TASK, samples.ATTRS)


def test_a_file_system_without_locks_holds_data_sets_all_the_same(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    class Lockless(h5py.File):
        def __init__(self, path, mode="r", locking=None, **options):
            if locking is not False:
                none()
            super().__init__(path, mode, locking=locking, **options)

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(h5py, "File", Lockless)
    write_with_writer(tmp_path / "a.hdf5", 2)
    assert len(read_episodes(tmp_path / "a.hdf5")) == 2
    assert read_attributes(tmp_path / "a.hdf5")
    assert "offers no locks" in capsys.readouterr().err


def test_two_processes_cannot_write_the_same_file(tmp_path):
    with (
        EpisodeWriter(tmp_path / "a.hdf5", samples.TASK, samples.ATTRS),
        pytest.raises(UserError, match="another process"),
    ):
        EpisodeWriter(tmp_path / "a.hdf5", samples.TASK, samples.ATTRS)


def test_an_error_while_generating_keeps_what_was_committed(tmp_path):
    with (
        pytest.raises(UserError, match="actions"),
        EpisodeWriter(tmp_path / "a.hdf5", samples.TASK, samples.ATTRS) as writer,
    ):
        writer.append(samples.sample_episode(0))
        bad = samples.sample_episode(1)
        bad.actions[3, 0] = 1.5
        writer.append(bad)
    with EpisodeWriter(tmp_path / "a.hdf5", samples.TASK, samples.ATTRS) as writer:
        assert len(writer) == 1
    (kept,) = read_episodes(tmp_path / "a.hdf5")
    assert kept.checksum() == samples.sample_episode(0).checksum()


def test_a_file_holds_one_task_only(tmp_path):
    with (
        pytest.raises(UserError, match="one file per task"),
        EpisodeWriter(tmp_path / "a.hdf5", samples.TASK, samples.ATTRS) as writer,
    ):
        writer.append(replace(samples.sample_episode(), task="libero_object/1"))


def test_thirty_kills_while_writing_leave_whole_episodes_and_end_in_the_same_bytes(tmp_path):
    """SIGKILL at random moments – in an append, between two, while assembling – and go on."""
    count, rng = 16, np.random.default_rng(0)
    started = time.perf_counter()
    write_with_writer(tmp_path / "unbroken.hdf5", count)
    duration = time.perf_counter() - started
    path, sound = tmp_path / "killed.hdf5", set()
    for _ in range(30):
        child = os.fork()
        if child == 0:
            with EpisodeWriter(path, samples.TASK, samples.ATTRS) as writer:
                for seed in range(len(writer), count):
                    writer.append(samples.sample_episode(seed))
            os._exit(0)
        time.sleep(rng.uniform(0, duration / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for file in path.parent.rglob("[!.]*.hdf5"):  # dot files are work in progress
            whole = (file, file.stat().st_mtime_ns)
            assert whole in sound or validate_file(file) == []
            sound.add(whole)
    with EpisodeWriter(path, samples.TASK, samples.ATTRS) as writer:
        for seed in range(len(writer), count):
            writer.append(samples.sample_episode(seed))
    assert path.read_bytes() == (tmp_path / "unbroken.hdf5").read_bytes()
    left = sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".lock")
    assert left == ["killed.hdf5", "unbroken.hdf5"]


def test_an_official_file_round_trips_with_all_attributes(tmp_path):
    episodes = [samples.sample_episode(seed, images=8) for seed in range(3)]
    samples.write_official(tmp_path / "official_demo.hdf5", episodes)
    assert validate_file(tmp_path / "official_demo.hdf5") == []
    read = read_episodes(tmp_path / "official_demo.hdf5", images=True)
    write_episodes(tmp_path / "ours.hdf5", read, read_attributes(tmp_path / "official_demo.hdf5"))
    with (
        h5py.File(tmp_path / "official_demo.hdf5") as old,
        h5py.File(tmp_path / "ours.hdf5") as new,
    ):
        assert dict(old["data"].attrs).items() <= dict(new["data"].attrs).items()
        for name, demo in old["data"].items():
            for key in ("num_samples", "model_file"):
                assert demo.attrs[key] == new["data"][name].attrs[key]
            np.testing.assert_array_equal(demo["states"][0], new["data"][name].attrs["init_state"])

            def same(key, item, twin=new["data"][name]):
                if isinstance(item, h5py.Dataset):
                    assert item.dtype == twin[key].dtype
                    np.testing.assert_array_equal(item[()], twin[key][()])

            demo.visititems(same)


def test_an_official_file_tells_its_task_source_and_fixtures(tmp_path):
    samples.write_official(tmp_path / "a.hdf5", [samples.sample_episode(images=8)])
    episode = read_episodes(tmp_path / "a.hdf5")[0]
    assert (episode.task, episode.source, episode.mode) == (samples.TASK, "human", "recorded")
    assert episode.success
    assert len(episode.states) == episode.length  # official files hold no final state
    pose = body_poses(episode.model_file)["wooden_cabinet_1_main"]
    np.testing.assert_allclose(pose, [0.1, -0.2, 0.9, 0, 0, 0, 1])


def test_a_collector_file_round_trips_with_every_state(tmp_path):
    episodes = [samples.sample_episode(seed) for seed in range(2)]
    episodes[0].actions[3, 2] = 1.7  # collectors store what the hand did, before the clipping
    samples.write_collected(tmp_path / "raw.hdf5", episodes)
    read = read_episodes(tmp_path / "raw.hdf5")
    attrs = read_attributes(tmp_path / "raw.hdf5")
    write_episodes(tmp_path / "ours.hdf5", read, attrs | {"env_args": "{}"})
    for episode, back in zip(episodes, read_episodes(tmp_path / "ours.hdf5"), strict=True):
        np.testing.assert_array_equal(back.states, episode.states[:-1])
        np.testing.assert_array_equal(back.actions, np.clip(episode.actions, -1, 1))


@pytest.mark.parametrize("said", ["False", b"False", "0", np.bytes_(b"0"), 0, np.array([False])])
def test_a_collector_s_failure_is_one_however_it_is_written(tmp_path, said):
    samples.write_collected(tmp_path / "raw.hdf5", [samples.sample_episode()])
    with h5py.File(tmp_path / "raw.hdf5", "r+") as file:
        file["data/demo_1"].attrs["success"] = said
    (episode,) = read_episodes(tmp_path / "raw.hdf5")
    assert not episode.success


@pytest.mark.skipif(not RAW.is_dir(), reason="the recordings of LIBERO's collector are not here")
def test_real_collector_files_keep_every_step(tmp_path):
    for path in sorted(RAW.glob("*.hdf5")):
        (episode,) = read_episodes(path)
        assert episode.source == "teleoperation"
        attrs = read_attributes(path) | {"env_args": "{}"}
        write_episodes(tmp_path / path.name, [episode], attrs)
        (back,) = read_episodes(tmp_path / path.name)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(back.states, file["data/demo_1/states"][()])
            assert back.model_file == file["data/demo_1"].attrs["model_file"]
        assert "care_box_1_main" in body_poses(back.model_file)


def test_quaternions_and_axis_angles_undo_each_other():
    turns = samples.unit(np.random.default_rng(0).normal(size=(100, 4)))
    np.testing.assert_allclose(quaternions(axis_angle(turns)), turns, atol=1e-12)
    identity = np.array([[0.0, 0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(axis_angle(identity), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"task": "../etc/passwd"}, "task"),
        ({"source": "no body"}, "source"),
        ({"mode": "loud"}, "mode"),
        ({"seed": -1}, "seed"),
        ({"success": False}, "success"),
        ({"actions": np.zeros((12, 6))}, "actions"),
        ({"rewards": np.full(12, 0.5)}, "rewards"),
        ({"states": np.zeros((3, 30))}, "states"),
        ({"fixtures": np.ones((1, 7))}, "fixtures"),
        ({"observations": {"smell": np.zeros((13, 1))}}, "observations/smell"),
        ({"observations": {"eef_pos": np.zeros((13, 3))}}, "observations/eef_quat is missing"),
        ({"observations": {"object_pos": np.zeros((13, 1, 3))}}, "object_quat is missing"),
    ],
)
def test_an_episode_that_breaks_a_rule_is_not_stored(tmp_path, change, place):
    with pytest.raises(UserError, match=place):
        write_episodes(
            tmp_path / "a.hdf5", [replace(samples.sample_episode(), **change)], samples.ATTRS
        )
    assert list(tmp_path.iterdir()) == []


def test_the_attributes_of_every_task_are_json_that_robomimic_expects():
    from diffrl.data.attributes import libero_attributes
    from diffrl.sim.tasks import SUITES, suite_tasks

    for suite in SUITES:
        for task in suite_tasks(suite)[:2]:
            attrs = libero_attributes(task)
            assert json.loads(attrs["env_args"])["env_name"] == attrs["env_name"]
            assert json.loads(attrs["problem_info"])["language_instruction"] == task.instruction
            assert attrs["bddl_file_content"].startswith("(define")


# ---- a data set that its owner changed on purpose gets a new seal, if it is sound ----------------


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
