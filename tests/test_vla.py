"""The compact VLA: what it learns, what it sees, and that its files and resumes are exact."""

import dataclasses
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from diffrl.data.attributes import libero_attributes
from diffrl.data.episode import Episode
from diffrl.data.generate import dataset_path, sources_of
from diffrl.data.hdf5 import write_episodes
from diffrl.errors import UserError
from diffrl.presets import PRESETS, VLAConfig
from diffrl.sim.tasks import get_task
from diffrl.vla import fit, recipes
from diffrl.vla import model as vla
from diffrl.vla.frames import Frames, chunks, make_frames
from diffrl.vla.layers import attend
from diffrl.vla.train import draw, has_bfloat16, split, train
from diffrl.vla.vision import FrozenEfficientNet, encode

TINY = VLAConfig(
    image_size=64,
    width=32, heads=2, queries=2, encoder_layers=1, decoder_layers=1, horizon=4, chunk=4,
    steps=40, batch=16, warmup=5, learning_rate=3e-3,
)  # fmt: skip
LEFT, RIGHT = "push the plate left", "push the plate right"


def toy_frames(n=64, seed=0, config=TINY) -> Frames:
    """Frames whose action is decided by the words (sign) and by the proprioception (size)."""
    rng = np.random.default_rng(seed)
    cells = (config.image_size // 16) ** 2
    vision = rng.standard_normal((n, 2, cells, 272)).astype(np.float16)
    proprio = rng.uniform(0, 1, (n, 8)).astype(np.float32)
    left = rng.random(n) < 0.5
    size = np.where(left, -1, 1) * (0.2 + 0.8 * proprio[:, 0])
    actions = np.repeat(size[:, None, None], config.horizon, 1).repeat(7, 2).astype(np.float32)
    real = np.ones((n, config.horizon), bool)
    return Frames(vision, proprio, np.where(left, LEFT, RIGHT), actions, real, np.full(n, 1 / n))


def make_model(config=TINY, frames=None) -> vla.VLA:
    frames = frames or toy_frames(config=config)
    statistics = vla.Statistics.of(frames.proprio, frames.actions[frames.real])
    torch.manual_seed(0)
    return vla.VLA(config, *vla.read_words([LEFT, RIGHT]), statistics)


def test_a_trained_model_follows_the_instruction_and_the_proprioception(tmp_path):
    config = dataclasses.replace(TINY, steps=250, flow_steps=5)
    losses, _ = train(toy_frames(256), toy_frames(64, seed=1), config, 0, tmp_path)
    test = toy_frames(64, seed=2)
    model = vla.load(tmp_path)
    inputs, actions, _ = test.batch(np.arange(len(test)), model)
    noise, _ = draw((len(test),), 4, 7, torch.Generator().manual_seed(1))
    found = model.sample(inputs, noise)
    assert losses["held_out"].iloc[-1] < 0.5 * losses["held_out"].iloc[0]
    assert float((found.sign() == actions.sign()).float().mean()) > 0.95
    assert float((found - actions).abs().mean()) < 0.2


def test_every_preset_s_model_stays_below_twenty_million_parameters():
    for preset in PRESETS.values():
        statistics = vla.Statistics((0.0,) * 8, (1.0,) * 8, (-1.0,) * 7, (1.0,) * 7)
        model = vla.VLA(preset.vla, ("a",) * 200, 20, statistics)
        assert model.parameter_count() < 20e6, preset.name


def test_a_saved_model_gives_the_same_actions_after_loading(tmp_path):
    model = make_model().eval()
    vla.save(model, tmp_path, {"source": "test"})
    frames = toy_frames()
    inputs, _, _ = frames.batch(np.arange(5), model)
    noise, _ = draw((5,), 4, 7, torch.Generator().manual_seed(0))
    again = vla.load(tmp_path)
    assert torch.equal(model.sample(inputs, noise), again.sample(inputs, noise))
    assert again.vocabulary == model.vocabulary


def test_the_frozen_encoder_sees_an_image_alone_the_same_as_in_company():
    images = np.random.default_rng(0).integers(0, 255, (3, 2, 128, 128, 3), dtype=np.uint8)
    encoder = FrozenEfficientNet()
    together = encode(encoder, images)
    alone = np.concatenate([encode(encoder, images[i : i + 1]) for i in (2, 0, 1)])
    assert together.shape == (3, 2, 64, 272)
    assert np.array_equal(together[[2, 0, 1]], alone)


def test_both_encoders_turn_images_into_actions_that_the_simulator_accepts():
    images = np.random.default_rng(0).integers(0, 255, (2, 2, 64, 64, 3), dtype=np.uint8)
    for vision in ("efficientnet", "conv"):
        model = make_model(dataclasses.replace(TINY, vision=vision)).eval()
        words = torch.from_numpy(np.stack([model.read(LEFT)] * 2))
        inputs = vla.Inputs(model.look(images), torch.zeros(2, 8), words)
        actions = model.sample(inputs, torch.randn(2, 4, 7))
        assert actions.shape == (2, 4, 7)
        assert float(actions.abs().max()) <= 1.0


def test_a_word_that_training_never_met_says_nothing():
    model = make_model()
    train_words, strange = LEFT.split(), "grab"
    assert strange not in model.vocabulary
    known = model.words(torch.from_numpy(model.read(train_words[0])))[0]
    unknown = model.words(torch.from_numpy(model.read(strange)))[0]
    assert known.abs().sum() > 0
    assert unknown.abs().sum() == 0


def test_the_vlas_of_one_seed_are_trained_before_those_of_the_next():
    laptop = PRESETS["laptop"]
    arms = fit.arms_of(laptop)
    assert [seed for _, seed in arms] == [0] * 5 + [1] * 5
    assert tuple(data for data, _ in arms[:5]) == laptop.vla.data


def test_a_decision_ignores_the_padding_of_a_short_instruction():
    model = make_model().eval()
    model.words.weight.data[0] = 5.0  # what padding would say if it were heard
    frames = toy_frames()
    inputs, _, _ = frames.batch(np.arange(4), model)
    short = inputs.words.clone()
    short[:, 2:] = 0
    noise, _ = draw((4,), 4, 7, torch.Generator().manual_seed(0))
    heard = model.sample(inputs._replace(words=short), noise)
    model.words.weight.data[0] = -5.0
    assert torch.equal(heard, model.sample(inputs._replace(words=short), noise))


def test_steps_past_the_end_of_an_episode_do_not_count():
    actions, real = chunks(np.arange(14.0).reshape(2, 7), np.array([0, 1]), 3)
    assert real.tolist() == [[True, True, False], [True, False, False]]
    assert np.array_equal(actions[1, 2], np.arange(7.0) + 7)
    model = make_model()
    inputs, actions, real = toy_frames().batch(np.arange(4), model)
    real[:, 2:] = False
    noise, flow_time = draw((4, 2), 4, 7, torch.Generator().manual_seed(0))
    target, t = model.normalize(actions)[:, None], flow_time[..., None, None]
    noisy = (1 - t) * noise + t * target
    found = model.velocity(noisy, flow_time, model.context(inputs))
    expected = (found - target + noise)[:, :, :2].square().mean()
    assert torch.allclose(model(inputs, actions, real, noise, flow_time), expected)


def test_flow_times_lean_towards_the_noise():
    _, flow_time = draw((20_000,), 1, 1, torch.Generator().manual_seed(0))
    assert abs(float(flow_time.mean()) - 0.4) < 0.01  # mean of 1 − Beta(1.5, 1)
    assert float(flow_time.min()) >= 0.0
    assert float(flow_time.max()) < 1.0


def test_rotation_vectors_stay_continuous_where_the_gripper_points_down():
    angle = np.linspace(np.pi - 0.1, np.pi + 0.1, 21)
    quaternion = np.stack([np.sin(angle / 2), 0 * angle, 0 * angle, np.cos(angle / 2)], -1)
    quaternion[::2] *= -1  # the same rotations, written the other way round
    assert np.allclose(vla.axis_angle(quaternion)[:, 0], angle)


def test_normalising_actions_is_undone_and_still_dimensions_keep_their_scale():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.3, 0.7, (1000, 7))
    actions[:, 4] = 0.001
    statistics = vla.Statistics.of(rng.random((10, 8)), actions)
    assert (statistics.action_low[4], statistics.action_high[4]) == (-1.0, 1.0)
    model = vla.VLA(TINY, ("a",), 1, statistics)
    inside = torch.from_numpy(np.clip(actions, -0.2, 0.6)).float()
    assert torch.allclose(model.denormalize(model.normalize(inside)), inside, atol=1e-6)


def test_a_mixture_draws_each_data_set_by_its_weight():
    parts = [toy_frames(10), toy_frames(30, seed=1)]
    mixed = Frames.concatenate(parts, (3.0, 1.0))
    assert np.isclose(mixed.weights[:10].sum(), 0.75)
    assert np.isclose(mixed.weights.sum(), 1.0)
    with pytest.raises(UserError, match="one positive weight"):
        Frames.concatenate(parts, (1.0,))


def test_broken_model_files_are_refused_with_their_names(tmp_path):
    vla.save(make_model(), tmp_path, {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        vla.load(tmp_path)
    (tmp_path / "model.json").write_text('{"config": {}}')
    with pytest.raises(UserError, match=r"model\.json"):
        vla.load(tmp_path)
    with pytest.raises(UserError, match="missing"):
        vla.load(tmp_path / "nowhere")


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    frames = toy_frames()
    with interrupted(after=20):
        train(frames, frames, TINY, 0, tmp_path / "both")
    assert len(list((tmp_path / "both").glob("checkpoint/*"))) == 1
    train(frames, frames, TINY, 1, tmp_path / "both")
    train(frames, frames, TINY, 1, tmp_path / "alone")
    names = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert names == ["losses.csv", "model.json", "model.safetensors"]
    for name in names:
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_broken_checkpoint_is_refused_with_its_name(tmp_path):
    frames = toy_frames()
    with interrupted(after=20):
        train(frames, frames, TINY, 0, tmp_path)
    [checkpoint] = tmp_path.glob("checkpoint/*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=checkpoint.name):
        train(frames, frames, TINY, 0, tmp_path)


class interrupted:
    """Let training be interrupted at its n-th optimiser step, as Ctrl-C would."""

    def __init__(self, after: int):
        self.left = after

    def __enter__(self):
        self.step = torch.optim.AdamW.step

        def step(optimizer, *arguments, **keywords):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return self.step(optimizer, *arguments, **keywords)

        torch.optim.AdamW.step = step

    def __exit__(self, kind, *_):
        torch.optim.AdamW.step = self.step
        return kind is KeyboardInterrupt


TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from test_vla import TINY, toy_frames, train
import dataclasses
config = dataclasses.replace(TINY, steps=int(sys.argv[3]))
train(toy_frames(), toy_frames(seed=1), config, 0, sys.argv[2])
from accelerate import PartialState
sys.stdout.write(f"one of {PartialState().num_processes};")
"""


def test_training_killed_at_any_moment_ends_with_the_bytes_of_an_unbroken_run(tmp_path):
    config = dataclasses.replace(TINY, steps=200)
    train(toy_frames(), toy_frames(seed=1), config, 0, tmp_path / "whole")
    broken = tmp_path / "broken"
    command = [sys.executable, "-c", TRAIN, str(Path(__file__).parent), str(broken), "200"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(broken.glob("checkpoint/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert list(broken.glob("checkpoint/*.safetensors"))
    assert not (broken / "model.safetensors").exists()
    train(toy_frames(), toy_frames(seed=1), config, 0, broken)
    for name in ("model.safetensors", "model.json", "losses.csv"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list(broken.glob("checkpoint/*"))


def test_the_minutes_of_a_killed_training_are_those_of_all_its_parts(tmp_path, monkeypatch):
    clock = itertools.count(step=60.0)  # a minute passes between any two looks at it
    monkeypatch.setattr("diffrl.vla.train.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    _, unbroken = train(toy_frames(), toy_frames(seed=1), TINY, 0, tmp_path / "whole")
    with interrupted(after=20):
        train(toy_frames(), toy_frames(seed=1), TINY, 0, tmp_path / "broken")
    _, minutes = train(toy_frames(), toy_frames(seed=1), TINY, 0, tmp_path / "broken")
    assert minutes == unbroken > 1


def test_attention_written_out_is_torchs():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(5, 2, n, 8, generator=generator) for n in (3, 7, 7))
    mask = torch.rand(5, 1, 1, 7, generator=generator) < 0.7
    mask[..., 0] = True
    for chosen in (None, mask):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=chosen)
        torch.testing.assert_close(attend(query, key, value, chosen), expected)


def test_training_in_bfloat16_learns_what_it_learns_in_float32(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, steps=60)
    curves = {}
    for able in (False, True):
        monkeypatch.setattr("diffrl.vla.train.has_bfloat16", lambda device, able=able: able)
        curve, _ = train(toy_frames(), toy_frames(seed=1), config, 0, tmp_path / str(able))
        curves[able] = curve[["loss", "held_out"]].to_numpy()
        precision = json.loads((tmp_path / str(able) / "model.json").read_text())["about"]
        assert precision["precision"] == ("bfloat16" if able else "float32")
    assert not np.array_equal(curves[False], curves[True])
    np.testing.assert_allclose(curves[True], curves[False], rtol=0.02)
    assert curves[True][-1, 0] < 0.5 * curves[True][0, 0]


def test_two_processes_that_share_each_batch_learn_what_one_learns(tmp_path):
    config = dataclasses.replace(TINY, steps=20)  # so that every step is a point of the curve
    train(toy_frames(), toy_frames(seed=1), config, 0, tmp_path / "one")
    script = tmp_path / "script.py"
    script.write_text(TRAIN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = [sys.executable, *launch, str(script)]  # `accelerate launch` needs MPI on CPUs
    done = subprocess.run(
        [*command, str(Path(__file__).parent), str(tmp_path / "two"), "20"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one of 2;") == 2
    curves = [pd.read_csv(tmp_path / name / "losses.csv") for name in ("one", "two")]
    rounding = 2e-3 if has_bfloat16(torch.device("cpu")) else 1e-4  # of bfloat16's eight bits
    pd.testing.assert_frame_equal(*curves, rtol=rounding)


def test_a_loss_that_is_not_a_number_stops_training_with_advice(tmp_path):
    frames = toy_frames()
    frames.proprio[:] = np.nan
    with pytest.raises(UserError, match="learning_rate"):
        train(frames, frames, TINY, 0, tmp_path)


# ---- data sets -------------------------------------------------------------------------------


def standing_episode(steps=9, actions=7, state_size=110, task="libero_object/0") -> Episode:
    """An episode in which nothing happens."""
    states = np.zeros((steps + 1, state_size))
    states[:, 0] = np.arange(steps + 1) / 20
    rewards = np.zeros(steps)
    rewards[-1] = 1
    return Episode(
        task=task,
        instruction="stand still",
        start_state="fresh/0/0",
        seed=0,
        source="operator",
        mode="recorded",
        success=True,
        states=states,
        actions=np.zeros((steps, actions)),
        rewards=rewards,
        fixtures=np.zeros((0, 7)),
        observations={
            "object_pos": np.zeros((steps + 1, 1, 3)),
            "object_quat": np.tile([0.0, 0.0, 0.0, 1.0], (steps + 1, 1, 1)),
        },
    )


def data_file(path: Path, episodes: int, rate: int = 20) -> Path:
    attrs = libero_attributes(get_task("libero_object/0"))
    env_args = json.loads(attrs["env_args"])
    env_args["env_kwargs"]["control_freq"] = rate
    episodes = [standing_episode()] * episodes
    write_episodes(path, episodes, attrs | {"env_args": json.dumps(env_args)})
    return path


def test_data_sets_that_cannot_teach_are_refused_with_their_names(tmp_path):
    with pytest.raises(UserError, match=r"one_demo\.hdf5 holds 1 episodes"):
        fit.load([data_file(tmp_path / "one_demo.hdf5", 1)], 10)
    with pytest.raises(UserError, match=r"slow_demo\.hdf5 was recorded at 10 Hz"):
        fit.load([data_file(tmp_path / "slow_demo.hdf5", 3, rate=10)], 10)
    files = [data_file(tmp_path / "a_demo.hdf5", 3), tmp_path / "slow_demo.hdf5"]
    with pytest.raises(UserError, match=r"slow_demo\.hdf5 was recorded at 10 Hz"):
        fit.main("smoke", data=tuple(files), out=tmp_path / "model")  # rates cannot be mixed
    with h5py.File(tmp_path / "none_demo.hdf5", "w"):
        pass
    with pytest.raises(UserError, match=r"none_demo\.hdf5"):
        fit.load([tmp_path / "none_demo.hdf5"], 10)
    with pytest.raises(UserError, match="no episodes"):
        make_frames([], TINY)
    with pytest.raises(UserError, match=r"actions of shape \(9, 6\)"):
        make_frames([standing_episode(actions=6)], TINY)


def test_training_data_are_named_by_source_mode_count_and_mixture():
    assert fit.parts_of("diffusion-deterministic") == [("diffusion", "deterministic", None)]
    mixed = "operator-recorded+diffusion-deterministic:10"
    assert fit.parts_of(mixed)[1] == ("diffusion", "deterministic", 10)
    assert fit.arm_of(mixed) == ("operator+diffusion:10", "recorded+deterministic")
    assert fit.arm_of("gaussian-stochastic") == ("gaussian", "stochastic")
    for wrong in ("diffusion", "diffusion-deterministic:0", "a-b+", ""):
        with pytest.raises(UserError, match="names no training data"):
            fit.parts_of(wrong)


def test_a_part_of_a_data_set_is_learned_from_whole(tmp_path, monkeypatch):
    file = data_file(tmp_path / "some_demo.hdf5", 6)
    smoke = PRESETS["smoke"]
    preset = dataclasses.replace(
        smoke, vla=dataclasses.replace(smoke.vla, demonstrations=6, held_out=2)
    )
    asked = []
    monkeypatch.setattr(fit, "_files", lambda part, preset: [file])
    monkeypatch.setattr(fit, "make_frames", lambda e, *_: asked.append(len(e)) or toy_frames())
    for data in ("operator-recorded:3", "operator-recorded"):
        fit.mix(data, preset)
    assert asked == [3, 2, 4, 2]  # episodes to learn from and held-out ones, each time
    with pytest.raises(UserError, match="ask for 4 at most"):
        fit.mix("operator-recorded:5", preset)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_s_further_data_fit_its_demonstrations(preset):
    counts = [part.count for data in preset.vla.further for part in fit.parts_of(data)]
    most = preset.vla.demonstrations - preset.vla.held_out
    assert all(count is None or count <= most for count in counts)


def test_a_source_that_never_succeeded_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    path = dataset_path("libero_object/0", "gaussian", "stochastic", "smoke")
    with pytest.raises(UserError, match="run notebook 02"):
        fit.files_of("gaussian-stochastic", PRESETS["smoke"])
    path.parent.mkdir(parents=True)
    path.with_suffix(".attempts.csv").write_text("outcome\nfailure\n")
    with pytest.raises(UserError, match="no attempt succeeded"):
        fit.files_of("gaussian-stochastic", PRESETS["smoke"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": Path("model")}, "give --data and --out together"),
        ({"data": (Path("a.hdf5"),)}, "give --data and --out together"),
        ({"data": (Path("a"),), "out": Path("m"), "weights": (1.0, 2.0)}, "2 --weights"),
        ({"steps": 3}, "--steps would overwrite"),
    ],
)
def test_options_that_do_not_belong_together_are_told_before_any_work(options, message):
    with pytest.raises(UserError, match=message):
        fit.main("smoke", **options)


def test_the_first_episodes_teach_and_the_last_validate(tmp_path):
    file = data_file(tmp_path / "some_demo.hdf5", 5)
    assert len(fit.load([file], 3)) == 3
    episodes = list("abcde")
    assert split(episodes, 2) == (["a", "b", "c"], ["d", "e"])
    assert split(episodes[:2], 4) == (["a"], ["b"])


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
    assert all("--suite libero_object" in typed[-1] for typed in list(lines.values())[1:])
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
def test_every_preset_makes_the_data_that_its_vlas_learn_from(preset):
    made = {f"{source}-{mode}" for source, mode in sources_of(preset)}
    named = {
        f"{part.source}-{part.mode}"
        for data in (*preset.vla.data, *preset.vla.further)
        for part in fit.parts_of(data)
    }
    assert named <= made


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


@pytest.mark.sim
def test_a_frame_holds_the_picture_and_the_proprioception_of_its_state(tmp_path, monkeypatch):
    from diffrl.sim.camera import Renderer
    from diffrl.sim.observation import observe
    from diffrl.sim.scene import load_scene
    from diffrl.sim.starts import fresh_start_states

    monkeypatch.setattr("diffrl.vla.frames.cache_dir", lambda: tmp_path)
    scene = load_scene("libero_object/0")
    starts = fresh_start_states(scene, 4, 7)
    episode = standing_episode(steps=3, state_size=scene.state_size)
    episode.states[:, 1:] = starts.states[:, 1:]
    episode.fixtures = starts.fixtures[0]
    config = dataclasses.replace(TINY, frame_stride=2)
    frames = make_frames([episode], config, workers=1)
    assert len(frames) == 2  # states 0 and 2
    with Renderer(scene, size=config.image_size, detail=config.detail) as renderer:
        images = [
            [renderer.render(episode.states[t], episode.fixtures, camera=c) for c in vla.CAMERAS]
            for t in (0, 2)
        ]
    model = make_model(config)
    inputs, _, _ = frames.batch(np.arange(2), model)
    assert torch.equal(inputs.vision, model.look(np.array(images)))
    felt = observe(scene, episode.states[[0, 2]], episode.fixtures)
    expected = vla.proprioception(felt.eef_pos, felt.eef_quat, felt.gripper_qpos)
    assert np.array_equal(frames.proprio, expected)
    for cached in (tmp_path / "frames").iterdir():  # a second look renders nothing
        before = cached.stat().st_mtime_ns
        make_frames([episode], config, workers=1)
        assert cached.stat().st_mtime_ns == before
        cached.write_bytes(b"broken")
    with pytest.raises(UserError, match=str(tmp_path)):
        make_frames([episode], config, workers=1)
