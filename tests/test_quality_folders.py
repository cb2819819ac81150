"""Several files, strange sizes and real recordings are measured rightly."""

import io
import pickle
from pathlib import Path

import data_samples as samples
import h5py
import numpy as np
import pandas as pd
import pytest
from quality_samples import arms, read, robomimic_file, wander, write_data_set

from diffrl import quality
from diffrl.__main__ import main as command_line
from diffrl.base.errors import UserError

TELEOP = Path(__file__).resolve().parents[2] / "shared" / "teleop"


def shaky(size):
    return {"obs/robot0_eef_pos": lambda i, n: wander(i, n) + size * wander(9 + i, n)}


def jerk_of(printed):
    rows = [line.split(",") for line in printed.splitlines()[1:]]
    return {row[0]: row[4] for row in rows if row[2:4] == ["Lift", "jerk_rms"]}


@pytest.mark.parametrize("folders", [("ph", "mh"), ("a/set", "b/set")])
def test_files_of_one_name_in_two_folders_are_two_arms(tmp_path, capsys, folders):
    for index, folder in enumerate(folders):
        robomimic_file(tmp_path / folder / "low_dim.hdf5", **shaky(float(index)))
    alone = []
    for folder in folders:
        assert command_line(["quality", str(tmp_path / folder / "low_dim.hdf5"), "--csv"]) == 0
        alone += jerk_of(capsys.readouterr().out).values()
    assert command_line(["quality", str(tmp_path), "--csv"]) == 0  # the folder that holds both
    together = jerk_of(capsys.readouterr().out)
    assert together == {f"{f}/low_dim": value for f, value in zip(folders, alone)}
    paths = [tmp_path / folder / "low_dim.hdf5" for folder in folders]
    found = quality.read_files(paths, tell=lambda line: None)
    assert len({t.start_state for t in found}) == len(found)


def test_files_of_one_name_that_say_the_same_source_are_two_arms_too(tmp_path):
    lines = []
    for folder in ("mine", "yours"):
        (tmp_path / folder).mkdir()
        episodes = [samples.sample_episode(seed, images=2) for seed in range(2)]
        samples.write_official(tmp_path / folder / "x_demo.hdf5", episodes)
    paths = [tmp_path / folder / "x_demo.hdf5" for folder in ("mine", "yours")]
    found = quality.read_files(paths, tell=lines.append)
    assert {t.arm for t in found} == {("human (mine)", "recorded"), ("human (yours)", "recorded")}
    assert any("arm of its own" in line for line in lines)


def test_the_same_file_is_measured_once(tmp_path):
    path, lines = robomimic_file(tmp_path / "a.hdf5"), []
    (tmp_path / "link.hdf5").symlink_to(path)
    assert len(quality.read_files([path, path, tmp_path / "link.hdf5"], tell=lines.append)) == 3
    assert sum("measured already" in line for line in lines) == 2


def spoil_one(path):
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/robot0_eef_pos"][5, 0] = np.nan
    return path


def test_one_bad_episode_stops_the_file_or_is_left_out_and_named(tmp_path, capsys):
    path = spoil_one(robomimic_file(tmp_path / "a.hdf5", demos=4))
    assert command_line(["quality", str(path)]) == 1
    assert "position holds NaN" in " ".join(capsys.readouterr().err.split())
    assert command_line(["quality", str(path), "--skip-bad", "--csv"]) == 0
    printed = capsys.readouterr()
    rows = pd.read_csv(io.StringIO(printed.out)).set_index("measure")
    assert set(rows.loc[["jerk_rms"], "n"]) == {3}
    assert "left out" in printed.err
    assert "a.hdf5, demo_1: position holds NaN" in printed.err


def test_a_bad_file_in_a_folder_stops_it_or_is_left_out_and_named(tmp_path, capsys):
    robomimic_file(tmp_path / "good.h5")
    (tmp_path / "bad.hdf5").write_bytes(b"\x80pickle")
    assert command_line(["quality", str(tmp_path)]) == 1
    assert "never loaded" in " ".join(capsys.readouterr().err.split())
    assert command_line(["quality", str(tmp_path), "--skip-bad", "--csv"]) == 0
    assert "bad.hdf5" in capsys.readouterr().err
    (tmp_path / "good.h5").unlink()
    assert command_line(["quality", str(tmp_path), "--skip-bad"]) == 1
    assert command_line(["quality", str(tmp_path / "empty")]) == 1


def test_an_arm_with_one_good_episode_is_left_out_with_skip_bad(tmp_path, capsys):
    robomimic_file(tmp_path / "good.hdf5")
    robomimic_file(tmp_path / "one.hdf5", demos=1)
    assert command_line(["quality", str(tmp_path)]) == 1
    assert command_line(["quality", str(tmp_path), "--skip-bad", "--csv"]) == 0
    assert "one-recorded on Lift has 1 success" in capsys.readouterr().err


def test_the_sound_episodes_of_a_changed_data_set_of_ours_are_measured_with_skip_bad(tmp_path):
    path = tmp_path / "ours.hdf5"
    write_data_set(path, list(arms(n=3)))
    with h5py.File(path, "a") as file:
        file["data/demo_2/actions"][3, 0] += 1e-9  # seal and checksum break
    with pytest.raises(UserError, match="SHA-256 differs"):
        read(path)
    found, told = read(path, skip_bad=True)
    assert len(found) == 5
    assert "seal: its bytes are not those" in told
    assert "left out: " in told
    assert "demo_2" in told


def replace_position(make):
    def change(demo):
        del demo["obs/robot0_eef_pos"]
        make(demo, "obs/robot0_eef_pos")

    return change


def opaque(demo, name):
    demo[name] = np.void(pickle.dumps([1]))


def texts(demo, name):
    demo.create_dataset(name, (40, 3), h5py.string_dtype(), data=[["x"] * 3] * 40)


def bomb(demo, name):
    demo.create_dataset(name, (10**9, 3), "f8", chunks=(10**4, 3), compression=9)[:10] = 1


def long(demo, name):
    demo[name] = np.zeros((2 * 10**6, 3), np.uint8)


def unwritten(demo, name):
    demo.create_dataset(name, (40, 3), "f8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (opaque, "is no number"),
        (texts, "objects are not loaded"),
        (bomb, "claims 24000000000 bytes"),
        (long, "2000000 rows, more than 1000000"),
        (unwritten, "none was ever written"),
    ],
)
def test_what_is_no_array_of_believable_size_is_refused_before_it_is_read(tmp_path, make, message):
    path = robomimic_file(tmp_path / "odd.hdf5")
    with h5py.File(path, "a") as file:
        replace_position(make)(file["data/demo_0"])
    with pytest.raises(UserError) as refusal:
        read(path)
    assert message in str(refusal.value)
    assert "odd.hdf5" in str(refusal.value)


def test_an_array_of_which_only_the_last_chunk_was_written_is_believed(tmp_path):
    path = robomimic_file(tmp_path / "a.hdf5", demos=1, steps=5000)
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        del demo["rewards"]
        demo.create_dataset("rewards", (5000,), "f8", chunks=(1,))[-1] = 1  # the rest are zeros
        assert demo["rewards"].nbytes > 1100 * demo["rewards"].id.get_storage_size()
    assert read(path)[0][0].success


def test_attributes_that_are_objects_are_passed_over(tmp_path):
    path = robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["task"] = np.void(pickle.dumps("x"))
        file["data"].attrs["source"] = file["data"].ref
    found, _ = read(path)
    assert {(t.task, t.source) for t in found} == {("Lift", f"{tmp_path.name}/a")}


@pytest.mark.skipif(not TELEOP.is_dir(), reason="the teleoperated recordings are not here")
def test_real_teleoperation_is_clipped_as_its_controller_did_and_measured(capsys):
    found, told = read(TELEOP / "medical_box.hdf5")
    assert len(found) == 90
    assert "are clipped" in told
    assert max(np.abs(t.actions).max() for t in found) == 1
    assert all(t.quaternion is not None for t in found)
    assert command_line(["quality", str(TELEOP / "raw"), "--csv"]) == 0  # three files, one arm
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].startswith("teleoperation,recorded,all,jerk_rms")
