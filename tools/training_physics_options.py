"""What each way to make training's physics cheaper gives, on eight tasks of five suites.

    .venv/bin/python tools/training_physics_options.py

Kept: frozen with 12 steps. Dropped: a coarser tolerance and standing geoms that are far away, which
gain nothing in the median; one iteration of the solver, after which the hand is 0.1-0.8 m away on
five of the eight tasks (their ratios are no speeds: a copy that diverged stops) and which gains
little on the others; ten steps, with which trained experts begin to fail. Waking a thing when
something touches it would change next to nothing: `training_physics_touches.py` measures it.

Every arm plays the same slow random motion on the same settled start states, on one thread, one
arm after the other in each of several rounds; a ratio is exact physics' time over the arm's.
Writes `results/training_physics_options.csv`: task, option, ratio (median of rounds), hand_mm
(largest distance of the hand from exact physics' at the end).
"""

from statistics import median

import mujoco
import numpy as np
import pandas as pd
import tyro

from diffrl.base.artifacts import root, write_csv
from diffrl.benchmark.common import smooth_actions, timed
from diffrl.benchmark.physics import TASKS
from diffrl.sim.osc import GRIPPER_SPEED, SUBSTEPS
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states

COPIES, STEPS = 4, 20


def simulators(scene: Scene) -> dict[str, Simulator]:
    """A simulator for each option, alone and together."""

    def make(**options) -> Simulator:
        return Simulator(scene, COPIES, threads=1, max_steps=10_000, **options)

    arms = {"exact": make(), "12 steps": make(), "frozen": make(physics="training", substeps=25)}
    arms |= {f"frozen, {n} steps": make(physics="training", substeps=n) for n in (12, 10)}
    for name in ("tolerance 1e-4", "1 iteration", "far geoms off"):
        arms[f"frozen, 12 steps, {name}"] = make(physics="training")
    set_options(arms["12 steps"], timestep=0.05 / 12)
    for moving in arms["12 steps"]._copies:
        moving._arguments = (*moving._arguments[:-2], 12, GRIPPER_SPEED * SUBSTEPS / 12)
    set_options(arms["frozen, 12 steps, tolerance 1e-4"], tolerance=1e-4)
    set_options(arms["frozen, 12 steps, 1 iteration"], iterations=1)
    for models in arms["frozen, 12 steps, far geoms off"]._models:
        for model in models.values():
            switch_off_far_geoms(model)
    return arms


def set_options(simulator: Simulator, **options) -> None:
    """Change MuJoCo's options of every model of a simulator."""
    for models in simulator._models:
        for model in models.values():
            for name, value in options.items():
                setattr(model.opt, name, value)


def switch_off_far_geoms(model: mujoco.MjModel, reach: float = 0.9) -> None:
    """Let no standing geom collide that lies wholly beyond `reach` (m) of the robot's base."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    base = data.xpos[model.body("robot0_base").id]
    away = np.linalg.norm(data.geom_xpos - base, axis=1) - model.geom_rbound
    still = model.body_weldid[model.geom_bodyid] == 0
    far = still & (model.geom_rbound > 0) & (away > reach)
    model.geom_contype[far] = model.geom_conaffinity[far] = 0


def measure(task: str, rounds: int) -> list[dict]:
    """The rows of one task."""
    scene = load_scene(task)
    starts, actions = fresh_start_states(scene, COPIES, seed=3), smooth_actions(STEPS, 1)
    arms = simulators(scene)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    resets: dict[str, list[float]] = {"exact": [], "frozen, 12 steps": []}

    def play(simulator: Simulator) -> None:
        for action in actions:
            simulator.step(np.tile(action, (COPIES, 1)))

    for _ in range(rounds):
        for name, simulator in arms.items():
            spent = timed(lambda: simulator.reset(starts))[1]  # noqa: B023 (called at once)
            if name in resets:
                resets[name].append(spent)
            seconds[name].append(timed(lambda: play(simulator))[1])  # noqa: B023
    hand = arms["exact"].observation.eef_pos
    rows = []
    for name, simulator in arms.items():
        away = 1e3 * np.linalg.norm(simulator.observation.eef_pos - hand, axis=1).max()
        ratio = median(a / b for a, b in zip(seconds["exact"], seconds[name]))
        rows.append({"option": name, "ratio": ratio, "hand_mm": away})
    # the first reset settles in exact physics, the others find the layout
    later = median(a / b for a, b in zip(resets["exact"][1:], resets["frozen, 12 steps"][1:]))
    rows.append({"option": "reset, layout known", "ratio": later, "hand_mm": np.nan})
    return [{"task": task} | row for row in rows]


def main(tasks: tuple[str, ...] = TASKS, rounds: int = 3) -> None:
    """Measure all options and print their medians over tasks."""
    rows = [row for task in tasks for row in measure(task, rounds)]
    table = pd.DataFrame(rows).round({"ratio": 2, "hand_mm": 3})
    write_csv(root() / "results" / "training_physics_options.csv", table)
    print(table.pivot(index="task", columns="option", values="ratio").T.to_string())
    print(table.groupby("option", sort=False)["ratio"].agg(["median", "min"]).to_string())


if __name__ == "__main__":
    tyro.cli(main)
