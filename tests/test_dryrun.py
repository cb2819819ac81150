"""The dry run: each kind of work once per task, and a failure that stops nothing else."""

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from diffrl import dryrun
from diffrl.__main__ import main
from diffrl.dryrun import NEEDS, Rehearsal, dry_run, rehearse
from diffrl.presets import get_preset

SMOKE = get_preset("smoke")
ROOT = Path(__file__).parents[1]
TASKS = ("libero_object/0", "libero_goal/7", "libero_90/41")


class Played:
    """A rehearsal whose steps only say that they were asked for."""

    def __init__(self, task, preset=None, folder=None, images=False, broken=()):
        self.task, self.broken, self.asked = SimpleNamespace(id=task), broken, []

    def __getattr__(self, step):
        if step not in NEEDS:
            raise AttributeError(step)
        self.asked.append(step)
        if step in self.broken:
            raise ValueError(f"no\n{step}")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    return tmp_path


def test_every_step_is_a_row_with_its_seconds():
    rows = rehearse(Played("libero_object/0"))
    assert [row[:2] for row in rows] == [["libero_object/0", step] for step in NEEDS]
    assert all(0 <= seconds < 5 for _, _, *both, _, _ in rows for seconds in both)
    assert [row[4:] for row in rows] == [[True, ""]] * len(NEEDS)


def test_every_step_is_one_of_a_rehearsal():
    assert all(isinstance(vars(Rehearsal)[step], cached_property) for step in NEEDS)
    order = list(NEEDS)
    assert all(order.index(need) < order.index(s) for s, needs in NEEDS.items() for need in needs)


def test_a_step_that_fails_stops_those_alone_that_need_it():
    rehearsal = Played("libero_object/0", broken=("control",))
    rows = {row[1]: row[4:] for row in rehearse(rehearsal)}
    assert rows["control"] == [False, "ValueError: no control"]
    assert rows["data"] == [False, "not tried, as control failed"]
    assert rows["trial"] == [False, "not tried, as vla failed"]
    assert rows["ppo"] == rows["picture"] == [True, ""]
    assert rehearsal.asked == ["scene", "placement", "control", "ppo", "picture"]


def test_one_task_that_fails_stops_no_other_and_is_tried_again(home, monkeypatch, capsys):
    made, broken = [], {"libero_goal/7": ("picture",)}

    def make(task, *options):
        made.append(task)
        return Played(task, broken=broken.get(task, ()))

    monkeypatch.setattr(dryrun, "Rehearsal", make)
    command = ["dry-run", "--preset", "smoke", "--workers", "1", "--tasks", *TASKS]
    assert main(command) == 1
    assert made == [*TASKS]
    printed = capsys.readouterr().out
    assert "libero_goal/7 picture: ValueError: no picture" in printed
    assert "2 of 3 tasks went well" in printed
    broken.clear()
    assert main([*command, "--record"]) == 0
    assert made == [*TASKS, "libero_goal/7"]
    tables = [home / "runs/smoke/dry_run.csv", home / "results/dry_run.csv"]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert pd.read_csv(tables[0])["ok"].tolist() == [True] * 3 * len(NEEDS)


def test_a_task_whose_process_died_is_a_row_too(home, monkeypatch):
    def die(item, **options):
        raise MemoryError("no memory")

    monkeypatch.setattr(dryrun, "_rehearsed", die)
    table = dry_run(SMOKE, ["libero_object/0"], workers=1)
    assert table[["task", "ok", "error"]].values.tolist() == [
        ["libero_object/0", False, "it ended early; what the command printed says why"]
    ]


@pytest.mark.sim
def test_a_task_of_smoke_goes_well_in_every_step(home):
    table = dry_run(SMOKE, workers=1)
    assert table.loc[~table["ok"], ["step", "error"]].values.tolist() == []
    assert table["step"].tolist() == list(NEEDS)


def test_the_papers_130_tasks_went_well_and_the_docs_say_what_that_took():
    table = pd.read_csv(ROOT / "results" / "dry_run.csv")
    tasks = list(get_preset("paper").tasks)
    assert list(dict.fromkeys(table["task"])) == tasks
    assert len(tasks) == 130
    assert set(table.groupby("task")["step"].agg(tuple)) == {tuple(NEEDS)}
    assert table["ok"].all()
    minutes = table["cpu_seconds"].sum() / 60
    assert minutes <= 2 * 60  # an hour of two cores
    page = (ROOT / "docs" / "run-on-a-cluster.md").read_text(encoding="utf-8")
    assert f"All {len(tasks)} tasks of `paper` went well in {minutes:.0f} minutes" in page
