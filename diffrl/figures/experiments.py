"""Controlled experiments: what each arm changes, run by run and in the mean."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.figures.style import DOUBLE, colour, error_bar, style
from diffrl.quality.report import MEASURES
from diffrl.statistics import stratified_mean_interval

SHOWN = ("success", "auc", "jerk_rms", "steps", "position_variance")
ARM_CAPTION = (  # what every caption of `arm_comparison` says
    "small marks are runs, a shape per task; the mark is the mean over the tasks with Student's t "
    "interval (95 %) over the seeds within them"
)
_TITLES = {"success": "Success", "auc": "Area under the curve"}
_SHAPES = ".^xs+"


@style
def arm_comparison(runs: pd.DataFrame, mode: str = "deterministic", measures=SHOWN) -> Figure:
    """A row per arm, a panel per measure: every run, the mean over tasks and its interval.

    runs: `experiments.csv` rows. Runs without a success to measure have no mark in quality's
    panels. The legend names the tasks where there are several.
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
                axes.plot(part[measure], np.full(len(part), height), shape, **look)
            mean, low, high = stratified_mean_interval(group[measure], group["task"])
            error = None if np.isnan(low) else error_bar(mean, low, high)
            axes.errorbar(mean, height, xerr=error, color=tone, marker="o", ms=3.5, lw=1)
        label, unit, _ = MEASURES.get(measure, (_TITLES.get(measure, measure), "", 0))
        axes.set_title(f"{label} ({unit})" if unit else label, fontsize=7, wrap=True)
        axes.set_yticks(range(len(arms)), list(reversed(arms)))
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="0.9")
        axes.set_axisbelow(True)
    if several:
        for task, shape in zip(tasks, _SHAPES):
            panels[0, 0].plot([], [], shape, color="0.4", ms=3, ls="none", label=task)
        figure.legend(loc="outside upper center", ncols=len(tasks))
    return figure
