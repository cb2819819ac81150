"""Controlled experiments: one setting changed at a time, several tasks and seeds.

    python -m diffrl experiment seeds|ablations|factorial|rates|epsilon|covariance|tail

A run is (variant, task, seed): a clone, RL for a fixed number of control steps, then the official
start states in both modes, with every measure of quality on the successes. A variant that several
experiments share is run once. `runs/<preset>/experiments.csv` has a row per run and mode (its
column `arm` names the variant). Beside it each run keeps its trials with their measures, those of
its clone among them (`trials.csv`), and its deterministic measurements on held-out start states
(`curve.csv`), whose first, the clone's, is `clone_success` in both rows.
"""

import dataclasses
import functools
import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import (
    Stage,
    alone,
    runs_dir,
    without_stale,
    write_csv,
    write_json,
)
from diffrl.base.errors import TrainingError, UserError
from diffrl.base.intervals import holm, mean_interval, sign_flip_test
from diffrl.base.scale import map_tasks, shares
from diffrl.presets import ALGORITHMS, Algorithm, Physics, Preset, QualityConfig, get_preset
from diffrl.quality import Trajectory, boundary_share, measure
from diffrl.quality.report import MEASURES
from diffrl.quality.smoothness import trajectory_measures
from diffrl.rl import records
from diffrl.rl.rollout import Rollout, success_rate
from diffrl.rl.train import Training
from diffrl.sim.tasks import get_task

BUDGET = {  # of every run: about 150 000 control steps, no early stop
    "rl.iterations": 15,
    "rl.measure_every": 3,
    "rl.measure_starts": 24,
    "rl.target_success": None,
    "rl.confirm_starts": 0,
}
FADE: dict[str, Any] = {"clone.horizon": 12, "rl.cross_fade": 4}
TAIL = FADE | {"rl.observe_tail": True}
WHITE: dict[str, Any] = {"rl.noise_correlation": 0.0}
PAPER = (  # of the preset `paper`: DPPO's defaults, as far as they fit here. Different, with
    # DPPO's value first: 10 000 pairs a minibatch (1500: an iteration here holds fewer), target_kl
    # 1 (.1), γ .999 for manipulation (.99), running reward scaling (none), the log-probability's
    # clamp (none), weights averaged every 10 steps (each), 300 to 400 decisions an iteration (24)
    *("prediction", "spacing", "sigma_floor", "noise_correlation", "gamma_denoising", "clip"),
    *("clip_first", "critic_warmup", "actor_learning_rate", "annealing", "warmup", "noise_start"),
)
LEARNING = ("auc", "steps_to_90", "jerk_clone", "jerk_at_90", "jerk_kept")  # of `curve.csv`
SUCCESS = ("clone_success", "success", "auc")
TRAINING = ("training_first", "training_last")  # of `diagnostics.csv`
COLUMNS = ["arm", "preset", *records.COLUMNS, *LEARNING, *MEASURES, "note", *TRAINING]
ENDS = 3  # iterations at either end whose training success is averaged
GOOD = 0.9  # success whose first measurement gives `steps_to_90` and `jerk_at_90`
MOVEMENT = [name for name in MEASURES if "variance" not in name and name != "mode_count"]
MOVEMENT += ["boundary_share"]  # of the single trajectory, noted at each measurement
FEWEST = 10  # successes below which a run's quality is not measured


@dataclass(frozen=True)
class Variant:
    """One way to train: an algorithm, and the settings that it changes in the preset."""

    name: str
    algorithm: Algorithm = "diffusion"
    changes: tuple[tuple[str, Any], ...] = ()

    def preset(self, base: Preset) -> Preset:
        """Return `base` with the budget and this arm's settings, the same for every task.

        The arm's physics is exact unless the arm says otherwise, whatever `base` learns in.
        """
        settings = BUDGET | {"rl.physics": "exact"} | dict(self.changes)
        if settings["rl.physics"] == "exact":
            settings["rl.physics_check"] = None
        return dataclasses.replace(base, own=()).with_settings(settings)

    def within(self, physics: Physics) -> "Variant":
        """Return this variant trained in some physics; the name says where it is not LIBERO's."""
        if physics == "exact":
            return self
        changes = (*self.changes, ("rl.physics", physics))
        return Variant(f"{self.name}, {physics} physics", self.algorithm, changes)


def _variant(
    name: str, algorithm: Algorithm = "diffusion", changes: dict[str, Any] | None = None
) -> Variant:
    return Variant(name, algorithm, tuple((changes or {}).items()))


@dataclass(frozen=True)
class Experiment:
    """Variants that are run on each task with each seed; the others change the first one."""

    variants: tuple[Variant, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3)  # seed 0 is the one that settings were tuned on


# Tasks whose clones leave RL room, the last of another suite. There one policy hardly learns, so
# the factorial, which compares movements at equal success, has another one: of libero_goal, as the
# one-seed data of preset laptop order the policies there the other way round than elsewhere.
_LEARNED = ("libero_object/0", "libero_object/3", "libero_spatial/0")
_MOVED = ("libero_object/0", "libero_object/3", "libero_goal/7")
_FACTORIAL = tuple(
    _variant(algorithm + noise + fade, algorithm, noise_changes | fade_changes)
    for algorithm in ALGORITHMS
    for noise, noise_changes in (("", {}), (" white", WHITE))
    for fade, fade_changes in (("", {}), (" fade", FADE))
)
_DEMONSTRATIONS: dict[str, dict[str, Any]] = {
    f"{count} demonstrations": {"demonstrations.count": count, "demonstrations.counts": ()}
    for count in (5, 10, 20, 50)
}
_DEFAULTS = {f"rl.{name}": getattr(get_preset("paper").rl, name) for name in PAPER}
_SHARP: dict[str, Any] = {"clone.first_measure": 4000} | _DEMONSTRATIONS["10 demonstrations"]
_GAUSSIANS_RATE: dict[str, Any] = {
    "rl.actor_learning_rate": 2e-4,
    "rl.clip": 0.04,
    "rl.clip_first": 0.004,
}
_ABLATIONS: dict[str, dict[str, Any]] = {
    "DDPM, last 10 of 20": {  # DPPO's way; as many decisions in a minibatch, so as many updates
        **{"rl.training_steps": 20, "rl.sampling_steps": 20, "rl.finetuned_steps": 10},
        "rl.minibatch": 6000,
    },
    "epsilon": {"rl.prediction": "epsilon"},
    "leading": {"rl.spacing": "leading"},
    "epsilon leading": {"rl.prediction": "epsilon", "rl.spacing": "leading"},
    "DPPO's defaults": _DEFAULTS,
    "annealed": {"rl.annealing": "cosine"},
    "synchronous": {  # whole episodes an iteration, and as many control steps
        **{"rl.staggered": False, "rl.decisions": 35, "rl.iterations": 10, "rl.measure_every": 2}
    },
    "U-Net": {"clone.network": "unet"},
    "chunk 4": {  # the same discounts per control step, and as many updates
        **{"clone.horizon": 4, "clone.chunk": 4, "rl.decisions": 48, "rl.minibatch": 3000},
        **{"rl.gamma": 0.99**0.5, "rl.gae_lambda": 0.95**0.5},
    },
    "floor 0.05": {"rl.noise_start": 1.0},  # held, where the base falls from one to the other
    "floor 0.1": {"rl.noise_start": 1.0, "rl.sigma_floor": 0.1},
    "white": WHITE,
    "fade": FADE,
    "horizon 12": {"clone.horizon": 12},  # what `fade` changes beside
    "Gaussian's rate": _GAUSSIANS_RATE,
    # Added when the runs above were there, in which what predicts the noise starts from weaker
    # clones, and the paper's rate is a twelfth of ours: is that why it does not learn?
    "epsilon sharp clone": {"rl.prediction": "epsilon"} | _SHARP,
    "DPPO's defaults sharp clone": _DEFAULTS | _SHARP,
    "DPPO's defaults sharp clone faster": _DEFAULTS | _SHARP | _GAUSSIANS_RATE,
    **_DEMONSTRATIONS,
}

# What decides whether ε-prediction learns here: the noise, the rate, the time, the network or the
# number of denoising steps? All from sharp clones, beside x0 from such clones. The clip is the
# base's, except where DPPO's defaults are named.
_LEADING = {"rl.prediction": "epsilon", "rl.spacing": "leading"} | _SHARP
_SLOW = {"rl.actor_learning_rate": 2e-4}
_RESIDUAL = {"clone.network": "residual", "clone.width": 512}
_EPSILON = {
    "sharp clone": _SHARP,
    "epsilon leading sharp": _LEADING,
    "epsilon leading sharp slow": _LEADING | _SLOW,
    "epsilon leading sharp white": _LEADING | WHITE,
    "epsilon leading sharp white slow": _LEADING | WHITE | _SLOW,
    "epsilon leading sharp white slow, residual net": _LEADING | WHITE | _SLOW | _RESIDUAL,
    "epsilon sharp white slow, DDPM, last 10 of 20": _LEADING
    | WHITE
    | _SLOW
    | _ABLATIONS["DDPM, last 10 of 20"],
    "DPPO's defaults sharp clone, 60 iterations": _DEFAULTS
    | _SHARP
    | _SLOW
    | {"rl.annealing": "constant", "rl.iterations": 60},
    "DPPO's defaults sharp clone, 60 iterations, residual net": _DEFAULTS
    | _SHARP
    | _SLOW
    | _RESIDUAL
    | {"rl.annealing": "constant", "rl.iterations": 60},
}

# Variants by names that records of earlier versions have, and their folders keep
_RENAMED = {
    f"diffusion DPPO's defaults{rest}": f"diffusion paper's settings{rest}"
    for rest in ("", " sharp clone", " sharp clone faster")
}

EXPERIMENTS = {
    "seeds": Experiment((_variant("diffusion"), _variant("gaussian", "gaussian")), _LEARNED),
    "ablations": Experiment(
        (
            _variant("diffusion"),
            *(_variant(f"diffusion {name}", changes=made) for name, made in _ABLATIONS.items()),
        ),
        _LEARNED[:1],
    ),
    "factorial": Experiment(_FACTORIAL, _MOVED),
    # Is a policy rough because it is a diffusion, or because it moved faster? Planned when `seeds`
    # and the ablation of the rate were there.
    "rates": Experiment(
        (
            _variant("gaussian", "gaussian"),
            _variant("diffusion Gaussian's rate", changes=_GAUSSIANS_RATE),
            _variant("diffusion"),
        ),
        _LEARNED,
    ),
    "epsilon": Experiment(
        tuple(_variant(f"diffusion {name}", changes=made) for name, made in _EPSILON.items()),
        _LEARNED[:1],
    ),
    # One covariance of the noise in cloning, first latent and steps, against the steps' alone
    "covariance": Experiment(
        (
            _variant("diffusion"),
            _variant("diffusion one covariance", changes={"rl.noise_everywhere": True}),
        ),
        _LEARNED,
    ),
    # The factorial's faded variants, with the tail of the last plan observed and without
    "tail": Experiment(
        tuple(
            _variant(f"{algorithm}{noise} {fade}", algorithm, noise_changes | fade_changes)
            for algorithm in ALGORITHMS
            for noise, noise_changes in (("", {}), (" white", WHITE))
            for fade, fade_changes in (("fade", FADE), ("fade, tail observed", TAIL))
        ),
        _MOVED,
    ),
}


def run_experiment(
    name: str,
    preset: str = "laptop",
    workers: int | None = None,
    physics: Physics = "exact",
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Run what is not there yet; return the rows of this experiment.

    Args:
        name: of `EXPERIMENTS`.
        preset: whose settings the variants change.
        workers: processes; default: one per core.
        physics: of training. What is measured is always played on LIBERO's own; variants in
            training physics have names of their own.
        seeds: train these seeds of the experiment only; default: all.

    Raises:
        UserError: the experiment has no such seed.
    """
    known = EXPERIMENTS[name].seeds
    if seeds is not None and (not seeds or set(seeds) - set(known)):
        raise UserError(
            f"Experiment {name} has the seeds {', '.join(map(str, known))}: give --seeds one or "
            "several of them."
        )
    items = [run for run in _runs(name, physics) if seeds is None or run[2] in seeds]
    names = [f"{variant.name}, {task}, seed {seed}" for variant, task, seed in items]
    workers, threads = shares(len(items), workers)
    function = functools.partial(_run, preset=preset, threads=threads)
    try:
        map_tasks(function, items, names=names, workers=workers, description=name)
    finally:  # two runs that ended at once may have missed each other
        _write_table(preset)
    return finished_runs(preset, name, physics)


def finished_runs(preset: str, name: str, physics: Physics = "exact") -> pd.DataFrame:
    """Return the rows of the experiment `name` that are there, of today's settings; maybe none."""
    return _collect(preset, _runs(name, physics))


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """Return records of any version with the variants' names of today."""
    return table.assign(arm=table["arm"].replace({old: new for new, old in _RENAMED.items()}))


def _runs(name: str, physics: Physics = "exact") -> list[tuple[Variant, str, int]]:
    chosen = EXPERIMENTS[name]
    variants = [variant.within(physics) for variant in chosen.variants]
    return [
        (variant, task, seed)
        for seed in chosen.seeds
        for task in chosen.tasks
        for variant in variants
    ]


def _collect(preset: str, runs: Sequence[tuple[Variant, str, int]]) -> pd.DataFrame:
    rows = []
    for run in dict.fromkeys(runs):
        if (stage := _stage(*run, preset)).found:
            variant, task, _ = run
            skipped = cut_iterations(variant.preset(get_preset(preset)), task)
            training = training_success(stage.folder / "diagnostics.csv", skipped)
            rows += [row | training for row in stage.records["rows"]]
    return renamed(pd.DataFrame(rows, columns=COLUMNS))


def _write_table(preset: str) -> None:
    path = runs_dir(preset) / "experiments.csv"
    every = (_runs(name, physics) for physics in get_args(Physics) for name in EXPERIMENTS)
    runs = dict.fromkeys(itertools.chain.from_iterable(every))
    stages = {_stage(*run, preset): run for run in runs}
    write_csv(path, _collect(preset, [stages[stage] for stage in without_stale(stages, path)]))


def cut_iterations(preset: Preset, task: str) -> int:
    """Return in how many of a run's first iterations an episode may end early, to stagger copies.

    Such an episode is no success however good the policy is (see `diffrl.rl.collect`).
    """
    own = preset.of(task)
    if not own.rl.staggered:
        return 0
    limit = own.rl.max_steps or get_task(task).max_steps
    return math.ceil(limit / (own.rl.decisions * own.clone.chunk))


def training_success(path: Path, skipped: int) -> dict[str, float]:
    """Return how often a run's training episodes succeeded, with the noise that explores.

    The means over its first iterations, after the `skipped` ones, and its last: `ENDS` of those in
    which episodes ended; NaN where nobody recorded them. What a deterministic measurement does not
    show may rise here.
    """
    success = pd.read_csv(path)["success"] if path.exists() else pd.Series(dtype=float)
    success = success.iloc[skipped:].dropna()
    ends = success.head(ENDS).mean(), success.tail(ENDS).mean()
    return dict(zip(TRAINING, map(float, ends)))


def run_folder(variant: Variant, task: str, seed: int, preset: str) -> Path:
    """Return where one run lies."""
    name = (
        _RENAMED.get(variant.name, variant.name)
        .replace("'", "")
        .replace(",", "")
        .replace(" ", "-")
        .lower()
    )
    place = runs_dir(preset) / "experiments" / name
    return place / f"{get_task(task).id.replace('/', '-')}-seed{seed}"


def _stage(variant: Variant, task: str, seed: int, preset: str) -> Stage:
    settings = variant.preset(get_preset(preset))
    quality = {
        name: getattr(settings.quality, name) for name in ("episodes", "neighbours", "phases")
    }
    config = records.config_of(settings, task, variant.algorithm, seed) | {"quality": quality}
    folder = run_folder(variant, task, seed, preset)
    files = records.demonstration_files(settings, task)
    return Stage(folder, "run", config, files, records.FORMAT)  # a run is an expert's training


def _run(item: tuple[Variant, str, int], preset: str, threads: int) -> None:
    """One run, if it is not there: training, and the measures of its trajectories."""
    variant, task, seed = item
    stage = _stage(variant, task, seed, preset)
    if not stage.done:
        settings = variant.preset(get_preset(preset))
        note = functools.partial(movement, chunk=settings.clone.chunk)
        run = Training(settings, task, variant.algorithm, seed, threads, stage.folder, note=note)
        with alone(stage.folder):
            rows = [{"arm": variant.name, "preset": preset} | row for row in _rows(run)]
            stage.finish({"rows": rows}, seed=seed)
    shutil.rmtree(stage.folder / "checkpoint", ignore_errors=True)
    _write_table(preset)


def _rows(run: Training) -> list[dict]:
    run.drop_foreign_checkpoints()  # of a variant that was changed: nobody will go on with them
    try:
        return _trained(run)
    except TrainingError as error:  # a result: left out, a variant is judged by its survivors
        return _failed(run, str(error))


def _trained(run: Training) -> list[dict]:
    """Train and evaluate; return the two rows of a run, and leave its tables."""
    chunk = run.preset.clone.chunk
    policy, learner, minutes = run.train()
    trials = run.evaluate(policy, record=True)
    clone, _ = run.clone()
    before = run.evaluate(clone, record=True, modes=POLICY_MODES[:1])
    tables = [("clone", before), (run.algorithm, trials)]
    played = pd.concat(trial_measures(part, chunk).assign(policy=name) for name, part in tables)
    held_out = run.measure(run.preset.rl.measure_starts, clone, record=True)
    curve = measurements(pd.DataFrame(learner.diagnostics), held_out, chunk)
    run.publish(policy, learner, {"trials.csv": played, "curve.csv": curve})
    names = (run.task, run.algorithm, run.seed)
    clones: dict[str, float] = dict.fromkeys(POLICY_MODES, success_rate(held_out))
    table = records.trial_table(trials)
    expert = records.expert_rows(names, table, clones, learner.control_steps, minutes)
    learned = learning_speed(curve["control_steps"], curve["measured_success"]) | roughness(curve)
    rows = []
    for row in expert.to_dict("records"):
        own = [trial for trial in trials if trial.mode == row["mode"]]
        means = dict.fromkeys(MEASURES, np.nan) | mean_quality(own, run.preset.quality)
        rows.append(row | learned | means | {"note": ""})
    return rows


def _failed(run: Training, note: str) -> list[dict]:
    """The rows of a run that could not be trained: it succeeds nowhere, and has no quality."""
    shutil.rmtree(run.folder / "clone", ignore_errors=True)  # of other settings, as are the files
    for old in (*run.folder.glob("*.csv"), *run.folder.glob("policy.*")):
        old.unlink()
    for table in run.work.glob("*.csv"):  # how far it came
        shutil.copy(table, run.folder)
    write_json(run.folder / "config.json", run.config)
    rows = []
    for mode in POLICY_MODES:
        row: dict[str, Any] = dict.fromkeys(COLUMNS[2:], np.nan)
        row |= {"task": run.task, "algorithm": run.algorithm, "mode": mode, "seed": run.seed}
        rows.append(row | {"success": 0.0, "auc": 0.0, "steps_to_90": np.inf, "note": note})
    return rows


def movement(trials: Sequence[Rollout], chunk: int) -> dict[str, float]:
    """What enters a run's diagnostics: how its successes at a measurement moved, on average."""
    table = trial_measures(trials, chunk)
    means = table[table["success"]].reindex(columns=MOVEMENT).mean()
    return {f"measured_{name}": float(value) for name, value in means.items()}


def trial_measures(trials: Sequence[Rollout], chunk: int) -> pd.DataFrame:
    """Return `records.trial_table` with the measures of each success's own trajectory."""
    table = records.trial_table(trials)
    found: list[dict[str, float]] = []
    for trial in trials:
        measures: dict[str, float] = {}
        if trial.success:
            assert trial.episode is not None  # only an error has none
            measures = trajectory_measures(Trajectory.from_episode(trial.episode))
            measures |= {"boundary_share": boundary_share(trial.episode.actions, chunk)}
        found.append(measures)
    return table.join(pd.DataFrame(found, index=table.index).drop(columns="steps", errors="ignore"))


def mean_quality(trials: Sequence[Rollout], config: QualityConfig) -> dict[str, float]:
    """Return each measure's mean over the successes of recorded trials; {} of fewer than FEWEST."""
    episodes = [trial.episode for trial in trials if trial.success]
    paths = [Trajectory.from_episode(episode) for episode in episodes if episode is not None]
    if len(paths) < FEWEST:
        return {}
    return measure(paths, config).groupby("measure")["value"].mean().to_dict()


def measurements(diagnostics: pd.DataFrame, clone: Sequence[Rollout], chunk: int) -> pd.DataFrame:
    """Return a run's curve: the clone's measurement, then those during RL, on the same states.

    Columns: control_steps, measured (start states), measured_success and measured_<MOVEMENT>.
    """
    fair = sum(not trial.error for trial in clone)
    first = {"control_steps": 0, "measured": fair, "measured_success": success_rate(clone)}
    first |= movement(clone, chunk)
    later = diagnostics.loc[diagnostics["measured"] > 0, list(first)]
    return pd.concat([pd.DataFrame([first]), later], ignore_index=True)


def learning_speed(steps: Sequence[float], success: Sequence[float]) -> dict[str, float]:
    """Return how fast success rises over measurements, the clone's at step 0 the first.

    `auc`: mean success over the control steps to the last measurement, linear between them.
    `steps_to_90`: control steps at the first measurement of 90 % or more, infinite without one.
    """
    at, rate = np.asarray(steps, float), np.asarray(success, float)
    area = np.sum((rate[1:] + rate[:-1]) / 2 * np.diff(at)) / at[-1]
    good = np.flatnonzero(rate >= GOOD)
    return {"auc": float(area), "steps_to_90": float(at[good[0]]) if len(good) else np.inf}


def roughness(curve: pd.DataFrame) -> dict[str, float]:
    """Return the RMS jerk of a curve's successes at three moments; all on the same start states.

    `jerk_clone`: the clone's. `jerk_at_90`: at RL's first measurement of 90 % or more, where
    policies are equally good; NaN without one. `jerk_kept`: of the policy that was kept, the last
    of the best.
    """
    success, jerk = curve["measured_success"].to_numpy(), curve["measured_jerk_rms"].to_numpy()
    good = np.flatnonzero(success[1:] >= GOOD) + 1
    kept = np.flatnonzero(success[1:] == success[1:].max())[-1] + 1
    at_90 = jerk[good[0]] if len(good) else np.nan
    found = {"jerk_clone": jerk[0], "jerk_at_90": at_90, "jerk_kept": jerk[kept]}
    return {name: float(value) for name, value in found.items()}


def held_out_curves(preset: str, name: str) -> pd.DataFrame:
    """Return the `curve.csv` of the finished runs of an experiment, one below the other.

    Its columns, after task, arm, algorithm, seed and measurement (0 is the clone's). A run that
    failed has none.
    """
    tables = []
    for variant, task, seed in _runs(name):
        stage = _stage(variant, task, seed, preset)
        if stage.found and (path := stage.folder / "curve.csv").exists():
            curve = pd.read_csv(path).rename_axis("measurement").reset_index()
            run = {"task": task, "arm": variant.name, "algorithm": variant.algorithm, "seed": seed}
            tables.append(pd.DataFrame(run, index=curve.index).join(curve))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def learning_curves(preset: str, name: str = "seeds") -> pd.DataFrame:
    """Return the mean over seeds at each held-out measurement, of the finished runs.

    Rows (task, arm, source, mode, steps, value, low, high, n), for `figures.learning_curves`: steps
    is the mean of the seeds', the interval Student's t, cut to [0, 1] and NaN for a single seed.
    """
    rows, curves = [], held_out_curves(preset, name)
    groups = ["task", "arm", "algorithm", "measurement"]
    for (task, variant, source, _), runs in (
        curves.groupby(groups, sort=False) if len(curves) else ()
    ):
        mean, low, high = mean_interval(runs["measured_success"])
        point = (runs["control_steps"].mean(), mean, np.maximum(low, 0), np.minimum(high, 1))
        rows.append((task, variant, source, "deterministic", *point, len(runs)))
    columns = ["task", "arm", "source", "mode", "steps", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per variant, of deterministic policies: means, and how many runs got to 90 %.

    Columns: arm, runs, clone_success (of those that were trained), success, auc, reached (k of n),
    steps_to_90 (median; inf where most do not get there), jerk_clone, jerk_at_90, jerk_kept,
    jerk_rms, steps; success_stochastic, training_first and training_last, which are with noise.
    """
    rows, noisy = [], runs[runs["mode"] == POLICY_MODES[1]].groupby("arm")["success"].mean()
    for variant, group in runs[runs["mode"] == POLICY_MODES[0]].groupby("arm", sort=False):
        means = group[[*SUCCESS, *LEARNING[2:], "jerk_rms", "steps", *TRAINING]].mean()
        reached = f"{np.isfinite(group['steps_to_90']).sum()} of {len(group)}"
        median = group["steps_to_90"].median()
        rows.append({"arm": variant, "runs": len(group), "reached": reached, "steps_to_90": median})
        rows[-1] |= means.to_dict() | {"success_stochastic": noisy.get(variant, np.nan)}
    columns = ["arm", "runs", *SUCCESS, "success_stochastic", *TRAINING, "reached", "steps_to_90"]
    return pd.DataFrame(rows, columns=[*columns, *LEARNING[2:], "jerk_rms", "steps"])


def effects(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], measures: Sequence[str]
) -> pd.DataFrame:
    """Return what the second variant of each pair changes against the first.

    Paired by task, seed and mode; the interval is Student's t over the n pairs of runs, `p_holm`
    corrects the sign-flip tests over the whole table. Rows (base, arm, mode, measure, difference,
    low, high, p, n, p_holm); a run without a value (no success to measure) is left out.
    """
    rows = []
    for base, variant in pairs:
        if not {base, variant} <= set(table["arm"]):
            continue
        for mode, wide in _by_run(table, measures):
            for name in measures:
                change = (wide[name, variant] - wide[name, base]).to_numpy()
                if tested := _test(change, name, mode):
                    rows.append({"base": base, "arm": variant, **tested})
    effect = pd.DataFrame(rows, columns=["base", "arm", *_TESTED])
    return effect.assign(p_holm=holm(effect["p"]))


def factorial_effects(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return the main effects and interactions of policy, noise and hand-over.

    Contrasts of the eight variants of a (task, seed), n of which are complete. A main effect is the
    mean change from one level to the other; an interaction of two is how much the first's effect
    changes with the second, of three how much that changes. Rows (effect, mode, measure,
    difference, low, high, p, n, p_holm, and a column per task); `p_holm` is over the seven effects
    of a measure and mode. A task's column is the difference on it: tasks are three and fixed, so no
    interval here is about other tasks, and one task's reverse shows there.
    """
    variants = [variant.name for variant in _FACTORIAL]
    factors = {  # main effect, and of each variant: 1 at the level that this begins with, else -1
        "policy": (
            "diffusion − gaussian",
            [variant.algorithm == "diffusion" for variant in _FACTORIAL],
        ),
        "noise": ("white − correlated", ["white" in variant for variant in variants]),
        "hand-over": ("faded − cut", ["fade" in variant for variant in variants]),
    }
    signs = {name: 2 * np.array(first) - 1 for name, (_, first) in factors.items()}
    columns = ["effect", *_TESTED, "p_holm"]
    if not set(variants) <= set(table["arm"]):
        return pd.DataFrame(columns=columns)
    rows = []
    for mode, wide in _by_run(table, measures):
        for name in measures:
            family = []
            for count in (1, 2, 3):
                for chosen in itertools.combinations(factors, count):
                    together = np.prod([signs[factor] for factor in chosen], axis=0)
                    contrast = wide[name][variants] @ together / 2 ** (3 - count)
                    if tested := _test(contrast.to_numpy(), name, mode):
                        effect = factors[chosen[0]][0] if count == 1 else " × ".join(chosen)
                        each = contrast.groupby("task").mean().to_dict()
                        family.append({"effect": effect, **tested, **each})
            adjusted = holm([row["p"] for row in family])
            rows += [{**row, "p_holm": p} for row, p in zip(family, adjusted)]
    return pd.DataFrame(rows, columns=[*columns, *dict.fromkeys(table["task"])])


_TESTED = ["mode", "measure", "difference", "low", "high", "p", "n"]


def _by_run(table: pd.DataFrame, measures: Sequence[str]):
    """Yield each mode with a row per (task, seed), a column per (measure, arm); NaN if not run."""
    for mode, rows in table.groupby("mode", sort=False):
        yield mode, rows.pivot(index=["task", "seed"], columns="arm", values=list(measures))


def _test(change: np.ndarray, measure: str, mode: str) -> dict | None:
    """Interval and test of the finite ones of some paired changes; None of fewer than two."""
    change = change[np.isfinite(change)]
    again = measure in ("clone_success", *LEARNING) and mode != POLICY_MODES[0]  # counts once
    if len(change) < 2 or again:
        return None
    mean, low, high = mean_interval(change)
    found = {"mode": mode, "measure": measure, "difference": mean, "low": low, "high": high}
    return found | {"p": sign_flip_test(change), "n": len(change)}


def main(
    name: Literal["seeds", "ablations", "factorial", "rates", "epsilon", "covariance", "tail"],
    /,
    preset: str = "laptop",
    workers: int | None = None,
    physics: Physics = "exact",
    seeds: tuple[int, ...] | None = None,
) -> None:
    """Train the variants of an experiment, several seeds each. Finished runs are found.

    Args:
        name: the experiment.
        preset: the preset whose settings the variants change.
        workers: processes; default: one per core.
        physics: physics of training; whatever is measured is played in LIBERO's own.
        seeds: train these seeds of the experiment only; default: all.
    """
    table = run_experiment(name, preset, workers, physics, seeds)
    print(summary(table).round(3).to_string(index=False))
    print(f"Every run: {runs_dir(preset) / 'experiments.csv'}; notebooks 01 and 03 show it.")
