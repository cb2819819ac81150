"""Data sets from experts: roll out until there are n successes, count what is discarded.

    python -m diffrl generate --preset smoke --source diffusion --mode deterministic

Attempt k of a data set plays fresh start state k with expert k mod (number of experts); its noise
depends on (task, start state, seed) alone. So a data set is the same whatever the batches, threads
or kills, and two sources meet the same start states. Fresh states are no official ones: the
evaluation never meets a state that a data set was made from.

Beside ``<task>_demo.hdf5`` lies ``<task>_demo.attempts.csv`` with every attempt, discarded or not.
"""

import contextlib
import functools
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from diffrl.base.artifacts import Stage, file_hash, forced, runs_dir, write_csv
from diffrl.base.errors import UserError
from diffrl.base.heartbeat import Heartbeat, heartbeat
from diffrl.base.intervals import wilson
from diffrl.base.scale import map_tasks, progress, shares
from diffrl.data.attributes import libero_attributes
from diffrl.data.hdf5 import EpisodeWriter, read_attributes, read_episodes
from diffrl.data.human import VARIABLE, find_human_file, replay
from diffrl.data.integrity import check_bytes
from diffrl.generation.attempts import ATTEMPT, Mode, Play, Player, Source, expert_folders
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.sim.scene import load_scene
from diffrl.sim.tasks import get_task

BATCH = 16  # attempts between two entries in the list of attempts; changes no result
REPLAYED = 5  # human demonstrations that are replayed, so that a drift of the simulator shows
RECORD = [
    *("task", "source", "mode", "episodes", "attempts", "failures", "errors"),
    *("success", "low", "high", "mean_steps", "minutes"),
]


# -- one data set ----------------------------------------------------------------------------------
def dataset_path(task: str, source: str, mode: str, preset: str, repeated: bool = False) -> Path:
    """Return where a data set lies: LIBERO's file name, in a folder per source and mode.

    Those of repeated start states, see `repeat_all`, lie apart.
    """
    known, place = get_task(task), runs_dir(preset) / ("repeated" if repeated else "datasets")
    return place / f"{source}-{mode}" / known.suite / f"{known.name}_demo.hdf5"


def collect(
    path: Path,
    task: str,
    attrs: dict,
    play: Play,
    wanted: int,
    limit: int,
    batch: int = BATCH,
    bar: tqdm | None = None,
    sign: Heartbeat | None = None,
) -> pd.DataFrame:
    """Store the first `wanted` successes among at most `limit` attempts; return all attempts.

    May be killed at any moment and called again: attempts that are listed are not played again,
    and those after the last listing are played again without storing an episode twice.

    Args:
        path: the HDF5 file.
        task: of its episodes.
        attrs: of the file; another run's file is only continued with the same.
        play: plays attempts by their numbers; the same numbers give the same episodes.
        wanted: successes.
        limit: attempts at most.
        batch: attempts per call of `play`.
        bar: counts the successes.
        sign: of the run's life; it is told the successes.
    """
    log = path.with_suffix(".attempts.csv")
    with EpisodeWriter(path, task, attrs) as writer:
        rows = pd.read_csv(log).to_dict("records") if log.exists() else []
        successes = _successes(rows)
        if successes > len(writer):  # the file was deleted, its list was not
            rows, successes = [], 0
        if bar is not None:
            bar.update(successes)
        while successes < wanted and len(rows) < limit:
            missing = math.ceil(1.25 * (wanted - successes))
            attempts = list(play(len(rows), min(batch, missing, limit - len(rows))))
            if not attempts:
                break  # there are no more human demonstrations
            for attempt in attempts:
                rows.append(attempt.row)
                if attempt.outcome == "success":
                    if successes == len(writer):  # else a run that was killed has stored it
                        writer.append(attempt.episode)
                    successes += 1
                    if bar is not None:
                        bar.update()
                if successes == wanted:
                    break
            write_csv(log, pd.DataFrame(rows, columns=ATTEMPT))
            if sign is not None:
                sign.tell(done=successes, success=successes / len(rows))
    return pd.DataFrame(rows, columns=ATTEMPT)


def generate(
    task: str,
    source: Source,
    mode: Mode,
    preset: Preset,
    *,
    threads: int | None = None,
    force: bool = False,
    bar: tqdm | None = None,
    repeated: bool = False,
) -> pd.DataFrame:
    """Make one data set, or find it done; return its row of ``generation.csv``.

    If `repeated` it holds the successes of a few start states, each played several times.

    A data set that is damaged, larger than asked for, or made with other settings or by other
    experts, is made anew. Where no attempt succeeded the row says so, and there is no file.

    Raises:
        UserError: the experts are missing.
    """
    path = dataset_path(task, source, mode, preset.name, repeated)
    experts = expert_folders(task, source, preset)
    settings = {"preset": preset.name, "task": task, "source": source, "mode": mode}
    settings |= _settings(source, preset)
    wanted, limit = preset.generation.episodes, preset.generation.max_attempts
    options = {}
    if repeated:
        settings["repeats"] = repeats = preset.generation.repeats
        wanted = limit = repeats * preset.generation.repeated_starts
        options["repeats"] = repeats
    config = {**settings, "episodes": wanted, "max_attempts": limit}
    weights = [folder / "policy.safetensors" for folder in experts]
    stage = Stage(path.parent, path.stem, config, inputs=weights)
    if stage.done and not force and not (path.exists() and any(check_bytes(path))):
        return pd.DataFrame([stage.records], columns=RECORD)
    settings["experts"] = [file_hash(file) for file in weights]
    attrs = libero_attributes(get_task(task)) | {"generation": json.dumps(settings, sort_keys=True)}
    _discard_other(path, attrs, force or _listed(path) > wanted or _forced(path))
    began = time.perf_counter()
    play = Player(load_scene(task), source, mode, preset, experts, threads, **options)
    batch = limit if repeated else BATCH  # a turn's start states side by side
    with heartbeat(path.parent, path.stem) as sign:
        sign.tell(phase="attempts", done=_listed(path), total=wanted)
        attempts = collect(path, task, attrs, play, wanted, limit, batch, bar, sign)
    row = _record(task, source, mode, attempts, (time.perf_counter() - began) / 60)
    if source == "human":
        print(f"{task}: {replay(load_scene(task), read_episodes(path)[:REPLAYED])}.")
    stage.finish(row, outputs=[path] if row["episodes"] else [], seed=preset.generation.seed)
    return pd.DataFrame([row], columns=RECORD)


def _settings(source: str, preset: Preset) -> dict:
    """What decides the episodes, beside the experts; not how many of them there are."""
    settings = {"seed": preset.generation.seed}
    if source == "operator":
        settings["noise"] = preset.demonstrations.noise
    return settings


def _discard_other(path: Path, attrs: dict, force: bool) -> None:
    """Remove what other settings or experts made; what these made is kept and continued."""
    parts = path.with_name(path.name + ".parts")
    begun = [file for file in (path, *sorted(parts.glob("[0-9]*.hdf5"))[:1]) if file.exists()]
    with contextlib.suppress(UserError):  # a damaged file is made anew as well
        if begun and not force and all(read_attributes(file) == attrs for file in begun):
            return
    for file in (path, path.with_suffix(".attempts.csv")):
        file.unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)


def _successes(rows: list[dict]) -> int:
    return sum(row["outcome"] == "success" for row in rows)


def _listed(path: Path) -> int:
    """Successes in the list of attempts beside a data set, which may not be there."""
    log = path.with_suffix(".attempts.csv")
    return _successes(pd.read_csv(log).to_dict("records")) if log.exists() else 0


def _forced(path: Path) -> bool:
    logs = (path, path.with_suffix(".attempts.csv"))
    return any(forced(file) for file in logs if file.exists())


def _record(task: str, source: str, mode: str, attempts: pd.DataFrame, minutes: float) -> dict:
    """The row of ``generation.csv``: the share of successes counts no attempt that diverged."""
    outcomes = attempts["outcome"].value_counts()
    count = {name: int(outcomes.get(name, 0)) for name in ("success", "failure", "error")}
    fair = count["success"] + count["failure"]
    low, high = wilson(count["success"], fair) if fair else (0.0, 1.0)
    steps = attempts.loc[attempts["outcome"] == "success", "steps"].mean()
    share = count["success"] / max(fair, 1)
    values = (count["success"], len(attempts), count["failure"], count["error"], share, low, high)
    return dict(zip(RECORD, (task, source, mode, *values, float(steps), round(minutes, 2))))


# -- all data sets of a preset ---------------------------------------------------------------------
def sources_of(preset: Preset) -> list[tuple[Source, Mode]]:
    """Return the (source, mode) of a preset's data sets: the demonstrations' and the experts'.

    People's join the operator's where LIBERO_DATASETS names their folder.
    """
    sources = [preset.demonstrations.source, *(["human"] if os.environ.get(VARIABLE) else [])]
    experts = [(source, mode) for mode in preset.generation.modes for source in ALGORITHMS]
    return [*((source, "recorded") for source in dict.fromkeys(sources)), *experts]


def generate_all(
    preset: Preset,
    tasks: Sequence[str] | None = None,
    sources: Sequence[tuple[Source, Mode]] | None = None,
    workers: int | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Make every data set of a preset in parallel processes; return ``generation.csv``."""
    rows = _make_all(preset, tasks, sources or sources_of(preset), workers, force)
    return _write_record(preset.name, rows)


def repeat_all(
    preset: Preset,
    tasks: Sequence[str] | None = None,
    sources: Sequence[tuple[Source, Mode]] | None = None,
    workers: int | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Play a few fresh start states several times each, with other noise: for quality alone.

    What varies there is the policy's own, not the start states' as in the data sets. Returns rows
    as of ``generation.csv``; people repeat nothing.
    """
    pairs = [pair for pair in sources or sources_of(preset) if pair[0] != "human"]
    return _make_all(preset, tasks, pairs, workers, force, repeated=True)


def _make_all(
    preset: Preset,
    tasks: Sequence[str] | None,
    pairs: Sequence[tuple[Source, Mode]],
    workers: int | None,
    force: bool,
    repeated: bool = False,
) -> pd.DataFrame:
    items = [(task, *pair) for task in tasks or preset.tasks for pair in pairs]
    items = [item for item in items if item[1] == preset.demonstrations.source or _there(*item)]
    for task, source, _ in items:
        expert_folders(task, source, preset)  # a missing expert is said before hours of work
    if not items and pairs:
        raise UserError("Nothing is left to make: see above why.")
    if not items:
        return pd.DataFrame(columns=RECORD)
    workers, threads = shares(len(items), workers)
    options = {"preset": preset, "threads": threads, "force": force, "show": workers == 1}
    options["repeated"] = repeated
    function = functools.partial(_generate, **options)
    names = [f"{task} {source} {mode}" for task, source, mode in items]
    what = "repeated start states" if repeated else "data sets"
    rows = map_tasks(function, items, names=names, workers=workers, description=what)
    return pd.concat(rows, ignore_index=True)


def _there(task: str, source: str, mode: str) -> bool:
    """Whether a data set can be had; people's, which may be there of some tasks only, is told."""
    try:
        return source != "human" or find_human_file(get_task(task)).is_file()
    except UserError as error:
        print(f"Left out: {error}")
        return False


def _generate(
    item: tuple, preset: Preset, threads: int, force: bool, show: bool, repeated: bool
) -> pd.DataFrame:
    config, name = preset.generation, " ".join(item)
    total = config.repeats * config.repeated_starts if repeated else config.episodes
    with progress(total, name, "episode") if show else contextlib.nullcontext() as bar:
        options = {"threads": threads, "force": force, "bar": bar, "repeated": repeated}
        return generate(*item, preset, **options)


def _write_record(preset: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Enter `rows` into ``runs/<preset>/generation.csv``; return the whole table."""
    path = runs_dir(preset) / "generation.csv"
    tables = [rows] + ([pd.read_csv(path)] if path.exists() else [])
    key = ["task", "source", "mode"]
    table = pd.concat(tables).drop_duplicates(key, keep="first").sort_values(key)
    write_csv(path, table)
    return table.reset_index(drop=True)


def main(
    preset: str = "laptop",
    task: str | None = None,
    source: Source | None = None,
    mode: Mode | None = None,
    workers: int | None = None,
    human_demos: Path | None = None,
    force: bool = False,
) -> None:
    """Roll out experts (or the operator) into data sets of successful episodes.

    Beside them a few start states are played several times, for the quality of notebook 3 alone.

    Args:
        preset: smoke, laptop, gpu or paper; decides tasks, number of episodes, seeds.
        task: only this one, e.g. libero_object/0.
        source: only this one.
        mode: only this one: recorded (demonstrations), deterministic or stochastic (experts).
        workers: processes; default: one per core.
        human_demos: folder of LIBERO's official data sets (or set LIBERO_DATASETS).
        force: begin anew even if a data set is there.
    """
    if human_demos is not None:
        os.environ[VARIABLE] = str(human_demos)
    settings = get_preset(preset)
    pairs = [
        pair
        for pair in sources_of(settings)
        if source in (None, pair[0]) and mode in (None, pair[1])
    ]
    if not pairs:
        known = ", ".join(f"{s} {m}" for s, m in sources_of(settings))
        raise UserError(f"Preset {preset} makes no {source} {mode} data; it makes {known}.")
    tasks = [get_task(task).id] if task else settings.tasks
    table = generate_all(settings, tasks, pairs, workers, force)
    repeat_all(settings, tasks, pairs, workers, force)
    for row in table[table["task"].isin(tasks)].to_dict("records"):
        if (row["source"], row["mode"]) in pairs:
            if not row["episodes"]:
                print(
                    "{task} {source} {mode}: none of {attempts} attempts succeeded, so there is no "
                    "data set. Train the expert longer, or raise generation.max_attempts.".format(
                        **row
                    )
                )
                continue
            print(
                "{task} {source} {mode}: {episodes} episodes from {attempts} attempts "
                "({success:.0%} succeeded, {low:.0%}-{high:.0%}; {failures} failures and "
                "{errors} errors discarded)".format(**row)
            )
    print(f"Data sets and their lists of attempts lie in {runs_dir(preset) / 'datasets'}.")
