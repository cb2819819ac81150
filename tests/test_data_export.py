"""Exports: a LeRobotDataset v3 and LIBERO's HDF5 with images, from sound data sets alone."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import data_samples as samples
import imageio.v3 as iio
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from diffrl.__main__ import main
from diffrl.base.errors import UserError
from diffrl.data import export as exports
from diffrl.data import lerobot
from diffrl.data.demo import axis_angle
from diffrl.data.hdf5 import read_episodes, validate_file, write_episodes
from diffrl.data.validate import data_files
from diffrl.data.validate import main as validate
from diffrl.sim.pictures import Pictures

SIZE = 32
PICTURES = Pictures(SIZE, "exact")
KEYS = ("observation.images.image", "observation.images.image2")


def painted(episodes, pictures, workers):
    """Stand in for the renderer: smooth pictures that tell episode, step and camera apart."""
    size = pictures.size
    ramp = np.linspace(0, 120, size).astype(np.uint8)
    for number, episode in enumerate(episodes):
        steps = np.arange(len(episode.states), dtype=np.uint8)[:, None, None, None]
        frames = np.broadcast_to(ramp[:, None, None], (len(episode.states), size, size, 3))
        yield (
            episode,
            {
                "agentview": frames + steps + np.uint8(40 * number),
                "robot0_eye_in_hand": frames.transpose(0, 2, 1, 3) + steps,
            },
        )


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """Two data sets of 3 and 2 episodes, exported; (folder, episodes)."""
    monkeypatch.setattr(lerobot, "with_frames", painted)
    groups = [
        [samples.sample_episode(seed, 20 + seed) for seed in seeds]
        for seeds in (range(3), range(3, 5))
    ]
    groups[1] = [replace(e, instruction="do something else") for e in groups[1]]
    files = [tmp_path / "a_demo.hdf5", tmp_path / "b_demo.hdf5"]
    for file, group in zip(files, groups):
        write_episodes(file, group, samples.ATTRS)
    lerobot.export_lerobot(files, tmp_path / "out", PICTURES)
    return tmp_path / "out", groups[0] + groups[1]


def table(folder):
    return pd.concat(
        pq.read_table(path).to_pandas() for path in sorted((folder / "data").rglob("*.parquet"))
    )


def test_rows_are_the_episodes_without_gaps(exported):
    folder, episodes = exported
    rows, lengths = table(folder), [episode.length for episode in episodes]
    assert rows["index"].tolist() == list(range(sum(lengths)))
    assert rows["episode_index"].tolist() == np.repeat(range(5), lengths).tolist()
    assert rows["task_index"].tolist() == np.repeat([0, 0, 0, 1, 1], lengths).tolist()
    frame = np.concatenate([np.arange(length) for length in lengths])
    np.testing.assert_array_equal(rows["frame_index"], frame)
    np.testing.assert_allclose(rows["timestamp"], frame / 20, rtol=1e-6)
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float32)
    np.testing.assert_array_equal(np.stack(rows["action"]), actions)
    obs = episodes[4].observations
    state = np.hstack((obs["eef_pos"], axis_angle(obs["eef_quat"]), obs["gripper_qpos"]))
    stored = np.stack(rows[rows["episode_index"] == 4]["observation.state"])
    np.testing.assert_array_equal(stored, state[:-1].astype(np.float32))
    assert rows["next.done"].to_numpy().nonzero()[0].tolist() == (np.cumsum(lengths) - 1).tolist()


def test_films_hold_each_frame_turned_by_half_a_circle(exported):
    folder, episodes = exported
    for key, camera in zip(KEYS, ("agentview", "robot0_eye_in_hand")):
        for number, group in enumerate((episodes[:3], episodes[3:])):
            film = iio.imread(folder / f"videos/{key}/chunk-000/file-{number:03d}.mp4")
            truth = np.concatenate(
                [f[camera][:-1, ::-1, ::-1] for _, f in painted(group, PICTURES, 1)]
            )
            assert film.shape == truth.shape
            assert np.abs(film.astype(int) - truth).mean() < 2


def test_meta_tells_lengths_places_tasks_and_counts(exported):
    folder, episodes = exported
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 20)
    assert info["total_episodes"] == 5
    assert info["total_frames"] == sum(episode.length for episode in episodes)
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.index.tolist() == [episodes[0].instruction, "do something else"]
    rows = pd.read_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
    assert rows["dataset_to_index"].tolist() == np.cumsum([e.length for e in episodes]).tolist()
    assert rows["data/file_index"].tolist() == [0, 0, 0, 1, 1]
    starts = rows[f"videos/{KEYS[0]}/from_timestamp"]
    np.testing.assert_allclose(starts, np.array([0, 20, 41, 0, 23]) / 20)
    assert rows["start_state"].tolist() == [episode.start_state for episode in episodes]


def test_statistics_are_those_of_all_steps_and_pixels(exported):
    folder, episodes = exported
    stats = json.loads((folder / "meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float32)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, 0), atol=1e-6)
    groups = (episodes[:3], episodes[3:])
    pixels = [f["agentview"][:-1] for g in groups for _, f in painted(g, PICTURES, 1)]
    pixels = np.concatenate(pixels) / 255
    image = stats[KEYS[0]]
    assert np.shape(image["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(image["mean"]), pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["std"]), pixels.std((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["min"]), pixels.min((0, 1, 2)))
    assert image["count"] == [len(pixels)]


def test_the_card_says_what_it_is_and_what_it_is_not(exported):
    card = (exported[0] / "README.md").read_text()
    assert card.startswith("---\nlicense:")
    assert "| libero_object/0 | diffusion | deterministic | 3 | 21.0 |" in card
    assert "was filtered, and under which licence" in " ".join(card.split())


def test_the_card_names_licence_and_protocol_of_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "with_frames", painted)
    made = {"preset": "smoke", "task": samples.TASK, "source": "diffusion", "mode": "deterministic"}
    made |= {"seed": 1, "experts": ["0123456789abcdef"]}
    ours, human = tmp_path / "ours_demo.hdf5", tmp_path / "human_demo.hdf5"
    attrs = samples.ATTRS | {"generation": json.dumps(made)}
    write_episodes(ours, [samples.sample_episode(0)], attrs)
    pd.DataFrame({"outcome": ["success", "failure", "error"]}).to_csv(
        ours.with_suffix(".attempts.csv")
    )
    people = samples.ATTRS | {"generation": json.dumps(made | {"source": "human", "experts": []})}
    write_episodes(human, [replace(samples.sample_episode(1), source="human")], people)
    layout = tmp_path / "layout_demo.hdf5"  # LIBERO's layout alone tells no licence
    samples.write_official(layout, [samples.sample_episode(2, images=8)])
    monkeypatch.setattr(lerobot, "completed", lambda file: read_episodes(file))
    cards = {}
    for name, files in {"ours": [ours], "both": [ours, human], "layout": [layout]}.items():
        lerobot.export_lerobot(files, tmp_path / name, PICTURES)
        cards[name] = (tmp_path / name / "README.md").read_text()
    assert "license: mit" in cards["ours"]
    assert "only successes are kept" in cards["ours"]
    assert "| 3 | 50% |" in cards["ours"]  # an error is no failure
    assert "CC BY" not in cards["ours"]
    assert "license: cc-by-4.0" in cards["both"]
    assert "licensed CC BY" in cards["both"]
    assert "license: unknown" in cards["layout"]
    assert "that is LIBERO's own upload" in " ".join(cards["layout"].split())


def test_an_export_does_not_overwrite_and_does_not_leave_halves(exported, tmp_path):
    with pytest.raises(UserError, match="out exists"):
        lerobot.export_lerobot([tmp_path / "a_demo.hdf5"], tmp_path / "out", PICTURES)
    (tmp_path / "b_demo.hdf5").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"b_demo\.hdf5"):
        lerobot.export_lerobot([tmp_path / "b_demo.hdf5"], tmp_path / "new", PICTURES)
    assert not (tmp_path / "new").exists()


UNTOLD = ["[]", "{}x", '{"a": 1}', '{"experts": "abc"}']
LISTS = ["", "a,b\n1,2\n", "attempt,start_state,policy,outcome,steps\n0,fresh/0,p,succ"]


@pytest.mark.parametrize(
    ("generation", "attempts"), [*((text, None) for text in UNTOLD), *((None, t) for t in LISTS)]
)
def test_an_export_whose_origin_cannot_be_read_ends_before_anything_is_drawn(
    tmp_path, monkeypatch, generation, attempts
):
    monkeypatch.setattr(lerobot, "with_frames", lambda *_: pytest.fail("it drew"))
    path = tmp_path / "a_demo.hdf5"
    attrs = samples.ATTRS | ({"generation": generation} if generation else {})
    write_episodes(path, [samples.sample_episode(0)], attrs)
    if attempts is not None:
        path.with_suffix(".attempts.csv").write_text(attempts)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"a_demo\.(hdf5|attempts\.csv).*enerat"):
        lerobot.export_lerobot([path], tmp_path / "out", PICTURES)
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_that_fails_while_it_draws_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the renderer is gone")
        yield

    monkeypatch.setattr(lerobot, "with_frames", broken)
    path = tmp_path / "a_demo.hdf5"
    write_episodes(path, [samples.sample_episode(0)], samples.ATTRS)
    with pytest.raises(RuntimeError, match="renderer"):
        lerobot.export_lerobot([path], tmp_path / "out", PICTURES)
    assert list(tmp_path.iterdir()) == [path]


def test_hdf5_gets_liberos_images_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "with_frames", painted)
    episodes = [samples.sample_episode(seed) for seed in range(3)]
    write_episodes(tmp_path / "a_demo.hdf5", episodes, samples.ATTRS)
    (target,) = exports.export_hdf5([tmp_path / "a_demo.hdf5"], tmp_path / "new", PICTURES)
    assert validate_file(target) == []
    for old, new in zip(episodes, read_episodes(target, images=True), strict=True):
        frames = dict(painted([old], PICTURES, 1).__next__()[1])
        np.testing.assert_array_equal(new.states, old.states)
        assert new.observations["agentview_rgb"].shape == frames["agentview"].shape
    with pytest.raises(UserError, match="would be overwritten"):
        exports.export_hdf5([tmp_path / "a_demo.hdf5"], tmp_path / "new", PICTURES)


def test_validate_prints_remedies_and_tells_by_its_exit_code(tmp_path, capsys):
    write_episodes(tmp_path / "good.hdf5", [samples.sample_episode()], samples.ATTRS)
    for unfinished in ("b.hdf5.parts/000000.hdf5", ".a-1.tmp.hdf5"):  # of an interrupted generation
        (tmp_path / unfinished).parent.mkdir(exist_ok=True)
        (tmp_path / unfinished).write_bytes(b"half")
    assert validate((tmp_path,)) == 0
    (tmp_path / "bad.hdf5").write_bytes(b"nothing")
    assert validate((tmp_path,)) == 1
    printed = capsys.readouterr().out
    assert "good.hdf5: sound" in printed
    assert "bad.hdf5: file:" in printed
    assert "Remedy" in printed


def test_a_file_that_also_lies_in_a_folder_that_is_named_is_taken_once(tmp_path):
    files = [tmp_path / "a_demo.hdf5", tmp_path / "b_demo.hdf5"]
    for file in files:
        write_episodes(file, [samples.sample_episode()], samples.ATTRS)
    assert data_files((files[0], tmp_path, files[1])) == files


@pytest.mark.parametrize("command", ["validate", "reseal", "export"])
def test_a_command_without_a_file_asks_for_one(command, tmp_path, capsys):
    to = ["--to", str(tmp_path / "new")] if command == "export" else []
    assert main([command, *to]) == 1
    assert "No file given: name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["lerobot", "hdf5"])
def test_an_export_of_a_file_that_is_not_libero_s_names_the_file(format, tmp_path, capsys):
    episode = replace(samples.sample_episode(), task="lift")
    write_episodes(tmp_path / "lift_demo.hdf5", [episode], samples.ATTRS)
    command = ["export", str(tmp_path / "lift_demo.hdf5"), "--to", str(tmp_path / "new")]
    assert main([*command, "--format", format]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / 'lift_demo.hdf5'} is of no LIBERO task" in told
    assert "`python -m diffrl quality` measures other files" in told


# ---- tools of the field open our files (`make readers` installs robomimic; lerobot: check-lerobot)


READERS = Path(__file__).resolve().parent.parent / "build" / "readers"
if READERS.is_dir():
    sys.path.append(str(READERS))  # last: nothing of it may replace what is installed
LOW_DIM = ("ee_pos", "ee_ori", "gripper_states", "joint_states", "object")


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
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(LOW_DIM)}})
    data = SequenceDataset(
        str(tmp_path / "a_demo.hdf5"),
        obs_keys=LOW_DIM,
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
