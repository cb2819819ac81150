"""The quality stage of a preset, and ``python -m diffrl quality FILE…``."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import tyro

from diffrl.base import artifacts
from diffrl.base.arm import SOURCES, Arm
from diffrl.base.errors import UserError
from diffrl.data.validate import data_files
from diffrl.presets import QualityConfig, get_preset
from diffrl.quality import report
from diffrl.quality.files import read_files, read_trajectories, tell_user
from diffrl.quality.trajectory import Trajectory
from diffrl.sim.tasks import get_task

# Raise it when a measure is defined or compared in another way. A new measure needs no new format:
# the stage's key holds the list of measures.
FORMAT = 2
REFERENCE = Path("shared/teleop/medical_box.hdf5")  # beside the clone, when somebody put it there


class Quality(NamedTuple):
    """The stage's result: the trajectories that were measured, and the three tables."""

    trajectories: list[Trajectory]
    units: pd.DataFrame  # one row per trajectory or start state: what the figures are drawn from
    summary: pd.DataFrame  # quality.csv
    tests: pd.DataFrame  # quality_tests.csv

    def sample(self, task: str | None = None) -> str:
        """What a caption has to say of the data: how many trajectories of which arm and task."""
        rows = self.units[self.units["measure"] == "steps"]
        if task:
            rows = rows[rows["task"] == task]
        tasks = rows["task"][rows["source"] != "teleoperation"].unique()
        counts = rows.groupby(["source", "mode"]).size()
        arms = ", ".join(f"{Arm(*arm).joined(' ')} {n}" for arm, n in counts.items())
        where = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
        return f"Successful episodes on {where}, control rate 20 Hz, n: {arms}."


def dataset_files(preset: str) -> list[Path]:
    """Every data set of a preset's tasks, and the teleoperation reference when it is at hand."""
    files = _files(preset, "datasets")
    if not files:
        folder = artifacts.runs_dir(preset) / "datasets"
        remedy = f"run notebook 02 first (python -m diffrl reproduce --preset {preset} --only 2)"
        if artifacts.restored(preset):
            remedy = (
                "the run was restored from git, which keeps no data sets. Use another preset, such "
                f"as smoke, or compute this one (python -m diffrl reproduce --preset {preset} "
                "--force)"
            )
        raise UserError(f"No data sets of preset {preset} in {folder}: {remedy}.")
    reference = artifacts.root().parent / REFERENCE
    return [*files, *([reference] if reference.is_file() else [])]


def repeated_files(preset: str) -> list[Path]:
    """Those of repeated start states; none where they were not made."""
    return _files(preset, "repeated")


def _files(preset: str, kind: str) -> list[Path]:
    folder = artifacts.runs_dir(preset) / kind
    tasks = [get_task(name) for name in get_preset(preset).tasks]
    return [f for t in tasks for f in sorted(folder.glob(f"*-*/{t.suite}/{t.name}_demo.hdf5"))]


def load_datasets(files: list[Path]) -> list[Trajectory]:
    """Read data sets; the teleoperation reference keeps its own task, "another task"."""
    return [
        trajectory
        for file in files
        for trajectory in read_trajectories(
            file, source="teleoperation" if file.name == REFERENCE.name else None, tell=print
        )
    ]


def trajectories_of(preset: str, task: str) -> list[Trajectory]:
    """The successes of a task in a preset's data sets that are here; a restored run has none."""
    known, folder = get_task(task), artifacts.runs_dir(preset) / "datasets"
    files = sorted(folder.glob(f"*-*/{known.suite}/{known.name}_demo.hdf5"))
    if not files:
        return []
    return _pairs(report.select(load_datasets(files), get_preset(preset).quality.episodes))


def run_quality(preset: str, force: bool = False) -> Quality:
    """Measure all data sets of a preset; writes quality.csv, quality_tests.csv, quality_units.csv.

    Those of a part, whose name says so, lie beside its VLAs (`Preset.tables_of`).
    Finished work is found again by the preset's settings and the files' bytes.

    Raises:
        UserError: there are no data sets, or some that the tables measure are not here any more.
    """
    known = get_preset(preset)
    config, folder = known.quality, artifacts.runs_dir(preset) / known.tables_of
    files, again = dataset_files(preset), repeated_files(preset)
    paths = [folder / f"quality{part}.csv" for part in ("_units", "", "_tests")]
    stage = artifacts.Stage(folder, "quality", config, [*files, *again], FORMAT, report.MEASURES)
    due = stage.due(force)
    trajectories = _pairs(report.select(load_datasets(files), config.episodes))
    if not due:
        return Quality(trajectories, *map(pd.read_csv, paths))
    _lose_nothing(paths[1], trajectories)
    units = report.measure(trajectories, config)
    if repeats := _pairs([t for t in load_datasets(again) if t.success is not False]):
        # their start states are few: they say what varies from the same one, and no more
        own = report.measure(repeats, replace(config, episodes=len(repeats)))
        units = pd.concat([units, own[own["measure"].str.startswith("own_")]], ignore_index=True)
    tables = (units, report.summarise(units, config), report.compare(units, config))
    for path, table in zip(paths, tables, strict=True):
        artifacts.write_csv(path, table)
    counts = units[units["measure"] == "steps"].groupby(["source", "mode"]).size()
    stage.finish(
        {Arm(*arm).joined("/"): int(n) for arm, n in counts.items()},
        outputs=paths,
        seed=config.seed,
    )
    return Quality(trajectories, *map(pd.read_csv, paths))


def _lose_nothing(path: Path, trajectories: list[Trajectory]) -> None:
    """Refuse to replace a record by a part of it: another machine may have had more data sets."""
    if not path.is_file():
        return
    measured = pd.read_csv(path, usecols=["source", "mode", "task"])
    own = (measured["task"] != "all") & (measured["source"] != "teleoperation")
    rows = measured[own].drop_duplicates().itertuples(index=False, name=None)
    here = {(*t.arm, t.task) for t in trajectories}
    lost = [row for row in rows if row not in here]
    if lost:
        source, mode, task = lost[0]
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(
            f"{path} measures data sets that are not here: {Arm(source, mode)} on {task}{more}. "
            "Make them again (`python -m diffrl generate`), or delete the table to measure what is "
            "here alone."
        )


def _pairs(
    trajectories: list[Trajectory], tell: Callable[[str], object] = print
) -> list[Trajectory]:
    """Leave out, and tell, an arm with one success on a task: it must not stop all the others."""
    counts = Counter((t.arm, t.task) for t in trajectories)
    for (arm, task), count in counts.items():
        if count < 2:
            tell(f"Left out: {arm} on {task} has {count} success, too few to measure.")
    return [t for t in trajectories if counts[t.arm, t.task] >= 2]


def main(
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    as_csv: Annotated[bool, tyro.conf.arg(name="csv")] = False,
    source: str | None = None,
    rate: float | None = None,
    neighbours: int = QualityConfig.neighbours,
    skip_bad: bool = False,
) -> None:
    """Measure the trajectories of data-set files: smoothness, efficiency, consistency.

    Args:
        files: HDF5 files, or folders of them: diffrl's, LIBERO's, its raw collector's, robosuite's,
            robomimic's, plain arrays. Files of one name in two folders are two arms.
        as_json: print the rows as JSON.
        as_csv: print the rows as CSV (source, mode, task, measure, value, low, high, n, and the
            interval over tasks).
        source: name of the trajectories' source; default: the file's own, or its folder and name.
        rate: control rate in Hz, for files that do not state theirs. It must not contradict a file.
        neighbours: number of neighbours k for the action variance given the state.
        skip_bad: leave out, and name, episodes and files that cannot be measured.
    """
    if not files:
        raise UserError("No file given: python -m diffrl quality FILE… [--json | --csv].")
    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other: give one of them.")
    found = read_files(data_files(files), rate=rate, source=source, skip_bad=skip_bad)
    if skip_bad:
        found = _pairs(report.select(found, len(found)), tell_user)
    config = QualityConfig(episodes=len(found), neighbours=neighbours)
    units = report.measure(found, config)
    for line in report.without_neighbours(units, config):
        tell_user(line)
    summary = report.summarise(units, config)
    if as_json:
        print(summary.to_json(orient="records", indent=2))
    elif as_csv:
        summary.to_csv(sys.stdout, index=False, float_format="%.10g", lineterminator="\n")
    else:
        print(format_table(summary))


def format_table(summary: pd.DataFrame) -> str:
    """The summary as text: one block per task, measures down, arms across, value [low, high]."""
    blocks = []
    single = summary["task"].nunique() == 2  # one task: "all" would only repeat it
    for task, rows in summary.groupby("task", sort=False):
        if single and task == "all":
            continue
        blocks.append(f"{task}\n{printable(rows).to_string()}")
    return "\n\n".join(blocks)


def printable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one task as a table of strings: measures with unit down, arms across."""
    cells = rows.assign(
        arm=rows["source"] + " " + rows["mode"],
        text=[_text(row) for row in rows.itertuples()],
        name=[f"{m.label} [{m.unit}]" if m.unit else m.label for m in _measures(rows)],
    )
    names = dict.fromkeys(cells.sort_values("measure", key=_order)["name"])
    arms = dict.fromkeys(cells.sort_values(["source", "mode"], key=_order)["arm"])
    table = cells.pivot(index="name", columns="arm", values="text")
    return table.loc[list(names), list(arms)].fillna("–").rename_axis(index=None, columns=None)


def _measures(rows: pd.DataFrame) -> list[report.Measure]:
    return [report.MEASURES[name] for name in rows["measure"]]


def _order(column: pd.Series) -> pd.Series:
    """Sort key of a column: sources and measures in the order of the series."""
    order = {"source": SOURCES, "measure": tuple(report.MEASURES)}.get(column.name)
    return column if order is None else column.map({k: f"{i:02d}" for i, k in enumerate(order)})


def _text(row: Any) -> str:
    if (Arm(row.source, row.mode), row.measure) in report.CONSTRUCTED:
        return f"{_number(row.value)} (by construction)"
    return _cell(row.value, row.low, row.high)


def _cell(value: float, low: float, high: float) -> str:
    if np.isnan(low):
        return _number(value)
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
