"""Fit the scripted operator's tremor to real teleoperation: python tools/fit_tremor.py FILE.

FILE is a recording of people (shared/teleop/medical_box.hdf5: 90 demonstrations in LIBERO's
simulator, at 20 Hz, of another task; origin in its attributes). The operator shows a few tasks
with several scales of tremor; layouts and paths are the same for each. The scale that is taken
minimises the sum of the squared logarithms of two ratios, operator / teleoperation: of jerk (RMS)
and of action change, each a mean over episodes, divided by the mean speed. Without that division
no tremor at all would fit best, as these people moved at about half the operator's speed. The
minimum is looked for on a fine grid between the scales that were played, by interpolation.
``results/tremor.csv`` has a row per scale, one of the fitted one and one of preset libero's, both
played as well.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from diffrl.base.artifacts import write_csv
from diffrl.demonstrator.episodes import operator_episodes
from diffrl.presets import OperatorConfig, get_preset
from diffrl.quality import Trajectory
from diffrl.quality.files import read_trajectories
from diffrl.quality.smoothness import trajectory_measures
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import fresh_start_states

TABLE = Path(__file__).resolve().parents[1] / "results" / "tremor.csv"
TASKS = ("libero_spatial/0", "libero_object/0", "libero_goal/7")  # one a suite
SCALES = (0.0, 1.0, 2.0, 4.0)
FITTED = ("jerk_rms", "action_change")
SEED = 3  # of the start states: no data set's, no clone's


def measures(trajectories: list[Trajectory]) -> dict[str, float]:
    """Return the means over trajectories of what is fitted, and of the speed [m/s]."""
    rows = [trajectory_measures(t) for t in trajectories]
    seconds = [(len(t.position) - 1) / t.rate for t in trajectories]
    speeds = [row["path_length"] / duration for row, duration in zip(rows, seconds)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in FITTED}
    speed = float(np.mean(speeds))
    by_speed = {f"{name}_by_speed": value / speed for name, value in means.items()}
    return {**means, "speed": speed, **by_speed, "episodes": len(rows)}


def shown(scale: float, episodes: int) -> dict[str, float]:
    """Return the measures of the operator's successes with this scale of tremor."""
    config, found, tried = OperatorConfig(tremor=scale), [], 0
    for task in TASKS:
        scene = load_scene(task)
        starts = fresh_start_states(scene, episodes, SEED)
        for episode, _ in operator_episodes(scene, starts, SEED, config, threads=1):
            tried += 1
            if episode is not None and episode.success:
                found.append(Trajectory.from_episode(episode))
    row = {"scale": scale, **measures(found), "success": len(found) / tried}
    print(row, file=sys.stderr)
    return row


def fit(table: pd.DataFrame, target: dict[str, float]) -> float:
    """Return the scale, to two digits, whose interpolated measures come nearest to `target`."""
    grid = np.arange(table["scale"].min(), table["scale"].max() + 0.005, 0.01)
    return float(round(grid[np.argmin(misfit(grid, table, target))], 2))


def misfit(scale: np.ndarray, table: pd.DataFrame, target: dict[str, float]) -> np.ndarray:
    """Return the squared logarithms' sum of how far the measures at `scale` are from `target`."""
    table, error = table.sort_values("scale"), np.zeros(np.shape(scale))
    for name in (f"{name}_by_speed" for name in FITTED):
        error = error + np.log(np.interp(scale, table["scale"], table[name]) / target[name]) ** 2
    return error


def main() -> None:
    """Play, fit, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--episodes", type=int, default=4, help="start states a task and scale")
    arguments = parser.parse_args()
    target = measures(read_trajectories(arguments.file, source="teleoperation"))
    print(target, file=sys.stderr)
    table = pd.DataFrame([shown(scale, arguments.episodes) for scale in SCALES])
    scale, used = fit(table, target), get_preset("libero").demonstrations.tremor
    rows = [
        {"who": "teleoperation", **target},
        *({"who": "operator", **row} for row in table.to_dict("records")),
        {"who": "operator, fitted", **shown(scale, arguments.episodes)},
        {"who": "operator of libero", **shown(used, arguments.episodes)},
    ]
    write_csv(TABLE, pd.DataFrame(rows))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
