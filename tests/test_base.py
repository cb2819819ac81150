"""The ground's small parts: arms, checkpoints and signs of life."""

import json
import math
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from diffrl.base import checkpoint
from diffrl.base import heartbeat as beats
from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.base.heartbeat import heartbeat, read
from diffrl.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# ---- arms: one way to write where data come from, and to read what records say of it -------------


@pytest.mark.parametrize("separator", ["-", " ", "/"])
def test_an_arm_is_read_as_any_record_writes_it(separator):
    for arm in (Arm("diffusion", "deterministic"), Arm("human (mine)"), Arm("a+b:10", "x+y")):
        assert Arm.parse(arm.joined(separator)) == arm
    assert Arm.parse(str(Arm("gaussian", "stochastic"))) == ("gaussian", "stochastic")


@pytest.mark.parametrize("text", ["", "diffusion", "-recorded", "diffusion-", "a-b:10"])
def test_what_names_no_arm_is_refused(text):
    with pytest.raises(UserError, match="write <source>-<mode>"):
        Arm.parse(text)


def test_every_presets_training_data_are_arms():
    for preset in PRESETS.values():
        assert [str(Arm.parse(data)) for data in preset.vla.data] == list(preset.vla.data)


def test_arms_stand_in_the_series_order_and_strange_ones_behind():
    ordered = [Arm("operator"), Arm("gaussian", "stochastic"), Arm("diffusion", "deterministic")]
    ordered += [Arm("diffusion", "stochastic"), Arm("mine")]
    assert sorted(set(ordered), key=lambda arm: arm.order) == ordered != sorted(ordered)


def test_the_arms_of_the_laptops_records_are_read(laptop_run):
    for name, columns in (("evaluation_pairs", 14), ("quality_tests", 8)):
        table = pd.read_csv(laptop_run / f"{name}.csv")
        arms = {Arm.parse(text) for column in ("first", "second") for text in table[column]}
        assert 3 <= len(arms) <= columns
        assert arms <= {Arm.parse(data) for data in PRESETS["laptop"].vla.data}


# ---- checkpoints come back bit by bit, or are refused --------------------------------------------


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


def test_an_array_of_a_checkpoint_keeps_its_shape(tmp_path):
    for array in (np.array(3.0), np.zeros((0, 3)), np.ones((2, 3)).T):
        checkpoint.save(tmp_path / "c.safetensors", {"a": array}, "key")
        again = checkpoint.load(tmp_path / "c.safetensors", "key")["a"]
        assert (again.shape, again.dtype) == (array.shape, array.dtype)
        assert np.array_equal(again, array)


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


# ---- signs of life: what a run writes of itself, and what a reader makes of it -------------------


def test_a_run_says_where_it_is_and_leaves_nothing_at_its_end(tmp_path):
    with heartbeat(tmp_path, "expert") as sign:
        sign.tell(phase="RL", done=3, total=12, success=0.5, rate=600.0)
        sign.write()
        seen = read(tmp_path, "expert")
        assert (seen["state"], seen["host"], seen["pid"]) == (
            "running",
            socket.gethostname(),
            os.getpid(),
        )
        assert (seen["phase"], seen["done"], seen["total"], seen["success"]) == ("RL", 3, 12, 0.5)
    assert read(tmp_path, "expert") is None
    assert list(tmp_path.iterdir()) == []


def test_a_map_s_bar_gets_to_know_how_far_a_run_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(beats, "report", seen.append)
    with heartbeat(tmp_path, "expert") as sign:
        sign.tell(phase="clone", done=0, total=4000, span=(0.0, 0.2))
        sign.tell(phase="RL", done=3, total=12, span=(0.2, 0.9))
        sign.tell(done=12)
        sign.tell(phase="evaluating", done=None, total=None)
    assert seen == pytest.approx([0.0, 0.375, 0.9])


def test_a_run_is_alive_although_it_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(beats, "EVERY", 0.02)
    with heartbeat(tmp_path, "expert"):
        first = read(tmp_path, "expert")["updated"]
        deadline = time.monotonic() + 10
        while read(tmp_path, "expert")["updated"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_exception_leaves_its_message_until_the_next_attempt(tmp_path):
    with pytest.raises(ValueError, match="no loss"), heartbeat(tmp_path, "vla"):
        raise ValueError("no loss")
    seen = read(tmp_path, "vla")
    assert (seen["state"], seen["error"], seen["message"]) == ("failed", "ValueError", "no loss")
    with heartbeat(tmp_path, "vla"):
        assert read(tmp_path, "vla")["state"] == "running"
    assert read(tmp_path, "vla") is None


def test_an_interruption_by_the_user_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), heartbeat(tmp_path, "vla"):
        raise KeyboardInterrupt
    assert read(tmp_path, "vla") is None


def test_a_killed_run_is_lost(tmp_path):
    code = "import os,sys,signal\nfrom diffrl.base.heartbeat import heartbeat\n"
    code += "with heartbeat(sys.argv[1], 'expert'): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert read(tmp_path, "expert")["state"] == "lost"


def test_a_run_with_a_number_that_no_process_can_have_is_lost(tmp_path):
    sign = {"host": socket.gethostname(), "pid": 10**20}
    (tmp_path / "expert.running.json").write_text(json.dumps(sign))
    assert read(tmp_path, "expert")["state"] == "lost"


def test_a_silent_run_of_another_host_is_lost_and_a_fast_clock_is_not(tmp_path):
    path = tmp_path / "expert.running.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    now = time.time()
    for age, state in ((0, "running"), (-86400, "running"), (beats.SILENT + 60, "lost")):
        os.utime(path, (now - age, now - age))
        assert read(tmp_path, "expert")["state"] == state


def test_a_folder_that_cannot_be_written_or_vanishes_breaks_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    with heartbeat(tmp_path / "file" / "folder", "expert") as sign:
        sign.write()
    with heartbeat(tmp_path / "gone", "expert") as sign:
        sign.running.unlink()
        sign.running.parent.rmdir()
        sign.write()
    assert not (tmp_path / "gone").exists()


def test_a_sign_that_is_no_json_is_none(tmp_path):
    (tmp_path / "expert.running.json").write_text("{")
    assert read(tmp_path, "expert") is None
