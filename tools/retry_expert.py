"""Train an expert of preset `laptop` again with other settings, and compare the two.

    .venv/bin/python tools/retry_expert.py libero_spatial/0 low-rate annealed

Each name is a try of TRIES, of the diffusion policy or of `--algorithm`. Its records go to
`runs/laptop/tried/<task>-<name>/` (`-gaussian` at the end), its weights stay in `build/`. It and
the expert then play held-out start states that neither was chosen on, which gives
`runs/laptop/tried/held_out.csv`: a training chooses among eight policies or so by 48 states, so
the measurement that chose one flatters it, and the official states are for the reader alone.
"""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import torch
import tyro

from diffrl import policy as policies
from diffrl.base.artifacts import root, runs_dir, write_csv
from diffrl.presets import Algorithm, Preset, get_preset
from diffrl.rl.records import expert_folder
from diffrl.rl.stage import train_expert
from diffrl.rl.train import Training

STARTS = 192  # further held-out start states
LOW_RATE = {"rl.actor_learning_rate": 2e-4, "rl.clip": 0.04, "rl.clip_first": 0.004}
ANNEALED = {"rl.annealing": "cosine"}
SMALL_BATCHES = {  # on libero_90/1 the expert has three times as many decisions an iteration
    **{"rl.decisions": 24, "rl.iterations": 48, "rl.measure_every": 5},
    **{"rl.warmup": 2, "rl.noise_start": 1.0, "clone.first_measure": 1500},
}
MORE_DEMONSTRATIONS = {"demonstrations.count": 20, "demonstrations.counts": ()}
TRIES = {  # instead of the task's own settings
    "libero_spatial/0": {
        "large-batches": {
            **{"rl.decisions": 72, "rl.iterations": 12, "rl.measure_every": 2},
            **{"rl.warmup": 2, "rl.noise_start": 1.0, "rl.annealing": "cosine"},
        },
        "low-rate": LOW_RATE | ANNEALED,
        "annealed": ANNEALED,
        "little-noise": ANNEALED | {"rl.noise_start": 1.0, "rl.iterations": 48},
        "more-demonstrations": MORE_DEMONSTRATIONS | {"rl.iterations": 54},
    },
    "libero_90/1": {
        "small-batches-annealed": SMALL_BATCHES | LOW_RATE | ANNEALED,
        "small-batches-constant": SMALL_BATCHES | LOW_RATE,
    },
}
KEPT = ("clone.csv", "config.json", "diagnostics.csv", "trials.csv")


def preset_of(task: str, name: str) -> Preset:
    """Return the preset with the settings of a try in the place of the task's own."""
    base = get_preset("laptop")
    own = tuple(setting for setting in base.own if setting[0] != task)
    changes = tuple((task, key, value) for key, value in TRIES[task][name].items())
    return dataclasses.replace(base, own=own + changes)


def confirm(task: str, name: str, algorithm: Algorithm, folder: Path) -> None:
    """Play the further held-out start states with the policy in `folder`; replace its row."""
    run = Training(get_preset("laptop"), task, algorithm, folder=folder)
    config = run.preset.rl
    first = max(config.measure_starts, config.confirm_starts)  # those chose the policy
    trials = run.measure(STARTS, policies.load(folder), first=first)
    path = runs_dir("laptop") / "tried" / "held_out.csv"
    row = {"task": task, "algorithm": algorithm, "try": name, "first": first}
    row |= {"trials": len(trials), "successes": sum(trial.success for trial in trials)}
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    table = pd.concat([table, pd.DataFrame([row])])
    key = ["task", "algorithm", "try"]
    write_csv(path, table.drop_duplicates(key, keep="last").sort_values(key))
    print(row)


def main(
    task: tyro.conf.Positional[str],
    names: tyro.conf.Positional[tuple[str, ...]],
    algorithm: Algorithm = "diffusion",
) -> None:
    """Train the tries `names` of `task`, and confirm them and the expert."""
    known = TRIES.get(task, {})
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{task} has no try {unknown[0]!r}: choose from {', '.join(known)}.")
    torch.set_num_threads(1)
    confirm(task, "expert", algorithm, expert_folder(get_preset("laptop"), task, algorithm, 0))
    for name in names:
        label = f"{task.replace('/', '-')}-{name}" + "-gaussian" * (algorithm == "gaussian")
        folder, kept = root() / "build" / "tries" / label, runs_dir("laptop") / "tried" / label
        rows = train_expert(preset_of(task, name), task, algorithm, folder=folder)
        write_csv(kept / "expert.csv", rows)
        for file in KEPT:
            shutil.copy(folder / file, kept)
        confirm(task, name, algorithm, folder)


if __name__ == "__main__":
    tyro.cli(main)
