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
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from diffrl.base.arm import Arm, Mode
from diffrl.base.artifacts import Stage, alone, file_hash, forced, run_folder, runs_dir, write_csv
from diffrl.base.errors import UserError, refuse_missing, refuse_options
from diffrl.base.heartbeat import Heartbeat, heartbeat
from diffrl.base.intervals import wilson
from diffrl.base.progress import progress
from diffrl.base.scale import map_tasks, shares
from diffrl.data.attributes import libero_attributes
from diffrl.data.hdf5 import EpisodeWriter, read_attributes, read_episodes
from diffrl.data.human import VARIABLE, find_human_file, human_file, replay
from diffrl.data.integrity import check_bytes
from diffrl.data.outcomes import attempts_path, read_attempts
from diffrl.generation.attempts import (
    ATTEMPT,
    CLONE,
    Play,
    Player,
    demonstrations_of,
    expert_folders,
    experts_behind,
)
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.sim.scene import load_scene
from diffrl.sim.tasks import get_task

# Raise it when the same settings and experts come to give other episodes: another way to play an
# attempt or to store it, or an operator that moves in another way.
FORMAT = 1
BATCH = 16  # attempts between two entries in the list of attempts; changes no result
REPLAYED = 5  # human demonstrations that are replayed, so that a drift of the simulator shows
RECORD = [
    *("task", "source", "mode", "episodes", "attempts", "failures", "errors"),
    *("success", "low", "high", "mean_steps", "minutes"),
]


# -- one data set ----------------------------------------------------------------------------------
def dataset_path(preset: Preset, task: str, arm: Arm, repeated: bool = False) -> Path:
    """Return where a data set lies: LIBERO's file name, in a folder per source and mode.

    Those of repeated start states, see `repeat_all`, lie apart.
    """
    known, kind = get_task(task), "repeated" if repeated else "datasets"
    return run_folder(preset.name) / kind / str(arm) / known.suite / f"{known.name}_demo.hdf5"


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
    clear: Callable[[], object] = lambda: None,
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
        sign: shows the successes while the run is at work.
        clear: removes what another run made; it is called when no other process can write.
    """
    log = attempts_path(path)
    began = time.perf_counter()
    with EpisodeWriter(path, task, attrs, clear) as writer:
        rows = read_attempts(path, ATTEMPT).to_dict("records")
        before = sum(row["steps"] for row in rows)
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
                    assert attempt.episode is not None  # only an error has none
                    if successes == len(writer):  # else a run that was killed has stored it
                        writer.append(attempt.episode)
                    successes += 1
                    if bar is not None:
                        bar.update()
                if successes == wanted:
                    break
            write_csv(log, pd.DataFrame(rows, columns=ATTEMPT))
            if sign is not None:
                steps, seconds = sum(row["steps"] for row in rows), time.perf_counter() - began
                sign.tell(done=successes, success=successes / len(rows))
                sign.tell(rate=(steps - before) / seconds)
    return pd.DataFrame(rows, columns=ATTEMPT)


def generate(
    preset: Preset,
    task: str,
    arm: Arm,
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
    path = dataset_path(preset, task, arm, repeated)
    source = arm.source
    experts = expert_folders(preset, task, source)
    _clone_missing(preset, task, source, experts, threads)
    config = config_of(preset, task, arm, repeated)
    settings = dict(config)
    wanted, limit = settings.pop("episodes"), settings.pop("max_attempts")
    options = {"repeats": config["repeats"]} if repeated else {}
    weights = [folder / "policy.safetensors" for folder in experts]
    recorded = [human_file(get_task(task))] if source == "human" else []
    stage = Stage(path.parent, path.stem, config, [*weights, *recorded], FORMAT)
    damaged = path.exists() and any(check_bytes(path))
    if not stage.due(force or damaged):
        return pd.DataFrame([stage.records], columns=RECORD)
    settings["experts"] = [file_hash(file) for file in weights]
    if source == "human":
        settings["recorded"] = file_hash(find_human_file(get_task(task)))
    if FORMAT != 1:  # a data set of another format is made anew, not continued
        settings["format"] = FORMAT
    attrs = libero_attributes(get_task(task)) | {"generation": json.dumps(settings, sort_keys=True)}
    anew = force or _listed(path) > wanted or _forced(path)
    clear = functools.partial(_discard_other, path, attrs, anew)
    began = time.perf_counter()
    play = Player(load_scene(task), arm, preset, experts, threads, **options)
    batch = limit if repeated else BATCH  # a turn's start states side by side
    with heartbeat(path.parent, path.stem) as sign:
        sign.tell(phase="attempts", done=_listed(path), total=wanted)
        attempts = collect(path, task, attrs, play, wanted, limit, batch, bar, sign, clear)
    row = _record(task, arm, attempts, (time.perf_counter() - began) / 60)
    if source == "human":
        print(f"{task}: {replay(load_scene(task), read_episodes(path)[:REPLAYED])}.")
    stage.finish(row, outputs=[path] if row["episodes"] else [], seed=preset.generation.seed)
    return pd.DataFrame([row], columns=RECORD)


def _clone_missing(
    preset: Preset, task: str, source: str, folders: Sequence[Path], threads: int | None
) -> None:
    """Make those clones again that the folders of their experts lack."""
    for (algorithm, seed), folder in zip(experts_behind(preset, task, source), folders):
        if source.endswith(CLONE) and not (folder / "policy.safetensors").is_file():
            from diffrl.rl.train import Training  # torch: only for policies

            print(f"{task}: the clone of {algorithm}, seed {seed}, is not there: it is made again.")
            with alone(folder.parent):
                Training(preset, task, algorithm, seed, threads).clone_again()


def config_of(preset: Preset, task: str, arm: Arm, repeated: bool = False) -> dict:
    """Return what decides a data set, beside the experts: its episodes, and how many they are."""
    config, generation = {"preset": preset.name, "task": task, **arm._asdict()}, preset.generation
    config["seed"] = generation.seed
    if arm.source in ("operator", "steady"):
        shown = demonstrations_of(preset, arm.source)
        config["noise"] = shown.noise
        if shown.tremor is not None:
            config["tremor"] = shown.tremor
    counts = {"episodes": generation.episodes, "max_attempts": generation.max_attempts}
    if repeated:
        config["repeats"] = generation.repeats
        counts = dict.fromkeys(counts, generation.repeats * generation.repeated_starts)
    return config | counts


def _discard_other(path: Path, attrs: dict, force: bool) -> None:
    """Remove what other settings or experts made; what these made is kept and continued."""
    parts = path.with_name(path.name + ".parts")
    begun = [file for file in (path, *parts.glob("[0-9]*.hdf5")) if file.exists()]
    with contextlib.suppress(UserError):  # a damaged file or list is made anew as well
        read_attempts(path, ATTEMPT)
        if begun and not force and all(read_attributes(file) == attrs for file in begun):
            return
    for file in (path, attempts_path(path)):
        file.unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)


def _successes(rows: list[dict]) -> int:
    return sum(row["outcome"] == "success" for row in rows)


def _listed(path: Path) -> int:
    """Successes in the list of attempts beside a data set; 0 without one that can be read."""
    with contextlib.suppress(UserError):
        return _successes(read_attempts(path).to_dict("records"))
    return 0


def _forced(path: Path) -> bool:
    logs = (path, attempts_path(path))
    return any(forced(file) for file in logs if file.exists())


def _record(task: str, arm: Arm, attempts: pd.DataFrame, minutes: float) -> dict:
    """The row of ``generation.csv``: the share of successes counts no attempt that diverged."""
    outcomes = attempts["outcome"].value_counts()
    count = {name: int(outcomes.get(name, 0)) for name in ("success", "failure", "error")}
    fair = count["success"] + count["failure"]
    low, high = wilson(count["success"], fair) if fair else (0.0, 1.0)
    steps = attempts.loc[attempts["outcome"] == "success", "steps"].mean()
    share = count["success"] / max(fair, 1)
    values = (count["success"], len(attempts), count["failure"], count["error"], share, low, high)
    return dict(zip(RECORD, (task, *arm, *values, float(steps), round(minutes, 2))))


# -- all data sets of a preset ---------------------------------------------------------------------
def arms_of(preset: Preset) -> list[Arm]:
    """Return the arms of a preset's data sets: demonstrations, experts, and the ladder's.

    People's join the operator's where LIBERO_DATASETS names their folder.
    """
    sources = [preset.demonstrations.source, *(["human"] if os.environ.get(VARIABLE) else [])]
    experts = [Arm(source, mode) for mode in preset.generation.modes for source in ALGORITHMS]
    ladder = [Arm(*pair) for pair in preset.generation.ladder]
    return [*(Arm(source) for source in dict.fromkeys(sources)), *experts, *ladder]


def generate_all(
    preset: Preset,
    tasks: Sequence[str] | None = None,
    arms: Sequence[Arm] | None = None,
    workers: int | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Make every data set of a preset in parallel processes; return ``generation.csv``.

    A data set whose expert is missing stops none of the others.

    Raises:
        UserError: an expert is missing; when all other data sets are made.
    """
    rows, missing = _make_all(preset, tasks, arms or arms_of(preset), workers, force)
    table = _write_record(preset.name, rows)
    refuse_missing(missing, "data sets")
    return table


def repeat_all(
    preset: Preset,
    tasks: Sequence[str] | None = None,
    arms: Sequence[Arm] | None = None,
    workers: int | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Play a few fresh start states several times each, with other noise: for quality alone.

    What varies there is the policy's own, not the start states' as in the data sets. Returns rows
    as of ``generation.csv``; people repeat nothing.
    """
    arms = [arm for arm in arms or arms_of(preset) if arm.source != "human"]
    rows, missing = _make_all(preset, tasks, arms, workers, force, repeated=True)
    refuse_missing(missing, "data sets of repeated start states")
    return rows


def _make_all(
    preset: Preset,
    tasks: Sequence[str] | None,
    arms: Sequence[Arm],
    workers: int | None,
    force: bool,
    repeated: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """Make what can be made; return its rows and why the others cannot."""
    items = [(task, arm) for arm in arms for task in tasks or preset.tasks]  # main arms first
    demonstrator = preset.demonstrations.source
    items = [(t, arm) for t, arm in items if arm.source == demonstrator or _there(t, arm)]
    if not items and arms:
        raise UserError("No data set can be made: the lines above give the reasons.")
    reasons = {item: _lacks(preset, *item) for item in items}
    missing = [why for why in reasons.values() if why]
    if items and len(missing) == len(items):
        raise UserError(missing[0])
    for why in dict.fromkeys(missing):  # before hours of work
        print(f"Left out: {why}")
    items = [item for item in items if not reasons[item]]
    if not items:
        return pd.DataFrame(columns=RECORD), missing
    workers, threads = shares(len(items), workers)
    function = functools.partial(
        _generate,
        preset=preset,
        threads=threads,
        force=force,
        show=workers == 1,
        repeated=repeated,
    )
    names = [f"{task} {arm}" for task, arm in items]
    what = "repeated start states" if repeated else "data sets"
    rows = map_tasks(function, items, names=names, workers=workers, description=what)
    return pd.concat(rows, ignore_index=True), missing


def _lacks(preset: Preset, task: str, arm: Arm) -> str:
    """Which expert a data set needs and has not; "" if there is none to miss."""
    try:
        expert_folders(preset, task, arm.source)
    except UserError as error:
        return str(error)
    return ""


def _there(task: str, arm: Arm) -> bool:
    """Whether a data set can be made; a person's that is missing is reported."""
    try:
        return arm.source != "human" or find_human_file(get_task(task)).is_file()
    except UserError as error:
        print(f"Left out: {error}")
        return False


def _generate(
    item: tuple[str, Arm], preset: Preset, threads: int, force: bool, show: bool, repeated: bool
) -> pd.DataFrame:
    (task, arm), config = item, preset.generation
    total = config.repeats * config.repeated_starts if repeated else config.episodes
    with progress(total, f"{task} {arm}", "episode") if show else contextlib.nullcontext() as bar:
        return generate(preset, task, arm, threads=threads, force=force, bar=bar, repeated=repeated)


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
    suite: tuple[str, ...] = (),
    task: str | None = None,
    source: str | None = None,
    mode: Mode | None = None,
    workers: int | None = None,
    human_demos: Path | None = None,
    force: bool = False,
) -> None:
    """Roll out experts (or the operator) into data sets of successful episodes.

    A few start states are also played several times; notebook 3 alone uses these episodes.

    Args:
        preset: smoke, laptop, libero, pixels, gpu or paper. It sets tasks, number of episodes and
            seeds.
        suite: only these of the preset's suites, e.g. libero_object.
        task: generate for this task only, e.g. libero_object/0.
        source: generate from this source only.
        mode: generate in this mode only: recorded (demonstrations), deterministic or stochastic
            (experts).
        workers: processes; default: one per core.
        human_demos: folder of LIBERO's official data sets (or set LIBERO_DATASETS).
        force: generate again even if a data set exists.
    """
    if human_demos is not None:
        os.environ[VARIABLE] = str(human_demos)
    if task is not None:
        refuse_options({"--suite": suite}, "chooses tasks, too: leave it out beside --task.")
    settings = get_preset(preset, suite)
    every = arms_of(settings)
    arms = [a for a in every if source in (None, a.source) and mode in (None, a.mode)]
    if not arms:
        known = ", ".join(map(str, every))
        asked = "-".join(word for word in (source, mode) if word)
        raise UserError(f"Preset {preset} makes no {asked} data; it makes {known}.")
    tasks = [get_task(task).id] if task else settings.tasks
    table = generate_all(settings, tasks, arms, workers, force)
    repeat_all(settings, tasks, arms, workers, force)
    for row in table[table["task"].isin(tasks)].to_dict("records"):
        if (row["source"], row["mode"]) in arms:
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
