"""The live table: what it says of each unit of work, from files alone."""

import os
import time

import pytest

from diffrl.base.artifacts import Stage
from diffrl.base.heartbeat import heartbeat
from diffrl.presets import get_preset
from diffrl.rl.records import config_of, expert_folder
from diffrl.status import status, text

TASK = "libero_object/0"
NAMES = (TASK, "diffusion", "smoke", 0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    return tmp_path


def row_of(preset, stage="expert diffusion"):
    table = status(preset)
    return table[table["stage"] == stage].iloc[0]


def test_nothing_begun_is_waiting_and_no_folder_is_made(home):
    table = status(get_preset("smoke"))
    assert set(table["state"]) == {"waiting"}
    assert len(table) == 2 + 5 + 3  # experts, data sets, VLAs
    assert list(home.iterdir()) == []


def test_a_running_expert_shows_where_and_how_far_it_is(home):
    with heartbeat(expert_folder(*NAMES), "expert") as sign:
        sign.tell(phase="RL", done=0, total=12)
        sign.tell(phase_began=time.time() - 60, done=3, success=0.25, rate=500.0)
        sign.write()
        row = row_of(get_preset("smoke"))
        assert (row["state"], row["phase"], row["done"], row["total"]) == ("running", "RL", 3, 12)
        assert (row["success"], row["rate"]) == (0.25, 500.0)
        assert row["minutes_left"] == pytest.approx(3.0, rel=0.05)
        assert f":{os.getpid()}" in text(status(get_preset("smoke")))


def test_finished_work_of_other_settings_is_stale(home):
    smoke = get_preset("smoke")
    config = config_of(TASK, "diffusion", smoke, 0)
    Stage(expert_folder(*NAMES), "expert", config).finish({"rows": []})
    assert row_of(smoke)["state"] == "done"
    assert row_of(smoke.with_settings({"rl.iterations": 13}))["state"] == "stale"


def test_a_data_set_older_than_its_expert_is_stale(home):
    folder = home / "runs/smoke/datasets/diffusion-deterministic/libero_object"
    name = "pick_up_the_alphabet_soup_and_place_it_in_the_basket_demo"
    Stage(folder, name, {}).finish()
    assert row_of(get_preset("smoke"), "data diffusion-deterministic")["state"] == "done"
    Stage(expert_folder(*NAMES), "expert", {}).finish({"rows": []})
    os.utime(folder / f"{name}.done.json", (1, 1))
    assert row_of(get_preset("smoke"), "data diffusion-deterministic")["state"] == "stale"


def test_a_failed_expert_shows_its_message(home):
    with pytest.raises(ValueError, match="loss"), heartbeat(expert_folder(*NAMES), "expert"):
        raise ValueError("the loss is not finite")
    assert row_of(get_preset("smoke"))["state"] == "failed"
    assert "the loss is not finite" in text(status(get_preset("smoke")))


def test_the_papers_tasks_are_read_in_two_seconds(home):
    status(get_preset("smoke"))  # what is imported and cached counts once
    began = time.process_time()
    table = status(get_preset("paper"))
    assert time.process_time() - began < 2.0
    assert len(table) > 130 * (2 * 3 + 5)
