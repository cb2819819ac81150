"""Controlled experiments: one setting changed at a time, several tasks and seeds.

    python -m diffrl experiment seeds|ablations|factorial

A run is (arm, task, seed): a clone, RL for a fixed number of iterations, then the official start
states in both modes, with every measure of quality on the successes. An arm that several
experiments share is run once. `results/<preset>/experiments.csv` has a row per run and mode; its
`clone_success` is the held-out success at which cloning stopped, deterministic, in both.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from diffrl import figures
from diffrl.artifacts import Stage, results_dir, write_csv
from diffrl.presets import Preset, QualityConfig, get_preset
from diffrl.quality import Trajectory, measure
from diffrl.quality.report import MEASURES
from diffrl.rl import records
from diffrl.rl.rollout import Trial
from diffrl.rl.train import Algorithm, Training
from diffrl.scale import cores, map_tasks
from diffrl.sim.tasks import get_task
from diffrl.statistics import holm, mean_interval, sign_flip_test

BUDGET = {  # of every run: about 150 000 control steps, no early stop
    "rl.iterations": 15,
    "rl.measure_every": 3,
    "rl.measure_starts": 24,
    "rl.target_success": None,
    "rl.confirm_starts": 0,
}
FADE = {"clone.horizon": 12, "rl.cross_fade": 4}
WHITE = {"rl.noise_correlation": 0.0}
PAPER = (  # what the preset `paper` sets otherwise than ours: DPPO's public code, the paper
    *("prediction", "spacing", "sigma_floor", "noise_correlation", "gamma_denoising", "clip"),
    *("clip_first", "critic_warmup", "actor_learning_rate", "annealing", "minibatch", "warmup"),
    "noise_start",
)
COLUMNS = ["arm", "preset", *records.COLUMNS, "steps_to_90", "auc", *MEASURES]
GOOD = 0.9  # success whose first measurement gives `steps_to_90`


@dataclass(frozen=True)
class Arm:
    """One way to train: an algorithm, and the settings that it changes in the preset."""

    name: str
    algorithm: Algorithm = "diffusion"
    changes: tuple[tuple[str, Any], ...] = ()

    def preset(self, base: Preset) -> Preset:
        """Return `base` with the budget and this arm's settings, the same for every task."""
        settings = BUDGET | dict(self.changes)
        return dataclasses.replace(base, own=()).with_settings(settings)


def _arm(name: str, algorithm: Algorithm = "diffusion", **changes) -> Arm:
    return Arm(name, algorithm, tuple(changes.items()))


@dataclass(frozen=True)
class Experiment:
    """Arms that are run on each task with each seed; the first arm is what the others change."""

    arms: tuple[Arm, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


# Tasks whose clones leave RL room, one of another suite; libero_goal/0's clone leaves none.
_THREE = ("libero_object/0", "libero_object/3", "libero_spatial/0")
_FACTORIAL = tuple(
    _arm(algorithm + noise + fade, algorithm, **noise_changes, **fade_changes)
    for algorithm in ("diffusion", "gaussian")
    for noise, noise_changes in (("", {}), (" white", WHITE))
    for fade, fade_changes in (("", {}), (" fade", FADE))
)
_DEMONSTRATIONS = {
    f"{count} demonstrations": {"demonstrations.count": count, "demonstrations.counts": ()}
    for count in (5, 10, 20, 50)
}
_ABLATIONS = {
    "DDPM": {  # as many decisions in a minibatch, so as many updates
        **{"rl.training_steps": 20, "rl.sampling_steps": 20, "rl.finetuned_steps": 10},
        "rl.minibatch": 6000,
    },
    "epsilon": {"rl.prediction": "epsilon"},
    "leading": {"rl.spacing": "leading"},
    "paper's settings": {f"rl.{name}": getattr(get_preset("paper").rl, name) for name in PAPER},
    "annealed": {"rl.annealing": "cosine"},
    "synchronous": {"rl.staggered": False},
    "U-Net": {"clone.network": "unet"},
    "chunk 4": {  # the same discounts per control step, and as many updates
        **{"clone.horizon": 4, "clone.chunk": 4, "rl.decisions": 48, "rl.minibatch": 3000},
        **{"rl.gamma": 0.99**0.5, "rl.gae_lambda": 0.95**0.5},
    },
    "floor 0.05": {"rl.noise_start": 1.0},  # held, where the base falls from one to the other
    "floor 0.1": {"rl.noise_start": 1.0, "rl.sigma_floor": 0.1},
    "white": WHITE,
    "fade": FADE,
} | _DEMONSTRATIONS

POLICY_CLASS = tuple(  # the factorial's question, once for each noise and hand-over
    (arm.name, arm.name.replace("gaussian", "diffusion"))
    for arm in _FACTORIAL
    if arm.algorithm == "gaussian"
)

EXPERIMENTS = {
    "seeds": Experiment((_arm("diffusion"), _arm("gaussian", "gaussian")), _THREE),
    "ablations": Experiment(
        (
            _arm("diffusion"),
            *(_arm(f"diffusion {name}", **changes) for name, changes in _ABLATIONS.items()),
        ),
        _THREE[:1],
    ),
    "factorial": Experiment(_FACTORIAL, _THREE),
}


def run_experiment(name: str, preset: str = "laptop", workers: int | None = None) -> pd.DataFrame:
    """Run what is not there yet; return the rows of this experiment.

    Args:
        name: "seeds", "ablations" or "factorial".
        preset: whose settings the arms change.
        workers: processes; default: one per core.
    """
    chosen = EXPERIMENTS[name]
    items = [
        (arm, task, seed) for seed in chosen.seeds for task in chosen.tasks for arm in chosen.arms
    ]
    names = [f"{arm.name}, {task}, seed {seed}" for arm, task, seed in items]
    workers = min(workers or cores(), len(items))
    function = functools.partial(_run, preset=preset, threads=max(1, cores() // workers))
    rows = map_tasks(function, items, names=names, workers=workers, description=name)
    collect(preset)
    return pd.DataFrame([row for part in rows for row in part], columns=COLUMNS)


def run_folder(arm: Arm, task: str, seed: int, preset: str) -> Path:
    """Return where one run lies."""
    name = arm.name.replace("'", "").replace(" ", "-").lower()
    place = results_dir(preset) / "experiments" / name
    return place / f"{get_task(task).id.replace('/', '-')}-seed{seed}"


def collect(preset: str) -> pd.DataFrame:
    """Write ``experiments.csv`` from all finished runs, and return it."""
    markers = (results_dir(preset) / "experiments").glob("*/*/run.done.json")
    rows = [row for m in sorted(markers) for row in Stage(m.parent, "run", None).records["rows"]]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_csv(results_dir(preset) / "experiments.csv", table)
    return table


def finished_runs(preset: str, name: str) -> pd.DataFrame:
    """Return the rows of ``experiments.csv`` that belong to the experiment `name`; maybe none."""
    path, chosen = results_dir(preset) / "experiments.csv", EXPERIMENTS[name]
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    arms = [arm.name for arm in chosen.arms]
    return table[table["arm"].isin(arms) & table["task"].isin(chosen.tasks)]


def _run(item: tuple[Arm, str, int], preset: str, threads: int) -> list[dict]:
    """One run: training, if it is not there, and the measures of its trajectories."""
    arm, task, seed = item
    settings, folder = arm.preset(get_preset(preset)), run_folder(arm, task, seed, preset)
    run = Training(task, arm.algorithm, settings, seed, threads, folder)
    stage = Stage(folder, "run", run.config | {"quality": settings.quality})
    if stage.done:
        return stage.records["rows"]
    policy, learner, minutes = run.train()
    trials = run.evaluate(policy, record=True)
    clone = _clone_success(folder)
    speed = learning_speed(pd.read_csv(folder / "diagnostics.csv"), clone)
    names, clones = (task, arm.algorithm, seed), dict.fromkeys(records.MODES, clone)
    table = records.trial_table(trials)
    expert = records.expert_rows(names, table, clones, learner.control_steps, minutes)
    rows = []
    for row in expert.to_dict("records"):
        played = [trial for trial in trials if trial.mode == row["mode"]]
        means = dict.fromkeys(MEASURES, np.nan) | mean_quality(played, settings.quality)
        rows.append({"arm": arm.name, "preset": preset} | row | speed | means)
    stage.finish({"rows": rows}, seed=seed)
    run.close()
    return stage.records["rows"]


def mean_quality(trials: Sequence[Trial], config: QualityConfig) -> dict[str, float]:
    """Return each measure's mean over the successes of recorded trials; {} with less than two."""
    paths = [Trajectory.from_episode(trial.episode) for trial in trials if trial.success]
    if len(paths) < 2:
        return {}
    return measure(paths, config).groupby("measure")["value"].mean().to_dict()


def learning_speed(diagnostics: pd.DataFrame, clone: float) -> dict[str, float]:
    """Steps to 90 % and the area under the curve, from deterministic held-out measurements.

    `steps_to_90`: control steps at the first measurement of 90 % or more, infinite without one.
    `auc`: mean success over the control steps from the clone to the last measurement, linear
    between measurements.
    """
    steps, success = _measurements(diagnostics, clone)
    reached = steps[success >= GOOD]
    area = np.sum((success[1:] + success[:-1]) / 2 * np.diff(steps)) / steps[-1]
    return {"steps_to_90": reached[0] if len(reached) else np.inf, "auc": float(area)}


def _measurements(diagnostics: pd.DataFrame, clone: float) -> tuple[np.ndarray, np.ndarray]:
    """Control steps and held-out success of each measurement, the clone's first."""
    measured = diagnostics[diagnostics["measured"] > 0]
    steps, success = measured["control_steps"], measured["measured_success"]
    return np.array([0.0, *steps]), np.array([clone, *success])


def learning_curves(preset: str, name: str = "seeds") -> pd.DataFrame:
    """Return the mean over seeds at each held-out measurement, of the finished runs.

    Rows (task, arm, source, mode, steps, value, low, high, n), for `figures.learning_curves`: steps
    is the mean of the seeds', the interval Student's t, cut to [0, 1] and NaN for a single seed.
    """
    chosen, rows = EXPERIMENTS[name], []
    for task, arm in itertools.product(chosen.tasks, chosen.arms):
        folders = [run_folder(arm, task, seed, preset) for seed in chosen.seeds]
        found = [
            _measurements(pd.read_csv(folder / "diagnostics.csv"), _clone_success(folder))
            for folder in folders
            if (folder / "run.done.json").exists()
        ]
        if not found:
            continue
        steps, success = (np.array(part) for part in zip(*found))
        mean, low, high = mean_interval(success)
        for point in zip(steps.mean(0), mean, np.maximum(low, 0), np.minimum(high, 1)):
            rows.append((task, arm.name, arm.algorithm, "deterministic", *point, len(found)))
    columns = ["task", "arm", "source", "mode", "steps", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _clone_success(folder: Path) -> float:
    return float(pd.read_csv(folder / "clone.csv")["success"].iloc[-1])


def effects(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], measures: Sequence[str]
) -> pd.DataFrame:
    """Return what the second arm of each pair changes against the first.

    Paired by task, seed and mode; the interval is Student's t over the n pairs of runs, `p_holm`
    corrects the sign-flip tests over the whole table. Rows (base, arm, mode, measure, difference,
    low, high, p, n, p_holm); a run without a value (no success to measure) is left out.
    """
    keys = ["task", "seed", "mode"]
    values = table.set_index(["arm", *keys])[list(measures)]
    rows = []
    for base, arm in pairs:
        if not {base, arm} <= set(table["arm"]):
            continue
        change = values.loc[arm] - values.loc[base]
        for mode, group in change.groupby("mode", sort=False):
            for name in measures:
                found = group[name].dropna().to_numpy()
                # learning speed is of deterministic measurements, and counts once
                again = name in ("auc", "steps_to_90") and mode != records.MODES[0]
                if len(found) > 1 and not again:
                    interval, p = mean_interval(found), sign_flip_test(found)
                    rows.append((base, arm, mode, name, *interval, p, len(found)))
    columns = ["base", "arm", "mode", "measure", "difference", "low", "high", "p", "n"]
    effect = pd.DataFrame(rows, columns=columns)
    return effect.assign(p_holm=holm(effect["p"]))


def main(
    name: Literal["seeds", "ablations", "factorial"],
    /,
    preset: str = "laptop",
    workers: int | None = None,
) -> None:
    """Train the arms of an experiment, several seeds each; what is finished is found.

    Args:
        name: of the experiment.
        preset: whose settings the arms change.
        workers: processes; default: one per core.
    """
    table = run_experiment(name, preset, workers)
    shown = ["arm", "mode", "success", "steps_to_90", "auc", "jerk_rms"]
    means = table[shown].groupby(["arm", "mode"], sort=False).mean(numeric_only=True)
    print(means.round(3).to_string())
    chosen = EXPERIMENTS[name]
    caption = (
        f"Experiment {name}, preset {preset}: deterministic policies on LIBERO's official start "
        f"states, {len(chosen.tasks)} tasks ({', '.join(chosen.tasks)}) and {len(chosen.seeds)} "
        "training seeds an arm; a dot is a run, the mark the mean with Student's t interval (95 %)."
    )
    figures.save_figure(figures.arm_comparison(table), preset, f"experiment_{name}", table, caption)
    print(f"Every run: {results_dir(preset) / 'experiments.csv'}.")
