"""Stale means stale: in each room, what another format has made is noticed and reported."""

import dataclasses

import pandas as pd
import pytest
from quality_samples import arms, write_data_set

from diffrl import experiments
from diffrl import quality as quality_room
from diffrl.base.arm import Arm
from diffrl.base.artifacts import Stage, read_json, write_json
from diffrl.base.errors import TrainingError, UserError
from diffrl.demonstrator import stage as operator_stage
from diffrl.evaluation import stage as evaluation_stage
from diffrl.generation import stage as generation_stage
from diffrl.presets import get_preset
from diffrl.quality import stage as quality_stage
from diffrl.rl import records as rl_records
from diffrl.rl import train as rl_train
from diffrl.rl.stage import train_expert
from diffrl.vla import stage as vla_stage

TASK = "libero_object/0"
TOLD = r"was made by format {} of its stage, now {}: delete this file, or use --force"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    return tmp_path


def test_an_expert_of_an_older_format_is_told_and_made_anew_by_force(home):
    smoke = get_preset("smoke")
    run = rl_train.Training(smoke, TASK, "diffusion")
    Stage(run.folder, "expert", run.config).finish({"rows": []})
    with pytest.raises(UserError, match=TOLD.format(1, rl_records.FORMAT)):
        train_expert(smoke, TASK, "diffusion")
    run.stage.forget()  # what a training by force does with it
    assert not run.stage.done


def test_an_experiments_run_is_as_old_as_its_expert():
    variant = experiments.EXPERIMENTS["seeds"].variants[0]
    stage = experiments._stage(variant, TASK, 0, "smoke")
    Stage(stage.folder, "run", stage.config).finish({"rows": []})
    with pytest.raises(UserError, match=TOLD.format(1, rl_records.FORMAT)):
        experiments._run((variant, TASK, 0), "smoke", 1)


def test_a_stale_run_of_an_experiment_fails_no_run_of_another_and_is_told(
    home, monkeypatch, capsys
):
    def train(self):
        raise TrainingError("no success")

    monkeypatch.setattr(rl_train.Training, "train", train)
    old, new = experiments._runs("ablations")[3], experiments._runs("seeds")[0]
    stage = experiments._stage(*old, "laptop")
    Stage(stage.folder, "run", stage.config).finish({"rows": []})
    experiments._run(new, "laptop", 1)
    assert set(pd.read_csv(home / "runs/laptop/experiments.csv")["arm"]) == {new[0].name}
    told = capsys.readouterr().err
    assert f"leaves out what is stale (1). {stage.marker} was made by format 1" in told


def test_a_stale_expert_hides_no_failure_of_another_and_is_told(home, monkeypatch, capsys):
    smoke = get_preset("smoke")
    old, new = (rl_train.Training(smoke, TASK, kind) for kind in ("gaussian", "diffusion"))
    row = dict.fromkeys(rl_records.COLUMNS, 0) | {"task": TASK}
    Stage(old.folder, "expert", old.config).finish({"rows": [row | {"algorithm": "gaussian"}]})
    new.stage.finish({"rows": [row | {"algorithm": "diffusion"}]})
    table = rl_records.collect_records(smoke)
    assert list(table["algorithm"]) == ["diffusion"]
    assert f"leaves out what is stale (1). {old.stage.marker}" in capsys.readouterr().err
    with pytest.raises(UserError, match=TOLD.format(1, rl_records.FORMAT)):
        rl_records.finished_experts(smoke)


def test_a_data_set_of_another_format_is_told_and_not_continued(home, monkeypatch):
    smoke = get_preset("smoke")
    few = dataclasses.replace(smoke.generation, episodes=1, max_attempts=1)
    preset = dataclasses.replace(smoke, generation=few)
    monkeypatch.setattr(generation_stage, "load_scene", lambda task: None)
    monkeypatch.setattr(generation_stage, "Player", lambda *a, **k: lambda first, count: [])
    generation_stage.generate(preset, TASK, Arm("operator", "recorded"))
    generation_stage.generate(preset, TASK, Arm("operator", "recorded"))
    monkeypatch.setattr(generation_stage, "FORMAT", 2)
    with pytest.raises(UserError, match=TOLD.format(1, 2)):
        generation_stage.generate(preset, TASK, Arm("operator", "recorded"))
    seen = []
    monkeypatch.setattr(generation_stage, "_discard_other", lambda *a: seen.append(a[1]))
    generation_stage.generate(preset, TASK, Arm("operator", "recorded"), force=True)
    assert '"format": 2' in seen[0]["generation"]  # other attributes: the old file is discarded
    generation_stage.generate(preset, TASK, Arm("operator", "recorded"))
    assert len(seen) == 1


def test_quality_of_another_format_or_another_list_of_measures_is_told(home, monkeypatch):
    path = generation_stage.dataset_path(
        get_preset("smoke"), TASK, Arm("diffusion", "deterministic")
    )
    path.parent.mkdir(parents=True)
    write_data_set(path, [t for t in arms() if t.source == "diffusion"])
    quality_room.run_quality("smoke")
    key = read_json(home / "runs/smoke/quality.done.json")["key"]
    assert key["measures"] == sorted(quality_stage.report.MEASURES)
    with monkeypatch.context() as patch:
        patch.setattr(quality_stage, "FORMAT", 3)
        with pytest.raises(UserError, match=TOLD.format(2, 3)):
            quality_room.run_quality("smoke")
    more = quality_stage.report.MEASURES | {"wobble": quality_stage.report.MEASURES["steps"]}
    monkeypatch.setattr(quality_stage.report, "MEASURES", more)
    with pytest.raises(UserError, match=r"with other measures \(the difference: wobble\)"):
        quality_room.run_quality("smoke")
    quality_room.run_quality("smoke", force=True)
    quality_room.run_quality("smoke")


def test_a_vla_of_another_format_is_told(monkeypatch):
    smoke = get_preset("smoke")
    monkeypatch.setattr(vla_stage, "files_of", lambda data, preset: [])
    item = (smoke.vla.data[0], 0)
    vla_stage._stage(*item, smoke).finish({"loss": 1.0})
    assert vla_stage.fit(item, smoke) == {"loss": 1.0}
    monkeypatch.setattr(vla_stage, "FORMAT", 2)
    with pytest.raises(UserError, match=TOLD.format(1, 2)):
        vla_stage.fit(item, smoke)


def test_trials_of_another_format_are_told_and_played_again(home, monkeypatch, capsys):
    played = []

    def play(items, workers):
        for job, key, trials, *_ in items:
            played.append(key)
            rows = [[*trial, "success", 9, 0.1, ""] for trial in trials]
            write_json(job.folder / "checkpoint" / key / "a.json", rows)

    monkeypatch.setattr(evaluation_stage, "_play_all", play)
    plan = tuple(evaluation_stage.plan([TASK], 2, 0))
    job = evaluation_stage.Job("random:", plan, home / "records", Arm("random", "recorded"))
    evaluation_stage.evaluate([job], workers=1)
    evaluation_stage.evaluate([job], workers=1)
    assert len(played) == 1
    assert "played by format" not in capsys.readouterr().out
    monkeypatch.setattr(evaluation_stage, "FORMAT", 2)
    evaluation_stage.evaluate([job], workers=1)
    assert "played by format 1 of the evaluation, now 2: they are played again" in (
        capsys.readouterr().out
    )
    assert len(set(played)) == 2


def test_tasks_that_another_format_of_the_operator_tried_are_told(home, monkeypatch, capsys):
    tried = []

    def attempt(task, *settings):
        tried.append(task)
        return {"task": task, "goal": ""}, {"task": task}

    monkeypatch.setattr(operator_stage, "_try", attempt)
    monkeypatch.setattr(operator_stage, "calibrate", lambda motion: pd.DataFrame({"a": [1]}))
    for _ in range(2):
        operator_stage.main((TASK,), attempts=1, preset="smoke")
    assert tried == [TASK]
    monkeypatch.setattr(operator_stage, "FORMAT", 2)
    operator_stage.main((TASK,), attempts=1, preset="smoke")
    assert tried == [TASK, TASK]
    output = capsys.readouterr()
    assert "format 1 of the operator, now 2: it is tried again" in output.out + output.err


def test_evidence_counts_as_done_whatever_its_format(laptop_run, home):
    laptop = get_preset("laptop")
    (home / "runs").mkdir()
    (home / "runs" / "laptop").symlink_to(laptop_run)
    found = rl_records.finished_experts(laptop)
    rows = pd.read_csv(laptop_run / "experts.csv")
    assert len(found) == len(rows) // 2
