"""Controlled experiments: what each arm changes, run by run and in the mean."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffrl.base.intervals import stratified_mean_interval
from diffrl.figures.style import DOUBLE, arm_label, arm_order, arm_style, colour, error_bar, style
from diffrl.quality.report import MEASURES

SHOWN = ("success", "auc", "jerk_rms", "steps", "position_variance")
MOVED = ("jerk_rms", "ldlj_cartesian", "steps", "success")
ARM_CAPTION = (  # what every caption of `arm_comparison` says
    "small marks are runs, a shape per task; the mark above them is the mean over the tasks with "
    "Student's t interval (95 %) over the seeds within them, cut to what the measure can be"
)
_TITLES = {"success": "Success", "auc": "Area under the curve"}  # shares
_SHAPES = ".^xs+"
BELOW = 0.28  # rows that the marks of runs lie below their mean's, which would hide them
_CELLS = {  # of the factorial, by an arm's name without its policy
    "": "correlated noise, cut",
    "fade": "correlated, faded",
    "white": "white noise, cut",
    "white fade": "white, faded",
}


@style
def arm_comparison(runs: pd.DataFrame, mode: str = "deterministic", measures=SHOWN) -> Figure:
    """A row per arm, a panel per measure: every run, the mean over tasks and its interval.

    runs: `experiments.csv` rows. Runs without a success to measure have no mark in quality's
    panels. Intervals are cut where a share or a variance ends. The legend names the tasks where
    there are several, the rows the policy where there are both; else the first arm is the "base"
    that the others change.
    """
    rows = runs[runs["mode"] == mode]
    arms, tasks = list(dict.fromkeys(rows["arm"])), list(dict.fromkeys(rows["task"]))
    several = len(tasks) > 1
    size = (DOUBLE, 0.5 + 0.25 * several + 0.2 * len(arms))
    figure, panels = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for axes, measure in zip(panels[0], measures):
        for height, arm in enumerate(reversed(arms)):
            group = rows[rows["arm"] == arm].dropna(subset=measure)
            if group.empty:
                continue
            tone = colour(group["algorithm"].iloc[0])
            for task, part in group.groupby("task"):
                look = {"color": tone, "ms": 3, "alpha": 0.45, "ls": "none", "clip_on": False}
                shape = _SHAPES[tasks.index(task) % len(_SHAPES)]
                axes.plot(part[measure], np.full(len(part), height - BELOW), shape, **look)
            mean, low, high = stratified_mean_interval(group[measure], group["task"])
            if measure in _TITLES:
                low, high = max(low, 0), min(high, 1)
            elif measure.endswith("variance"):
                low = max(low, 0)
            error = None if np.isnan(low) else error_bar(mean, low, high)
            axes.errorbar(mean, height, xerr=error, color=tone, marker="o", ms=3.5, lw=1)
        _rows(axes, _short(arms, set(rows["algorithm"])), measure)
    if several:
        _name_tasks(figure, tasks)
    return figure


@style
def factorial_forest(effects: pd.DataFrame, mode: str = "deterministic", measures=MOVED) -> Figure:
    """A row per effect, a panel per measure: the difference, its interval, and that of each task.

    effects: `experiments.factorial_effects`.
    """
    rows = effects[effects["mode"] == mode]
    names = list(dict.fromkeys(rows["effect"]))
    tasks = effects.columns[effects.columns.get_loc("p_holm") + 1 :]
    size = (DOUBLE, 0.75 + 0.22 * len(names))
    figure, panels = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for axes, measure in zip(panels[0], measures):
        axes.axvline(0, color="0.6", lw=0.6)
        for _, row in rows[rows["measure"] == measure].iterrows():
            height = len(names) - 1 - names.index(row["effect"])
            for task, shape in zip(tasks, _SHAPES):
                axes.plot(row[task], height, shape, color="0.2", ms=3, alpha=0.45, clip_on=False)
            value, low, high = row[["difference", "low", "high"]]
            error = error_bar(value, low, high)
            axes.errorbar(value, height, xerr=error, color="0.1", marker="o", ms=3.5, lw=1)
        _rows(axes, names, measure)
    _name_tasks(figure, tasks)
    return figure


def _short(arms: Sequence[str], algorithms: set[str]) -> list[str]:
    """Names without the policy's, if all have the same."""
    common = "" if len(algorithms) > 1 else "".join(algorithms)
    return [arm.removeprefix(common).strip() or "base" for arm in arms]


def _rows(axes: Axes, names: Sequence[str], measure: str) -> None:
    """Name the rows from above, and the panel after its measure."""
    label, unit, _ = MEASURES.get(measure, (_TITLES.get(measure, measure), "", 0))
    axes.set_title(f"{label} ({unit})" if unit else label, fontsize=7, wrap=True)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", lw=0.4, color="0.9")
    axes.set_axisbelow(True)


def _name_tasks(figure: Figure, tasks: Sequence[str]) -> None:
    for task, shape in zip(tasks, _SHAPES):
        figure.axes[0].plot([], [], shape, color="0.4", ms=3, ls="none", label=task)
    figure.legend(loc="outside upper center", ncols=len(tasks))


@style
def jerk_curves(curves: pd.DataFrame, good: float) -> Figure:
    """Jerk of the successes during RL: tasks are rows, what both policies share are columns.

    curves: `experiments.held_out_curves` of the factorial; a line per run. Points are filled where
    success is `good` or more, so filled ones compare policies that are about equally good.
    """
    curves = curves.assign(
        cell=[arm.removeprefix(own).strip() for arm, own in zip(curves["arm"], curves["algorithm"])]
    )
    tasks = list(dict.fromkeys(curves["task"]))
    size = (DOUBLE, 0.7 + 1.4 * len(tasks))
    figure, panels = plt.subplots(
        len(tasks), len(_CELLS), figsize=size, sharex=True, sharey="row", squeeze=False
    )
    for line, task in zip(panels, tasks):
        for axes, cell in zip(line, _CELLS):
            shown = curves[(curves["task"] == task) & (curves["cell"] == cell)]
            for (source, _), run in shown.groupby(["algorithm", "seed"]):
                steps, tone = run["control_steps"] / 1000, colour(source)
                jerk, full = run["measured_jerk_rms"], run["measured_success"] >= good
                axes.plot(steps, jerk, color=tone, lw=0.8, alpha=0.7)
                fill = np.where(full, tone, "white")
                axes.scatter(steps, jerk, 9, fill, edgecolors=tone, lw=0.8, zorder=3)
            axes.grid(axis="y", lw=0.4, color="0.9")
        line[0].set_ylabel(f"{task}\njerk, RMS (m/s³)")
    for axes, title in zip(panels[0], _CELLS.values()):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel("control steps (thousands)", fontsize=7)
    arms = arm_order(curves.assign(source=curves["algorithm"], mode="deterministic"))
    for arm in arms:
        panels[0, 0].plot([], [], **arm_style(*arm), label=arm_label(*arm))
    figure.legend(loc="outside upper center", ncols=len(arms))
    return figure
