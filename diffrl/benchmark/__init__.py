"""``python -m diffrl benchmark``: how fast simulator, camera, data, training and evaluation are."""

import math
from pathlib import Path
from typing import Literal

import tyro

from diffrl.base import artifacts
from diffrl.base.errors import UserError
from diffrl.benchmark.camera import measure_camera
from diffrl.benchmark.data import measure_data
from diffrl.benchmark.evaluation import measure_evaluation
from diffrl.benchmark.physics import TASKS as PHYSICS_TASKS
from diffrl.benchmark.physics import measure_minutes, measure_physics
from diffrl.benchmark.quality import measure_quality
from diffrl.benchmark.report import report, save_figures
from diffrl.benchmark.simulator import measure_simulators
from diffrl.benchmark.training import measure_training
from diffrl.benchmark.vla import measure_vla
from diffrl.doctor import describe_machine
from diffrl.gallery import copy_figures
from diffrl.presets import Algorithm
from diffrl.sim.tasks import SUITES, suite_tasks

Part = Literal[
    "simulator", "camera", "data", "quality", "training", "vla", "evaluation", "minutes", "all"
]

BY_NAME = ("suites", "training_physics")  # of the record: a number, or several, a suite or task


def main(
    what: tyro.conf.Positional[Part] = "all",
    suites: tuple[str, ...] = SUITES,
    seconds: float = 3.0,
    rounds: int = 5,
    states: int = 20,
    tasks: tuple[str, ...] = (),
    algorithm: Algorithm = "diffusion",
    json: bool = False,
) -> None:
    """Measure the speed of each part on this machine; write results/throughput.json and figures.

    The record is written after each part. Suites and tasks that are not measured again keep their
    numbers.

    Args:
        what: the part to measure; each takes minutes. `minutes` trains whole experts and is not
            part of `all`.
        suites: simulator: the suites to measure.
        seconds: simulator: how long each arm runs at least in each round.
        rounds: simulator: number of rounds; the median is reported.
        states: camera: number of states of each task that are drawn.
        tasks: training: the tasks in which both physics are compared (default: eight of five
            suites). minutes: the tasks to learn (default: libero_object's ten).
        algorithm: minutes: the policy class of the experts.
        json: print the record instead of a table.
    """
    unknown = [suite for suite in suites if suite not in SUITES]
    if unknown:
        raise UserError(f"There is no suite {unknown[0]!r} to measure: use {', '.join(SUITES)}.")
    if not 0 < seconds < math.inf or rounds < 1 or states < 1:
        raise UserError("--seconds, --rounds and --states must be positive.")
    path = artifacts.root() / "results" / "throughput.json"
    artifacts.make_folder(path.parent)
    parts = {
        "simulator": lambda: measure_simulators(suites, seconds, rounds),
        "camera": lambda: {"camera_fps": measure_camera(suites, states)},
        "data": lambda: {"data": measure_data()},
        "quality": lambda: {"quality": measure_quality()},
        "training": lambda: {
            "training": measure_training(),
            "training_physics": measure_physics(tasks or PHYSICS_TASKS),
        },
        "vla": lambda: {"vla": measure_vla()},
        "evaluation": lambda: {"evaluation": measure_evaluation()},
        "minutes": lambda: measure_minutes(
            tasks or [task.id for task in suite_tasks("libero_object")], algorithm
        ),
    }
    settings = {"suites": suites, "seconds": seconds, "rounds": rounds, "states": states}
    record = _other_parts(path)
    # of each part: a part may be measured again by itself
    made = {part: how for part, how in record.get("provenance", {}).items() if part in parts}
    for part, measure in parts.items():
        if what == part or (what == "all" and part != "minutes"):
            for name, found in measure().items():
                by_name = name in BY_NAME or name.startswith("minutes_to_")
                record[name] = {**record.get(name, {}), **found} if by_name else found
            made[part] = artifacts.provenance(settings)
            record |= {"machine": describe_machine(), "provenance": made}
            artifacts.write_json(path, record)
    save_figures(record)
    copy_figures("benchmark")
    print(path.read_text(encoding="utf-8") if json else report(record), end="")


def _other_parts(path: Path) -> dict:
    """Return what was measured before on this machine, or nothing."""
    record = artifacts.read_json(path) if path.exists() else {}
    here = describe_machine()
    same = all(record.get("machine", {}).get(k) == here[k] for k in ("processor", "cores"))
    return record if same else {}
