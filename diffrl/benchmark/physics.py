"""Training physics against exact physics: in RL's own loop, and minutes to an expert.

Both learn from the same clone on all cores, an iteration of one after an iteration of the other, so
that a busy machine slows both. Everything counts: settling, policy, update. That clone saw three
demonstrations and was not asked to succeed: on a long task it would have to see more, and a rate
needs only that the robot goes about the task.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from diffrl.base.errors import TrainingError
from diffrl.base.scale import cores
from diffrl.benchmark.common import timed
from diffrl.demonstrator.episodes import operator_demonstrations
from diffrl.policy import ChainPolicy
from diffrl.presets import Algorithm, RLConfig, get_preset
from diffrl.rl.bc import Clone, demonstration_rows
from diffrl.rl.learn import Learner
from diffrl.rl.stage import train_expert
from diffrl.rl.train import Training
from diffrl.sim.scene import Scene

TASKS = (
    "libero_object/0",
    "libero_spatial/0",
    "libero_goal/0",
    "libero_goal/7",
    "libero_90/1",
    "libero_90/20",
    "libero_10/0",
    "libero_10/2",
)
DEMONSTRATIONS = 3
ITERATIONS = 2  # measured ones, of each physics; a first one, in which the copies begin, is not


def measure_physics(tasks: Sequence[str] = TASKS) -> dict:
    """Return control steps a second of RL in either physics: {task: {"exact", "training"}}."""
    preset = get_preset("laptop")
    before = torch.get_num_threads()
    torch.set_num_threads(preset.rl.torch_threads)
    rates = {}
    for task in tqdm(tasks, desc="training physics"):
        with tempfile.TemporaryDirectory() as folder:
            run = Training(preset, task, "diffusion", folder=Path(folder))
        rates[task] = compare_physics(short_clone(run), run.scene, run.preset.rl, cores())
    torch.set_num_threads(before)
    return rates


def short_clone(run: Training) -> ChainPolicy:
    """Return a clone of a few demonstrations, after as many steps as come before a measurement."""
    demonstrations = run.preset.demonstrations
    episodes, _ = operator_demonstrations(
        run.scene, DEMONSTRATIONS, 0, demonstrations, threads=cores()
    )
    policy = run.new_policy()
    clone = Clone(policy, *demonstration_rows(policy, run.scene, episodes), run.preset.clone)
    clone.train(run.preset.clone.first_measure)
    with clone.averaged() as averaged:
        return copy.deepcopy(averaged).eval()


def compare_physics(
    policy: ChainPolicy, scene: Scene, config: RLConfig, threads: int
) -> dict[str, float]:
    """Return control steps a second of RL from `policy` in either physics, interleaved."""
    settings = {kind: dict(vars(config)) | {"physics": kind} for kind in ("exact", "training")}
    learners = {
        kind: Learner(copy.deepcopy(policy), scene, RLConfig(**values), threads=threads)
        for kind, values in settings.items()
    }
    steps, seconds = dict.fromkeys(learners, 0), dict.fromkeys(learners, 0.0)
    for turn in range(1 + ITERATIONS):
        for kind, learner in learners.items():
            before = learner.control_steps
            _, spent = timed(learner.iterate)
            if turn:
                steps[kind] += learner.control_steps - before
                seconds[kind] += spent
    for learner in learners.values():
        learner.collector.close()
    return {kind: round(steps[kind] / seconds[kind], 1) for kind in learners}


def measure_minutes(
    tasks: Sequence[str], algorithm: Algorithm = "diffusion"
) -> dict[str, dict[str, float | None]]:
    """Return wall minutes from nothing to an expert whose target success is confirmed, by task.

    They are the experts of preset libero with seed 0, trained one at a time on all cores: scene,
    demonstrations, clone, RL and its measurements. None is found or kept: the minutes of one that
    exists may be another machine's, or of cores that it shared. The key is ``minutes_to_97``, or
    ``minutes_to_97_gaussian``; None where the preset's iterations end before.
    """
    preset = get_preset("libero")
    target = preset.rl.target_success or 1.0
    minutes: dict[str, float | None] = {}
    for task in tqdm(tasks, desc="minutes to an expert"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            try:
                rows = train_expert(preset, task, algorithm, folder=folder)
            except TrainingError:  # its clone never succeeded
                minutes[task] = None
                continue
            made = Training(preset, task, algorithm, folder=folder).stage.records
        reached = made["confirmed"] >= target
        minutes[task] = float(rows["minutes"].iloc[0]) if reached else None
    own = "" if algorithm == "diffusion" else f"_{algorithm}"
    return {f"minutes_to_{round(100 * target)}{own}": minutes}
