"""What of a preset is waiting, running, done or failed, read from its files alone.

python -m diffrl status --preset smoke --watch
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from diffrl.base.artifacts import (
    UNPACKED,
    atomic_path,
    config_hash,
    read_json,
    run_folder,
)
from diffrl.base.errors import UserError
from diffrl.base.heartbeat import FAILED, RUNNING, read
from diffrl.data.human import human_file
from diffrl.evaluation.stage import is_played, plan_of, played
from diffrl.generation import stage as generation
from diffrl.generation.attempts import experts_behind
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.rl import records
from diffrl.sim.tasks import get_task
from diffrl.vla import stage as vla
from diffrl.vla.stage import arm_of, model_folder, models_of, parts_of, settings_of

COLUMNS = ["stage", "what", "task", "seed", "state", "where", "phase", "done", "total", "success"]
COLUMNS += ["rate", "minutes_left", "message"]
STATES = ("waiting", "running", "done", "failed", "lost", "stale")
NEWS = STATES[1:2] + STATES[3:]  # states that the text shows one by one
ALL = "all"  # the task of what concerns every task
EVERY = 5.0  # seconds between two tables of --watch


def status(preset: Preset) -> pd.DataFrame:
    """Return one row per unit of work: experts, data sets, VLAs, evaluations.

    ``stage`` and ``what`` name it, such as "data" and "diffusion-deterministic". ``state`` is one
    of `STATES`: "lost" work was running and gives no more sign of life; "stale" work is finished,
    but with other settings, or before its inputs were written. Files are read, never changed, and
    no bytes of inputs. ``done`` and ``total`` are units of the ``phase``: iterations, successes,
    optimiser steps or trials. ``rate`` counts control steps a second, of a VLA optimiser steps.
    """
    rows = [*_experts(preset), *_datasets(preset), *_vlas(preset), *_evaluations(preset)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _experts(preset: Preset) -> Iterator[dict]:
    for task in preset.tasks:
        for algorithm in ALGORITHMS:
            for seed in preset.of(task).rl.seeds:
                folder = records.expert_folder(preset, task, algorithm, seed)
                config = records.config_of(preset, task, algorithm, seed)
                shown = records.demonstration_files(preset, task)
                state = _finished(folder / "expert.done.json", records.FORMAT, config, shown)
                yield _row(("expert", algorithm, task, seed), read(folder, "expert"), state)


def _datasets(preset: Preset) -> Iterator[dict]:
    for task in preset.tasks:
        for arm in generation.arms_of(preset):
            path = generation.dataset_path(preset, task, arm)
            experts = experts_behind(preset, task, arm.source)
            folders = [records.expert_folder(preset, task, *expert) for expert in experts]
            inputs = [folder / "expert.done.json" for folder in folders]
            inputs += [human_file(get_task(task))] if arm.source == "human" else []
            config = generation.config_of(preset, task, arm)
            state = _finished(_marker(path), generation.FORMAT, config, inputs)
            unit = ("data", str(arm), task, preset.generation.seed)
            yield _row(unit, read(path.parent, path.stem), state)


def _marker(dataset: Path) -> Path:
    return dataset.with_suffix(".done.json")


def _vlas(preset: Preset) -> Iterator[dict]:
    for data, seed in models_of(preset):
        sign, state = read(model_folder(preset, data, seed), "vla"), _trained(preset, data, seed)
        yield _row(("VLA", data, ALL, seed), sign and {**sign, "rate": _pace(sign)}, state)


def _trained(preset: Preset, data: str, seed: int) -> str | None:
    """Whether a VLA is finished, as `_finished` says it."""
    arms = [part.arm for part in parts_of(data)]
    inputs = [
        _marker(generation.dataset_path(preset, task, arm))
        for arm in arms
        for task in preset.vla_tasks
    ]
    marker = model_folder(preset, data, seed) / "vla.done.json"
    return _finished(marker, vla.FORMAT, settings_of(data, seed, preset), inputs)


def _finished(marker: Path, format: int, config: Any, inputs: Iterable[Path] = ()) -> str | None:
    """done, or stale by settings, format or an input's later time; None if there is no marker.

    As in `Stage.found`, a marker that came from evidence is asked for its settings alone.
    """
    try:
        made = marker.stat().st_mtime
    except OSError:
        return None
    try:
        record = read_json(marker)
        key, packed = record["key"], record.get(UNPACKED) is True
        older = not packed and key.get("format", 1) != format
        if older or key["config"] != config_hash(config):
            return "stale"
    except (UserError, KeyError, TypeError, AttributeError):
        return "stale"
    later = not packed and any(_time(path) > made for path in inputs)
    return "stale" if later else "done"


def _time(path: Path) -> float:
    """When a file was written, s; of one that does not exist minus infinity."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -float("inf")


# ---- evaluations -----------------------------------------------------------------------------


def _evaluations(preset: Preset) -> Iterator[dict]:
    table = run_folder(preset.name) / preset.tables_of / "vla_trials.csv"
    tables = played(table)
    for data, seed in models_of(preset):
        planned = plan_of(preset, data)
        unit, folder = ("evaluation", data, ALL, seed), model_folder(preset, data, seed)
        marker, state = folder / "vla.done.json", None
        if (*arm_of(data), seed) in tables:
            right = is_played(preset, data, seed, tables)
            right &= _trained(preset, data, seed) == "done"
            state = "done" if right and not _anew(marker, table) else "stale"
        folder = folder / "evaluation"
        signs = [sign for name in _names(folder) if (sign := read(folder, name)) is not None]
        row = _row(unit, _joined(signs), state)
        if row["state"] not in ("done", "stale"):
            row |= _so_far(folder) | {"total": len(planned)}
            row["phase"] = "trials" if row["done"] else None
        yield row


def _anew(marker: Path, table: Path) -> bool:
    """Whether a VLA was trained after the trials in a table; a restored one was not."""
    return _time(marker) > _time(table) and read_json(marker).get(UNPACKED) is not True


def _names(folder: Path) -> list[str]:
    """The runs that have a sign in a folder."""
    found = [p.name for end in (RUNNING, FAILED) for p in folder.glob(f"[!.]*{end}")]
    return sorted({name.removesuffix(RUNNING).removesuffix(FAILED) for name in found})


def _joined(signs: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The sign of an evaluation from those of its parts: what runs decides before what failed."""
    for state in ("running", "failed", "lost"):
        if some := [sign for sign in signs if sign["state"] == state]:
            rates = [sign["rate"] for sign in some if sign.get("rate") is not None]
            return {**some[0], "rate": sum(rates) if rates else None}
    return None


def _so_far(folder: Path) -> dict:
    """Trials that are recorded of an evaluation under way, and their share of successes."""
    parts = list((folder / "checkpoint").glob("*/[!.]*.json"))
    newest = max(parts, key=_time).parent if parts else None
    outcomes = []
    for part in parts:
        if part.parent == newest:  # another folder is of an older policy
            outcomes += [record[3] for record in read_json(part)]
    fair = len(outcomes) - outcomes.count("error")
    return {
        "done": len(outcomes) or None,
        "success": outcomes.count("success") / fair if fair else None,
    }


# ---- rows ------------------------------------------------------------------------------------


def _row(unit: tuple, sign: Mapping[str, Any] | None, finished: str | None) -> dict:
    """A unit's row: what its sign of life says, else whether it is finished."""
    row = dict(zip(COLUMNS, unit)) | {"state": finished or "waiting"}
    if sign is None:
        return row
    kept = {key: sign.get(key) for key in ("phase", "done", "total", "success", "rate", "message")}
    left = _minutes_left(sign) if sign["state"] == "running" else None
    place = f"{sign.get('host')}:{sign.get('pid')}"
    return row | kept | {"state": sign["state"], "where": place, "minutes_left": left}


def _pace(sign: Mapping[str, Any]) -> float | None:
    """Units a second of the current phase; None before its first unit in this run."""
    done, first, began = sign.get("done"), sign.get("phase_first"), sign.get("phase_began")
    if done is None or first is None or began is None:
        return None
    if done <= first or sign.get("updated", began) <= began:
        return None
    return (done - first) / (sign["updated"] - began)


def _minutes_left(sign: Mapping[str, Any]) -> float | None:
    """Of the current phase, at its pace so far."""
    pace, total = _pace(sign), sign.get("total")
    return None if pace is None or total is None else (total - sign["done"]) / pace / 60


# ---- as text ---------------------------------------------------------------------------------


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the number of units in each state, a row per kind of work."""
    kinds = table["stage"] + " " + table["what"]
    found = pd.crosstab(kinds.rename("work"), table["state"])
    return found.reindex(index=kinds.unique(), columns=STATES, fill_value=0)


def text(table: pd.DataFrame) -> str:
    """Return the counts, and below them what runs or asks for a look."""
    parts = [counts(table).to_string()]
    shown = table[table["state"].isin(NEWS)]
    if len(shown):
        columns = [name for name in COLUMNS if shown[name].notna().any()]
        parts.append(shown[columns].to_string(index=False, na_rep="", float_format="{:.3g}".format))
    return "\n\n".join(parts)


def save_picture(table: pd.DataFrame, path: Path) -> None:
    """Save the table as a heat map; the name's end says the format, such as .png or .pdf.

    Raises:
        UserError: the name has no such end.
    """
    from diffrl.figures import work_heatmap  # a table needs no matplotlib

    figure = work_heatmap(table)
    if path.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path} cannot be a picture: let the name after --picture end in .png.")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def main(preset: str = "laptop", watch: bool = False, picture: Path | None = None) -> None:
    """Show what of a preset is waiting, running, done, failed, lost or stale.

    Args:
        preset: whose files in runs/ are read.
        watch: show the table again every few seconds, until Ctrl-C.
        picture: also save the table as a heat map, to a .png or .pdf file.
    """
    settings = get_preset(preset)
    while True:
        table = status(settings)
        if picture is not None:
            save_picture(table, picture)
        shown = text(table)
        print(f"\x1b[2J\x1b[H{time.strftime('%H:%M:%S')}\n{shown}" if watch else shown, flush=True)
        if not watch:
            return
        time.sleep(EVERY)
