"""The benchmark command: its record, its table, its figures."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from diffrl import benchmark
from diffrl import policy as policies
from diffrl.base import artifacts
from diffrl.base.errors import TrainingError, UserError
from diffrl.base.scale import cores
from diffrl.benchmark import main, physics
from diffrl.benchmark.camera import psnr
from diffrl.benchmark.common import smooth_actions
from diffrl.benchmark.data import measure_data
from diffrl.benchmark.evaluation import measure_evaluation
from diffrl.benchmark.physics import compare_physics, measure_minutes, short_clone
from diffrl.benchmark.quality import measure_quality
from diffrl.benchmark.report import report, save_figures
from diffrl.benchmark.training import measure_training
from diffrl.benchmark.vla import measure_vla
from diffrl.policy.features import Layout
from diffrl.presets import CloneConfig, RLConfig, get_preset
from diffrl.rl.train import Training
from diffrl.sim.observation import observe
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import fresh_start_states


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    return tmp_path


def sample():
    """A record as `main` writes it, with easy numbers."""
    rates = {"libero": 100.0, "physics": 500.0, "ours_1": 600.0, "ours_2": 1100.0}
    spread = {f"{arm}_range": [0.9 * rate, 1.1 * rate] for arm, rate in rates.items()}
    row = rates | spread | {"ours_n": 1100.0, "threads": 2, "rounds": 3, "task": "libero_goal/0"}
    fps = {"exact": 10.0, "reduced": 40.0, "psnr_db": 34.5, "size": 128, "states": 20}
    rate = {"training": 400.0, "bare": 500.0}
    task = {"exact": 10.0, "reduced": 40.0, "psnr_db": 34.5}
    fps |= {"renderer": "software", "tasks": {"libero_goal/0": task}}
    return {
        "suites": {"libero_goal": row},
        "reset_ms": {"libero": 2000.0, "ours": 1.0},
        "start_s": {"libero": 5.0, "first": 6.0, "cached": 0.1},
        "camera_fps": fps,
        "data": {"simulating": 500.0, "writing": 20000.0, "camera": 100.0, "export": 95.0},
        "training": {"diffusion": rate, "gaussian": rate},
        "vla": {"precision": "float32", "step_s": {"smoke": 0.05}, "encoding": 90.0, "size": 128},
        "evaluation": {"libero": 8.0, "exact": 80.0, "reduced": 160.0, "workers": 2, "trials": 20},
        "machine": {"processor": "a processor", "cores": 2},
    }


def test_the_table_tells_the_ratios():
    text = report(sample())
    assert "6.0 × LIBERO" in text
    assert "120 % of bare physics" in text
    assert "34.5 dB" in text
    assert "written 40 × as fast as they are simulated" in text
    assert "95 images/s, 95% of the camera's 100" in text
    assert "gaussian 400 control steps/s, 80% of the bare simulator's 500" in text
    assert "reduced pictures 160 (20.0 ×)" in text
    assert "a step: smoke 50 ms (float32); 90 pictures/s of 128² encoded" in text


def test_the_table_compares_the_two_physics_and_tells_the_minutes():
    rates = {"libero_goal/0": {"exact": 200.0, "training": 700.0}}
    minutes = {"libero_goal/0": 4.25, "libero_goal/7": None}
    text = report(sample() | {"training_physics": rates, "minutes_to_97": minutes})
    assert "training physics 700 control steps/s, 3.5 × exact physics' 200" in text
    assert "minutes to 97 %: 4.2 min" in text
    assert "minutes to 97 %: not reached" in text


def test_a_small_vla_s_step_is_the_shorter_one_and_the_threads_are_left_as_they_were():
    threads = torch.get_num_threads()
    record = measure_vla(steps=2)
    assert 0 < record["step_s"]["smoke"] < record["step_s"]["laptop"]
    assert record["encoding"] > 0
    assert torch.get_num_threads() == threads


@pytest.mark.sim
def test_both_physics_are_timed_in_rls_own_loop():
    scene = load_scene("libero_object/0")
    starts = fresh_start_states(scene, 4, 0)
    layout = Layout.of("libero_object/0", observe(scene, starts.states, starts.fixtures))
    rl = RLConfig(copies=2, decisions=2, iterations=9, epochs=1)
    config = policies.make_config("diffusion", CloneConfig(width=16), rl)
    policy = policies.make_policy(config, layout, 0)
    policy.fit(policy.features(observe(scene, starts.states, starts.fixtures)), torch.rand(50, 7))
    rates = compare_physics(policy, scene, rl, threads=1)
    assert set(rates) == {"exact", "training"}
    assert rates["training"] > rates["exact"] > 0


def test_a_task_whose_clone_never_succeeds_has_no_minutes(home, monkeypatch):
    def fail(run):
        raise TrainingError("The clone never succeeded.")

    monkeypatch.setattr(Training, "train", fail)
    assert measure_minutes(["libero_goal/7"]) == {"minutes_to_97": {"libero_goal/7": None}}


@pytest.mark.parametrize(("confirmed", "minutes"), [(0.98, 4.25), (0.96, None)])
def test_minutes_count_where_the_target_is_confirmed(home, monkeypatch, confirmed, minutes):
    def finish(preset, task, algorithm, folder):
        run = Training(preset, task, algorithm, folder=folder)
        rows = pd.DataFrame([{"task": task, "minutes": 4.25}])
        run.stage.finish({"rows": rows.to_dict("records"), "confirmed": confirmed}, seed=0)
        return rows

    monkeypatch.setattr(physics, "train_expert", finish)
    assert measure_minutes(["libero_goal/7"]) == {"minutes_to_97": {"libero_goal/7": minutes}}


def test_the_minutes_of_an_expert_that_is_there_already_are_not_taken_for_this_machine_s(
    home, monkeypatch
):
    run = Training(get_preset("libero"), "libero_goal/7", "diffusion")
    row = {"task": "libero_goal/7", "minutes": 4.25}
    run.stage.finish({"rows": [row], "confirmed": 1.0, "threads": cores()}, seed=0)
    begun = []

    def fail(run):
        begun.append(run.folder)
        raise TrainingError("The clone never succeeded.")

    monkeypatch.setattr(Training, "train", fail)
    assert measure_minutes(["libero_goal/7"]) == {"minutes_to_97": {"libero_goal/7": None}}
    assert run.stage.done
    assert not any(folder.exists() for folder in begun)


def measured(suites, *_):
    return {
        "suites": {suite: sample()["suites"]["libero_goal"] for suite in suites},
        **{name: sample()[name] for name in ("reset_ms", "start_s")},
    }


def test_what_was_measured_before_a_ctrl_c_is_kept(home, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_simulators", measured)
    monkeypatch.setattr(benchmark, "measure_camera", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main("all")
    record = artifacts.read_json(home / "results" / "throughput.json")
    assert record["suites"]
    assert set(record["provenance"]) == {"simulator"}
    assert record["machine"]


def test_suites_and_tasks_that_are_not_measured_again_keep_their_numbers(home, monkeypatch):
    monkeypatch.setattr(benchmark, "measure_simulators", measured)
    monkeypatch.setattr(
        benchmark, "measure_minutes", lambda tasks, _: {"minutes_to_97": {tasks[0]: 1.0}}
    )
    for suite in ("libero_goal", "libero_10"):
        main("simulator", suites=(suite,))
        main("minutes", tasks=(f"{suite}/0",))
    record = artifacts.read_json(home / "results" / "throughput.json")
    assert set(record["suites"]) == {"libero_goal", "libero_10"}
    assert set(record["minutes_to_97"]) == {"libero_goal/0", "libero_10/0"}


@pytest.mark.sim
def test_a_rates_clone_need_not_succeed(tmp_path):
    preset = get_preset("laptop").with_settings({"clone.width": 16, "clone.first_measure": 3})
    run = Training(preset, "libero_goal/7", "diffusion", folder=tmp_path)
    policy = short_clone(run)
    assert all(torch.isfinite(weights).all() for weights in policy.parameters())


def test_half_a_record_has_a_table_and_figures_too(home):
    record = sample()
    del record["camera_fps"]
    assert "frames/s" not in report(record)
    save_figures(record)
    assert not (home / "runs" / "benchmark" / "figures" / "camera.pdf").exists()


def test_each_figure_comes_with_its_table_and_caption(home):
    save_figures(sample())
    for name in ("simulator", "camera"):
        files = {
            path.suffix for path in (home / "runs" / "benchmark" / "figures").glob(f"{name}.*")
        }
        assert files == {".pdf", ".png", ".csv", ".txt"}
    caption = (home / "runs" / "benchmark" / "figures" / "simulator.txt").read_text()
    assert "3 interleaved rounds" in caption
    assert "2 cores" in caption


def test_psnr_is_that_of_the_textbook():
    image = np.full((4, 4, 3), 100.0)
    assert psnr(image, image) == 100.0
    assert psnr(image, image + 1) == pytest.approx(20 * math.log10(255))


def test_the_motion_is_seeded_smooth_and_within_bounds():
    actions = smooth_actions(100, seed=1)
    assert np.array_equal(actions, smooth_actions(100, seed=1))
    assert not np.array_equal(actions, smooth_actions(100, seed=2))
    assert np.abs(actions).max() <= 1
    assert np.abs(np.diff(actions[:, :6], axis=0)).mean() < 0.5 * np.abs(actions[:, :6]).mean()


def test_what_cannot_be_measured_is_refused(home):
    with pytest.raises(UserError, match="libero_10"):
        main("simulator", suites=("libero_11",))
    with pytest.raises(UserError, match="positive"):
        main("simulator", seconds=0)


@pytest.mark.sim
@pytest.mark.slow
def test_evaluating_a_vla_is_eight_times_as_fast_as_a_loop_over_liberos_environment():
    record = measure_evaluation()
    assert record["exact"] > 8 * record["libero"]  # the loop's own pictures
    assert record["reduced"] > record["exact"]


@pytest.mark.sim
@pytest.mark.slow
def test_an_export_keeps_nine_tenths_of_the_cameras_rate_and_writing_costs_a_twentieth():
    """Must show."""
    record = measure_data()
    assert record["export"] > 0.9 * record["camera"]
    assert record["writing"] > 20 * record["simulating"]


@pytest.mark.sim
@pytest.mark.slow
def test_training_keeps_three_fifths_of_the_bare_simulators_speed():
    record = measure_training()  # an AssertionError in there: the replay was another one
    for algorithm in ("diffusion", "gaussian"):
        assert 0.6 < record[algorithm]["training"] / record[algorithm]["bare"] < 1


@pytest.mark.slow
def test_a_thousand_trajectories_are_measured_in_two_seconds():
    """Must show."""
    record = measure_quality()
    assert record["trajectories"] / record["rate"] <= 2


@pytest.mark.sim
@pytest.mark.slow
def test_a_short_run_fills_the_record_and_keeps_the_other_half(home, capsys):
    main("camera", suites=("libero_goal",), states=1)
    main("simulator", suites=("libero_goal",), seconds=0.1, rounds=1)
    record = artifacts.read_json(home / "results" / "throughput.json")
    row = record["suites"]["libero_goal"]
    assert row["ours_1"] > row["libero"] > 0
    assert row["ours_n"] == row[f"ours_{row['threads']}"]
    assert record["reset_ms"]["ours"] < record["reset_ms"]["libero"]
    assert record["start_s"]["cached"] < record["start_s"]["first"]
    assert record["camera_fps"]["reduced"] > record["camera_fps"]["exact"] > 0
    assert record["camera_fps"]["psnr_db"] >= 30
    assert record["camera_fps"]["states"] == 2
    assert "× LIBERO" in capsys.readouterr().out
