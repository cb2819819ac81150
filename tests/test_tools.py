"""The tools that make records: run on a tiny configuration."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffrl import evidence, presets
from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import Stage, lock, results_dir, runs_dir, write_csv
from diffrl.base.errors import TrainingError
from diffrl.base.heartbeat import heartbeat
from diffrl.evaluation import scores
from diffrl.evaluation import stage as evaluation_stage
from diffrl.presets import (
    ALGORITHMS,
    CloneConfig,
    OperatorConfig,
    Preset,
    RLConfig,
    get_preset,
)
from diffrl.rl.records import COLUMNS, expert_folder
from diffrl.sim.scene import load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states

ROOT = Path(__file__).parents[1]


def load_tool(name):
    path = ROOT / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    return tool


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_what_a_tool_imports_of_the_package_is_there(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")  # some import each other
    if name != "check_lerobot":  # it runs in LeRobot's own environment
        load_tool(name)


@pytest.mark.sim
def test_experts_of_both_physics_are_judged_alike_and_finished_runs_are_found(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    tool = load_tool("compare_physics")
    rl = RLConfig(
        **{"copies": 4, "decisions": 2, "iterations": 2, "epochs": 1},
        **{"measure_every": 2, "measure_starts": 1, "evaluation_starts": 1},
    )
    clone = CloneConfig(width=32, steps=20, first_measure=20, measure_starts=1)
    # twenty steps clone nothing, and a clone that never succeeds is not trained
    monkeypatch.setattr("diffrl.rl.bc.success_rate", lambda trials: 1.0)
    tiny = Preset(
        name="tiny",
        tasks=("libero_goal/7",),
        demonstrations=OperatorConfig(count=1),
        clone=clone,
        rl=rl,
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    monkeypatch.setattr(tool, "STARTS", 2)
    options = {"tasks": ("libero_goal/7",), "algorithms": ("gaussian",), "seeds": (1,)}
    anew, train = [], tool.train_expert

    def spy(*names, **settings):
        anew.append(settings["force"])
        return train(*names, **settings)

    monkeypatch.setattr(tool, "train_expert", spy)
    tool.main(**options, preset="tiny", workers=1)
    assert anew == [False, False]  # what a kill left would go on
    path = tmp_path / "results" / "training_physics.csv"
    table = pd.read_csv(path)
    assert list(table.columns) == tool.COLUMNS
    assert table["physics"].tolist() == ["exact", "training"]
    assert (table["trials"] == 2).all()
    np.testing.assert_allclose(table["success"], table["successes"] / 2)
    assert (table["control_steps"] > 0).all()
    monkeypatch.setattr(tool, "judged", lambda *_: pytest.fail("it was there"))
    tool.main(**options, preset="tiny", workers=1)
    pd.testing.assert_frame_equal(pd.read_csv(path), table)
    evidence.pack(runs_dir("tiny"), results_dir("tiny"))
    shutil.rmtree(runs_dir("tiny"))
    path.unlink()
    tool.main(**options, preset="tiny", workers=1)  # a clone of git goes on where the run was
    pd.testing.assert_frame_equal(pd.read_csv(path), table)
    evidence.pack(runs_dir("tiny"), results_dir("tiny"))  # and nothing of it is lost
    next((runs_dir("tiny") / "physics").glob("*/physics.done.json")).unlink()
    monkeypatch.setattr(tool, "judged", lambda *_: {})
    tool.main(**options, preset="tiny", workers=1)
    assert anew[2:] == [True]  # its weights are nowhere


@pytest.mark.sim
def test_a_scan_of_demonstrations_adds_to_the_table_that_git_keeps(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    tool = load_tool("count_demonstrations")
    clone = CloneConfig(width=32, first_measure=20)
    tiny = Preset(name="tiny", tasks=("libero_goal/7",), clone=clone)
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    monkeypatch.setattr(tool, "STARTS", 1)
    table = runs_dir("tiny") / "clones.csv"
    earlier = ["libero_goal/7,1,0.5,0.25,24", "libero_object/0,3,0.5,0.25,24"]
    table.write_text("\n".join(["task,demonstrations,diffusion,gaussian,starts", *earlier, ""]))
    evidence.pack(runs_dir("tiny"), results_dir("tiny"))
    shutil.rmtree(runs_dir("tiny"))
    tool.main(preset="tiny", counts=(1,), workers=1)  # in place of the earlier scan of the same
    scans = pd.read_csv(table)
    assert scans["task"].tolist() == ["libero_goal/7", "libero_object/0"]
    assert scans["starts"].tolist() == [1, 24]
    assert set(scans.loc[0, ["diffusion", "gaussian"]]) <= {0.0, 1.0}


@pytest.mark.sim
def test_a_touch_is_found_when_the_hand_comes_down_on_a_frozen_thing(tmp_path):
    tool = load_tool("training_physics_touches")
    scene = load_scene("libero_object/0")
    with Simulator(scene, 2, physics="training", max_steps=200) as simulator:
        simulator.reset(fresh_start_states(scene, 2, seed=3))
        copies = simulator._copies
        touches = [tool.Touches(moving) for moving in copies]
        assert not any(touch.new() for touch in touches)
        frozen = [copies[0].face.model.body(body).name for body in copies[0].face.placed]
        places = simulator.observation.object_pos[0]
        names = [f"{name}_main" for name in scene.object_names]
        target = places[names.index(next(name for name in frozen if name in names))]
        for _ in range(120):  # copy 0 goes there and down, copy 1 stays
            away = target - simulator.observation.eef_pos[0] + [0, 0, -0.02]
            actions = np.zeros((2, 7))
            actions[0, :3], actions[0, 6] = np.clip(away / 0.05, -1, 1), -1
            actions[1, 6] = -1
            simulator.step(actions)
            if touches[0].new():
                break
        assert any("gripper0" in pair for pair in touches[0].new())
        assert not touches[1].new()


def test_a_row_that_another_call_adds_during_a_try_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool, path = load_tool("tune_vla"), tmp_path / "runs" / "smoke" / "vla_tuning.csv"

    def attempt(name, preset, seed, trials, workers):
        write_csv(path, pd.DataFrame([{"try": "width-", "seed": 0, "success": 0.5}]))
        return {"try": name, "seed": seed, "success": 0.4}

    monkeypatch.setattr(tool, "attempt", attempt)
    tool.main(("base",), preset="smoke")
    assert pd.read_csv(path)["try"].tolist() == ["width-", "base"]


def test_two_calls_that_add_rows_at_once_wait_for_each_other(tmp_path):
    tool, path = load_tool("tune"), tmp_path / "tuning.csv"
    tool.add_rows(path, [{"try": "base"}])
    handle = lock(tmp_path / ".tuning.csv.lock", None)  # as if another call were writing
    late = threading.Thread(target=tool.add_rows, args=(path, [{"try": "rate+"}]))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    write_csv(path, pd.DataFrame({"try": ["base", "clip+"]}))
    os.close(handle)
    late.join()
    assert pd.read_csv(path)["try"].tolist() == ["base", "clip+", "rate+"]


def test_a_kit_replaces_an_older_kit_and_no_other_folder(tmp_path, monkeypatch):
    tool = load_tool("gpu_check")

    def stop(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(tool.shutil, "copytree", stop)
    (tmp_path / "check.json").write_text("{}")  # somebody's
    with pytest.raises(SystemExit, match="no whole kit: name a new folder"):
        tool.pack(tmp_path)
    assert (tmp_path / "check.json").exists()
    (tmp_path / "gpu_check.py").touch()
    with pytest.raises(InterruptedError):
        tool.pack(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.slow
def test_the_gpu_check_passes_on_the_cpu_and_records_every_part(tmp_path):
    tool, out = Path(__file__).parents[1] / "tools" / "gpu_check.py", tmp_path / "gpu.json"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(tool), "run", "--tiny", "--out", str(out)]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["machine"]["name"]
    assert record["machine"]["gpu"] is None
    assert record["simulator"]["exact_steps_per_second"] > 0
    assert record["pictures"]["pictures_per_second"] > 0
    assert not record["pictures"]["torch_in_workers"]
    assert 12.0e6 <= record["expert"]["parameters"] <= 12.4e6  # the paper's "about 12 M"
    assert record["expert"]["samples_per_second"] > 0
    assert record["rl"]["control_steps"] > 0
    assert record["rl"]["measured"] == 1
    for vision in ("efficientnet", "conv"):
        assert record["vla"][vision]["training_samples_per_second"] > 0


@pytest.mark.slow
def test_the_gpu_kit_runs_without_libero_and_is_small(tmp_path):
    tool, kit = Path(__file__).parents[1] / "tools" / "gpu_check.py", tmp_path / "kit"
    command = [sys.executable, str(tool), "pack", "--folder", str(kit), "--no-wheels"]
    subprocess.run(command, check=True, capture_output=True)
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    assert size < 25e6  # the wheels are 34 MB: 60 MB may travel
    blind = (  # LIBERO and robosuite cannot be imported, nor their wheels be found
        "import sys, os; sys.path.insert(0, '.'); import gpu_check, json;"
        "sys.modules['libero'] = sys.modules['robosuite'] = None;"
        "os.environ['DIFFRL_CACHE'] = 'cache';"
        "os.environ['DIFFRL_INSTALLED'] = json.load(open('check.json'))['key'];"
        "print(gpu_check.pictures(gpu_check.plan(1, True)));"
        "print(gpu_check.simulator(gpu_check.plan(1, True)));"
        "assert '/kit/' in sys.modules['diffrl'].__file__"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", blind], cwd=kit, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_expert_that_looks_is_recorded_with_what_it_sees():
    tool, preset = load_tool("pixel_experts"), get_preset("pixels")
    row = dict.fromkeys(COLUMNS, 0) | {"task": "libero_object/0", "algorithm": "diffusion"}
    table = tool.with_eyes(pd.DataFrame([row, row | {"algorithm": "gaussian"}]), preset)
    assert list(table.columns) == [*COLUMNS, "encoder", "network", "picture_detail"]
    assert table["encoder"].tolist() == ["frozen", "frozen"]
    assert table["network"].tolist() == [preset.clone.network, "mlp"]
    assert table["picture_detail"].tolist() == ["reduced", "reduced"]
    both = preset.with_settings({"clone.wrist": True, "clone.network": "unet"})
    seen = tool.with_eyes(pd.DataFrame([row]), both).iloc[0]
    assert (seen["encoder"], seen["network"]) == ("frozen+wrist", "unet")


def test_a_task_that_neither_class_learned_is_tried_once_more_with_both():
    tool = load_tool("tasks_to_retry")
    success = {
        "libero_goal/0": {"diffusion": 0.85, "gaussian": 0.4},
        "libero_goal/1": {"diffusion": 0.95, "gaussian": 0.4},  # one class learned it: it can be
        "libero_goal/2": {"gaussian": 0.99},  # the diffusion's clone never succeeded
        "libero_goal/3": {"diffusion": 0.2, "gaussian": 0.1},
    }
    assert tool.to_retry(success, tried={"libero_goal/3"}) == ["libero_goal/0", "libero_goal/2"]


def test_the_records_of_a_task_s_first_experts_are_kept_when_it_is_tried_again(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    tool = load_tool("tasks_to_retry")
    preset = get_preset("libero", ("libero_goal",))
    experts = []
    for seed in (0, 1):
        folder = expert_folder(preset, "libero_goal/4", "gaussian", seed)
        folder.mkdir(parents=True)
        for name in tool.KEPT:
            (folder / name).write_text(f"{name} of seed {seed}")
        Stage(folder, "expert", {}).finish({"rows": [{"task": "libero_goal/4", "seed": seed}]})
        experts.append(("libero_goal/4", "gaussian", seed, folder))
    monkeypatch.setattr(tool, "finished_experts", lambda preset: experts)
    tool.keep(preset, "libero_goal/4")
    (kept,) = (tmp_path / "runs/libero/tried").iterdir()
    assert kept.name == "libero_goal-4-first-gaussian"
    assert [(kept / name).read_text() for name in tool.KEPT] == [
        f"{n} of seed 0" for n in tool.KEPT
    ]
    assert pd.read_csv(kept / "expert.csv")[["task", "seed"]].to_numpy().tolist() == [
        ["libero_goal/4", 0]
    ]


def test_a_task_is_judged_once_both_its_classes_have_been_trained_or_have_failed(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    tool = load_tool("tasks_to_retry")
    preset = get_preset("libero", ("libero_goal",))
    trained = {"diffusion": 0.95, "gaussian": 0.4}
    half = {"diffusion": 0.2}
    found = {"libero_goal/0": trained, "libero_goal/1": half, "libero_goal/2": half}
    monkeypatch.setattr(tool, "held_out", lambda preset: found)
    for index, ending in ((1, OSError), (2, TrainingError), (3, TrainingError)):  # 1: a full disk
        folder = expert_folder(preset, f"libero_goal/{index}", "gaussian", 0)
        with contextlib.suppress(ending), heartbeat(folder, "expert"):
            raise ending("The clone never succeeded.")
    assert tool.judged(preset) == {"libero_goal/0": trained, "libero_goal/2": half}
    assert tool.to_retry(tool.judged(preset), tried=set()) == ["libero_goal/2"]


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("a.csv", "task,x\nt,1\n", "task,x,more\nt,1,5\n", []),
        ("a.csv", "task,x\nt,1\n", "task,x\nt,2\n", ["x: other values in 1 of 1 rows"]),
        ("a.csv", "task,x\nt,1\nu,3\n", "task,x\nt,1\n", ["1 of 2 rows are not kept"]),
        ("a.json", '{"n": [1, NaN]}', '{"n": [1, NaN], "unpacked": true}', []),
        ("a.json", '{"n": [1, 2]}', '{"n": [1, 3]}', ["/n/1: 2 is now 3"]),
        ("a.bin", "12", "13", ["other bytes"]),
        ("a.bin", "12", None, ["is not kept"]),
    ],
)
def test_every_value_of_an_older_record_is_looked_for_in_todays(tmp_path, name, old, new, told):
    path = tmp_path / name
    if new is not None:
        path.write_text(new)
    tool = load_tool("compare_old_results")
    assert list(tool.differences(name, old.encode(), path)) == told


# ---- the headline numbers, computed a second time without the package ----------------------------


def run(root: Path, preset: str = "laptop") -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "tools" / "second_path.py"), preset]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_second_path_from_the_trials_gives_the_published_numbers():
    done = run(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") > 150


def test_the_second_path_notices_a_number_that_the_trials_do_not_give(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "second_path.py", tmp_path / "tools")
    shutil.copytree(ROOT / "results" / "laptop", tmp_path / "results" / "laptop")
    file = tmp_path / "results" / "laptop" / "effects.csv"
    table = pd.read_csv(file)
    table.loc[0, "points"] += 0.1
    table.to_csv(file, index=False)
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("DIFFERENT") == 1


def test_the_second_path_takes_several_suites_unequal_arms_and_the_ladder(tmp_path):
    rng = np.random.default_rng(0)
    arms = [("operator", "recorded", 2, 6), ("steady", "recorded", 1, 3)]
    arms += [(s, m, 1 + (m[0] == "d"), 4) for s in ALGORITHMS for m in POLICY_MODES]
    arms += [(f"{s}_clone", "deterministic", 1, 3) for s in ALGORITHMS]
    arms += [("diffusion_zero", "deterministic", 1, 3)]
    rows = [
        [suite, f"{suite}/{task}", source, mode, seed, f"official/{i}", 0, rng.integers(2), 9, 1.0]
        for source, mode, seeds, count in arms
        for suite in ("libero_goal", "libero_spatial")
        for task in range(4)
        for seed in range(seeds)
        for i in range(count)
    ]
    trials = pd.DataFrame(rows, columns=evaluation_stage.COLUMNS)
    trials["status"] = trials["status"].map(["failure", "success"].__getitem__)
    folder = tmp_path / "results" / "libero"
    folder.mkdir(parents=True)
    suites = ("libero_goal", "libero_spatial")
    scores.with_means(trials, suites).to_csv(folder / "evaluation.csv", index=False)
    parts = [trials, scores.pooled(trials)]
    pd.concat(map(scores.effects, parts)).to_csv(folder / "effects.csv", index=False)
    seeds = {"libero_goal/0": (0, 1, 2), "libero_goal/1": (0,)}  # of the experts
    runs = [(task, seed) for task, own in seeds.items() for seed in own]
    places = [f"{task.replace('/', '-')}/diffusion-seed{seed}/" for task, seed in runs]
    tried = [(place, i < 5 + seed) for place, (_, seed) in zip(places, runs) for i in range(9)]
    won = pd.DataFrame(tried, columns=["run", "success"])
    won = won.assign(mode="deterministic", policy="expert", error=False)
    mean = won.groupby("run", sort=False)["success"].mean().to_numpy()
    about = pd.DataFrame(runs, columns=["task", "seed"]).assign(algorithm="diffusion")
    experts = about.assign(mode="deterministic", success=mean)
    experts.to_csv(folder / "experts.csv", index=False)
    with zipfile.ZipFile(folder / "records.zip", "w") as records:  # a large table lies in there
        records.writestr("vla_trials.csv", trials.to_csv(index=False))
        records.writestr("experts_trials.csv", won.to_csv(index=False))
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "second_path.py", tmp_path / "tools")
    done = run(tmp_path, "libero")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean_suites, VLA of" in done.stdout
    for name in scores.CONTRASTS | scores.LADDER:
        assert done.stdout.count(f"mean_tasks, {name}:") == 4


def test_the_rate_of_experts_is_that_of_the_trials_that_its_interval_is_of():
    """Seeds 1 and 2 of some tasks: a mean of tasks would lie outside the interval of all trials."""
    rows = [("a", seed, 50) for seed in range(3)] + [("b", seed, 50) for seed in range(3)]
    rows += [("c", 0, 20), ("d", 0, 20)]
    table = pd.DataFrame(rows, columns=["task", "seed", "successes"]).assign(trials=50)
    table["success"] = table["successes"] / table["trials"]
    rest = {"clone_success": 0.5, "control_steps": 1000, "minutes": 1.0}
    table = table.assign(algorithm="diffusion", mode="deterministic", **rest)
    assert "| 85 % [81, 88] | 400 |" in load_tool("results_table").experts(table)


def test_classes_of_experts_stand_side_by_side_on_the_seeds_that_both_have():
    rows = [("a", "diffusion", 0, 50), ("a", "diffusion", 1, 10), ("a", "gaussian", 0, 40)]
    table = pd.DataFrame(rows, columns=["task", "algorithm", "seed", "successes"]).assign(trials=50)
    rest = {"clone_success": 0.5, "control_steps": 1000, "minutes": 1.0}
    table = table.assign(mode="deterministic", **rest)
    page = load_tool("results_table").experts
    whole, told, shared = page(table).split("\n\n")
    assert "| diffusion | deterministic | 1 | 2 | 50 % | 60 %" in whole
    assert "| diffusion | deterministic | 1 | 1 | 50 % | 100 %" in shared
    assert whole.splitlines()[-1] == shared.splitlines()[-1]  # the Gaussian's
    assert "tasks or training seeds" in told
    assert "\n\n" not in page(table[table["seed"] == 0])


def test_the_page_of_results_says_where_rows_are_of_other_trials_or_tasks():
    page = load_tool("results_table")
    rates = pd.read_csv(ROOT / "results" / "laptop" / "evaluation.csv")
    assert page.UNEQUAL not in page.evaluation(rates)
    few = rates.assign(trials=rates["trials"].where(rates["source"] != "operator", 20))
    assert page.evaluation(few).endswith(page.UNEQUAL)
    absent = rates.assign(trials=rates["trials"].where(rates["source"] != "operator", 0))
    assert page.UNEQUAL not in page.evaluation(absent)
    means = pd.read_csv(ROOT / "results" / "laptop" / "quality.csv")
    assert page.UNLIKE not in page.quality(means)
    lacking = (means["source"] == "diffusion") & (means["task"] == "libero_goal/0")
    assert page.quality(means[~lacking]).endswith(page.UNLIKE)


def test_the_second_path_uses_nothing_of_the_package():
    assert "diffrl." not in (ROOT / "tools" / "second_path.py").read_text()


def test_the_page_on_clusters_says_how_efficient_two_nodes_are():
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "results" / "ray_efficiency.csv").set_index("what")
    ray, local = table.loc["Ray nodes"], table.loc["local processes"]
    assert ray["efficiency"] == pytest.approx(ray["seconds_one"] / 2 / ray["seconds_two"], abs=1e-3)
    page = " ".join((root / "docs" / "run-on-a-cluster.md").read_text(encoding="utf-8").split())
    times = "in {seconds_two:.1f} s that one does in {seconds_one:.1f} s".format(**ray)
    rates = f"{ray['efficiency']:.2f}".lstrip("0"), f"{local['efficiency']:.2f}".lstrip("0")
    assert times in page
    assert "an efficiency of {}, where two local processes reach {}".format(*rates) in page
