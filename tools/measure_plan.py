"""What the stages of a preset take, beside what `diffrl plan` says: processor minutes of each.

    python tools/measure_plan.py --preset smoke     # writes results/plan.csv

Every stage that is not done in runs/ is computed, so a measurement needs a DIFFRL_HOME of its own.
Processor time and not the clock's is compared: a machine that does other things, too, changes it
little. The plan's minutes are those of the recorded machine, which multiplies float32. Pictures are
drawn for the VLAs, so the two are one stage here.
"""

import resource
import sys
from collections.abc import Callable

import pandas as pd
import tyro

from diffrl.base.artifacts import root, run_folder, write_csv
from diffrl.base.errors import UserError
from diffrl.evaluation.stage import evaluate_preset
from diffrl.generation.stage import generate_all, repeat_all
from diffrl.plan import Rates, plan
from diffrl.presets import Preset, get_preset
from diffrl.rl.stage import train_experts
from diffrl.vla.stage import fit_all

PLANNED = {  # stages as the plan names them, by the name here
    "experts": ("experts",),
    "data": ("data",),
    "VLAs": ("pictures", "VLAs"),
    "evaluation": ("evaluation",),
}


def _data(preset: Preset) -> None:
    generate_all(preset)
    repeat_all(preset)


COLUMNS = ["preset", "stage", "planned_core_minutes", "measured_core_minutes"]
RUN: dict[str, Callable[[Preset], object]] = {
    "experts": train_experts,
    "data": _data,
    "VLAs": fit_all,
    "evaluation": evaluate_preset,
}


def spent() -> float:
    """Processor minutes of this process and of those that it has waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(one) for one in whose]
    return sum(one.ru_utime + one.ru_stime for one in used) / 60


def main(preset: str = "smoke") -> None:
    """Run every stage of a preset from nothing, and compare its processor time with the plan's.

    Args:
        preset: its stages are run.
    """
    settings, rows = get_preset(preset), []
    if run_folder(preset).exists():
        raise UserError(f"{run_folder(preset)} exists: set DIFFRL_HOME to an empty folder.")
    table = plan(settings, 1, 2, 0, Rates.read(precision="float32"))
    planned = 60 * table.groupby("stage")["core_hours"].sum()
    for stage, run in RUN.items():
        before = spent()
        run(settings)
        expected, measured = planned[list(PLANNED[stage])].sum(), spent() - before
        rows.append([preset, stage, round(expected, 2), round(measured, 2)])
        print(*rows[-1], sep="  ", flush=True)
        write_csv(root() / "results" / "plan.csv", pd.DataFrame(rows, columns=COLUMNS))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
