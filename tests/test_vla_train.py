"""Training a VLA: what it learns, and that a resume is exact."""

import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from vla_samples import LEFT, RIGHT, TINY, make_model, toy_frames

from diffrl.base.errors import UserError
from diffrl.vla import model as vla
from diffrl.vla.frames import chunks
from diffrl.vla.train import data_hash, draw, has_bfloat16, loss_on, train


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


def test_both_curves_are_of_the_averaged_weights_and_looking_changes_none(tmp_path, monkeypatch):
    frames, held_out, cpu = toy_frames(), toy_frames(seed=1), torch.device("cpu")
    losses, _ = train(frames, held_out, TINY, 0, tmp_path / "looked")
    kept = vla.load(tmp_path / "looked")
    expected = [loss_on(kept, part, cpu) for part in (frames, held_out)]
    np.testing.assert_allclose(losses[["train", "held_out"]].iloc[-1], expected, rtol=1e-6)
    assert losses["train"].iloc[-1] != losses["loss"].iloc[-1]
    monkeypatch.setattr("diffrl.vla.train.loss_on", lambda *_: 0.0)
    train(frames, held_out, TINY, 0, tmp_path / "blind")
    weights = [tmp_path / name / "model.safetensors" for name in ("looked", "blind")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


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


def test_a_checkpoint_of_other_words_or_other_steps_that_count_is_not_continued(tmp_path):
    """All that a set of frames holds decides what is learned from it."""
    told = toy_frames()
    swapped = np.where(told.instructions == LEFT, RIGHT, LEFT)
    shorter = told.real & (np.arange(TINY.horizon) < 2)
    others = {"words": {"instructions": swapped}, "steps": {"real": shorter}}
    for name, change in others.items():
        other = dataclasses.replace(told, **change)
        with interrupted(after=30):
            train(told, told, TINY, 0, tmp_path / name)
        train(other, other, TINY, 0, tmp_path / name)
        train(other, other, TINY, 0, tmp_path / f"{name}, anew")
        files = [tmp_path / n / "model.safetensors" for n in (name, f"{name}, anew")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    for field in dataclasses.fields(told):
        changed = getattr(told, field.name).copy()
        changed[0] = changed[0] == 0 if changed.dtype == bool else changed[1]
        other = dataclasses.replace(told, **{field.name: changed})
        same = np.array_equal(changed, getattr(told, field.name))
        assert (data_hash(other) == data_hash(told)) == same, field.name


def test_a_finished_training_removes_its_own_checkpoints_and_no_other_file(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    own = ["0123456789ab.safetensors", ".0123456789ab-x_1.tmp.safetensors", ".tmpAbCdEf"]
    foreign = ["pi0.safetensors", "notes.txt", ".keep", "0123456789ab.json"]
    for name in own + foreign:
        (folder / name).touch()
    train(toy_frames(), toy_frames(), dataclasses.replace(TINY, steps=2), 0, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(foreign)


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
from vla_samples import TINY, toy_frames
from diffrl.vla.train import train
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
    (broken / "checkpoint/.tmpAbCdEf").touch()  # safetensors' own, had the kill come in a write
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
