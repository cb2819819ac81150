"""What training leaves behind, as tables: experts, learning curves, final trials."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import Stage, run_folder, runs_dir, without_stale, write_csv
from diffrl.base.errors import UserError
from diffrl.base.intervals import wilson
from diffrl.data.human import human_file
from diffrl.presets import Algorithm, Preset
from diffrl.rl.rollout import Rollout
from diffrl.sim.tasks import get_task

# Raise it when the same settings come to train another expert: another loss, another choice of the
# best policy. 2: every new best is confirmed on more start states. 3: the best of the first looks
# are, when RL has ended.
FORMAT = 3
COLUMNS = [
    *("task", "algorithm", "mode", "seed", "trials", "successes", "success", "low", "high"),
    *("control_steps", "minutes", "clone_success"),
]


def expert_folder(preset: Preset, task: str, algorithm: str, seed: int) -> Path:
    """Return the folder of one expert."""
    place = run_folder(preset.name) / "experts" / get_task(task).id.replace("/", "-")
    return place / f"{algorithm}-seed{seed}"


def config_of(preset: Preset, task: str, algorithm: Algorithm, seed: int) -> dict[str, Any]:
    """Return what decides the result of a run."""
    preset = preset.of(task)
    return {
        "task": task,
        "algorithm": algorithm,
        "seed": seed,
        "demonstrations": preset.demonstrations,
        "clone": preset.clone,
        # `evaluate_again` has its own record of the further seeds of the noise
        "rl": dataclasses.replace(
            preset.rl, seeds=(), evaluation_seeds=preset.rl.evaluation_seeds[:1]
        ),
    }


def demonstration_files(preset: Preset, task: str) -> list[Path]:
    """Return the file of people's demonstrations that an expert begins from; none of operators'."""
    human = preset.of(task).demonstrations.source == "human"
    return [human_file(get_task(task))] if human else []


def expert_stage(
    preset: Preset, task: str, algorithm: Algorithm, seed: int, folder: Path | None = None
) -> Stage:
    """Return the stage of one expert, whose default folder is `expert_folder`."""
    return Stage(
        folder or expert_folder(preset, task, algorithm, seed),
        "expert",
        config_of(preset, task, algorithm, seed),
        demonstration_files(preset, task),
        FORMAT,
    )


def trial_table(trials: Sequence[Rollout]) -> pd.DataFrame:
    """Return one row per trial: (mode, start_state, seed, success, error, steps)."""
    columns = ["mode", "start_state", "seed", "success", "error", "steps"]
    rows = [[getattr(trial, name) for name in columns] for trial in trials]
    return pd.DataFrame(rows, columns=columns)


def success_by_mode(trials: pd.DataFrame) -> dict[str, float]:
    """Return the success rate in each mode; trials that ended in an error do not count."""
    rates = trials[~trials["error"]].groupby("mode")["success"].mean()
    return {str(mode): float(rate) for mode, rate in rates.items()}


def expert_rows(
    names: tuple[str, str, int],
    trials: pd.DataFrame,
    clone: Mapping[str, float],
    steps: int,
    minutes: float,
) -> pd.DataFrame:
    """Return an expert's rows of ``experts.csv``, one per mode.

    Args:
        names: task, algorithm, seed.
        trials: of the expert, `trial_table`'s rows; errors do not count.
        clone: success of the clone by mode.
        steps: control steps of RL, the measurements during training included.
        minutes: from nothing to the chosen policy: scene, demonstrations, cloning and RL.
    """
    task, algorithm, seed = names
    fair = trials[~trials["error"]]
    rows = []
    for mode in POLICY_MODES:
        success = fair.loc[fair["mode"] == mode, "success"]
        count, successes = len(success), int(success.sum())
        values = [task, algorithm, mode, seed, count, successes]
        rate = successes / count if count else math.nan
        values += [rate, *wilson(successes, count), steps, round(minutes, 2)]
        rows.append([*values, float(clone[mode])])
    return pd.DataFrame(rows, columns=COLUMNS)


def _finished(preset: Preset) -> list[Stage]:
    """The finished experts of today's settings, in the order of the preset's tasks."""
    return [stage for stage in _marked(preset) if stage.found]


def _marked(preset: Preset) -> list[Stage]:
    """The experts with a marker, of any settings."""
    markers = sorted((runs_dir(preset.name) / "experts").glob("*/*/expert.done.json"))
    order = {task.replace("/", "-"): place for place, task in enumerate(preset.tasks)}
    markers.sort(key=lambda marker: order.get(marker.parent.parent.name, len(order)))
    return [_stage(marker.parent, preset) for marker in markers]


def _stage(folder: Path, preset: Preset) -> Stage:
    """The stage of an expert that says itself which one it is."""
    row = Stage(folder, "expert", None).records["rows"][0]
    return expert_stage(preset, row["task"], row["algorithm"], row["seed"], folder)


def collect_records(preset: Preset) -> pd.DataFrame:
    """Write ``runs/<preset>/experts.csv`` from the finished experts, and return it."""
    path = runs_dir(preset.name) / "experts.csv"
    stages = [stage for stage in without_stale(_marked(preset), path) if stage.found]
    rows = [row for stage in stages for row in stage.records["rows"]]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.sort_values(["task", "algorithm", "seed", "mode"], kind="stable")
    write_csv(path, table)
    return table.reset_index(drop=True)


def finished_experts(preset: Preset) -> list[tuple[str, Algorithm, int, Path]]:
    """Return (task, algorithm, training seed, folder) of a preset's finished experts."""
    rows = [(stage.records["rows"][0], stage.marker.parent) for stage in _finished(preset)]
    return [(row["task"], row["algorithm"], row["seed"], folder) for row, folder in rows]


def final_trials(preset: Preset) -> pd.DataFrame:
    """Return every trial of the final evaluations on the preset's tasks, clones included.

    Raises:
        UserError: there is no finished expert.
    """
    tables = []
    for stage in _finished(preset):
        row = stage.records["rows"][0]
        if row["task"] not in preset.tasks:
            continue
        table = pd.read_csv(stage.marker.parent / "trials.csv")
        names = {"task": row["task"], "source": row["algorithm"], "training_seed": row["seed"]}
        tables.append(table.assign(**names))
    if not tables:
        raise UserError(
            f"There is no finished expert of preset {preset.name} in {runs_dir(preset.name)}: "
            f"`python -m diffrl train --preset {preset.name}` trains them."
        )
    return pd.concat(tables, ignore_index=True)


def learning_curves(preset: Preset, training_seed: int = 0) -> pd.DataFrame:
    """Return success over control steps on the preset's tasks, with Wilson intervals.

    Rows (task, source, mode, steps, value, low, high, n): "stochastic" are the n training episodes
    that ended in an iteration, "deterministic" the measurements on n held-out start states; at 0
    steps the clone's, which stopped the cloning.
    """
    rows = []
    for stage in _finished(preset):
        record = stage.records["rows"][0]
        if record["seed"] != training_seed or record["task"] not in preset.tasks:
            continue
        names = (record["task"], record["algorithm"])
        table = pd.read_csv(stage.marker.parent / "diagnostics.csv")
        clone = pd.read_csv(stage.marker.parent / "clone.csv").iloc[-1]
        rows.append((*names, "deterministic", 0, clone["success"], clone["measured"]))
        for row in table[table["episodes"] > 0].itertuples():
            rows.append((*names, "stochastic", row.control_steps, row.success, row.episodes))
        for row in table[table["measured"] > 0].itertuples():
            steps = row.control_steps
            rows.append((*names, "deterministic", steps, row.measured_success, row.measured))
    curves = pd.DataFrame(rows, columns=["task", "source", "mode", "steps", "value", "n"])
    low, high = wilson((curves["value"] * curves["n"]).round().to_numpy(), curves["n"].to_numpy())
    return curves.assign(low=low, high=high)
