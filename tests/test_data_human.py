"""LIBERO's human demonstrations: found, refused with a remedy, completed, replayed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import data_samples as samples
import numpy as np
import pandas as pd
import pytest

from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.data.human import complete, find_human_file, human_demonstrations, replay
from diffrl.presets import get_preset
from diffrl.sim.tasks import get_task

TASK = get_task(samples.TASK)
NAME = f"{TASK.suite}/{TASK.name}_demo.hdf5"


def test_the_folder_may_hold_suites_or_the_files_themselves(tmp_path, monkeypatch):
    for name in (NAME, Path(NAME).name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert find_human_file(TASK, tmp_path) == path
        path.unlink()
    monkeypatch.setenv("LIBERO_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=r"LIBERO_DATASETS.*--human-demos"):
        find_human_file(TASK)


def test_without_folder_and_hub_the_message_names_all_ways_out(monkeypatch):
    monkeypatch.delenv("LIBERO_DATASETS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"LIBERO_DATASETS.*\.\[hub\].*operator"):
        find_human_file(TASK)


def test_what_was_downloaded_before_is_found_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("LIBERO_DATASETS", raising=False)
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path))
    path = tmp_path / "human" / NAME
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no hub, no network
    assert find_human_file(TASK) == path


def test_a_hub_that_cannot_be_reached_says_how_to_go_on(tmp_path):
    pytest.importorskip("huggingface_hub", reason="extra hub is not installed")
    code = (
        "from diffrl.data.human import find_human_file; from diffrl.sim.tasks import get_task\n"
        f"find_human_file(get_task({TASK.id!r}))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "LIBERO_DATASETS"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "DIFFRL_CACHE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "UserError" in run.stderr
    assert "could not be downloaded" in run.stderr


@pytest.fixture(scope="module")
def recorded():
    """Two operator episodes of a task with fixtures, and the scene."""
    from diffrl.demonstrator.episodes import operator_demonstrations
    from diffrl.sim.scene import load_scene

    scene = load_scene("libero_goal/7")  # turn on the stove
    return scene, operator_demonstrations(scene, 2, 0, get_preset("smoke").demonstrations)[0]


def official_copy(path, scene, episodes):
    """Write episodes as LIBERO does: no final state, fixtures in the model's XML alone."""
    images = np.zeros((1, 4, 4, 3), np.uint8)
    cameras = ("agentview_rgb", "eye_in_hand_rgb")
    dressed = [
        replace(
            e, observations=e.observations | {c: images.repeat(len(e.states), 0) for c in cameras}
        )
        for e in episodes
    ]
    bodies = "".join(
        f'<body name="{body}" pos="{" ".join(map(repr, pose[:3].tolist()))}" '
        f'quat="{" ".join(map(repr, pose[3:].tolist()))}"/>'
        for body, pose in zip(scene.meta["fixtures"].values(), episodes[0].fixtures)
    )
    xml = f"<mujoco><worldbody>{bodies}</worldbody></mujoco>"
    bddl = f"{scene.task.suite}/{scene.task.name}.bddl"
    samples.write_official(path, dressed, xml, bddl)


@pytest.mark.sim
def test_official_demonstrations_get_their_fixtures_and_replay_to_success(recorded, tmp_path):
    scene, episodes = recorded
    episodes = episodes[:1] * 2  # one model_file: one pose of the fixtures
    path = tmp_path / f"{scene.task.suite}/{scene.task.name}_demo.hdf5"
    path.parent.mkdir()
    official_copy(path, scene, episodes)
    human = human_demonstrations(scene, folder=tmp_path)
    for episode, original in zip(human, episodes):
        assert (episode.source, episode.task) == ("human", scene.task.id)
        np.testing.assert_allclose(episode.fixtures, original.fixtures, atol=1e-12)
        for name, values in episode.observations.items():
            expected = original.observations[name][: original.length]
            np.testing.assert_allclose(values, expected, atol=1e-9, err_msg=name)
    assert replay(scene, human).successes == len(human)


@pytest.mark.sim
def test_people_s_data_sets_join_the_operator_s_where_their_files_are(
    recorded, tmp_path, monkeypatch, capsys
):
    from diffrl.generation.stage import arms_of, dataset_path, generate_all
    from diffrl.quality.stage import dataset_files

    scene, episodes = recorded
    smoke = replace(get_preset("smoke"), tasks=(scene.task.id, "libero_object/0"))
    smoke = smoke.with_settings({"generation.episodes": 2})
    assert ("human", "recorded") not in arms_of(smoke)
    monkeypatch.setenv("LIBERO_DATASETS", str(tmp_path))
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    assert arms_of(smoke)[:2] == [("operator", "recorded"), ("human", "recorded")]
    official_copy(tmp_path / f"{scene.task.name}_demo.hdf5", scene, episodes[:1] * 2)
    table = generate_all(smoke, arms=[Arm("human")], workers=1)
    assert table[["task", "source", "episodes"]].values.tolist() == [[scene.task.id, "human", 2]]
    assert "Left out" in capsys.readouterr().out  # libero_object/0's file is not there
    monkeypatch.setattr("diffrl.quality.stage.get_preset", lambda name: smoke)
    assert dataset_files("smoke") == [dataset_path(smoke, scene.task.id, Arm("human"))]


@pytest.mark.sim
def test_a_vla_learns_from_official_files_mixed_by_weight(recorded, tmp_path, monkeypatch):
    from diffrl.vla import stage as vla_stage
    from diffrl.vla.model import load

    monkeypatch.setattr("diffrl.vla.frames.cache_dir", lambda: tmp_path)
    scene, episodes = recorded  # its stove must be rendered where the file's own model has it
    files = [tmp_path / name for name in ("one_demo.hdf5", "two_demo.hdf5")]
    for path in files:
        official_copy(path, scene, episodes[:1] * 2)
    (loaded, _) = vla_stage.load(files[:1], 2)
    np.testing.assert_allclose(loaded.fixtures, episodes[0].fixtures, atol=1e-12)
    options = {"out": tmp_path / "model", "steps": 2, "workers": 1}
    vla_stage.main("smoke", data=tuple(files), weights=(3, 1), **options)
    assert load(tmp_path / "model").read(episodes[0].instruction).any()
    assert len(pd.read_csv(tmp_path / "model" / "losses.csv")) == 2


@pytest.mark.sim
def test_another_tasks_file_is_refused(recorded, tmp_path):
    scene, episodes = recorded
    official_copy(tmp_path / "a_demo.hdf5", scene, episodes)
    with pytest.raises(UserError, match=r"libero_object/1.*use the official file"):
        complete(replace(episodes[0], task="libero_object/1"), scene, tmp_path / "a_demo.hdf5")
    with pytest.raises(UserError, match="model_file"):
        complete(replace(episodes[0], model_file="<mujoco/>"), scene, tmp_path / "a_demo.hdf5")


@pytest.mark.sim
def test_a_drifted_simulator_shows_in_the_replay(recorded):
    scene, episodes = recorded
    faithful = replay(scene, episodes)
    moved = [replace(e, states=e.states.copy()) for e in episodes]
    for episode in moved:
        episode.states[:, 1 + scene.arm_qpos[0]] += 0.3  # rad: the arm starts somewhere else
    assert faithful.successes == len(episodes)
    assert replay(scene, moved).successes < len(episodes)
    assert np.median(faithful.drift) < 1e-3
