"""Evaluation as LIBERO is usually evaluated: planned trials, each played once, each recorded.

The protocol is the first row of OpenVLA-OFT's and openpi's: official start states, ten settle
steps, the suite's step limit, success when the goal holds. A trial is a planned (task, start
state, seed); nothing about it depends on its company, on the number of processes or on the order.
An error is no failure: it is counted apart and enters no rate.
"""

import functools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diffrl.base.arm import Arm
from diffrl.base.artifacts import (
    FORCE,
    config_hash,
    provenance,
    read_json,
    root,
    runs_dir,
    write_csv,
    write_json,
)
from diffrl.base.control import SETTLE_STEPS
from diffrl.base.errors import UserError, refuse_missing, refuse_options, whole
from diffrl.base.heartbeat import heartbeat
from diffrl.base.scale import map_tasks, processes
from diffrl.evaluation.own import Own, adapt
from diffrl.evaluation.play import Outcome, film, play
from diffrl.evaluation.policies import Oracle, label_of, open_policy
from diffrl.evaluation.protocol import Policy, Trial
from diffrl.evaluation.scores import (
    ARM,
    compare,
    effects,
    factorial,
    pooled,
    protocol,
    readable,
    summarise,
    with_absent,
    with_means,
)
from diffrl.presets import Preset, get_preset
from diffrl.sim.pictures import Pictures
from diffrl.sim.tasks import get_task, suite_tasks
from diffrl.vla.stage import arm_of, finished, is_kept, model_folder, models_of, refuse_no_tasks

# Raise it when the same policy comes to get other trials: another protocol, another noise.
FORMAT = 1
OFFICIAL = 50  # start states of every LIBERO task
COPIES = 8  # robots that a process simulates at once: one block of the compact VLA's
HERE = ("compact", "expert", "oracle", "random", "openpi")  # cheap enough for a process per core
WHO = [*ARM, "training_seed"]  # whose trials: one VLA's
COLUMNS = ["suite", "task", "source", "mode", "training_seed", "start_state", "trial_seed"]
COLUMNS += ["status", "steps", "seconds"]


def plan(tasks: Sequence[str], trials: int, seed: int = 0) -> list[Trial]:
    """Plan `trials` official start states of each task: the first ones, in LIBERO's order.

    Raises:
        UserError: a task is unknown, or has fewer official start states; or the seed is negative.
    """
    whole(seed, "The seed of an evaluation", least=0)
    if not 1 <= trials <= OFFICIAL:
        raise UserError(
            f"{trials} trials per task were asked for, but a task has {OFFICIAL} official start "
            "states: ask for 1 to 50, and repeat with another seed for more."
        )
    suffix = "" if seed == 0 else f"/fixtures-{seed}"
    return [
        Trial(task, f"official/{i}{suffix}", seed)
        for task in dict.fromkeys(get_task(task).id for task in tasks)
        for i in range(trials)
    ]


def plan_of(preset: Preset, data: str = "") -> list[Trial]:
    """Plan what a preset's VLA of `data` plays: its tasks, and some of the further suites' trials.

    One of the further data, or with fewer seeds, may play fewer: the first of the others' states.
    """
    settings = preset.evaluation
    few = data in preset.vla.further or data in dict(preset.vla.fewer)
    count = settings.fewer_trials if few and settings.fewer_trials else settings.trials
    own = plan(preset.vla_tasks, count, settings.seed)
    others = plan(tasks_of(settings.suites), settings.suite_trials, settings.seed)
    return list(dict.fromkeys(own + others))


@dataclass(frozen=True)
class Job:
    """A policy, what it is to play, and where the records go."""

    policy: Any  # its name (`diffrl.evaluation.policies.open_policy`), or an object with `infer`
    trials: tuple[Trial, ...]  # planned beforehand, see `plan`
    folder: Path
    arm: Arm  # what the policy learned from, or what kind of policy it is
    training_seed: int = 0

    def __post_init__(self) -> None:
        for word in self.arm:
            if word.split() != [word]:
                raise UserError(
                    f"An arm's source and mode are single words, and {word!r} is none: tables join "
                    'them by a space, as in "diffusion deterministic".'
                )


def evaluate(
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    copies: int = COPIES,
    videos: Sequence[str] = (),
    retry_errors: bool = False,
) -> pd.DataFrame:
    """Play the trials of all jobs, keep their records, return the table of all of them.

    A job's folder gets ``trials.csv`` and ``trials.json`` (protocol, errors, provenance). Trials
    that it holds already, of the same policy, are not played again; what a killed run had played
    is not lost, and what another plan had played stays in these two files, after the job's own
    trials. A policy that is given as an object plays in this process, and is found again only
    if it has a `fingerprint` (see `diffrl.evaluation.own`).

    Args:
        jobs: one per policy.
        workers: processes; changes no result.
        copies: robots that a process simulates at once; changes no result.
        videos: start states whose trials are filmed to ``<folder>/videos``.
        retry_errors: whether recorded errors are tried once more.

    Raises:
        UserError: a policy cannot be opened, or its actions have a wrong shape; no trial begins
            from a state that is to be filmed.
    """
    whole(copies, "copies")
    workers = processes(workers)
    planned = dict.fromkeys(trial.start_state for job in jobs for trial in job.trials)
    if lost := [state for state in videos if state not in planned]:
        raise UserError(
            f"No trial begins from {lost[0]!r}, so none can be filmed: choose some of "
            f"{', '.join(list(planned)[:3])}, …"
        )
    _policy.cache_clear()  # a policy may have been trained again under its old name
    jobs = [_opened(job) for job in jobs]
    items = []
    for job in jobs:
        key = _key(job.policy)
        if retry_errors:
            _forget_errors(job.folder, key)
        done = _recorded(job.folder, key)
        if not done:
            _tell_older(job)
        missing = [t for t in job.trials if t not in done]
        if done:
            print(
                f"{len(job.trials) - len(missing)} of {len(job.trials)} trials of {_name(job)} are "
                f"found in {job.folder} and not played (or filmed) again."
            )
        for shard in _shards(missing, workers if isinstance(job.policy, str) else 1):
            items.append((job, key, shard, copies, tuple(videos)))
    _play_all([item for item in items if isinstance(item[0].policy, str)], workers)
    _play_all([item for item in items if not isinstance(item[0].policy, str)], workers=1)
    tables = [_record(job) for job in jobs]
    for job in jobs:
        if isinstance(job.policy, Own) and job.policy.unknown:  # nobody could find them again
            shutil.rmtree(job.folder / "checkpoint" / _key(job.policy), ignore_errors=True)
    return pd.concat(tables, ignore_index=True)


def _opened(job: Job) -> Job:
    """Make a policy's object follow the protocol; a name stays one, as every process opens it."""
    return job if isinstance(job.policy, str) else replace(job, policy=adapt(job.policy))


def _name(job: Job) -> str:
    if isinstance(job.policy, str):
        return job.policy
    inner = job.policy.policy if isinstance(job.policy, Own) else job.policy
    return f"{type(inner).__module__}.{type(inner).__qualname__}"


def _play_all(items: list[tuple[Any, ...]], workers: int) -> None:
    tasks = list(dict.fromkeys(item[2][0].task for item in items))
    items.sort(key=lambda item: tasks.index(item[2][0].task))  # a worker keeps its renderer
    names = [f"{_name(job)} on {len(t)} trials of {t[0].task}" for job, _, t, *_ in items]
    if items:
        map_tasks(_play_shard, items, names=names, workers=workers, description="trials")


def _record(job: Job) -> pd.DataFrame:
    """Write all that the folder holds of a job's policy; return the rows of the job's trials."""
    outcomes = _recorded(job.folder, _key(job.policy))
    kept = list(dict.fromkeys([*job.trials, *outcomes]))  # a plan of before keeps its place
    table = pd.DataFrame([_row(outcomes[t], job) for t in kept], columns=COLUMNS)
    errors = {str(tuple(t)): outcomes[t].message for t in kept if outcomes[t].status == "error"}
    write_csv(job.folder / "trials.csv", table)
    seen = protocol(table, _pictures(job.policy))
    arm = job.arm._asdict() | {"training_seed": job.training_seed}
    about = {"policy": _name(job), "protocol": seen, "errors": errors, "arm": arm}
    write_json(job.folder / "trials.json", {**about, "provenance": provenance(about)})
    if errors:
        print(
            f"{len(errors)} of {len(table)} trials ended in an error, for instance because "
            f"{next(iter(errors.values()))} (all in {job.folder / 'trials.json'}; --retry-errors "
            "plays them once more)"
        )
    return table[: len(job.trials)]


@functools.lru_cache(maxsize=16)
def _policy(name: str) -> Policy:
    return open_policy(name)


def _policy_of(policy: str | Policy) -> Policy:
    return _policy(policy) if isinstance(policy, str) else policy


def _pictures(policy: str | Policy) -> Policy | None:
    """The policy if it looks at pictures: its size and detail belong to the protocol."""
    return seen if (seen := _policy_of(policy)).cameras else None


def _key(policy: str | Policy, format: int | None = None) -> str:
    parts = [_policy_of(policy).fingerprint, SETTLE_STEPS]
    format = format or FORMAT
    return config_hash(parts if format == 1 else [*parts, format])


def _tell_older(job: Job) -> None:
    """Say so where the folder holds trials of this policy that another format has played."""
    for format in range(1, FORMAT):
        if _recorded(job.folder, _key(job.policy, format)):
            print(
                f"{job.folder} holds trials of {_name(job)} that were played by format {format} of "
                f"the evaluation, now {FORMAT}: they are played again."
            )


def _shards(trials: list[Trial], workers: int) -> list[list[Trial]]:
    """Part trials into units of work: a task each, or shares of it where tasks are few."""
    tasks = dict.fromkeys(trial.task for trial in trials)
    shards = []
    for task in tasks:
        own = [trial for trial in trials if trial.task == task]
        size = len(own) if len(tasks) >= 2 * workers else -(-len(own) // workers)
        shards += [own[i : i + size] for i in range(0, len(own), size)]
    return shards


def _play_shard(item: tuple[Any, ...]) -> int:
    """Play one shard and write its outcomes as they come; runs in a worker process."""
    job, key, trials, copies, videos = item
    if isinstance(job.policy, str):  # an object is another's, and so is the process
        torch.set_num_threads(1)
    policy = _policy_of(job.policy)
    records: list[list[Any]] = []
    path = job.folder / "checkpoint" / key / f"{config_hash(trials)}.json"

    def note(o: Outcome) -> None:
        if o.states:
            film(o, job.folder / "videos", Pictures(256, policy.detail))
        records.append([*o.trial, o.status, o.steps, round(o.seconds, 3), o.message])
        write_json(path, records)
        wins = sum(record[3] == "success" for record in records)
        sign.tell(done=len(records), success=wins / len(records))
        sign.tell(rate=sum(record[4] for record in records) / (time.perf_counter() - began))

    began = time.perf_counter()
    with heartbeat(job.folder, f"trials-{config_hash(trials)}") as sign:
        sign.tell(phase=trials[0].task, done=0, total=len(trials))
        play(policy, trials, copies, lambda trial: trial.start_state in videos, note)
    return len(trials)


def _recorded(folder: Path, key: str) -> dict[Trial, Outcome]:
    """Outcomes that the folder holds of this policy; it may hold others' beside them."""
    found, forced = {}, float(os.environ.get(FORCE, 0))
    for part in sorted((folder / "checkpoint" / key).glob("[!.]*.json")):
        if part.stat().st_mtime < forced:
            part.unlink()
            continue
        for task, start_state, seed, status, steps, seconds, message in read_json(part):
            trial = Trial(task, start_state, seed)
            found[trial] = Outcome(trial, status, steps, seconds, message)
    return found


def _forget_errors(folder: Path, key: str) -> None:
    for part in (folder / "checkpoint" / key).glob("[!.]*.json"):
        records = read_json(part)
        if any(record[3] == "error" for record in records):
            write_json(part, [record for record in records if record[3] != "error"])


def _row(outcome: Outcome, job: Job) -> list[Any]:
    trial = outcome.trial
    who = [*job.arm, job.training_seed]
    what = [outcome.status, outcome.steps, round(outcome.seconds, 3)]
    return [get_task(trial.task).suite, trial.task, *who, trial.start_state, trial.seed, *what]


def evaluate_preset(
    preset: Preset, workers: int | None = None, options: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Evaluate every VLA of a preset; write its records in ``runs/<preset>``; return the trials.

    A VLA that is not trained stops none of the others; it has a row of no trials in
    ``evaluation_seeds.csv``, and an arm without any has one in ``evaluation.csv``.

    ``vla_trials.csv`` has a row per trial, ``evaluation.csv`` success per suite and arm with the
    means over suites and tasks, ``evaluation_seeds.csv`` of each training seed,
    ``evaluation_tasks.csv`` per task and arm, ``evaluation_pairs.csv`` the paired differences,
    ``evaluation_effects.csv`` those of the policy's class and of the noise, ``effects.csv`` the
    planned contrasts over tasks.

    Raises:
        UserError: a VLA is not trained, or with other settings or data than the preset's; when all
            others are evaluated.
    """
    refuse_no_tasks(preset)
    folder, models = runs_dir(preset.name) / preset.tables_of, models_of(preset)
    path = folder / "vla_trials.csv"
    trained = _those_there(preset, models, path)
    lost = [model for model in models if model not in trained]
    missing = [_why_not(preset, *model, path) for model in lost]
    if not trained:
        raise UserError(missing[0])
    table = _evaluate_models(preset, trained, path, workers, options)
    write_csv(path, table)
    suites = tuple(dict.fromkeys(task.partition("/")[0] for task in preset.vla_tasks))
    absent = [arm_of(data)._asdict() for data in preset.vla.data if data not in dict(trained)]
    write_csv(folder / "evaluation.csv", with_absent(with_means(table, suites), absent))
    seeds = [arm_of(data)._asdict() | {"training_seed": seed} for data, seed in lost]
    rates = summarise(table, ("suite", *WHO))
    write_csv(folder / "evaluation_seeds.csv", with_absent(rates, seeds))
    write_csv(folder / "evaluation_tasks.csv", summarise(table, ("suite", "task", *ARM)))
    write_csv(folder / "evaluation_pairs.csv", compare(table))
    beyond = table[table["suite"].isin(preset.evaluation.suites)]
    parts = [table, beyond.assign(suite="out of distribution")]
    if len(suites) > 1:
        parts.append(pooled(table[table["suite"].isin(suites)]))
    write_csv(folder / "evaluation_effects.csv", pd.concat(map(factorial, parts)))
    write_csv(folder / "effects.csv", pd.concat(map(effects, parts)))
    refuse_missing(missing, "VLAs")
    return table


def evaluate_further(preset: Preset, workers: int | None = None) -> pd.DataFrame:
    """Evaluate those VLAs of fewer and mixed demonstrations that are trained; maybe none.

    They play the others' trials; see ``vla_further_trials.csv``.
    """
    path = runs_dir(preset.name) / preset.tables_of / "vla_further_trials.csv"
    models = _those_there(preset, models_of(preset, True), path)
    if not models:
        return pd.DataFrame(columns=COLUMNS)
    table = _evaluate_models(preset, models, path, workers)
    write_csv(path, table)
    return table


def _those_there(
    preset: Preset, models: Sequence[tuple[str, int]], path: Path
) -> list[tuple[str, int]]:
    """The VLAs that are trained; those for which evidence stands also need their trials there."""
    tables = played(path)
    return [
        (data, seed)
        for data, seed in models
        if (is_played(preset, data, seed, tables) or not is_kept(preset, data, seed))
        and finished(preset, data, seed)
    ]


def _why_not(preset: Preset, data: str, seed: int, path: Path) -> str:
    """Why a VLA of a preset is not evaluated, and the remedy."""
    folder, name = model_folder(preset, data, seed), preset.name
    train = f"with `python -m diffrl train-vla --preset {name}` (notebook 04)."
    if is_kept(preset, data, seed):
        return (
            f"{folder} holds the records of a VLA and not its weights, and {path} lacks its "
            f"trials: delete vla.done.json there and train it again, {train}"
        )
    return f"{folder} holds no VLA of preset {name}'s settings and data: train it first, {train}"


def played(path: Path) -> dict[tuple[str, str, int], pd.DataFrame]:
    """The rows of a table of trials by source, mode and training seed; none without a table."""
    try:
        table = pd.read_csv(path)
        return dict(iter(table.groupby(WHO)))
    except (OSError, ValueError, KeyError):
        return {}


def is_played(
    preset: Preset, data: str, seed: int, tables: Mapping[tuple[str, str, int], pd.DataFrame]
) -> bool:
    """Whether `played` tables have just the trials that a preset plans for a VLA."""
    rows = tables.get((*arm_of(data), seed))
    if rows is None:
        return False
    found = rows[["task", "start_state", "trial_seed"]].itertuples(index=False, name=None)
    return sorted(found) == sorted(plan_of(preset, data))


def _evaluate_models(
    preset: Preset,
    models: Sequence[tuple[str, int]],
    path: Path,
    workers: int | None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Play the trials of some VLAs; those for which evidence stands have theirs in `path`.

    `options` of `evaluate` go before the preset's own.
    """
    tables, own = played(path), {"copies": preset.evaluation.copies, **(options or {})}
    kept = [model for model in models if is_kept(preset, *model)]
    if kept:
        print(f"{len(kept)} of {len(models)} VLAs are not here: their trials are those of {path}.")
    jobs = []
    for data, seed in models:
        folder, trials = model_folder(preset, data, seed), tuple(plan_of(preset, data))
        name, records = f"compact:{folder}", folder / "evaluation"
        if (data, seed) not in kept:
            jobs.append(Job(name, trials, records, arm_of(data), seed))
    new = evaluate(jobs, workers=workers, **own) if jobs else pd.DataFrame(columns=COLUMNS)
    tables |= dict(iter(new.groupby(WHO, sort=False)))
    return pd.concat([tables[*arm_of(data), seed] for data, seed in models], ignore_index=True)


def main(
    policy: str | None = None,
    preset: str | None = None,
    suite: tuple[str, ...] = (),
    trials: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    copies: int | None = None,
    out: Path | None = None,
    videos: tuple[str, ...] = (),
    retry_errors: bool = False,
) -> int:
    """Evaluate a policy by LIBERO's protocol and print success with 95 % intervals.

    With --preset in place of --policy these are the preset's VLAs, by its own number of trials and
    seed, in its own folder.

    Args:
        policy: compact:<folder>, expert:<folder>[?mode=stochastic], oracle:<data set>, random:,
            openpi:ws://<host>:<port>?model=<name>[&replan=5&timeout=60],
            lerobot:<python>?checkpoint=<path>[&replan=8&detail=reduced], or a class of your own
            with infer(obs), as <module>:<class> or <file.py>:<class>; ?<key>=<text> after it is
            passed to the class.
        preset: evaluate the VLAs of this preset instead; with --suite those that were trained on
            these suites alone.
        suite: suites or tasks, e.g. libero_object or libero_goal/7. An oracle needs none.
        trials: official start states per task, 1 to 50; default: 50. Without --suite, the first
            episodes of an oracle; default: all.
        seed: seed of the fixtures' poses and of the policy's noise; default: 0.
        workers: processes; default: one per core, and one alone for lerobot and for a class of
            your own, because each would load the model. It changes no result.
        copies: robots that a process simulates at once; default: 8, or the preset's. It changes no
            result.
        out: folder of the records; default: runs/evaluations/<policy>. A second call continues;
            with another --suite or --trials, the table holds what both have played.
        videos: start states to film, e.g. official/0.
        retry_errors: play the trials that ended in an error once more.
    """
    options: dict[str, Any] = {"videos": videos, "retry_errors": retry_errors}
    if copies is not None:
        options["copies"] = whole(copies, "--copies")
    if trials is not None:
        whole(trials, "--trials")
    if preset is not None and policy is None:
        refuse_options(
            {"--trials": trials, "--seed": seed, "--out": out},
            "is the preset's own beside --preset: leave it out, or name one VLA as --policy.",
        )
        table = evaluate_preset(get_preset(preset, suite), workers, options)
        print(readable(summarise(table)))
        return int((table["status"] == "error").all())
    if preset is not None or policy is None:
        raise UserError("Say what to evaluate: either --policy, or the VLAs of a --preset.")
    kind = label_of(policy)
    if suite:
        count = OFFICIAL if trials is None else trials
        planned = plan(tasks_of(suite), count, seed or 0)
    elif isinstance(opened := open_policy(policy), Oracle):
        refuse_options({"--seed": seed}, "is each episode's own with an oracle: leave it out.")
        planned = list(opened.episodes)[:trials]
    else:
        raise UserError("Say what to evaluate on: --suite libero_object, or --suite libero_goal/7.")
    folder = out or root() / "runs" / "evaluations" / _folder_name(policy, planned)
    if workers is None and kind not in HERE:
        workers = 1
    table = evaluate([Job(policy, tuple(planned), folder, Arm(kind))], workers=workers, **options)
    print(readable(summarise(table, by=("suite", "task"))))
    print(f"Protocol: {protocol(table, _pictures(policy))}.\nRecords: {folder / 'trials.csv'}")
    return int((table["status"] == "error").all())


def _folder_name(policy: str, planned: list[Trial]) -> str:
    """Name a folder so that no two policies or plans share it, and none is too long."""
    readable = "".join(c if c.isalnum() else "-" for c in policy).strip("-")
    return f"{readable[-80:]}-{config_hash([policy, planned])}"


def tasks_of(suites: Sequence[str]) -> list[str]:
    """Return the tasks of suites; a name with a slash is a task already.

    Raises:
        UserError: a suite or task is unknown.
    """
    tasks = []
    for suite in suites:
        tasks += [get_task(suite).id] if "/" in suite else [task.id for task in suite_tasks(suite)]
    return tasks
