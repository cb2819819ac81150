"""Figures of work under way: what of a preset is waiting, running, done or failed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from diffrl.figures.style import DOUBLE, style

STATE_COLOURS = {  # from calm to urgent; Okabe & Ito's, see `diffrl.figures.style`
    "done": "#009E73",
    "waiting": "#E6E6E6",
    "running": "#56B4E9",
    "stale": "#F0E442",
    "lost": "#E69F00",
    "failed": "#D55E00",
}


@style
def work_heatmap(table: pd.DataFrame) -> Figure:
    """The state of every unit of work: tasks × stages, and below them the VLAs and evaluations.

    table: `diffrl.status.status`. A running cell shows how much of its phase is done (%); states
    that ask for a look have a letter, so that the figure survives a grey printer. Several seeds
    stand side by side.
    """
    whole = table["task"] == "all"
    parts = [(table[~whole], "task", "what"), (table[whole], "what", None)]
    parts = [part for part in parts if len(part[0])]
    rows = [part[index].nunique() for part, index, _ in parts]
    height = 0.125 * sum(rows) + 1.25 * len(parts) + 0.3
    figure, panels = plt.subplots(
        len(parts), 1, figsize=(DOUBLE, height), height_ratios=[n + 3 for n in rows], squeeze=False
    )
    for axes, (part, index, detail) in zip(panels.flat, parts):
        _draw(axes, part, index, detail)
    shown = [state for state in STATE_COLOURS if (table["state"] == state).any()]
    handles = [Patch(facecolor=STATE_COLOURS[state], label=_named(state)) for state in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown))
    return figure


def _draw(axes: Axes, part: pd.DataFrame, index: str, detail: str | None) -> None:
    columns = part["stage"] + ("" if detail is None else " " + part[detail])
    if part.groupby([columns, index]).size().max() > 1:
        columns += " " + part["seed"].astype(str)
    names, lines = list(dict.fromkeys(columns)), list(dict.fromkeys(part[index]))
    order = list(STATE_COLOURS)
    value = np.full((len(lines), len(names)), np.nan)
    places = zip(part[index].map(lines.index), columns.map(names.index))
    for (row, column), unit in zip(places, part.to_dict("records")):
        value[row, column] = order.index(unit["state"])
        label = _label(unit)
        axes.text(column, row, label, ha="center", va="center", fontsize=7)
    colours = ListedColormap(list(STATE_COLOURS.values()))
    axes.imshow(value, cmap=colours, vmin=-0.5, vmax=len(order) - 0.5, aspect="auto")
    _frame(axes, names, lines)


def _named(state: str) -> str:
    """What the legend says of a state, with what stands in its cells."""
    if state == "running":
        return "running (% of its phase)"
    return state if state in ("done", "waiting") else f"{state} ({state[0].upper()})"


def _label(unit: dict) -> str:
    """What a cell says beside its colour."""
    if unit["state"] in ("done", "waiting"):
        return ""
    if unit["state"] == "running":
        known = pd.notna(unit["done"]) and pd.notna(unit["total"]) and unit["total"]
        return f"{100 * unit['done'] / unit['total']:.0f} %" if known else "…"
    return unit["state"][0].upper()


def _frame(axes: Axes, names: Sequence[str], lines: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), [name.replace("-", "-\n", 1) for name in names])
    axes.tick_params(axis="x", rotation=90)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(lines)), lines)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(lines) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
