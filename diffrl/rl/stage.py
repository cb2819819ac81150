"""Experts of a preset: found if they are trained, else trained, evaluated, recorded.

    python -m diffrl train --task libero_object/0 --algorithm diffusion --preset laptop
    python -m diffrl train --preset libero --suite libero_object

One run is `diffrl.rl.train`; a stage finds what is done and computes the rest.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diffrl import policy as policies
from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import Stage, alone, runs_dir, write_csv
from diffrl.base.errors import UserError, refuse_options, whole
from diffrl.base.heartbeat import Heartbeat, heartbeat
from diffrl.base.scale import Resources, cores, map_tasks, shares
from diffrl.presets import ALGORITHMS, Algorithm, Preset, get_preset
from diffrl.rl.journal import Journal
from diffrl.rl.records import (
    COLUMNS,
    collect_records,
    expert_folder,
    expert_rows,
    finished_experts,
    success_by_mode,
    trial_table,
)
from diffrl.rl.train import Training


def train_expert(
    preset: Preset,
    task: str,
    algorithm: Algorithm,
    seed: int = 0,
    *,
    threads: int | None = None,
    folder: Path | None = None,
    force: bool = False,
    journal: Journal | None = None,
) -> pd.DataFrame:
    """Train one expert, or find it done; return its two rows of ``experts.csv``.

    Args:
        preset: its demonstrations, clone and rl settings are used.
        task: "libero_object/0".
        algorithm: "diffusion", "gaussian", or a policy class that is registered.
        seed: of demonstrations, weights, noise and start states.
        threads: of the simulator (default: all cores); they change nothing but the time.
        folder: where it lies; default: `expert_folder`.
        force: train again, whatever exists.
        journal: bar and log; default: a log file alone.

    Raises:
        UserError: an unknown task or algorithm, no demonstrations, a clone without any success, a
            loss that is not finite, a checkpoint of other settings, another process at work on it.
    """
    run = Training(preset, task, algorithm, seed, threads, folder, journal)
    if not run.stage.due(force):
        return pd.DataFrame(run.stage.records["rows"], columns=COLUMNS)
    with alone(run.folder), heartbeat(run.folder, "expert") as sign:
        if force:
            run.drop_checkpoints()
        run.journal.sign = sign
        return _train_anew(run, sign)


def _train_anew(run: Training, sign: Heartbeat) -> pd.DataFrame:
    """Train, evaluate and publish a run; return its rows."""
    policy, learner, minutes = run.train()
    run.journal.say("evaluating")
    sign.tell(phase="evaluating", done=None, total=None)
    clone = trial_table(run.evaluate(run.clone()[0]))
    expert = trial_table(run.evaluate(policy))
    trials = pd.concat([clone.assign(policy="clone"), expert.assign(policy="expert")])
    run.publish(policy, learner, {"trials.csv": trials[["policy", *expert.columns]]})
    names, steps = (run.task, run.algorithm, run.seed), learner.control_steps
    rows = expert_rows(names, expert, success_by_mode(clone), steps, minutes)
    made = {"confirmed": learner.best_success, "threads": learner.threads}
    run.stage.finish({"rows": rows.to_dict("records"), **made}, seed=run.seed)
    run.close()
    return rows


def train_experts(
    preset: Preset,
    tasks: Sequence[str] | None = None,
    algorithms: Sequence[Algorithm] = ALGORITHMS,
    seeds: Sequence[int] | None = None,
    workers: int | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Train every (task, algorithm, seed), in parallel processes; return the preset's table.

    What is finished is found, what was begun goes on. An expert that cannot be trained stops none
    of the others; an error names it when all are done. Each of `workers` processes gets an even
    share of the cores; default: a process per core, but a single one for image policies that share
    a GPU. Seeds: by default the preset's, of which a task may have its own.
    """
    wanted = {
        task: preset.of(task).rl.seeds if seeds is None else seeds for task in tasks or preset.tasks
    }
    items = [
        (task, algorithm, seed)
        for seed in sorted({seed for own in wanted.values() for seed in own})  # a whole seed first
        for task, own in wanted.items()
        for algorithm in algorithms
        if seed in own
    ]
    workers, threads = shares(len(items), _workers(preset) if workers is None else workers)
    function = functools.partial(_train, preset=preset, threads=threads, force=force)
    names = [f"{task} {algorithm} seed {seed}" for task, algorithm, seed in items]
    try:
        map_tasks(
            function,
            items,
            names=names,
            workers=workers,
            description="experts",
            resources=_resources(preset),
        )
    finally:  # what is finished counts, whatever failed
        table = collect_records(preset)
    return table


def _resources(preset: Preset) -> Resources:
    """What an expert takes of a cluster: one that sees pictures shares a GPU with three others."""
    return Resources(gpus=0.25 if preset.clone.encoder != "state" else 0.0)


def _workers(preset: Preset) -> int:
    on_gpu = preset.clone.encoder != "state" and torch.cuda.is_available()
    return 1 if on_gpu else cores()


def _train(item: tuple[Any, ...], preset: Preset, threads: int, force: bool) -> None:
    task, algorithm, seed = item
    train_expert(preset, task, algorithm, seed, threads=threads, force=force)


def evaluate_again(preset: Preset, workers: int | None = None) -> pd.DataFrame:
    """Play the official start states with every seed of the policies' noise; return the table.

    What the first latent alone does to an expert: its noise-free mode draws one, too. The Gaussian
    policy has none there and is left out. ``expert_noise.csv``: task, algorithm, mode, seed (of
    training), noise_seed, trials, successes, success; the first noise seed is that of
    ``experts.csv``. No interval: the start states are the same each time.
    """
    items = finished_experts(preset)
    function = functools.partial(_again, preset=preset, threads=1)
    names = [f"{task} {algorithm} seed {seed}" for task, algorithm, seed, _ in items]
    if not preset.rl.evaluation_seeds[1:]:
        workers = 1  # nothing is played, and a process takes seconds to begin
    workers = _workers(preset) if workers is None else workers
    tables = map_tasks(function, items, names=names, workers=workers, description="noise seeds")
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=NOISE)
    write_csv(runs_dir(preset.name) / "expert_noise.csv", table)
    return table


NOISE = ["task", "algorithm", "mode", "seed", "noise_seed", "trials", "successes", "success"]


def _again(item: tuple[str, Algorithm, int, Path], preset: Preset, threads: int) -> pd.DataFrame:
    task, algorithm, seed, folder = item
    config = {"starts": preset.rl.evaluation_starts, "seeds": preset.rl.evaluation_seeds}
    further = preset.rl.evaluation_seeds[1:]  # the first one's trials are those of the run
    stage = Stage(folder, "noise", config, inputs=[folder / policies.WEIGHTS] if further else ())
    if not stage.done:
        torch.set_num_threads(preset.rl.torch_threads)
        run = Training(preset, task, algorithm, seed, threads)
        known = pd.read_csv(folder / "trials.csv").query("policy == 'expert'")
        rows = []
        for mode in (
            POLICY_MODES if policies.policy_class(algorithm).random_start else POLICY_MODES[1:]
        ):
            for noise in preset.rl.evaluation_seeds:
                table = known[(known["mode"] == mode) & (known["seed"] == noise)]
                if table.empty:
                    table = trial_table(run.play(policies.load(folder), mode, noise))
                success = table.loc[~table["error"], "success"]
                counts = [len(success), int(success.sum()), success.mean()]
                rows.append(dict(zip(NOISE, [task, algorithm, mode, seed, noise, *counts])))
        stage.finish({"rows": rows}, seed=seed)
    return pd.DataFrame(stage.records["rows"], columns=NOISE)


def main(
    task: str | None = None,
    algorithm: Algorithm | None = None,
    preset: str = "laptop",
    suite: tuple[str, ...] = (),
    seed: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    force: bool = False,
    tensorboard: bool = False,
) -> None:
    """Clone policies from demonstrations, improve them by RL, evaluate them.

    Without --task these are all experts of a preset, or of some of its suites: what is finished is
    found, what was begun goes on, and one that fails stops none of the others.

    Args:
        task: train this task only, e.g. libero_object/0 (`python -m diffrl tasks` lists them).
        algorithm: the policy's class; default: both classes, and diffusion for a single task.
        preset: the settings: smoke, laptop, libero, pixels, gpu or paper.
        suite: only these of the preset's suites, e.g. libero_object.
        seed: training seed, from which everything random is drawn; default: the preset's seeds,
            and 0 for a single task.
        workers: processes without --task; default: one per core. They change no result.
        threads: threads of the simulator with --task; default: all cores. They change no result.
        force: train again even if the expert exists.
        tensorboard: with --task, also write TensorBoard's files (needs the package tensorboard).
    """
    settings = get_preset(preset, suite)
    if algorithm is not None:
        policies.policy_class(algorithm)  # or a UserError, before a folder is made
    if seed is not None:
        whole(seed, "--seed", least=0)
    if tensorboard and task is None:
        raise UserError("--tensorboard follows a single expert: name its --task, or leave it out.")
    if task is None:
        refuse_options({"--threads": threads}, "is for a single expert: name its --task.")
        _train_all(settings, algorithm, seed, workers, force)
        return
    of_many = {"--suite": suite, "--workers": workers}
    refuse_options(of_many, "is for many experts: leave it out beside --task.")
    algorithm, seed = algorithm or "diffusion", seed or 0
    folder = expert_folder(settings, task, algorithm, seed)
    journal = Journal(folder, f"{task} {algorithm}", tensorboard=tensorboard)
    rows = train_expert(
        settings, task, algorithm, seed, threads=threads, force=force, journal=journal
    )
    collect_records(settings)
    _show(rows)
    print(f"Everything of this run lies in {folder}.")
    if not (folder / policies.WEIGHTS).is_file():
        print("Its weights are not there, as git keeps its records alone: --force trains it again.")


def _train_all(
    preset: Preset, algorithm: Algorithm | None, seed: int | None, workers: int | None, force: bool
) -> None:
    algorithms = ALGORITHMS if algorithm is None else (algorithm,)
    seeds = None if seed is None else (seed,)
    table = train_experts(preset, None, algorithms, seeds, workers, force)
    _show(table[table["task"].isin(preset.tasks)])
    print(f"The table of all experts is {runs_dir(preset.name) / 'experts.csv'}.")


def _show(rows: pd.DataFrame) -> None:
    for row in rows.to_dict("records"):
        print(
            "{task} {algorithm} {mode}: {successes}/{trials} official start states "
            "({low:.0%}-{high:.0%}); the clone {clone_success:.0%}; "
            "{control_steps} control steps, {minutes} min".format(**row)
        )
