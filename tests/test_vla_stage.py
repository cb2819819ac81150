"""Which data sets a VLA learns from, and which are refused."""

import dataclasses
import json
import os
import shlex
import subprocess
from pathlib import Path

import h5py
import pandas as pd
import pytest
from vla_samples import TINY, standing_episode, toy_frames

from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.data.attributes import libero_attributes
from diffrl.data.hdf5 import write_episodes
from diffrl.evaluation.stage import tasks_of
from diffrl.generation.stage import arms_of, dataset_path
from diffrl.presets import PRESETS
from diffrl.sim.tasks import get_task
from diffrl.vla import recipes
from diffrl.vla import stage as vla_stage
from diffrl.vla.frames import make_frames
from diffrl.vla.train import split

OWN = {"data": (Path("a.hdf5"),), "out": Path("model")}


def data_file(path: Path, episodes: int, rate: int = 20) -> Path:
    attrs = libero_attributes(get_task("libero_object/0"))
    env_args = json.loads(attrs["env_args"])
    env_args["env_kwargs"]["control_freq"] = rate
    episodes = [standing_episode()] * episodes
    write_episodes(path, episodes, attrs | {"env_args": json.dumps(env_args)})
    return path


def test_data_sets_that_cannot_teach_are_refused_with_their_names(tmp_path):
    with pytest.raises(UserError, match=r"one_demo\.hdf5 holds 1 episodes"):
        vla_stage.load([data_file(tmp_path / "one_demo.hdf5", 1)], 10)
    with pytest.raises(UserError, match=r"slow_demo\.hdf5 was recorded at 10 Hz"):
        vla_stage.load([data_file(tmp_path / "slow_demo.hdf5", 3, rate=10)], 10)
    files = [data_file(tmp_path / "a_demo.hdf5", 3), tmp_path / "slow_demo.hdf5"]
    with pytest.raises(UserError, match=r"slow_demo\.hdf5 was recorded at 10 Hz"):
        vla_stage.main("smoke", data=tuple(files), out=tmp_path / "model")  # rates cannot be mixed
    with h5py.File(tmp_path / "none_demo.hdf5", "w"):
        pass
    with pytest.raises(UserError, match=r"none_demo\.hdf5"):
        vla_stage.load([tmp_path / "none_demo.hdf5"], 10)
    with pytest.raises(UserError, match="no episodes"):
        make_frames([], TINY)
    with pytest.raises(UserError, match=r"actions of shape \(9, 6\)"):
        make_frames([standing_episode(actions=6)], TINY)


def test_training_data_are_named_by_source_mode_count_and_mixture():
    assert vla_stage.parts_of("diffusion-deterministic") == [
        (Arm("diffusion", "deterministic"), None)
    ]
    mixed = "operator-recorded+diffusion-deterministic:10"
    assert vla_stage.parts_of(mixed)[1] == (Arm("diffusion", "deterministic"), 10)
    assert vla_stage.arm_of(mixed) == ("operator+diffusion:10", "recorded+deterministic")
    assert vla_stage.arm_of("gaussian-stochastic") == ("gaussian", "stochastic")
    for wrong in ("diffusion", "diffusion-deterministic:0", "a-b+", ""):
        with pytest.raises(UserError, match="names no training data"):
            vla_stage.parts_of(wrong)


def test_a_part_of_a_data_set_is_learned_from_whole(tmp_path, monkeypatch):
    file = data_file(tmp_path / "some_demo.hdf5", 6)
    smoke = PRESETS["smoke"]
    preset = dataclasses.replace(
        smoke, vla=dataclasses.replace(smoke.vla, demonstrations=6, held_out=2)
    )
    asked = []
    monkeypatch.setattr(vla_stage, "_files", lambda part, preset: [file])
    monkeypatch.setattr(
        vla_stage, "mix_frames", lambda e, *_: asked.append([*map(len, e)]) or toy_frames()
    )
    taught = [vla_stage.mix(f"operator-recorded{part}", preset)[-1] for part in (":3", "")]
    # episodes to learn from and held-out ones, each time
    assert asked == [[3], [2], [4], [2]]
    assert taught == [3, 4]
    with pytest.raises(UserError, match="ask for 4 at most"):
        vla_stage.mix("operator-recorded:5", preset)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_s_further_data_fit_its_demonstrations(preset):
    counts = [part.count for data in preset.vla.further for part in vla_stage.parts_of(data)]
    most = preset.vla.demonstrations - preset.vla.held_out
    assert all(count is None or count <= most for count in counts)


def test_data_that_are_missing_stop_no_vla_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = PRESETS["smoke"]
    lost = smoke.vla.data[-1]

    def files(data, preset):
        if data == lost:
            raise UserError(f"the data {data} lack a file")
        return []

    monkeypatch.setattr(vla_stage, "files_of", files)
    models = vla_stage.models_of(smoke)
    for data, seed in models:
        if data != lost:
            vla_stage._stage(data, seed, smoke).finish({"source": data})
    with pytest.raises(UserError, match=f"left out, all others are done. the data {lost} lack"):
        vla_stage.fit_all(smoke, workers=1)
    table = pd.read_csv(tmp_path / "runs" / "smoke" / "vla.csv")
    assert table["source"].tolist() == [data for data, _ in models if data != lost]
    monkeypatch.setattr(vla_stage, "lacking_data", lambda _, chosen: dict.fromkeys(chosen, "gone"))
    with pytest.raises(UserError) as told:  # nothing could be done
        vla_stage.fit_all(smoke, workers=1)
    assert str(told.value) == "gone"


def smoke_data(**episodes):
    """Write data sets of smoke, of so many episodes for each source; return the preset."""
    for data, count in episodes.items():
        arm = Arm(data, "recorded" if data == "operator" else "deterministic")
        path = dataset_path(PRESETS["smoke"], "libero_object/0", arm)
        path.parent.mkdir(parents=True)
        data_file(path, count)
    return PRESETS["smoke"]


def test_a_data_set_with_a_single_episode_stops_no_vla_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = smoke_data(operator=4, gaussian=1, diffusion=4)
    for data, seed in vla_stage.models_of(smoke):
        if not data.startswith("gaussian"):
            about = {"source": data.partition("-")[0], "steps": 900}
            vla_stage._stage(data, seed, smoke).finish({"episodes": 2, **about})
    told = r"left out, all others are done.*need 2 episodes of a task.*holds 1\. Train"
    with pytest.raises(UserError, match=told):
        vla_stage.fit_all(smoke, workers=1)
    table = pd.read_csv(tmp_path / "runs" / "smoke" / "vla.csv")
    assert table["source"].tolist() == ["operator", "diffusion"]
    assert table.columns[-1] == "episodes"
    drawn = []
    monkeypatch.setattr(vla_stage, "render", lambda episodes, *_: drawn.append(len(episodes)))
    vla_stage.render_all(smoke)
    assert drawn == [4 + 4]
    dataset_path(smoke, "libero_object/0", Arm("gaussian", "deterministic")).write_text("no HDF5")
    (damaged,) = vla_stage.lacking_data(smoke, smoke.vla.data).values()
    assert "cannot be counted" in damaged


def test_a_part_that_its_files_cannot_give_is_lacking(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = smoke_data(diffusion=4)
    names = [f"diffusion-deterministic{part}" for part in ("", ":2", ":3", ":10")]
    lacking = vla_stage.lacking_data(smoke, names)
    assert list(lacking) == names[2:]
    assert "need 12 episodes of a task, 10 to learn from" in lacking[names[3]]
    assert "holds 4" in lacking[names[3]]
    assert "ask for fewer than 10" in lacking[names[3]]


def test_a_vla_says_how_many_episodes_it_learned_from(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = smoke_data(operator=5)
    config = dataclasses.replace(smoke.vla, steps=2)
    frames = toy_frames(config=config)
    monkeypatch.setattr(vla_stage, "mix_frames", lambda *_: frames)
    row = vla_stage.fit(("operator-recorded", 0), dataclasses.replace(smoke, vla=config))
    assert row["episodes"] == 3  # of 5, two of which only validate; the preset asks for 36
    folder = vla_stage.model_folder(smoke, "operator-recorded", 0)
    assert json.loads((folder / "model.json").read_text())["about"]["episodes"] == 3


def test_what_a_vla_would_do_is_noted_while_its_weights_and_data_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = smoke_data(operator=5)
    tiny = dataclasses.replace(TINY, data=("operator-recorded",), further=(), steps=2)
    preset = dataclasses.replace(smoke, vla=tiny)
    vla_stage.fit(("operator-recorded", 0), preset)
    folder = vla_stage.model_folder(preset, "operator-recorded", 0)
    noted = vla_stage.predictions_of(preset)
    assert noted.groupby("sample").size().to_dict() == dict.fromkeys(range(-1, 6), 3 * 4 * 7)
    episode = noted[noted["sample"] == -1]
    assert episode["moment"].nunique() == 3
    assert (episode["value"] == 0).all()  # it stands still
    (folder / vla_stage.PREDICTIONS).unlink()  # as of a VLA that was trained before they were noted
    pd.testing.assert_frame_equal(vla_stage.predictions_of(preset), noted)
    (folder / vla_stage.MODEL).unlink()
    pd.testing.assert_frame_equal(vla_stage.predictions_of(preset), noted)


def test_all_episodes_of_the_files_that_a_person_names_are_used(tmp_path, monkeypatch):
    read, smoke = [], PRESETS["smoke"]
    frames = toy_frames(config=smoke.vla)
    files = (data_file(tmp_path / "a_demo.hdf5", 60), data_file(tmp_path / "b_demo.hdf5", 3))
    monkeypatch.setattr(
        vla_stage, "mix_frames", lambda parts, *_: read.append([*map(len, parts)]) or frames
    )
    vla_stage.main("smoke", data=files, out=tmp_path / "model", steps=1)
    assert read == [[58, 1], [2, 2]]


def test_a_source_that_never_succeeded_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    path = dataset_path(PRESETS["smoke"], "libero_object/0", Arm("gaussian", "stochastic"))
    with pytest.raises(UserError, match="run notebook 02"):
        vla_stage.files_of("gaussian-stochastic", PRESETS["smoke"])
    path.parent.mkdir(parents=True)
    path.with_suffix(".attempts.csv").write_text("outcome\nfailure\n")
    with pytest.raises(UserError, match="no attempt succeeded"):
        vla_stage.files_of("gaussian-stochastic", PRESETS["smoke"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": Path("model")}, "give --data and --out together"),
        ({"data": (Path("a.hdf5"),)}, "give --data and --out together"),
        ({"data": (Path("a"),), "out": Path("m"), "weights": (1.0, 2.0)}, "2 --weights"),
        ({"steps": 3}, "--steps is for a VLA on data of your own"),
        ({"seed": 0}, "--seed is for a VLA on data of your own"),
        ({"weights": (1.0,)}, "--weights is for a VLA on data of your own"),
        (OWN | {"suite": ("libero_object",)}, "--suite is for a preset's VLAs"),
        (OWN | {"force": True}, "--force is for a preset's VLAs"),
        (OWN | {"further": True}, "--further is for a preset's VLAs"),
        (OWN | {"steps": 0}, "--steps is 0: give a whole number that is at least 1"),
        (OWN | {"steps": -5}, "--steps is -5"),
        (OWN | {"seed": -1}, "--seed is -1"),
        ({"device": "gpu"}, "--device is 'gpu'"),
        ({"preset": "pixels", "further": True}, r"pixels has no further VLAs.*vla\.further"),
    ],
)
def test_options_that_do_not_belong_together_are_told_before_any_work(options, message):
    with pytest.raises(UserError, match=message):
        vla_stage.main(**{"preset": "smoke", **options})


@pytest.mark.parametrize("env_args", ["{'control_freq': 20}", '{"env_kwargs": null}', "[]", "5"])
def test_a_file_that_does_not_describe_its_recording_is_refused_with_its_name(tmp_path, env_args):
    with h5py.File(tmp_path / "odd_demo.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = env_args
    with pytest.raises(UserError, match=r"odd_demo\.hdf5: its attribute data@env_args"):
        vla_stage.load([tmp_path / "odd_demo.hdf5"], 10)


def test_the_first_episodes_teach_and_the_last_validate(tmp_path):
    file = data_file(tmp_path / "some_demo.hdf5", 5)
    assert len(vla_stage.load([file], 3)) == 3
    episodes = list("abcde")
    assert split(episodes, 2) == (["a", "b", "c"], ["d", "e"])
    assert split(episodes[:2], 4) == (["a"], ["b"])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_makes_the_data_that_its_vlas_learn_from(preset):
    made = {str(arm) for arm in arms_of(preset)}
    named = {
        str(part.arm)
        for data in (*preset.vla.data, *preset.vla.further)
        for part in vla_stage.parts_of(data)
    }
    assert named <= made


# ---- the commands that train the big models on our data ------------------------------------------


PARSE = """
import sys
import draccus
from lerobot.configs import parser
from lerobot.configs.train import TrainPipelineConfig
arguments = sys.argv[1:]
if any(a.startswith("--policy.path") for a in arguments):  # whose settings lie on the hub
    arguments = parser.filter_path_args(["policy"], arguments)
    arguments = [a for a in arguments if not a.startswith("--policy.")]
else:
    import lerobot.policies.factory
config = draccus.parse(TrainPipelineConfig, args=arguments)
print(config.dataset.repo_id, config.steps, config.batch_size, config.rename_map)
"""


def test_the_recipe_s_commands_name_the_preset_s_data():
    lines = recipes.commands(PRESETS["smoke"], "diffusion-deterministic")
    assert all("--suite libero_object/0 --out" in typed[-1] for typed in list(lines.values())[1:])
    assert all("exports/diffusion-deterministic" in lines[model][0] for model in ("SmolVLA", "π0"))
    assert "runs/smoke/datasets/diffusion-deterministic/libero_object --to" in lines["export"][0]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_recipe_exports_the_tasks_that_our_own_model_learns_and_no_others(preset):
    exported = {
        argument.rpartition("/")[2]
        for argument in shlex.split(recipes.commands(preset, "x")["export"][0])
        if argument.startswith("runs/")
    }
    learned = {task for task in preset.tasks if task.split("/")[0] in exported}
    assert learned == set(preset.vla_tasks)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_recipe_plays_the_tasks_that_it_exports_and_no_others(preset):
    for typed in list(recipes.commands(preset, "x").values())[1:]:
        words = shlex.split(typed[-1])
        named = words[words.index("--suite") + 1 : words.index("--out")]
        assert set(tasks_of(named)) == set(preset.vla_tasks)
    if preset.name == "laptop":
        assert "libero_object" in named  # a suite that is whole goes by its name


@pytest.mark.skipif(
    "LEROBOT_PYTHON" not in os.environ, reason="LEROBOT_PYTHON names no environment with lerobot"
)
@pytest.mark.parametrize(("model", "size"), [("SmolVLA", "20000 64 {"), ("π0", "30000 32 {")])
def test_lerobot_s_own_parser_takes_the_recipe(model, size):
    command = shlex.split(recipes.commands(PRESETS["smoke"], "gaussian-stochastic")[model][0])
    run = [os.environ["LEROBOT_PYTHON"], "-c", PARSE, *command[1:]]
    result = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"diffrl/gaussian-stochastic {size}")
    assert command[0] == "lerobot-train"
    assert Path(run[0]).with_name(command[0]).exists()
