"""How many demonstrations leave RL something to show: clone success per task and count.

    .venv/bin/python tools/count_demonstrations.py --preset libero --tasks libero_goal/7 --counts 5

The operator is clean: ten of its demonstrations often clone to 100 %, and what is cloned to 0 %
cannot be improved from a sparse reward. Each task's first n demonstrations are cloned by both
policies, n = 1, 2, …, until both succeed on 25-75 % of 24 held-out start states (no official one),
or on more although they have three; `--counts` tries exactly those.
Adds to `runs/<preset>/clones.csv`; `presets.py` carries the counts that were chosen from it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import tyro

from diffrl import evidence
from diffrl.base.artifacts import runs_dir, write_csv
from diffrl.base.scale import map_tasks
from diffrl.demonstrator.episodes import operator_demonstrations
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.rl.bc import Clone, demonstration_rows
from diffrl.rl.rollout import success_rate
from diffrl.rl.train import Training

COUNTS = (1, 2, 3, 4, 5, 7, 10, 20)
STARTS = 24
LEAST, MOST = 0.25, 0.75
ENOUGH = 3  # demonstrations from which both clones succeed more often: more would not spoil them


def clone_success(run: Training, episodes: list) -> float:
    """Success of a clone of `episodes` on the held-out start states."""
    policy = run.new_policy()
    config = run.preset.clone
    rows = demonstration_rows(policy, run.scene, episodes)
    clone = Clone(policy, *rows, config, run.seed)
    clone.train(config.first_measure)
    with clone.averaged() as averaged:
        return success_rate(run.measure(STARTS, averaged))


def scan(task: str, preset: Preset, seed: int, counts: tuple[int, ...]) -> None:
    """Clone both policies from `counts` demonstrations of one task; none: until it is enough."""
    torch.set_num_threads(1)
    runs = {name: Training(preset, task, name, seed, threads=1) for name in ALGORITHMS}
    scene = runs["diffusion"].scene
    rows: list[dict] = []
    episodes: list = []
    for count in counts or COUNTS:
        config = dataclasses.replace(preset.demonstrations, counts=())
        if count > len(episodes):
            wanted = next((n for n in (5, 20) if n >= count), count)
            episodes, _ = operator_demonstrations(scene, wanted, seed, config, threads=1)
        row = {name: clone_success(run, episodes[:count]) for name, run in runs.items()}
        rows.append({"task": task, "demonstrations": count} | row | {"starts": STARTS})
        print(rows[-1], flush=True)
        enough = min(row.values()) >= LEAST and (max(row.values()) <= MOST or count >= ENOUGH)
        if enough and not counts:
            break
    add(task_table(preset, task), [pd.DataFrame(rows)])


def task_table(preset: Preset, task: str) -> Path:
    """Where one task's scans lie."""
    return runs_dir(preset.name) / "clones" / f"{task.replace('/', '-')}.csv"


def add(path: Path, tables: Sequence[pd.DataFrame]) -> None:
    """Add scans to a table, in place of those of the same task and count."""
    known = [pd.read_csv(path)] if path.exists() else []
    keys = ["task", "demonstrations"]
    write_csv(
        path, pd.concat([*known, *tables]).drop_duplicates(keys, keep="last").sort_values(keys)
    )


def main(
    preset: str = "libero",
    tasks: tuple[str, ...] = (),
    counts: tuple[int, ...] = (),
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Scan tasks and add what was found to the table.

    Args:
        preset: its operator, clone and policies are used.
        tasks: such as libero_object/0 (default: all of the preset's).
        counts: exactly these; default: from one upwards until it is enough.
        seed: of demonstrations, weights and start states.
        workers: processes (default: one per core).
    """
    settings = get_preset(preset)
    evidence.go_on(settings.name)
    function = functools.partial(scan, preset=settings, seed=seed, counts=counts)
    tasks = tasks or settings.tasks
    try:
        map_tasks(function, tasks, workers=workers, description="clones")
    finally:  # what is finished counts, whatever failed
        paths = [path for task in tasks if (path := task_table(settings, task)).exists()]
        if paths:
            add(runs_dir(settings.name) / "clones.csv", [pd.read_csv(path) for path in paths])


if __name__ == "__main__":
    tyro.cli(main)
