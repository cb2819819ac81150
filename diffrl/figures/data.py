"""Figures of the simulator's speed and of what operators command (notebook 02, benchmark)."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.figures.style import DOUBLE, SINGLE, arm_label, arm_order, colour, error_bar, style

_GREYS = ("#BBBBBB", "#777777", "#56B4E9", "#0072B2", "#003A63")  # reference first, ours last
AXES = ("Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper")


@style
def throughput_bars(speed: pd.DataFrame, ylabel: str = "control steps / s") -> Figure:
    """Bars per suite, one per implementation, the rate written above each.

    speed: rows (suite, kind, value[, low, high]) in the order they shall appear.
    """
    suites, kinds = (list(dict.fromkeys(speed[name])) for name in ("suite", "kind"))
    width = 0.82 / len(kinds)
    figure, axes = plt.subplots(figsize=(SINGLE if len(suites) < 3 else DOUBLE, 2.3))
    for index, kind in enumerate(kinds):
        rows = speed[speed["kind"] == kind].set_index("suite").reindex(suites)
        at = np.arange(len(suites)) + (index - (len(kinds) - 1) / 2) * width
        error = None
        if {"low", "high"} <= set(rows):
            error = error_bar(rows["value"], rows["low"], rows["high"])
        shade = _GREYS[index % len(_GREYS)]
        bars = axes.bar(
            at, rows["value"], 0.94 * width, yerr=error, color=shade, label=kind, ecolor="black"
        )
        labels = ["" if np.isnan(v) else f"{v:,.0f}" for v in rows["value"]]
        axes.bar_label(bars, labels, fontsize=7, padding=1)
    axes.set_xticks(range(len(suites)), suites)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(ylabel)
    axes.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=min(len(kinds), 4))
    return figure


@style
def action_statistics(actions: pd.DataFrame) -> Figure:
    """Commands of several sources side by side: mean, ± one std (thick), 1-99 % range (thin).

    actions: rows (suite, source, dimension 0-6, mean, std, q01, q99); actions in [-1, 1].
    """
    suites = list(dict.fromkeys(actions["suite"]))
    sources = [source for source, _ in arm_order(actions.assign(mode="recorded"))]
    figure, panels = plt.subplots(
        1,
        len(suites),
        figsize=(SINGLE + 1.4 if len(suites) == 1 else DOUBLE, 2.4),
        sharey=True,
        squeeze=False,
    )
    for axes, suite in zip(panels.flat, suites):
        for index, source in enumerate(sources):
            rows = actions[(actions["suite"] == suite) & (actions["source"] == source)]
            at = rows["dimension"] + 0.8 / len(sources) * (index - (len(sources) - 1) / 2)
            axes.vlines(at, rows["q01"], rows["q99"], color=colour(source), lw=0.9)
            low = np.maximum(rows["mean"] - rows["std"], -1)
            high = np.minimum(rows["mean"] + rows["std"], 1)
            axes.vlines(at, low, high, color=colour(source), lw=4, alpha=0.45)
            axes.plot(at, rows["mean"], "o", color=colour(source), ms=3, label=arm_label(source))
        axes.axhline(0, color="0.8", lw=0.5, zorder=0)
        axes.set_xticks(range(len(AXES)), AXES)
        axes.set_title(suite)
    panels[0, 0].set_ylabel("command (full = 1)")
    panels[0, 0].set_ylim(-1.05, 1.05)
    grey = {"color": "0.4"}
    for look, words in (({"lw": 4, "alpha": 0.45}, "± one std"), ({"lw": 0.9}, "1–99 %")):
        panels[0, 0].plot([], [], **grey, **look, label=words)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure
