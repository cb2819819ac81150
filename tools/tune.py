"""Tuning runs, as many for the Gaussian policy as for the diffusion policy.

    .venv/bin/python tools/tune.py clip+ rate+ --task libero_object/3

Each name changes the recipe that tuning began with; both policies try it (or `--algorithms` of
them), from clones of the same demonstrations, and are judged on held-out start states alone: no
official one is played. Success and smoothness (mean jerk in m/s³ and steps of the best policy's
successes) are those of deterministic rollouts. Rows are appended to `runs/laptop/tuning.csv`;
a row that exists is not run again.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import tyro

from diffrl.base.artifacts import lock, root, runs_dir, write_csv
from diffrl.base.scale import map_tasks
from diffrl.experiments import Variant, learning_speed, mean_quality
from diffrl.presets import ALGORITHMS, get_preset
from diffrl.rl.rollout import rollout
from diffrl.rl.train import HELD_OUT, Training
from diffrl.sim.starts import fresh_start_states

NOISE = {"rl.sigma_floor": 0.1, "rl.gaussian_std": 0.1}
TRIES: dict[str, dict] = {
    "base": {},
    "laptop": {"rl.noise_start": 2.0, "rl.actor_learning_rate": 6e-4},
    "clip+": {"rl.clip": 0.16, "rl.clip_first": 0.016, "rl.gaussian_clip": 0.08},
    "rate+": {"rl.actor_learning_rate": 6e-4, "rl.gaussian_learning_rate": 4e-4},
    "rate-": {"rl.actor_learning_rate": 1.5e-4, "rl.gaussian_learning_rate": 1e-4},
    "batch+": {"rl.decisions": 48, "rl.iterations": 8, "rl.measure_every": 3},
    "epochs-": {"rl.epochs": 5},
    "minibatch-": {"rl.minibatch": 500},
    "noise+": NOISE,
    "noise half": {"rl.sigma_floor": 0.07, "rl.gaussian_std": 0.07},
    "noise+ rate+": NOISE | {"rl.actor_learning_rate": 6e-4, "rl.gaussian_learning_rate": 4e-4},
    "noise+ minibatch-": NOISE | {"rl.minibatch": 500},
    "noise+ clip+": NOISE | {"rl.clip": 0.16, "rl.clip_first": 0.016, "rl.gaussian_clip": 0.08},
    "noise++": {"rl.sigma_floor": 0.2, "rl.gaussian_std": 0.2},
    "noise-": {"rl.sigma_floor": 0.03, "rl.gaussian_std": 0.03},
    "warmup-": {"rl.warmup": 0},
    "lambda+": {"rl.gae_lambda": 0.99},
}
BASE = {"rl.noise_start": 1.0, "rl.actor_learning_rate": 3e-4}  # the preset's, before the tries
BUDGET = {"rl.iterations": 15, "rl.measure_every": 5, "rl.target_success": None}
BUDGET |= {"rl.confirm_starts": 0}  # no second look
KEY = ["task", "seed", "try", "algorithm"]


def attempt(item: tuple[str, str], task: str, seed: int) -> dict:
    """Train one policy with one change; what its held-out measurements say."""
    name, algorithm = item
    torch.set_num_threads(1)  # two trainings share the cores
    variant = Variant(name, algorithm, tuple((BASE | BUDGET | TRIES[name]).items()))
    preset = variant.preset(get_preset("laptop"))
    folder = root() / "build" / "tuning" / name / f"{task.replace('/', '-')}-{algorithm}-{seed}"
    run = Training(preset, task, algorithm, seed, threads=1, folder=folder)
    policy, learner, _ = run.train()
    clone = pd.read_csv(run.work / "clone.csv")["success"].iloc[-1]
    diagnostics = pd.DataFrame(learner.diagnostics)
    starts = fresh_start_states(run.scene, run.preset.rl.measure_starts, HELD_OUT + seed)
    trials = rollout(policy, run.scene, starts, threads=1, record=True)
    quality = mean_quality(trials, preset.quality)
    measured = diagnostics["measured_success"].dropna()
    steps = int(diagnostics["control_steps"].iloc[-1])  # measurements included
    row = {"task": task, "seed": seed, "algorithm": algorithm, "try": name, "clone": clone}
    row |= {"changes": "; ".join(f"{key}={value}" for key, value in TRIES[name].items())}
    row |= {"measured": " ".join(f"{x:.3f}" for x in measured), "last": measured.iloc[-1]}
    row |= {"training_success": diagnostics["success"].tail(3).mean()}
    curve = diagnostics[diagnostics["measured"] > 0]
    row |= learning_speed([0, *curve["control_steps"]], [clone, *curve["measured_success"]])
    row |= {"control_steps": steps}
    row |= {name: quality.get(name) for name in ("jerk_rms", "steps")}
    print(row, flush=True)
    return row


def add_rows(path: Path, rows: Sequence[dict]) -> None:
    """Append rows to a table as it is now: other calls may have added theirs meanwhile."""
    handle = lock(path.with_name(f".{path.name}.lock"), busy=None)
    try:
        known = [pd.read_csv(path)] if path.exists() else []
        write_csv(path, pd.concat([*known, pd.DataFrame(rows)]))
    finally:
        os.close(handle)


def main(
    names: tyro.conf.Positional[tuple[str, ...]],
    task: str = "libero_object/3",
    seed: int = 0,
    algorithms: tuple[str, ...] = tuple(ALGORITHMS),
) -> None:
    """Try each of `names` (see TRIES) with each of `algorithms`."""
    unknown = [name for name in names if name not in TRIES]
    if unknown:
        raise SystemExit(f"There is no try {unknown[0]!r}: choose from {', '.join(TRIES)}.")
    path = runs_dir("laptop") / "tuning.csv"
    for name in names:
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)
        done = set(table[KEY].itertuples(index=False, name=None))
        items = [(name, each) for each in algorithms if (task, seed, name, each) not in done]
        if items:
            function = functools.partial(attempt, task=task, seed=seed)
            rows = map_tasks(function, items, description=name)
            add_rows(path, rows)


if __name__ == "__main__":
    tyro.cli(main)
