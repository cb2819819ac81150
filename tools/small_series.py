"""The whole series on one task in minutes, a stage a call: what `check_faults.py` breaks.

    DIFFRL_HOME=/tmp/small python tools/small_series.py expert

Stages in order: expert (demonstrations, clone, RL), data, quality, vla, evaluation. Every setting
is tiny, every stage is the real one, and errors reach the user as the command line tells them.
"""

import os
import random
import sys
import time

from diffrl import presets
from diffrl.__main__ import COMMANDS, main
from diffrl.base import artifacts
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
NAME = "small"
SMALL = Preset(
    name=NAME,
    tasks=("libero_object/0",),
    demonstrations=OperatorConfig(count=3),
    clone=CloneConfig(width=128, steps=900, first_measure=600, measure_starts=8),
    rl=RLConfig(
        physics="training",
        copies=8,
        decisions=8,
        iterations=4,
        epochs=2,
        measure_every=2,
        measure_starts=4,
        evaluation_starts=4,
        evaluation_seeds=(0,),
    ),
    generation=GenerationConfig(
        episodes=3, modes=("deterministic",), max_attempts=40, repeats=2, repeated_starts=2
    ),
    quality=QualityConfig(episodes=3, neighbours=2, phases=20, resamples=50),
    vla=VLAConfig(
        data=("operator-recorded", "diffusion-deterministic"),
        further=(),
        vision="conv",
        image_size=64,
        demonstrations=3,
        held_out=1,
        frame_stride=8,
        horizon=8,
        width=32,
        heads=2,
        queries=2,
        encoder_layers=1,
        decoder_layers=1,
        flow_draws=1,
        steps=40,
        batch=16,
        warmup=5,
    ),
    evaluation=EvaluationConfig(trials=2, copies=2),
)


def _expert() -> None:
    from diffrl.rl.stage import train_experts

    train_experts(SMALL, algorithms=("diffusion",), workers=1)


def _data() -> None:
    from diffrl.generation.stage import generate_all, repeat_all

    sources = [("operator", "recorded"), ("diffusion", "deterministic")]
    generate_all(SMALL, sources=sources, workers=1)
    repeat_all(SMALL, sources=sources, workers=1)


def _quality() -> None:
    from diffrl.quality import run_quality

    run_quality(NAME)


def _vla() -> None:
    from diffrl.vla.stage import fit_all

    fit_all(SMALL, workers=1)


def _evaluation() -> None:
    from diffrl.evaluation.stage import evaluate_preset

    evaluate_preset(SMALL, workers=1)


def stage(name: str) -> None:
    """Run one stage of the small series in the folder that DIFFRL_HOME names."""
    presets.PRESETS[NAME] = SMALL
    run = dict(zip(STAGES, (_expert, _data, _quality, _vla, _evaluation), strict=True))[name]
    print("begins", flush=True)  # imports are over; what a fault meets is the stage
    run()
    print("ends", flush=True)


def jumping_clock(seed: int):
    """Return a `time.time` that jumps by up to ten days, back or forth, at every call."""
    draw, real = random.Random(seed), time.time
    return lambda: real() + draw.uniform(-864_000, 864_000)


if __name__ == "__main__":
    import diffrl.evaluation.stage
    import diffrl.rl.stage
    import diffrl.vla.stage  # noqa: F401  # seconds that no fault should fall into

    if CLOCK in os.environ:
        time.time = jumping_clock(int(os.environ[CLOCK]))
    COMMANDS["small"] = ("small_series:stage", "one stage of the small series")
    assert "DIFFRL_HOME" in os.environ, "the small series writes into $DIFFRL_HOME, so name one"
    artifacts.runs_dir(NAME)
    sys.exit(main(["small", "--name", *sys.argv[1:]]))
