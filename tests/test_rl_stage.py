"""One run and many: what is found, continued, replaced."""

import dataclasses
import importlib.util
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from policy_samples import SMALL

from diffrl import policy as policies
from diffrl import presets
from diffrl.base import artifacts, checkpoint
from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import FORCE, Stage
from diffrl.base.errors import UserError
from diffrl.presets import ALGORITHMS, RLConfig, get_preset
from diffrl.rl import records, train
from diffrl.rl import stage as rl_stage
from diffrl.rl.journal import Journal
from diffrl.rl.learn import Candidate, Learner
from diffrl.rl.rollout import Rollout
from diffrl.rl.stage import evaluate_again, train_expert
from diffrl.sim.tasks import get_task

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_a_run_whose_checkpoint_is_of_other_settings_is_refused_before_it_writes(tmp_path):
    path = tmp_path / "checkpoint" / "rl.safetensors"
    checkpoint.save(path, {"a": 1}, "other")
    (path.parent / ".rl-1234.tmp.safetensors").touch()  # what a kill while saving leaves
    (tmp_path / "config.json").write_text("before")
    with pytest.raises(UserError, match=r"belongs to other settings.*--force"):
        train_expert(get_preset("smoke"), "libero_object/0", "diffusion", folder=tmp_path)
    assert (tmp_path / "config.json").read_text() == "before"


def test_a_finished_run_takes_the_place_of_an_older_expert_and_its_marker(tmp_path):
    (tmp_path / "expert.done.json").write_text("{}")  # of other settings
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "clone.done.json").write_text("{}")
    run = train.Training(get_preset("smoke"), "libero_object/0", "diffusion", folder=tmp_path)
    config = policies.make_config("diffusion", run.preset.clone, run.preset.rl)
    policy = policies.make_policy(config, SMALL)
    policies.save(run.work / "clone", policy)
    for name in ("clone/clone.done.json", "clone.csv"):
        (run.work / name).write_text("new")
    learner = SimpleNamespace(diagnostics=[{"iteration": 1}])
    for _ in range(2):  # a kill before the new marker lets it be done again
        run.publish(policy, learner, {"trials.csv": pd.DataFrame({"a": [1]})})
        assert pd.read_csv(tmp_path / "diagnostics.csv")["iteration"].tolist() == [1]
        assert not run.stage.marker.exists()
        assert artifacts.read_json(tmp_path / "config.json") == artifacts.plain(run.config)
        for name in ("clone/clone.done.json", "clone.csv"):
            assert (tmp_path / name).read_text() == "new"
        assert policies.load(tmp_path).config == policies.load(tmp_path / "clone").config


def test_a_clone_that_evidence_did_not_keep_is_made_again_beside_its_expert(tmp_path, monkeypatch):
    run = train.Training(get_preset("smoke"), "libero_object/0", "diffusion", folder=tmp_path)
    config = policies.make_config("diffusion", run.preset.clone, run.preset.rl)
    policy = policies.make_policy(config, SMALL)
    monkeypatch.setattr(train.Training, "clone", lambda self: policies.save(clone, policy))
    clone = run.work / "clone"
    run.stage.finish({"rows": []})
    run.clone_again()
    assert policies.load(tmp_path / "clone").config == config
    assert run.stage.found
    assert not run.work.exists()


def test_reproduce_with_force_continues_no_older_checkpoint(tmp_path, monkeypatch):
    run = train.Training(get_preset("smoke"), "libero_object/0", "diffusion", folder=tmp_path)
    monkeypatch.setattr(train.Training, "clone", lambda self: (None, 0.0))
    monkeypatch.setattr(train.Training, "learn", lambda self, policy: SimpleNamespace(seconds=0.0))
    monkeypatch.setattr(train.policies, "save", lambda folder, policy: None)
    checkpoint.save(run.checkpoint("rl"), {"a": 1}, run.key)
    run.train()
    assert run.checkpoint("rl").exists()
    monkeypatch.setenv(FORCE, repr(time.time() + 1))
    run.train()
    assert not run.checkpoint("rl").exists()


def test_a_restart_goes_on_with_a_run_begun_by_force_and_other_experts_stay(tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Training, "clone", stop)
    names, smoke = ("libero_object/0", "diffusion"), get_preset("smoke")
    other = train.Training(smoke.with_settings({"rl.iterations": 5}), *names, folder=tmp_path)
    other.stage.finish({"rows": []})
    with pytest.raises(KeyboardInterrupt):
        train_expert(smoke, *names, folder=tmp_path)
    assert other.stage.found
    same = train.Training(smoke, *names, folder=tmp_path)
    same.stage.finish({"rows": []})
    with pytest.raises(KeyboardInterrupt):
        train_expert(smoke, *names, folder=tmp_path, force=True)
    assert not same.stage.marker.exists()


def test_another_file_of_people_s_demonstrations_leaves_their_expert_undone(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBERO_DATASETS", str(tmp_path))
    smoke, names = get_preset("smoke"), ("libero_object/0", "diffusion")
    human = smoke.with_settings({"demonstrations.source": "human"})
    recorded = tmp_path / f"{get_task(names[0]).name}_demo.hdf5"
    recorded.write_text("first")
    before = train.Training(human, *names, folder=tmp_path / "human")
    before.stage.finish({"rows": []})
    checkpoint.save(before.checkpoint("clone"), {"a": 1}, before.key)
    assert train.Training(human, *names, folder=tmp_path / "human").stage.done
    recorded.write_text("corrected")
    after = train.Training(human, *names, folder=tmp_path / "human")
    assert not after.stage.done
    with pytest.raises(UserError, match="belongs to other settings"):
        after.train()
    recorded.unlink()
    ours = train.Training(smoke, *names, folder=tmp_path / "ours")
    assert ours.key == artifacts.config_hash(ours.config)  # as ever: what was begun goes on
    assert ours.stage.inputs == ()


def test_an_expert_is_played_again_with_every_seed_of_its_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    played = []

    def play(run, policy, mode, seed, record=False):
        played.append((run.algorithm, mode, seed))
        return [Rollout(f"official/{k}", mode, seed, success=k >= seed) for k in range(4)]

    found = []
    for algorithm in ALGORITHMS:
        folder = tmp_path / algorithm
        folder.mkdir()
        (folder / policies.WEIGHTS).write_text(algorithm)
        first = [
            Rollout(f"official/{k}", mode, 0, success=True)
            for mode in POLICY_MODES
            for k in range(4)
        ]
        table = records.trial_table(first).assign(policy="expert")
        table.to_csv(folder / "trials.csv")
        found.append(("libero_object/0", algorithm, 0, folder))
    monkeypatch.setattr(rl_stage, "finished_experts", lambda preset: found)
    monkeypatch.setattr(train.Training, "play", play)
    monkeypatch.setattr(train.policies, "load", lambda folder: None)
    preset = get_preset("smoke").with_settings({"rl.evaluation_seeds": (0, 1)})
    table = evaluate_again(preset, workers=1)
    arms = [("diffusion", "deterministic"), ("diffusion", "stochastic"), ("gaussian", "stochastic")]
    assert played == [(*arm, 1) for arm in arms]  # the first seed's trials are those of the run
    assert table["success"].tolist() == [1.0, 0.75] * 3
    pd.testing.assert_frame_equal(evaluate_again(preset, workers=1), table)
    assert len(played) == 3  # found, not played again
    assert (tmp_path / "runs" / "smoke" / "expert_noise.csv").exists()
    for folder in (tmp_path / algorithm for algorithm in ALGORITHMS):
        (folder / policies.WEIGHTS).unlink()  # as git keeps an expert that makes no data
    monkeypatch.setattr(train.policies, "load", None)
    first = evaluate_again(preset.with_settings({"rl.evaluation_seeds": (0,)}), workers=1)
    assert first["success"].tolist() == [1.0] * 3
    assert len(played) == 3


def test_experts_of_a_preset_are_found_or_continued_and_a_failure_stops_none(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    tasks = ("libero_object/0", "libero_object/1", "libero_goal/0")
    own = (("libero_object/0", "rl.seeds", (0, 1)),)
    preset = dataclasses.replace(get_preset("smoke"), tasks=tasks, own=own)
    monkeypatch.setitem(presets.PRESETS, "smoke", preset)
    trained = []

    def train_one(preset, task, algorithm, seed, **options):
        trained.append((task, algorithm, seed))
        if task == "libero_object/0" and algorithm == "diffusion":
            raise UserError("the clone never succeeded")

    monkeypatch.setattr(rl_stage, "train_expert", train_one)
    with pytest.raises(UserError, match=r"libero_object/0 diffusion seed 0: the clone never"):
        rl_stage.main(preset="smoke", suite=("libero_object",), workers=1)
    assert trained == [
        *((task, algorithm, 0) for task in tasks[:2] for algorithm in ALGORITHMS),
        *(("libero_object/0", algorithm, 1) for algorithm in ALGORITHMS),
    ]
    trained.clear()
    rl_stage.main(preset="smoke", algorithm="gaussian", seed=3, workers=1)
    assert trained == [(task, "gaussian", 3) for task in tasks]


def test_an_expert_that_is_found_without_its_weights_says_how_to_have_them(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    names = ("libero_object/0", "diffusion", 0)
    stage = records.expert_stage(get_preset("smoke"), *names)
    row = dict.fromkeys(records.COLUMNS, 0) | dict(zip(("task", "algorithm", "seed"), names))
    stage.finish({"rows": [row]})
    for kept in (False, True):
        if kept:
            (stage.marker.parent / policies.WEIGHTS).touch()
        rl_stage.main(task="libero_object/0", preset="smoke")
        assert ("--force trains it again" in capsys.readouterr().out) is not kept


def test_what_is_evaluated_and_kept_is_what_float16_holds(tmp_path):
    config = policies.make_config("diffusion", get_preset("smoke").clone, get_preset("smoke").rl)
    policy = policies.make_policy(config, SMALL, seed=1)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    policies.halve(policy)
    policies.save(tmp_path, policy)
    after = policies.load(tmp_path).state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor.half().to(tensor.dtype), tensor)
        assert torch.allclose(tensor, before[name], rtol=1e-3, atol=1e-7)
    policy.low.fill_(1e6)
    with pytest.raises(UserError, match=r"low of the policy holds 1e\+06.*half_weights"):
        policies.halve(policy)


def test_half_weights_are_another_run_and_none_are_the_run_of_before():
    names, smoke = ("libero_object/0", "diffusion"), get_preset("smoke")
    old, new = (
        artifacts.config_hash(
            records.config_of(smoke.with_settings({"rl.half_weights": half}), *names, 0)
        )
        for half in (False, True)
    )
    assert old != new
    neutral = artifacts.plain(records.config_of(smoke, *names, 0), whole=False)
    assert "half_weights" not in neutral["rl"]


def test_further_seeds_of_the_noise_leave_an_expert_what_it_is():
    one, more = (
        get_preset("smoke").with_settings({"rl.evaluation_seeds": seeds})
        for seeds in ((0,), (0, 1))
    )
    task = "libero_object/0"
    assert records.config_of(one, task, "diffusion", 0) == records.config_of(
        more, task, "diffusion", 0
    )


def test_every_try_on_record_has_the_settings_that_the_tool_repeats(laptop_run):
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("retry", root / "tools" / "retry_expert.py")
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    folders = [path.parent for path in (laptop_run / "tried").glob("*/config.json")]
    assert len(folders) == 8
    for folder in folders:
        stored = artifacts.read_json(folder / "config.json")
        task, algorithm = stored["task"], stored["algorithm"]
        name = folder.name.removeprefix(f"{task.replace('/', '-')}-").removesuffix("-gaussian")
        wanted = records.config_of(tool.preset_of(task, name), task, algorithm, 0)
        assert artifacts.config_hash(stored) == artifacts.config_hash(wanted)


class Looks:
    """A learner whose policies are numbers; each fails on the held-out states that it is given."""

    def __init__(self, **settings):
        self.learner = object.__new__(Learner)
        self.learner.config = RLConfig(**settings)
        self.learner.best, self.learner.best_success, self.learner.best_iteration = None, -1.0, 0
        self.learner.seconds, self.learner.control_steps = 0.0, 0
        self.learner.candidates, self.learner.diagnostics = [], []
        self.learner.policy = torch.nn.Linear(1, 1, bias=False)
        self.failing, self.asked = [], []

    def play(self, policy, first, count):
        number = int(policy.weight)
        self.asked.append((number, first, count))
        won = [k not in self.failing[number] for k in range(first, first + count)]
        return [Rollout("fresh/0", "deterministic", 0, success=w, steps=5) for w in won]

    def measure(self, *failing):
        """Take a first look at the next policies."""
        for states in failing:
            torch.nn.init.constant_(self.learner.policy.weight, len(self.failing))
            self.failing.append(states)
            self.learner.iteration = len(self.failing)
            self.learner.diagnostics.append({"confirmed": 0, "confirmed_success": math.nan})
            self.learner.measure(self.play)

    def decide(self):
        """The number of the best, and what was asked for to find it."""
        before = len(self.asked)
        self.learner.decide(self.play)
        return int(self.learner.best["weight"]), self.asked[before:]


def test_the_best_is_chosen_by_its_confirmed_rate_among_policies_of_the_same_states():
    """A lucky first look does not win, nor does a second look that ended early."""
    looks = Looks(measure_starts=4, confirm_starts=10)
    looks.measure({5, 6, 7}, {0, 8}, {1, 2}, {0})
    assert looks.asked == [(number, 0, 4) for number in range(4)]  # no more while RL goes on
    best, asked = looks.decide()
    assert best == 3
    assert asked == [(0, 4, 4), (0, 8, 2), (3, 4, 4), (3, 8, 2)]  # 7 of 10, 9 of 10; then nobody
    rows = looks.learner.diagnostics
    assert [row["measured_success"] for row in rows] == [1.0, 0.75, 0.5, 0.75]
    assert [row["confirmed"] for row in rows] == [10, 0, 0, 10]
    assert [row["played"] for row in rows] == [10, 4, 4, 10]
    assert (rows[0]["confirmed_success"], rows[3]["confirmed_success"]) == (0.7, 0.9)
    assert looks.learner.best_success == 0.9
    assert looks.learner.control_steps == 5 * (16 + 12)


def test_of_policies_that_are_equal_on_the_same_states_the_latest_is_the_best():
    looks = Looks(measure_starts=4, confirm_starts=8)
    looks.measure({5}, {6}, {0})
    assert looks.decide()[0] == 1
    looks = Looks(measure_starts=4, confirm_starts=8)
    looks.measure({0}, {6}, {5, 6})  # 7 of 8, too, but its first look was behind
    assert looks.decide()[0] == 1


def test_a_candidate_that_cannot_reach_the_best_any_more_is_measured_no_further():
    looks = Looks(measure_starts=4, confirm_starts=12)
    looks.measure({4, 5}, {11})
    best, asked = looks.decide()  # the later of two equal first looks comes first
    assert best == 1
    assert asked == [(1, 4, 4), (1, 8, 4), (0, 4, 4)]  # 11 of 12; 10 of 12 at best
    errors = Candidate(1, {}, played=2, fair=1, successes=0)
    assert errors.attainable(5) == 3 / 4  # the error counts in no rate


def test_rl_ends_when_the_target_is_confirmed_and_looks_twice_only_where_it_may_be():
    looks = Looks(measure_starts=4, confirm_starts=12, target_success=0.9)
    looks.measure({0, 1}, {3})
    assert looks.asked == [(0, 0, 4), (1, 0, 4), (1, 4, 4), (1, 8, 4)]
    assert looks.learner.reached  # 11 of 12
    assert looks.learner.finished
    looks = Looks(measure_starts=4, confirm_starts=12, target_success=0.9)
    looks.measure({5, 6}, {0, 1}, {5, 11}, set())
    assert looks.asked[:3] == [(0, 0, 4), (0, 4, 4), (1, 0, 4)]  # 10 of 12 are not enough
    assert looks.learner.reached
    assert looks.decide() == (3, [])  # nobody is asked any more


def test_without_a_second_look_the_best_first_look_is_the_best():
    looks = Looks(measure_starts=4)
    looks.measure({0}, {1, 2}, {3})
    assert looks.decide() == (2, [])
    assert [row["confirmed"] for row in looks.learner.diagnostics] == [4, 4, 4]


def test_what_is_not_decided_yet_survives_a_checkpoint(tmp_path):
    looks = Looks(measure_starts=4, confirm_starts=8)
    looks.measure({5}, {6, 7})
    fields = [vars(candidate) for candidate in looks.learner.candidates]
    checkpoint.save(tmp_path / "rl.safetensors", fields, "key")
    looks.learner.candidates = [
        Candidate(**one) for one in checkpoint.load(tmp_path / "rl.safetensors", "key")
    ]
    assert looks.decide()[0] == 0


@pytest.mark.parametrize(("preset", "share"), [("smoke", 0.0), ("gpu", 0.25)])
def test_an_expert_that_sees_pictures_asks_a_cluster_for_a_share_of_a_gpu(
    preset, share, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    asked = {}
    monkeypatch.setattr(rl_stage, "map_tasks", lambda function, items, **given: asked.update(given))
    rl_stage.train_experts(get_preset(preset), tasks=["libero_object/0"])
    assert asked["resources"].gpus == share
    assert asked["resources"].cores == 1


# ---- tables, trials and journals of experts ------------------------------------------------------


def test_the_table_of_experts_is_collected_from_finished_runs_of_todays_settings_in_order(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    for algorithm in ("gaussian", "diffusion"):
        row = dict.fromkeys(records.COLUMNS, 0) | {
            "task": "libero_object/0",
            "algorithm": algorithm,
        }
        rows = [{**row, "mode": mode} for mode in ("stochastic", "deterministic")]
        folder = records.expert_folder(get_preset("smoke"), "libero_object/0", algorithm, 0)
        config = records.config_of(get_preset("smoke"), "libero_object/0", algorithm, 0)
        Stage(folder, "expert", config, format=records.FORMAT).finish({"rows": rows})
    other = [{**row, "seed": 1}]
    folder = records.expert_folder(get_preset("smoke"), "libero_object/0", "diffusion", 1)
    Stage(folder, "expert", {"of": "other settings"}).finish({"rows": other})
    records.collect_records(get_preset("smoke"))
    table = pd.read_csv(tmp_path / "runs" / "smoke" / "experts.csv")
    assert ",".join(table.columns) == (
        "task,algorithm,mode,seed,trials,successes,success,low,high,control_steps,minutes,"
        "clone_success"
    )
    assert list(table["algorithm"]) == ["diffusion"] * 2 + ["gaussian"] * 2
    assert list(table["mode"]) == ["deterministic", "stochastic"] * 2


def test_trials_without_a_finished_expert_are_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"no finished expert of preset smoke .* train --preset"):
        records.final_trials(get_preset("smoke"))


def test_errors_enter_no_rate():
    modes = ["deterministic", "deterministic", "stochastic", "stochastic"]
    success, error = [True, False, True, True], [False, True, False, False]
    trials = pd.DataFrame({"mode": modes, "success": success, "error": error})
    assert records.success_by_mode(trials) == {"deterministic": 1.0, "stochastic": 1.0}
    clone = {"deterministic": 0.5, "stochastic": 0.0}
    rows = records.expert_rows(("t", "diffusion", 0), trials, clone, steps=100, minutes=1.0)
    assert list(rows["trials"]) == [1, 2]
    assert list(rows["success"]) == [1.0, 1.0]
    assert list(rows["clone_success"]) == [0.5, 0.0]


def test_the_journal_appends_to_a_log_file_and_skips_what_is_not_a_number(tmp_path):
    journal = Journal(tmp_path, "run", bar=False)
    journal.phase("RL", 10, 3)
    journal.row({"success": 0.5, "sps": math.nan}, 4, ("success", "sps"))
    journal.close()
    text = (tmp_path / "train.log").read_text()
    assert "RL: 3 of 10 done" in text
    assert "success=0.5" in text
    assert "nan" not in text


def test_tensorboard_gets_every_number_of_a_phase(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, "run", bar=False, tensorboard=True)
    for phase, offset in (("clone", 0.0), ("RL", 1.0)):
        journal.phase(phase, 10)
        for done in (1, 2):
            journal.row({"success": offset + done, "sps": math.nan}, done, ("success",))
    journal.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"clone/success", "RL/success"}
    found = [(event.step, event.value) for event in board.Scalars("RL/success")]
    assert found == [(1, 2.0), (2, 3.0)]
