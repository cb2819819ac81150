"""What both benchmarks use: a stop-watch and the motion of the robot."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

EPISODE = 100  # control steps from one start state


def timed(function: Callable) -> tuple[Any, float]:
    """Return what a function returns, and how long it took in seconds."""
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin


def smooth_actions(n: int, seed: int) -> np.ndarray:
    """(n, 7) slowly changing actions in [-1, 1], gripper open."""
    noise = np.random.default_rng(seed).normal(0, 0.2, (n, 7))
    for t in range(1, n):
        noise[t] += 0.9 * noise[t - 1]
    noise[:, 6] = -1.0
    return np.clip(noise, -1, 1)
