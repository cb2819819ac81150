"""Training against the bare simulator: how much of its speed learning leaves.

After each iteration of PPO the simulator plays the very same calls once more with nothing around
it: same states, same actions, same threads, episodes begun and settled off the clock. That is the
bare rate; training's counts everything, settling, policy and update included.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffrl.base.scale import cores
from diffrl.benchmark.common import timed
from diffrl.presets import ALGORITHMS, get_preset
from diffrl.rl.learn import Learner
from diffrl.rl.train import Training

TASK = "libero_object/0"
ITERATIONS = 4  # measured ones; a first one, in which only the critic learns, is not


def measure_training() -> dict:
    """Return control steps a second of training and of the bare simulator, by algorithm."""
    preset = get_preset("laptop")
    before = torch.get_num_threads()
    torch.set_num_threads(preset.rl.torch_threads)
    record: dict = {"task": TASK, "threads": cores(), "iterations": ITERATIONS}
    for algorithm in ALGORITHMS:
        with tempfile.TemporaryDirectory() as folder:
            run = Training(preset, TASK, algorithm, folder=Path(folder))
            policy, _ = run.clone()
        learner = Learner(policy, run.scene, preset.rl, threads=cores())
        record[algorithm] = _rates(learner)
        learner.collector.close()
    torch.set_num_threads(before)
    return record


def _rates(learner: Learner) -> dict[str, float]:
    learner.iterate()
    steps, training, bare = 0, 0.0, 0.0
    for _ in range(ITERATIONS):
        simulator = learner.collector.simulator
        start, calls = simulator.snapshot(), _listen(simulator)
        _, seconds = timed(learner.iterate)
        end = simulator.snapshot()
        del simulator.step, simulator.reset  # the class's own again
        simulator.restore(start)
        executed, alone = _replay(calls)
        _check_same(simulator.snapshot(), end)
        steps, training, bare = steps + executed, training + seconds, bare + alone
    return {"training": round(steps / training, 1), "bare": round(steps / bare, 1)}


def _listen(simulator: Any) -> list[tuple[str, Callable]]:
    """Note every step and reset of `simulator` as a call that does it again."""
    calls: list[tuple[str, Callable]] = []
    step, reset = simulator.step, simulator.reset

    def noted_step(actions):
        calls.append(("step", lambda: step(actions)))
        return step(actions)

    def noted_reset(starts, copies):
        calls.append(("reset", lambda: reset(starts, copies=copies)))
        return reset(starts, copies=copies)

    simulator.step, simulator.reset = noted_step, noted_reset
    return calls


def _replay(calls: list[tuple[str, Callable]]) -> tuple[int, float]:
    """Return the control steps and the seconds of the steps alone."""
    steps, spent = 0, 0.0
    for kind, call in calls:
        result, seconds = timed(call)
        if kind == "step":
            steps, spent = steps + int(result.steps.sum()), spent + seconds
    return steps, spent


def _check_same(replayed: dict, original: dict) -> None:
    for name, array in original.items():
        if not np.array_equal(replayed[name], array, equal_nan=True):
            raise AssertionError(f"the replay is not what training played: {name} differs")
