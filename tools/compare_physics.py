"""What an expert loses that learned in training physics: both kinds, judged in exact physics.

    .venv/bin/python tools/compare_physics.py --tasks libero_object/0 libero_goal/0 --seeds 1

A run is (task, algorithm, seed, physics): an expert of preset libero, which learns in training
physics, and one with the same settings that learns in exact physics. Both play 192 held-out start
states that no measurement during RL has played, without noise and in exact physics. What is
finished is found again, also in the preset's evidence, and what was killed goes on. Writes
`results/training_physics.csv`: task, algorithm, seed, physics, trials, successes, success,
control_steps, minutes, jerk_rms, steps (the last two: means over successes).
"""

import functools
import itertools

import pandas as pd
import tyro

from diffrl import evidence
from diffrl import policy as policies
from diffrl.base.artifacts import Stage, root, runs_dir, write_csv
from diffrl.base.errors import TrainingError
from diffrl.base.scale import cores, map_tasks
from diffrl.experiments import trial_measures
from diffrl.presets import ALGORITHMS, Algorithm, Preset, get_preset
from diffrl.rl.stage import train_expert
from diffrl.rl.train import Training
from diffrl.sim.simulator import Physics

TASKS = (  # of four suites, among those that preset libero trains with three seeds
    "libero_object/0",
    "libero_object/3",
    "libero_spatial/0",
    "libero_goal/0",
    "libero_goal/4",
    "libero_10/2",
)
SEEDS = (0, 1, 2)
STARTS = 192
COLUMNS = ["task", "algorithm", "seed", "physics", "trials", "successes", "success"]
COLUMNS += ["control_steps", "minutes", "jerk_rms", "steps"]

Run = tuple[str, Algorithm, int, Physics]


def training(run: Run, preset: Preset, threads: int = 1) -> Training:
    """The training of one run: the preset's own expert, or another one in a folder of its own."""
    task, algorithm, seed, physics = run
    settings = settings_of(run, preset)
    if settings is preset:
        return Training(preset, task, algorithm, seed, threads)
    name = f"{task.replace('/', '-')}-{algorithm}-{physics}-seed{seed}"
    folder = runs_dir(preset.name) / "physics" / name
    return Training(settings, task, algorithm, seed, threads, folder)


def settings_of(run: Run, preset: Preset) -> Preset:
    """The preset, or the same one in the other physics."""
    if run[3] == preset.of(run[0]).rl.physics:
        return preset
    return preset.with_settings({"rl.physics": run[3], "rl.physics_check": None})


def stage_of(run: Training) -> Stage:
    """Where a finished run keeps its row."""
    return Stage(run.folder, "physics", run.config | {"starts": STARTS})


def play(run: Run, wanted: list[Run], preset: Preset, threads: int) -> None:
    """Train and judge one run, if it is not there; write the table of all that are."""
    work = training(run, preset, threads)
    stage = stage_of(work)
    if not stage.done:
        row = dict(zip(COLUMNS, run))
        try:
            settings = settings_of(run, preset)
            # git keeps the records of some runs alone; what was merely begun goes on instead
            lost = work.stage.found and not (work.folder / policies.WEIGHTS).is_file()
            options = {"threads": threads, "folder": work.folder, "force": lost}
            made = train_expert(settings, *run[:3], **options)
        except TrainingError as error:  # it succeeds nowhere
            print(error)
            row |= {"trials": STARTS, "successes": 0, "success": 0.0}
        else:
            row |= made[["control_steps", "minutes"]].iloc[0].to_dict()
            row |= judged(work)
        stage.finish({"row": row}, seed=work.seed)
    collect(wanted, preset)


def judged(work: Training) -> dict[str, float]:
    """Success of an expert, in exact physics, and the means of its successes' jerk and steps."""
    config = work.preset.rl
    first = max(config.measure_starts, config.confirm_starts)  # those chose the policy
    trials = work.measure(STARTS, policies.load(work.folder), first=first, record=True)
    table = trial_measures(trials, work.preset.clone.chunk)
    fair = table[~table["error"]]
    counts = {"trials": len(fair), "successes": int(fair["success"].sum())}
    good = fair[fair["success"]].reindex(columns=["jerk_rms", "steps"]).mean()
    return counts | {"success": fair["success"].mean()} | good.to_dict()


def collect(runs: list[Run], preset: Preset) -> pd.DataFrame:
    """Write the rows of all finished runs, in order."""
    stages = [stage_of(training(run, preset)) for run in dict.fromkeys(runs)]
    rows = [stage.records["row"] for stage in stages if stage.found]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_csv(root() / "results" / "training_physics.csv", table)
    return table


def main(
    tasks: tuple[str, ...] = TASKS,
    algorithms: tuple[Algorithm, ...] = ALGORITHMS,
    seeds: tuple[int, ...] = SEEDS,
    physics: tuple[Physics, ...] = ("exact", "training"),
    preset: str = "libero",
    workers: int | None = None,
) -> None:
    """Train every (task, seed, algorithm, physics) that is not there yet, and print the table.

    Args:
        tasks: of the runs.
        algorithms: of the policies.
        seeds: of the trainings.
        physics: that RL plays in.
        preset: whose settings it has.
        workers: processes; default: one per core.
    """
    settings = get_preset(preset)
    evidence.go_on(settings.name)
    runs: list[Run] = [
        (task, algorithm, seed, kind)
        for task, seed, algorithm, kind in itertools.product(tasks, seeds, algorithms, physics)
    ]
    full = itertools.product(TASKS, ALGORITHMS, SEEDS, ("exact", "training"))
    wanted = [*full, *runs]
    workers = min(workers or cores(), len(runs))
    options = {"wanted": wanted, "preset": settings, "threads": max(1, cores() // workers)}
    names = [", ".join(map(str, run)) for run in runs]
    map_tasks(
        functools.partial(play, **options), runs, names=names, workers=workers, description="runs"
    )
    print(collect(wanted, settings).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
