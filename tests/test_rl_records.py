"""Tables, trials and journals of experts."""

import math

import pandas as pd
import pytest

from diffrl.base.artifacts import Stage
from diffrl.presets import get_preset
from diffrl.rl import records
from diffrl.rl.journal import Journal

pytestmark = pytest.mark.usefixtures("one_torch_thread")


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
