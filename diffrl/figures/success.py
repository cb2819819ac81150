"""Figures of success rates (notebooks 01, 02 and 05)."""

import textwrap
from itertools import takewhile

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.base import intervals
from diffrl.figures.style import DOUBLE, SINGLE, arm_label, arm_order, arm_style, error_bar, style
from diffrl.sim.tasks import get_task


@style
def success_forest(
    rates: pd.DataFrame,
    reference: pd.DataFrame | None = None,
    before: pd.DataFrame | None = None,
    seeds: pd.DataFrame | None = None,
) -> Figure:
    """Success per source with Wilson 95 % intervals; a block per suite, in three columns if many.

    rates: rows (suite, source, mode, successes, trials). reference: rows (suite, source, mode,
    value) of published rates in [0, 1], drawn as a bar across the row; name its origin in the
    caption. before: rows like those of rates, of the same arms at an earlier moment; drawn pale.
    seeds: rows like those of rates, one per training seed; drawn as a dot below where several.
    """
    suites = list(dict.fromkeys(rates["suite"]))
    arms = arm_order(rates)
    columns = 1 if len(suites) <= 6 else 3
    lines = -(-len(suites) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(
            SINGLE + 0.9 if columns == 1 else DOUBLE,
            0.55 + lines * (0.25 + 0.2 * len(arms)),
        ),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, suite in zip(panels.flat, suites):
        for height, (source, mode) in enumerate(reversed(arms)):
            mine = {"suite": suite, "source": source, "mode": mode}
            earlier = [] if before is None else _rates(before, mine)
            for row in _rates(rates, mine):
                _mark(axes, row, height, arm_style(source, mode))
                digits = int(row.trials > 200)  # a trial is less than half a point
                text = f"{100 * row.value:.{digits}f} %  ({row.successes}/{row.trials})"
                for first in earlier:
                    _mark(axes, first, height, arm_style(source, mode), alpha=0.3)
                    text = f"{100 * first.value:.0f} → {100 * row.value:.0f} %"
                own = [] if seeds is None else _rates(seeds, mine)
                for one in own if len(own) > 1 else ():
                    dot = {"marker": ".", "markersize": 3, "linestyle": "none"}
                    look = arm_style(source, mode) | dot | {"label": "one training seed"}
                    axes.plot(100 * one.value, height - 0.28, clip_on=False, **look)
                beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(text, (100, height), **beside, fontsize=7)
            if reference is not None:
                own = (reference[list(mine)] == pd.Series(mine)).all(axis=1)
                for value in 100 * reference.loc[own, "value"]:
                    bar = {"marker": "|", "markersize": 10, "linestyle": "none"}
                    axes.plot(value, height, color="black", label="published", **bar)
        axes.set_title(suite, loc="left")
        axes.grid(axis="x", lw=0.4, color="0.9")
    for axes in panels.flat:
        axes.tick_params(axis="y", length=0)
    for axes in list(panels.flat)[len(suites) :]:
        axes.set_visible(False)
    for axes in list(panels.flat)[max(0, len(suites) - columns) : len(suites)]:
        axes.tick_params(axis="x", labelbottom=True)
        axes.set_xlabel("success (%)")
    panels[0, 0].set_yticks(range(len(arms)), [arm_label(*arm) for arm in reversed(arms)])
    panels[0, 0].set_ylim(-0.6, len(arms) - 0.4)
    panels[0, 0].set_xlim(0, 100)
    marks = dict.fromkeys(("published", "one training seed"))
    for axes in panels.flat:
        marks |= {line.get_label(): line for line in axes.lines if line.get_label() in marks}
    if key := {label: line for label, line in marks.items() if line}:
        figure.legend(key.values(), key, loc="outside lower right", ncols=2, handlelength=1)
        figure.set_figheight(figure.get_figheight() + 0.2)
    return figure


def _rates(table, wanted):
    """The rows of an arm, with their rate `value`."""
    chosen = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return list(chosen.assign(value=chosen["successes"] / chosen["trials"]).itertuples())


def _mark(axes, row, height, look, alpha=1.0):
    low, high = intervals.wilson(row.successes, row.trials)
    error = 100 * error_bar(row.value, low, high)
    look = {**look, "linestyle": "none", "alpha": alpha, "zorder": 3 if alpha == 1 else 2}
    axes.errorbar(100 * row.value, height, xerr=error, capsize=2, clip_on=False, **look)


@style
def scaling_curve(rates: pd.DataFrame) -> Figure:
    """Success over the number of demonstrations per task, with its 95 % interval.

    rates: rows (suite, source, mode, demonstrations, success, low, high), see `scores.scaling`.
    """
    suites = list(dict.fromkeys(rates["suite"]))
    figure, panels = plt.subplots(
        1, len(suites), figsize=(min(DOUBLE, 0.6 + 2.7 * len(suites)), 2.5), sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axes, suite in zip(panels.flat, suites):
        rows = rates[rates["suite"] == suite]
        for source, mode in arm_order(rows):
            arm = rows[(rows["source"] == source) & (rows["mode"] == mode)]
            value = 100 * arm[["success", "low", "high"]].to_numpy()
            error = error_bar(*value.T)
            look = {**arm_style(source, mode), "capsize": 2, "clip_on": False}
            label = arm_label(source, mode)
            axes.errorbar(arm["demonstrations"], value[:, 0], yerr=error, label=label, **look)
        axes.set_title(suite, loc="left")
        axes.set_xscale("log")
        counts = sorted(rates["demonstrations"].unique())
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
        axes.set_xlabel("demonstrations per task")
        axes.grid(axis="y", lw=0.4, color="0.9")
    panels[0, 0].set_ylim(0, 100)
    panels[0, 0].set_ylabel("success (%)")
    panels[0, 0].legend(loc="lower right")
    return figure


@style
def success_heatmap(rates: pd.DataFrame) -> Figure:
    """Success per task (rows) and arm (columns), the percentage written into each cell.

    rates: rows (task, source, mode, successes, trials); several rows of a cell (seeds) are pooled.
    """
    arms, tasks = arm_order(rates), list(dict.fromkeys(rates["task"]))
    pooled = rates.groupby(["task", "source", "mode"])[["successes", "trials"]].sum()
    value = (100 * pooled["successes"] / pooled["trials"]).unstack(["source", "mode"])
    value = value.reindex(index=tasks, columns=pd.MultiIndex.from_tuples(arms)).to_numpy()
    names = task_names(tasks)
    width = 1.0 + 0.06 * max(map(len, names)) + 0.85 * len(arms)
    figure, axes = plt.subplots(figsize=(min(DOUBLE, width), 0.75 + 0.2 * len(tasks)))
    image = axes.imshow(value, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(np.isfinite(value)):
        shade = "white" if value[row, column] < 55 else "black"
        text = f"{value[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=7)
    axes.set_xticks(range(len(arms)), [arm_label(*arm, newline=True) for arm in arms])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(tasks)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, label="success (%)")
    bar.outline.set_visible(False)
    return figure


def task_names(tasks: list[str], width: int = 32) -> list[str]:
    """Name tasks by their id and by what tells their instruction from those of their suite."""
    names = []
    for task in map(get_task, tasks):
        own = [get_task(t).instruction.split() for t in tasks if get_task(t).suite == task.suite]
        words = task.instruction.split()
        first, last = (_shared(own, side) if len(own) > 1 else len(words) for side in (1, -1))
        rest = " ".join(words[first : len(words) - last])
        names.append(f"{task.id} {textwrap.shorten(rest, width, placeholder=' …')}".strip())
    return names


def _shared(sentences: list[list[str]], side: int) -> int:
    """How many words all sentences share, from their beginning (1) or their end (-1)."""
    columns = zip(*(words[::side] for words in sentences))
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
