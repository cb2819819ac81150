"""Controlled experiments: what each arm changes, run by run and in the mean."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.figures.style import DOUBLE, colour, error_bar, style
from diffrl.quality.report import MEASURES
from diffrl.statistics import mean_interval

SHOWN = ("success", "auc", "jerk_rms", "steps", "position_variance")
_TITLES = {"success": "Success", "auc": "Area under the curve"}


@style
def arm_comparison(runs: pd.DataFrame, mode: str = "deterministic", measures=SHOWN) -> Figure:
    """A row per arm, a panel per measure: every run a dot, the mean with Student's t interval.

    runs: `experiments.csv` rows. Tasks differ more than arms do: each value is moved by what its
    task's mean differs from the mean of all tasks. Runs without a success to measure have no dot in
    quality's panels.
    """
    rows = runs[runs["mode"] == mode].copy()
    for measure in measures:
        by_task = rows.groupby("task")[measure]
        rows[measure] += by_task.mean().mean() - by_task.transform("mean")
    arms = list(dict.fromkeys(rows["arm"]))
    size = (DOUBLE, 0.5 + 0.2 * len(arms))
    figure, panels = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for axes, measure in zip(panels[0], measures):
        for height, arm in enumerate(reversed(arms)):
            group = rows[rows["arm"] == arm]
            tone, values = colour(group["algorithm"].iloc[0]), group[measure].dropna().to_numpy()
            if not len(values):
                continue
            axes.plot(values, np.full(len(values), height), ".", color=tone, ms=3, alpha=0.45)
            mean, low, high = mean_interval(values)
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
    return figure
