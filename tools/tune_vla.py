"""Tuning runs of the compact VLA, on the operator's data and held-out start states alone.

    .venv/bin/python tools/tune_vla.py base "8000 steps" --trials 5

Each name changes the preset's VLA. It learns from the operator's demonstrations of all the VLA's
tasks, never from a policy's, so that no source of the comparison is favoured among the experts'; it
plays fresh start states that no data set and no evaluation uses. Rows are appended to
`runs/<preset>/vla_tuning.csv`; a row that exists is not run again. Generate the demonstrator's data
first.
"""

import dataclasses

import pandas as pd
import torch
import tyro
from tune import add_rows

from diffrl import evidence
from diffrl.base.artifacts import root, runs_dir
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.stage import Arm, Job, evaluate
from diffrl.presets import Preset, get_preset
from diffrl.vla.stage import mix, render_all
from diffrl.vla.train import train

DATA = "operator-recorded"
STARTS = 3_000_000  # seed of the start states; generation and training use others
TRIES: dict[str, dict] = {
    "base": {},
    "width-": {"width": 128},
    "draws-": {"flow_draws": 1},
    "chunk+": {"chunk": 16},
    # a frozen encoder whose cells are cached, against one that is learned from pixels
    "frozen, 1000 steps": {"steps": 1000},
    "learned, 1000 steps": {"steps": 1000, "vision": "conv"},
    # of forty tasks: how long, and how large
    "8000 steps": {"steps": 8000},
    "16000 steps": {"steps": 16_000},
    "8000 steps, width+": {"steps": 8000, "width": 256},
}


def attempt(name: str, preset: Preset, seed: int, trials: int, workers: int | None) -> dict:
    """Train one VLA with one change; its success on held-out start states."""
    folder = root() / "build" / "tuning-vla" / preset.name / f"{name}-{seed}"
    render_all(preset, workers)
    learn, check, _ = mix(DATA, preset)
    losses, minutes = train(learn, check, preset.vla, seed, folder)
    plan = [
        Trial(task, f"fresh/{STARTS}/{k}", 0) for task in preset.vla_tasks for k in range(trials)
    ]
    job = Job(f"compact:{folder}", tuple(plan), folder / "evaluation", Arm("operator"))
    table = evaluate([job], workers=workers)
    success = table["status"].eq("success")
    by_task = success.groupby(table["task"], sort=False).sum()
    changes = "; ".join(f"{key}={value}" for key, value in TRIES[name].items())
    row = {"try": name, "changes": changes, "seed": seed, "frames": len(learn)}
    row |= {"minutes": round(minutes, 1), "loss": losses["loss"].iloc[-1]}
    row |= {"held_out": losses["held_out"].iloc[-1], "trials": len(table)}
    row |= {"success": success.mean(), "by_task": " ".join(map(str, by_task))}
    print(row, flush=True)
    return row


def main(
    names: tyro.conf.Positional[tuple[str, ...]],
    preset: str = "libero",
    seed: int = 0,
    trials: int = 10,
    workers: int | None = None,
) -> None:
    """Try changes of a preset's VLA.

    Args:
        names: of the changes (see TRIES).
        preset: whose VLA is changed.
        seed: of the training.
        trials: start states per task.
        workers: processes that render and play; default: one per core.
    """
    torch.set_num_threads(1)
    unknown = [name for name in names if name not in TRIES]
    if unknown:
        raise SystemExit(f"There is no try {unknown[0]!r}: choose from {', '.join(TRIES)}.")
    settings = get_preset(preset)
    evidence.go_on(settings.name)
    path = runs_dir(settings.name) / "vla_tuning.csv"
    for name in names:
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["try", "seed"])
        if (table[["try", "seed"]] == [name, seed]).all(axis=1).any():
            continue
        vla = dataclasses.replace(settings.vla, data=(DATA,), further=(), **TRIES[name])
        row = attempt(name, dataclasses.replace(settings, vla=vla), seed, trials, workers)
        add_rows(path, [row])


if __name__ == "__main__":
    tyro.cli(main)
