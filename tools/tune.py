"""Tuning runs, as many for the Gaussian policy as for the diffusion policy.

    .venv/bin/python tools/tune.py clip+ rate+ --task libero_object/3

Each name changes the preset laptop by one setting; both policies try it (or `--algorithms` of
them), from clones of the same demonstrations, and are judged on held-out start states alone: no
official one is played. Rows are appended to `results/laptop/tuning.csv`; what is there is not run
again.
"""

import functools

import pandas as pd
import torch
import tyro

from diffrl.artifacts import results_dir, root, write_csv
from diffrl.experiments import Arm, learning_speed
from diffrl.presets import get_preset
from diffrl.rl.train import ALGORITHMS, Training
from diffrl.scale import map_tasks

TRIES: dict[str, dict] = {
    "laptop": {},
    "clip+": {"rl.clip": 0.16, "rl.clip_first": 0.016, "rl.gaussian_clip": 0.08},
    "rate+": {"rl.actor_learning_rate": 6e-4, "rl.gaussian_learning_rate": 4e-4},
    "rate-": {"rl.actor_learning_rate": 1.5e-4, "rl.gaussian_learning_rate": 1e-4},
    "batch+": {"rl.decisions": 48, "rl.iterations": 8, "rl.measure_every": 3},
    "epochs-": {"rl.epochs": 5},
    "minibatch-": {"rl.minibatch": 500},
    "noise+": {"rl.sigma_floor": 0.1, "rl.gaussian_std": 0.1},
    "noise-": {"rl.sigma_floor": 0.03, "rl.gaussian_std": 0.03},
    "warmup-": {"rl.warmup": 0},
    "lambda+": {"rl.gae_lambda": 0.99},
}
BUDGET = {"rl.iterations": 15, "rl.measure_every": 5, "rl.target_success": None}


def attempt(item: tuple[str, str], task: str, seed: int) -> dict:
    """Train one policy with one change; what its held-out measurements say."""
    name, algorithm = item
    torch.set_num_threads(1)  # two trainings share the cores
    arm = Arm(name, algorithm, tuple((BUDGET | TRIES[name]).items()))
    preset = arm.preset(get_preset("laptop"))
    folder = root() / "build" / "tuning" / name / f"{task.replace('/', '-')}-{algorithm}-{seed}"
    run = Training(task, algorithm, preset, seed, threads=1, folder=folder)
    policy, _ = run.clone()
    clone = pd.read_csv(folder / "clone.csv")["success"].iloc[-1]
    diagnostics = pd.DataFrame(run.learn(policy).diagnostics)
    measured = diagnostics["measured_success"].dropna()
    steps = int(diagnostics["control_steps"].iloc[-1])  # measurements included
    row = {"task": task, "seed": seed, "algorithm": algorithm, "try": name, "clone": clone}
    row |= {"changes": "; ".join(f"{key}={value}" for key, value in TRIES[name].items())}
    row |= {"measured": " ".join(f"{x:.3f}" for x in measured), "last": measured.iloc[-1]}
    row |= {"training_success": diagnostics["success"].tail(3).mean()}
    row |= learning_speed(diagnostics, clone) | {"control_steps": steps}
    print(row, flush=True)
    return row


def main(
    names: tyro.conf.Positional[tuple[str, ...]],
    task: str = "libero_object/3",
    seed: int = 0,
    algorithms: tuple[str, ...] = tuple(ALGORITHMS),
) -> None:
    """Try each of `names` (see TRIES) with each of `algorithms`."""
    path = results_dir("laptop") / "tuning.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    keys = ["task", "seed", "try", "algorithm"]
    done = set() if table.empty else set(table[keys].itertuples(index=False, name=None))
    for name in names:
        items = [(name, each) for each in algorithms if (task, seed, name, each) not in done]
        if not items:
            continue
        rows = map_tasks(functools.partial(attempt, task=task, seed=seed), items, description=name)
        table = pd.concat([table, pd.DataFrame(rows)])
        write_csv(path, table)


if __name__ == "__main__":
    tyro.cli(main)
