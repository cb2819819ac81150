"""Frames a second of the exact and of the reduced camera, and how far apart their images are."""

from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np
from tqdm import tqdm

from diffrl.base.opengl import find_opengl
from diffrl.benchmark.common import EPISODE, smooth_actions, timed
from diffrl.sim.camera import CAMERAS, Renderer
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states

TASKS = (  # two a suite: our choice
    *("libero_spatial/0", "libero_spatial/5", "libero_object/0", "libero_object/5"),
    *("libero_goal/0", "libero_goal/7", "libero_90/3", "libero_90/60"),
    *("libero_10/2", "libero_10/9"),
)
SIZE = 128  # pixels a side


def measure_camera(suites: Sequence[str], states: int) -> dict:
    """Return frames a second, exact and reduced, and how far the reduced frames are (PSNR in dB).

    Both draw the same states of `TASKS` with both cameras, in turn. The rates are medians
    over the tasks, the PSNR is the mean over all frames.
    """
    tasks = [task for task in TASKS if task.split("/")[0] in suites]
    rows = [_camera_row(task, states) for task in tqdm(tasks, desc="camera", disable=None)]
    exact, reduced = (median(row[detail] for row in rows) for detail in ("exact", "reduced"))
    return {
        "exact": round(exact, 1),
        "reduced": round(reduced, 1),
        "speedup": round(median(row["reduced"] / row["exact"] for row in rows), 2),
        "psnr_db": round(float(np.mean([row["psnr_db"] for row in rows])), 1),
        "size": SIZE,
        "states": states * len(tasks),
        "renderer": str(find_opengl()),
        "tasks": {row.pop("task"): {k: round(v, 1) for k, v in row.items()} for row in rows},
    }


def _camera_row(task: str, n: int) -> dict:
    scene = load_scene(task)
    states, fixtures = _moved_states(scene, n)
    spent, ratios = {"exact": 0.0, "reduced": 0.0}, []
    with Renderer(scene, SIZE) as exact, Renderer(scene, SIZE, "reduced") as reduced:
        for renderer in (exact, reduced):
            renderer.render(states[0], fixtures[0])  # uploads what the driver has left for later
        for state, poses in zip(states, fixtures):
            for camera in CAMERAS:
                images = []
                for renderer in (exact, reduced):
                    image, time_ = timed(partial(renderer.render, state, poses, camera))
                    images.append(image.astype(float))
                    spent[renderer.detail] += time_
                ratios.append(psnr(*images))
    frames = n * len(CAMERAS)
    rates = {detail: frames / time_ for detail, time_ in spent.items()}
    return {"task": task, "psnr_db": float(np.mean(ratios))} | rates


def _moved_states(scene: Scene, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return states (n, state_size) and fixtures (n, k, 7) two seconds after fresh starts."""
    actions = np.stack([smooth_actions(40, seed) for seed in range(n)])
    with Simulator(scene, n, max_steps=10 * EPISODE) as simulator:
        simulator.reset(fresh_start_states(scene, n, seed=0))
        simulator.step(actions)
        return simulator.states(), simulator.fixtures()


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; 100 for equal images."""
    error = float(np.mean((first - second) ** 2))
    return min(100.0, 10 * np.log10(255**2 / error)) if error else 100.0
