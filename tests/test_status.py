"""The live table: what it says of each unit of work, from files alone."""

import json
import os
import time

import pandas as pd
import pytest

from diffrl import figures
from diffrl import status as module
from diffrl.__main__ import main
from diffrl.base.arm import Arm
from diffrl.base.artifacts import UNPACKED, Stage, write_csv, write_json
from diffrl.base.heartbeat import heartbeat
from diffrl.evaluation.stage import plan_of
from diffrl.generation import stage as generation
from diffrl.presets import get_preset
from diffrl.rl.records import FORMAT, config_of, expert_folder
from diffrl.status import status, text
from diffrl.vla.stage import model_folder, settings_of

TASK = "libero_object/0"
DATA = "diffusion-deterministic"
SMOKE = get_preset("smoke")
NAMES = (SMOKE, TASK, "diffusion", 0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    return tmp_path


def row_of(stage="expert", what="diffusion", preset=SMOKE):
    table = status(preset)
    return table[(table["stage"] == stage) & (table["what"] == what)].iloc[0]


def finish_data_set(preset=SMOKE):
    path = generation.dataset_path(preset, TASK, Arm.parse(DATA))
    stage = Stage(path.parent, path.stem, generation.config_of(preset, TASK, Arm.parse(DATA)))
    stage.finish()
    return stage.marker


def finish_vla():
    stage = Stage(model_folder(SMOKE, DATA, 0), "vla", settings_of(DATA, 0, SMOKE))
    stage.finish()
    return stage.marker


def restored(marker):
    write_json(marker, json.loads(marker.read_text()) | {UNPACKED: True})


def test_nothing_begun_is_waiting_and_no_folder_is_made(home):
    table = status(SMOKE)
    assert set(table["state"]) == {"waiting"}
    assert table["stage"].value_counts().to_dict() == {
        **{"expert": 2, "data": 3},
        **{"VLA": 3, "evaluation": 3},
    }
    assert list(home.iterdir()) == []


def test_a_running_expert_shows_where_and_how_far_it_is():
    with heartbeat(expert_folder(*NAMES), "expert") as sign:
        sign.tell(phase="RL", done=0, total=12)
        sign.tell(phase_began=time.time() - 60, done=3, success=0.25, rate=500.0)
        sign.write()
        row = row_of()
        assert (row["state"], row["phase"], row["done"], row["total"]) == ("running", "RL", 3, 12)
        assert (row["success"], row["rate"]) == (0.25, 500.0)
        assert row["minutes_left"] == pytest.approx(3.0, rel=0.05)
        assert f":{os.getpid()}" in text(status(SMOKE))


def test_finished_work_of_other_settings_is_stale():
    config = config_of(SMOKE, TASK, "diffusion", 0)
    Stage(expert_folder(*NAMES), "expert", config, format=FORMAT).finish({"rows": []})
    finish_data_set()
    finish_vla()
    for unit in (("expert", "diffusion"), ("data", DATA), ("VLA", DATA)):
        assert row_of(*unit)["state"] == "done"
    changed = {"rl.iterations": 13, "generation.episodes": 21, "vla.steps": 451}
    other = SMOKE.with_settings(changed)
    for unit in (("expert", "diffusion"), ("data", DATA), ("VLA", DATA)):
        assert row_of(*unit, preset=other)["state"] == "stale"


def test_finished_work_of_another_format_is_stale():
    config = config_of(SMOKE, TASK, "diffusion", 0)
    Stage(expert_folder(*NAMES), "expert", config, format=FORMAT - 1).finish({"rows": []})
    assert row_of("expert", "diffusion")["state"] == "stale"


def test_a_data_set_older_than_its_expert_is_stale_unless_it_came_from_evidence():
    marker = finish_data_set()
    Stage(expert_folder(*NAMES), "expert", {}).finish({"rows": []})
    os.utime(marker, (1, 1))
    assert row_of("data", DATA)["state"] == "stale"
    restored(marker)
    os.utime(marker, (1, 1))
    assert row_of("data", DATA)["state"] == "done"


def test_a_vla_older_than_its_data_is_stale():
    marker = finish_vla()
    finish_data_set()
    os.utime(marker, (1, 1))
    assert row_of("VLA", DATA)["state"] == "stale"
    assert row_of("VLA", "operator-recorded")["state"] == "waiting"


def test_a_vla_shows_its_optimiser_steps_a_second():
    with heartbeat(model_folder(SMOKE, DATA, 0), "vla") as sign:
        sign.tell(phase="VLA", done=100, total=450)
        sign.tell(phase_began=time.time() - 10, done=150)
        sign.write()
        assert row_of("VLA", DATA)["rate"] == pytest.approx(5.0, rel=0.05)


def test_an_evaluation_under_way_adds_up_its_parts_and_is_done_when_every_trial_is_recorded(home):
    finish_vla()
    planned, folder = plan_of(SMOKE), model_folder(SMOKE, DATA, 0) / "evaluation"
    outcomes = ["success", "failure", "error", "success"]
    for part in (0, 1):
        lines = [[*planned[k], outcomes[k], 60, 1.0, ""] for k in (2 * part, 2 * part + 1)]
        write_json(folder / "checkpoint" / "key" / f"{part}.json", lines)
    with heartbeat(folder, "trials-a") as first, heartbeat(folder, "trials-b") as second:
        for sign, rate in ((first, 30.0), (second, 12.0)):
            sign.tell(rate=rate)
            sign.write()
        row = row_of("evaluation", DATA)
        assert (row["state"], row["done"], row["total"]) == ("running", 4, len(planned))
        assert (row["success"], row["rate"]) == (pytest.approx(2 / 3), 42.0)
    assert row_of("evaluation", DATA)["state"] == "waiting"
    play(home, planned)
    assert row_of("evaluation", DATA)["state"] == "done"
    assert row_of("evaluation", "gaussian-deterministic")["state"] == "waiting"
    play(home, planned[:1])
    assert row_of("evaluation", DATA)["state"] == "stale"


def play(home, trials):
    who = {"source": "diffusion", "mode": "deterministic", "training_seed": 0}
    rows = [who | dict(zip(("task", "start_state", "trial_seed"), trial)) for trial in trials]
    write_csv(home / "runs/smoke/vla_trials.csv", pd.DataFrame(rows))


def test_an_evaluation_of_a_stale_vla_or_of_other_trials_than_the_planned_ones_is_stale(home):
    marker = finish_vla()
    play(home, plan_of(SMOKE))
    assert row_of("evaluation", DATA)["state"] == "done"
    for other in ({"vla.steps": 451}, {"evaluation.seed": 1}):
        assert row_of("evaluation", DATA, SMOKE.with_settings(other))["state"] == "stale"
    finish_data_set()
    os.utime(marker, (1, 1))  # the VLA learned before its data were made anew
    assert row_of("evaluation", DATA)["state"] == "stale"


def test_an_arm_that_plays_fewer_trials_is_done_with_those(home):
    table = status(get_preset("libero"))
    played = table[table["stage"] == "evaluation"].groupby("what")["total"].unique()
    assert played["diffusion-deterministic"].tolist() == [40 * 25]
    assert played["steady-recorded"].tolist() == [40 * 10]


def test_a_failed_expert_shows_its_message():
    with pytest.raises(ValueError, match="loss"), heartbeat(expert_folder(*NAMES), "expert"):
        raise ValueError("the loss is not finite")
    assert row_of()["state"] == "failed"
    assert "the loss is not finite" in text(status(SMOKE))


def test_a_broken_marker_is_stale_and_does_not_stop_the_table():
    marker = finish_data_set()
    marker.write_text("{")
    assert row_of("data", DATA)["state"] == "stale"


def test_the_papers_table_has_every_task_once_for_each_stage():
    paper = get_preset("paper")
    table = status(paper)
    tasks = table[table["task"] != "all"].groupby(["stage", "what", "seed"])["task"]
    assert set(tasks.nunique()) == set(tasks.count()) == {130}
    units = {stage: len(part) for stage, part in table.groupby("stage")}
    assert units == {"expert": 130 * 2 * 3, "data": 130 * 5, "VLA": 15, "evaluation": 15}


def test_the_picture_of_a_preset_is_saved_whole(home):
    assert main(["status", "--preset", "smoke", "--picture", str(home / "work.png")]) == 0
    assert (home / "work.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in home.iterdir()] == ["work.png"]


def test_a_picture_of_no_known_format_is_refused_by_its_name(home, capsys):
    for name in ("work.txt", "work"):
        assert main(["status", "--preset", "smoke", "--picture", str(home / name)]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert f"{home / name} cannot be a picture: let the name after --picture end in" in told
    assert list(home.iterdir()) == []


def test_the_picture_says_how_far_running_work_is_and_what_its_letters_mean():
    with heartbeat(expert_folder(*NAMES), "expert") as sign:
        sign.tell(phase="RL", done=3, total=12)
        sign.write()
        with (
            pytest.raises(ValueError, match="loss"),
            heartbeat(model_folder(SMOKE, DATA, 0), "vla"),
        ):
            raise ValueError("the loss is not finite")
        figure = figures.work_heatmap(status(SMOKE))
    said = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert said == {"", "25 %", "F"}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["waiting", "running (% of its phase)", "failed (F)"]


def test_watching_shows_the_table_again_until_it_is_interrupted(monkeypatch, capsys):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", pause)
    assert main(["status", "--preset", "smoke", "--watch"]) == 130
    assert pauses == [module.EVERY] * 2
    assert capsys.readouterr().out.count("expert diffusion") == 2
