"""Plans and records of an evaluation, which depend on nothing else."""

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from evaluation_samples import TASK, records, run

from diffrl import evidence
from diffrl.base import artifacts
from diffrl.base.arm import Arm
from diffrl.base.artifacts import FORCE, write_csv
from diffrl.base.errors import UserError
from diffrl.evaluation import stage as evaluation_stage
from diffrl.evaluation.policies import Oracle, open_policy
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.stage import Job, plan
from diffrl.presets import get_preset
from diffrl.vla import stage as vla_stage
from diffrl.vla.stage import arm_of, model_folder, models_of


def test_a_plan_names_each_task_s_first_official_start_states_in_order():
    trials = plan(["libero_goal/7", TASK], 2)
    assert trials == [
        Trial("libero_goal/7", "official/0", 0),
        Trial("libero_goal/7", "official/1", 0),
        Trial(TASK, "official/0", 0),
        Trial(TASK, "official/1", 0),
    ]
    assert plan([TASK], 1, seed=3) == [Trial(TASK, "official/0/fixtures-3", 3)]


def test_a_preset_plays_its_own_tasks_and_a_few_trials_of_the_further_suites():
    laptop = get_preset("laptop")
    trials = evaluation_stage.plan_of(laptop)
    assert trials[0] == Trial(TASK, "official/0", 0)
    own = [trial for trial in trials if trial.task in laptop.vla_tasks]
    assert len(own) == 10 * laptop.evaluation.trials
    others = {trial.task.split("/")[0] for trial in trials} - {"libero_object"}
    assert others == set(laptop.evaluation.suites)
    assert len(trials) == len(own) + 4 * 10 * laptop.evaluation.suite_trials


@pytest.mark.parametrize("trials", [0, 51])
def test_more_trials_than_official_start_states_are_refused(trials):
    with pytest.raises(UserError, match="50 official start"):
        plan([TASK], trials)


def test_a_trial_that_is_asked_for_twice_is_planned_once():
    assert plan([TASK, "libero_goal/7", TASK], 2) == plan([TASK, "libero_goal/7"], 2)
    smoke = get_preset("smoke")
    twice = replace(smoke, evaluation=replace(smoke.evaluation, suites=("libero_object",)))
    trials = evaluation_stage.plan_of(twice)
    settings = smoke.evaluation
    once = settings.trials + 9 * settings.suite_trials  # its own task plays more than the suite's
    assert len(set(trials)) == len(trials) == once


def test_unknown_suites_tasks_and_policies_are_refused_by_name():
    with pytest.raises(UserError, match="libero_objects"):
        evaluation_stage.tasks_of(["libero_objects"])
    with pytest.raises(UserError, match="libero_object/10"):
        plan(["libero_object/10"], 1)
    with pytest.raises(UserError, match="robot"):
        open_policy("robot:arm")
    with pytest.raises(UserError, match="not complete"):
        open_policy("compact:")


@pytest.fixture
def played(monkeypatch):
    """Trials are not played: each fails at once, or ends in an error as long as that is told."""
    ends = {"status": "failure"}

    def play_all(items, workers):
        for job, key, trials, *_ in items:
            rows = [[*trial, ends["status"], 9, 1.0, "told"] for trial in trials]
            place = job.folder / "checkpoint" / key
            artifacts.write_json(place / f"{artifacts.config_hash(trials)}.json", rows)

    monkeypatch.setattr(evaluation_stage, "_play_all", play_all)
    return ends


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 3}, "--trials is the preset's own"),
        ({"seed": 0}, "--seed is the preset's own"),
        ({"out": Path("o")}, "--out is the preset's own"),
        ({"copies": 0}, "--copies is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"videos": ("official/77",)}, "No trial begins from 'official/77'.*official/0"),
    ],
)
def test_what_a_preset_s_evaluation_cannot_have_is_refused_by_name(options, told, monkeypatch):
    monkeypatch.setattr(evaluation_stage, "finished", lambda *_: True)
    with pytest.raises(UserError, match=told):
        evaluation_stage.main(preset="smoke", **options)


def test_a_preset_s_evaluation_plays_errors_again_films_and_copies_as_it_is_told(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setattr(evaluation_stage, "finished", lambda *_: True)
    seen = []

    def evaluate(jobs, **options):
        seen.append(options)
        rows = [[*("libero_object", TASK), *job.arm, 0, "official/0", 0] for job in jobs]
        rows = [[*row, "failure", 9, 1.0] for row in rows]
        return pd.DataFrame(rows, columns=evaluation_stage.COLUMNS)

    monkeypatch.setattr(evaluation_stage, "evaluate", evaluate)
    told = {"retry_errors": True, "videos": ("official/0",), "copies": 2}
    evaluation_stage.main(preset="smoke", **told)
    evaluation_stage.main(preset="smoke")
    own = {"retry_errors": False, "videos": (), "copies": get_preset("smoke").evaluation.copies}
    assert seen == [{**told, "workers": None}, {**own, "workers": None}]


def test_a_second_plan_in_the_same_folder_adds_its_trials_to_the_table(tmp_path, played, capsys):
    options = {"trials": 2, "workers": 1, "out": tmp_path}
    assert evaluation_stage.main("random:", suite=(TASK,), **options) == 0
    played["status"] = "error"
    assert evaluation_stage.main("random:", suite=("libero_goal/7",), **options) == 1
    table = pd.read_csv(tmp_path / "trials.csv")
    assert table["task"].tolist() == ["libero_goal/7"] * 2 + [TASK] * 2
    about = artifacts.read_json(tmp_path / "trials.json")
    assert "280" in about["protocol"]
    assert "300" in about["protocol"]
    assert len(about["errors"]) == 2
    capsys.readouterr()
    found = run("random:", plan([TASK], 1), tmp_path, workers=1)  # a part of what is there
    assert found["task"].tolist() == [TASK]
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 4
    run("random:", plan([TASK], 1), tmp_path / "other", workers=1)
    assert len(pd.read_csv(tmp_path / "other" / "trials.csv")) == 1


@pytest.mark.usefixtures("played")
def test_an_oracle_plays_all_of_its_episodes_unless_fewer_are_asked_for(tmp_path, monkeypatch):
    episodes = {Trial(TASK, f"fresh/0/{i}", 0): None for i in range(60)}
    oracle = Oracle.__new__(Oracle)
    oracle.__dict__ |= {"episodes": episodes, "fingerprint": "oracle"}
    monkeypatch.setattr(evaluation_stage, "open_policy", lambda name: oracle)
    for trials, count in ((None, 60), (3, 3), (99, 60)):
        out = tmp_path / str(trials)
        evaluation_stage.main("oracle:x", trials=trials, out=out, workers=1)
        assert len(pd.read_csv(out / "trials.csv")) == count
    for trials in (0, -1):
        with pytest.raises(UserError, match=f"--trials is {trials}"):
            evaluation_stage.main("oracle:x", trials=trials, out=tmp_path)
    with pytest.raises(UserError, match="--seed is each episode's own"):
        evaluation_stage.main("oracle:x", seed=1, out=tmp_path)


def test_a_seed_below_zero_is_refused():
    with pytest.raises(UserError, match="seed of an evaluation is -1"):
        plan([TASK], 1, seed=-1)


@pytest.mark.sim
def test_the_command_plans_an_oracle_s_own_episodes_films_trials_and_tells_errors(
    demonstrations, serve, tmp_path, capsys
):
    """One call each: an oracle's plan, a film, errors tried once more, and the exit's code."""
    name = next(iter(open_policy(f"oracle:{demonstrations}").episodes)).start_state
    out = tmp_path / "oracle"
    options = {"trials": 2, "workers": 1, "out": out, "videos": (name,)}
    assert evaluation_stage.main(f"oracle:{demonstrations}", **options) == 0
    (film,) = (out / "videos").iterdir()
    assert film.name.endswith("-success.mp4")
    assert film.stat().st_size > 10_000
    assert len(pd.read_csv(out / "trials.csv")) == 2
    out, policy = tmp_path / "dead", f"openpi:{serve('dies')}?model=dies&timeout=5"
    options = {"suite": (TASK,), "trials": 1, "workers": 1, "out": out}
    assert evaluation_stage.main(policy, **options) == 1  # not one trial was played
    alive = f"openpi:{serve('still')}?model=dies&timeout=20"
    assert evaluation_stage.main(alive, **options) == 1  # a recorded error is found again
    assert evaluation_stage.main(alive, **options, retry_errors=True) == 0
    assert pd.read_csv(out / "trials.csv")["status"].tolist() == ["failure"]
    assert "official start states" in capsys.readouterr().out


@pytest.mark.sim
def test_a_perturbed_suite_is_played_from_its_own_start_states(tmp_path):
    tasks = [f"libero_object_{kind}/0" for kind in ("swap", "lan")]
    table = run("random:", plan(tasks, 1), tmp_path, workers=1)
    assert table["suite"].tolist() == [task.split("/")[0] for task in tasks]
    assert table["status"].tolist() == ["failure"] * 2


@pytest.mark.sim
def test_records_do_not_depend_on_batch_processes_order_or_interruption(tmp_path):
    import vla_samples

    from diffrl.vla import model as vla

    vla.save(vla_samples.make_model(), tmp_path / "model", {})
    policy = f"compact:{tmp_path / 'model'}"
    trials = plan([TASK], 3)
    run(policy, trials, tmp_path / "alone", workers=1, copies=1)
    run(policy, trials, tmp_path / "together", workers=2, copies=2)
    assert records(tmp_path / "alone") == records(tmp_path / "together")
    # two trials first, in the other order, then all of them: the record is the same again
    run(policy, trials[:0:-1], tmp_path / "continued", workers=1, copies=3)
    before = pd.read_csv(tmp_path / "continued" / "trials.csv")
    run(policy, trials, tmp_path / "continued", workers=1, copies=3)
    after = pd.read_csv(tmp_path / "continued" / "trials.csv")
    assert records(tmp_path / "alone") == records(tmp_path / "continued")
    assert after["seconds"].tolist()[1:] == before["seconds"].tolist()[::-1]  # not played again


@pytest.mark.sim
def test_a_killed_evaluation_keeps_every_trial_that_had_ended(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    played, real = [], evaluation_stage.write_json

    def write(path, records):
        real(path, records)
        played.append(len(records))
        if len(played) == 2:
            raise Killed

    monkeypatch.setattr(evaluation_stage, "write_json", write)
    trials, policy = plan([TASK], 4), "random:"
    with pytest.raises(Killed):
        item = (Job(policy, tuple(trials), tmp_path, Arm("random")), "key", trials, 1, ())
        evaluation_stage._play_shard(item)
    (tmp_path / "checkpoint" / "key" / ".a-1.tmp.json").touch()  # what a kill amid a write leaves
    assert len(evaluation_stage._recorded(tmp_path, "key")) == 2


def test_trials_of_another_policy_stay_where_they_are(tmp_path):
    artifacts.write_json(tmp_path / "checkpoint" / "other" / "a.json", [])
    assert evaluation_stage._recorded(tmp_path, "key") == {}
    assert (tmp_path / "checkpoint" / "other" / "a.json").exists()


def test_a_preset_whose_vlas_are_not_trained_is_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    with pytest.raises(UserError, match="train-vla --preset smoke"):
        evaluation_stage.evaluate_preset(get_preset("smoke"), workers=1)
    assert not list(tmp_path.rglob("*.csv"))


def test_shards_hold_a_task_each_or_shares_of_it_where_tasks_are_few():
    many, few = plan(["libero_object/0", "libero_object/1"], 6), plan(["libero_object/0"], 5)
    assert [len(shard) for shard in evaluation_stage._shards(many, workers=1)] == [6, 6]
    assert [len(shard) for shard in evaluation_stage._shards(few, workers=2)] == [3, 2]


@pytest.mark.sim
def test_vlas_of_fewer_and_mixed_demonstrations_are_evaluated_when_they_are_trained(
    tmp_path, monkeypatch
):
    import vla_samples

    from diffrl.vla import model as vla

    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = get_preset("smoke")
    preset = replace(smoke, evaluation=replace(smoke.evaluation, trials=1))
    assert evaluation_stage.evaluate_further(preset, workers=1).empty
    vla.save(
        vla_samples.make_model(),
        model_folder(smoke, "diffusion-deterministic:10", 0),
        {},
    )
    assert evaluation_stage.evaluate_further(preset, workers=1).empty  # of other settings, perhaps
    monkeypatch.setattr(
        evaluation_stage, "finished", lambda preset, data, seed: data.endswith(":10")
    )
    found = evaluation_stage.evaluate_further(preset, workers=1)
    assert found[["source", "mode"]].values.tolist() == [["diffusion:10", "deterministic"]]
    assert (tmp_path / "runs" / "smoke" / "vla_further_trials.csv").exists()
    assert not (tmp_path / "runs" / "smoke" / "vla_trials.csv").exists()


def test_main_arms_play_more_trials_with_more_seeds_than_those_that_say_why():
    libero = get_preset("libero")
    seeds = {}
    for data, seed in [*models_of(libero), *models_of(libero, True)]:
        seeds.setdefault(data, []).append(seed)
    for data in ("operator-recorded", "gaussian-deterministic", "diffusion-deterministic"):
        assert seeds[data] == [0, 1, 2]
        assert len(evaluation_stage.plan_of(libero, data)) == 40 * 25
    main = evaluation_stage.plan_of(libero, "operator-recorded")
    for data, count in (("steady-recorded", 2), ("diffusion-deterministic:5", 1)):
        assert seeds[data] == list(range(count))
        assert len(evaluation_stage.plan_of(libero, data)) == 40 * 10
        assert set(evaluation_stage.plan_of(libero, data)) < set(
            main
        )  # so that they can be compared


def test_a_vla_that_is_not_trained_stops_no_other_and_has_a_row_of_no_trials(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = get_preset("smoke")
    known, lost = smoke.vla.data[0], smoke.vla.data[1:]
    monkeypatch.setattr(evaluation_stage, "finished", lambda preset, data, seed: data == known)
    about = ["libero_object", "libero_object/0", *arm_of(known), 0]
    played = pd.DataFrame(
        [[*about, f"official/{i}", 0, end, 9, 1.0] for i, end in enumerate(("success", "failure"))],
        columns=evaluation_stage.COLUMNS,
    )
    monkeypatch.setattr(evaluation_stage, "_evaluate_models", lambda *_: played)
    with pytest.raises(UserError, match=rf"{len(lost)} VLAs were left out, all others are done"):
        evaluation_stage.evaluate_preset(smoke, workers=1)
    table = pd.read_csv(tmp_path / "runs" / "smoke" / "evaluation.csv")
    assert table["trials"].tolist() == [2] + [0] * len(lost)
    assert table["success"].isna().tolist() == [False] + [True] * len(lost)
    arms = [tuple(arm) for arm in table[["source", "mode"]].to_numpy()]
    assert arms == [tuple(arm_of(data)) for data in (known, *lost)]
    seeds = pd.read_csv(tmp_path / "runs" / "smoke" / "evaluation_seeds.csv")
    assert seeds["trials"].tolist() == [2] + [0] * len(lost)
    assert seeds["training_seed"].tolist() == [0] * len(models_of(smoke))


def test_a_vla_whose_trials_git_keeps_is_neither_trained_nor_played_again(
    tmp_path, monkeypatch, capsys
):
    """It was trained elsewhere: here are neither its data nor its weights."""
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path / "there"))
    smoke = get_preset("smoke")
    first, second, *_ = smoke.vla.data
    plan = evaluation_stage.plan_of(smoke, first)
    folders = [model_folder(smoke, data, 0) for data in (first, second)]
    for folder, data in zip(folders, (first, second)):
        stage = vla_stage._stage_on([Path(__file__)], data, 0, smoke)  # of data that are not here
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"large")
        stage.finish({"source": data}, outputs=[folder / "model.safetensors"], seed=0)
    ends = ["success", "failure"] * len(plan)
    rows = [
        ["libero_object", trial.task, *arm_of(data), 0, trial.start_state, trial.seed, end, 9, 1.5]
        for data, count in ((first, len(plan)), (second, len(plan) - 1))  # one is not at its end
        for trial, end in zip(plan[:count], ends)
    ]
    table = pd.DataFrame(rows, columns=evaluation_stage.COLUMNS)
    write_csv(folders[0].parents[1] / "vla_trials.csv", table)
    results = tmp_path / "here" / "results" / "smoke"
    evidence.pack(folders[0].parents[1], results, smoke)
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path / "here"))
    assert evidence.go_on("smoke")
    assert vla_stage.is_kept(smoke, first, 0)
    assert not vla_stage.is_kept(smoke, second, 0)
    assert not vla_stage.is_kept(smoke.with_settings({"vla.steps": 7}), first, 0)
    with pytest.raises(UserError, match="2 VLAs were left out"):  # their data are not here
        vla_stage.fit_all(smoke, workers=1)
    assert pd.read_csv(tmp_path / "here/runs/smoke/vla.csv")["source"].tolist() == [first]
    with pytest.raises(UserError, match="2 VLAs were left out"):
        evaluation_stage.evaluate_preset(smoke, workers=1)
    again = pd.read_csv(tmp_path / "here/runs/smoke/vla_trials.csv")
    pd.testing.assert_frame_equal(again, table[: len(plan)])
    assert "1 of 1 VLAs are not here" in capsys.readouterr().out
    monkeypatch.setenv(FORCE, str(time.time() + 9))
    assert not vla_stage.is_kept(smoke, first, 0)
    monkeypatch.delenv(FORCE)
    write_csv(tmp_path / "here/runs/smoke/vla_trials.csv", again[1:])
    with pytest.raises(UserError, match=r"lacks its trials: delete vla\.done\.json there"):
        evaluation_stage.evaluate_preset(smoke, workers=1)


def test_the_tables_of_a_part_s_vlas_stand_beside_them_and_not_for_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    part = get_preset("libero", ("libero_goal",))
    place = tmp_path / "runs" / "libero" / "vla" / "libero_goal"
    assert model_folder(part, "operator-recorded", 0).parent == place
    about = ["libero_goal", "libero_goal/0", *arm_of(part.vla.data[0]), 0]
    played = pd.DataFrame(
        [[*about, "official/0", 0, "success", 9, 1.0]], columns=evaluation_stage.COLUMNS
    )
    monkeypatch.setattr(evaluation_stage, "finished", lambda *_: True)
    monkeypatch.setattr(evaluation_stage, "_evaluate_models", lambda *_: played)
    evaluation_stage.evaluate_preset(part, workers=1)
    assert {"vla_trials.csv", "evaluation.csv", "effects.csv"} <= {p.name for p in place.iterdir()}
    assert not list((tmp_path / "runs" / "libero").glob("*.csv"))
