"""The whole series on one task in half a minute, a stage a call: what `check_faults.py` breaks.

    DIFFRL_HOME=/tmp/small python tools/small_series.py expert

Stages in order: expert (demonstrations, clone, RL), data, quality, vla, evaluation. Every setting
is tiny, every stage is the real one, and errors reach the user as the command line reports them.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffrl.evaluation.stage
import diffrl.generation.stage
import diffrl.quality.stage
import diffrl.rl.stage
import diffrl.vla.stage
from diffrl import presets
from diffrl.__main__ import COMMANDS, main
from diffrl.base import artifacts
from diffrl.base.arm import Arm
from diffrl.presets import (
    CloneConfig,
    EvaluationConfig,
    GenerationConfig,
    OperatorConfig,
    Preset,
    QualityConfig,
    RLConfig,
    VLAConfig,
)

STAGES = ("expert", "data", "quality", "vla", "evaluation")
CLOCK = "DIFFRL_CHECK_CLOCK"  # environment: seed of a wall clock that jumps
WORKERS = "DIFFRL_CHECK_WORKERS"  # environment: processes of a stage; one unless it is set
NAME = "small"
ARMS = (Arm("operator"), Arm("diffusion", "deterministic"))
SMALL = Preset(
    name=NAME,
    tasks=("libero_goal/7",),  # turn on the stove: a clone of three demonstrations does it
    demonstrations=OperatorConfig(count=3),
    clone=CloneConfig(width=64, steps=300, first_measure=150, measure_starts=2),
    rl=RLConfig(
        physics="training",
        copies=4,
        decisions=4,
        iterations=4,
        epochs=2,
        measure_every=2,
        measure_starts=2,
        evaluation_starts=2,
        evaluation_seeds=(0,),
    ),
    generation=GenerationConfig(
        episodes=2, modes=("deterministic",), max_attempts=8, repeats=2, repeated_starts=1
    ),
    quality=QualityConfig(episodes=2, neighbours=2, phases=10, resamples=20),
    vla=VLAConfig(
        data=tuple(map(str, ARMS)),
        further=(),
        vision="conv",
        image_size=32,
        demonstrations=2,
        held_out=1,
        frame_stride=32,
        horizon=8,
        width=16,
        heads=2,
        queries=2,
        encoder_layers=1,
        decoder_layers=1,
        flow_draws=1,
        steps=20,
        batch=8,
        warmup=5,
    ),
    evaluation=EvaluationConfig(trials=1, copies=1),
)


def _data(workers: int) -> None:
    diffrl.generation.stage.generate_all(SMALL, arms=ARMS, workers=workers)
    diffrl.generation.stage.repeat_all(SMALL, arms=ARMS, workers=workers)


RUN: dict[str, Callable[[int], object]] = {
    "expert": lambda workers: diffrl.rl.stage.train_experts(
        SMALL, algorithms=("diffusion",), workers=workers
    ),
    "data": _data,
    "quality": lambda workers: diffrl.quality.stage.run_quality(NAME),
    "vla": lambda workers: diffrl.vla.stage.fit_all(SMALL, workers=workers),
    "evaluation": lambda workers: diffrl.evaluation.stage.evaluate_preset(SMALL, workers=workers),
}


def stage(name: str) -> None:
    """Run one stage of the small series in the folder that DIFFRL_HOME names."""
    if CLOCK in os.environ:
        time.time = jumping_clock(int(os.environ[CLOCK]))
    presets.PRESETS[NAME] = SMALL  # here, so that whoever only imports this file sees no new preset
    artifacts.runs_dir(NAME)
    RUN[name](int(os.environ.get(WORKERS, 1)))


def jumping_clock(seed: int) -> Callable[[], float]:
    """Return a `time.time` that jumps by up to ten days, back or forth, at every call."""
    draw, real = random.Random(seed), time.time
    return lambda: real() + draw.uniform(-864_000, 864_000)


def call(name: str) -> int:
    """Run a stage as the command line would, and return its exit code."""
    COMMANDS["small"] = (f"{Path(__file__).stem}:stage", "one stage of the small series")
    return main(["small", "--name", name])


def write_notebooks(folder: Path) -> None:
    """Write the series as five notebooks, a stage each."""
    import nbformat

    artifacts.make_folder(folder)
    for number, name in enumerate(STAGES, start=1):
        book = nbformat.v4.new_notebook()
        code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        code += f"import small_series\nsmall_series.stage({name!r})"
        parameters = nbformat.v4.new_code_cell('PRESET = ""', metadata={"tags": ["parameters"]})
        book.cells = [parameters, nbformat.v4.new_code_cell(code)]
        nbformat.write(book, folder / f"{number:02d}_{name}.ipynb")


if __name__ == "__main__":
    if "DIFFRL_HOME" not in os.environ or sys.argv[1:2] == [] or sys.argv[1] not in STAGES:
        sys.exit(f"usage: DIFFRL_HOME=FOLDER python {sys.argv[0]} {'|'.join(STAGES)}")
    sys.exit(call(sys.argv[1]))
