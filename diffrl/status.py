"""What of a preset is waiting, running, done or failed, read from its files alone.

python -m diffrl status --preset smoke --watch
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from diffrl.base.artifacts import Stage, config_hash, read_json, root
from diffrl.base.errors import UserError
from diffrl.base.heartbeat import read
from diffrl.generation.stage import arms_of, dataset_path
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.rl.records import config_of
from diffrl.vla.stage import models_of, settings_of

COLUMNS = ["task", "stage", "seed", "state", "where", "phase", "done", "total", "success"]
COLUMNS += ["rate", "minutes_left", "message"]
STATES = ("waiting", "running", "done", "failed", "lost", "stale")
EVERY = 5.0  # seconds between two tables of --watch


def status(preset: Preset) -> pd.DataFrame:
    """Return one row per unit of work: experts and data sets by task, then VLAs.

    ``state`` is one of `STATES`; "stale" is finished work of other settings, or work whose inputs
    were written after it. The bytes of inputs are not read. ``rate`` counts control steps a second.
    """
    home = root() / "runs" / preset.name
    rows = [*_experts(preset, home), *_datasets(preset, home), *_vlas(preset, home)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _experts(preset: Preset, home: Path) -> Iterator[dict]:
    for task in preset.tasks:
        for algorithm in ALGORITHMS:
            for seed in preset.rl.seeds:
                folder = home / "experts" / task.replace("/", "-") / f"{algorithm}-seed{seed}"
                state = _finished(folder, "expert", config_of(task, algorithm, preset, seed))
                yield _row(task, f"expert {algorithm}", seed, folder, "expert", state)


def _datasets(preset: Preset, home: Path) -> Iterator[dict]:
    for task in preset.tasks:
        for arm in arms_of(preset):
            path = dataset_path(preset, task, arm)
            folder, name = path.parent, path.stem
            experts = home / "experts" / task.replace("/", "-")
            inputs = experts.glob(f"{arm.source}-seed*/expert.done.json")
            state = _newer(folder / f"{name}.done.json", inputs)
            yield _row(task, f"data {arm}", preset.generation.seed, folder, name, state)


def _vlas(preset: Preset, home: Path) -> Iterator[dict]:
    for data, seed in models_of(preset):
        folder = home / "vla" / f"{data.replace(':', '-first')}-seed{seed}"
        state = _finished(folder, "vla", settings_of(data, seed, preset))
        yield _row("all", f"VLA {data}", seed, folder, "vla", state)


def _finished(folder: Path, name: str, config) -> str | None:
    """done or stale by the hash of the settings; None if there is no marker."""
    marker = Stage(folder, name, config).marker
    if not marker.is_file():
        return None
    try:
        return "done" if read_json(marker)["key"]["config"] == config_hash(config) else "stale"
    except (UserError, KeyError, TypeError):
        return "stale"


def _newer(marker: Path, inputs) -> str | None:
    """done, or stale if an input was written after the marker; None if there is no marker."""
    if not marker.is_file():
        return None
    made = marker.stat().st_mtime
    return "stale" if any(path.stat().st_mtime > made for path in inputs) else "done"


def _row(task: str, stage: str, seed: int, folder: Path, name: str, finished: str | None) -> dict:
    row = {"task": task, "stage": stage, "seed": seed, "state": finished or "waiting"}
    sign = read(folder, name)
    if sign is None:
        return row
    kept = {key: sign.get(key) for key in ("phase", "done", "total", "success", "rate", "message")}
    left = _minutes_left(sign) if sign["state"] == "running" else None
    place = f"{sign.get('host')}:{sign.get('pid')}"
    return row | kept | {"state": sign["state"], "where": place, "minutes_left": left}


def _minutes_left(sign) -> float | None:
    """Of the current phase, at its pace so far; None before its first unit in this run."""
    done, total = sign.get("done"), sign.get("total")
    began, first = sign.get("phase_began"), sign.get("phase_first")
    if None in (done, total, began, first) or done <= first:
        return None
    pace = (sign.get("updated", began) - began) / (done - first)
    return max(pace, 0.0) * (total - done) / 60


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the number of units in each state, a row per stage."""
    found = pd.crosstab(table["stage"], table["state"]).reindex(columns=STATES, fill_value=0)
    return found.reindex(table["stage"].unique())


def text(table: pd.DataFrame) -> str:
    """Return the counts, and below them what runs or needs a hand."""
    parts = [counts(table).to_string()]
    shown = table[table["state"].isin(["running", "failed", "lost", "stale"])]
    if len(shown):
        columns = [name for name in COLUMNS if shown[name].notna().any()]
        parts.append(shown[columns].to_string(index=False, na_rep="", float_format="{:.3g}".format))
    return "\n\n".join(parts)


def main(preset: str = "laptop", watch: bool = False) -> None:
    """Show what of a preset is waiting, running, done, failed, lost or stale.

    Args:
        preset: whose files in runs/ are read.
        watch: show the table again every few seconds, until Ctrl-C.
    """
    settings = get_preset(preset)
    while True:
        shown = text(status(settings))
        print(f"\x1b[2J\x1b[H{time.strftime('%H:%M:%S')}\n{shown}" if watch else shown, flush=True)
        if not watch:
            return
        time.sleep(EVERY)
