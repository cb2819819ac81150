"""Differences with their intervals: in several measures, and beside what the paper reports."""

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffrl.figures.style import DOUBLE, colour, error_bar, style

SHAPES = ".^xs+"  # of the points of up to five tasks; more tasks are dots
BELOW = 0.27  # rows that points lie below their mean's mark, which would hide them
_LINE = 0.215  # inches a row
_DARK = "0.15"


@style
def gap_plot(
    gaps: pd.DataFrame,
    points: pd.DataFrame,
    panels: Mapping[str, str],
    digits: int | None = None,
    width: float = DOUBLE,
) -> Figure:
    """A row per difference, a panel per measure: mean, interval, the values behind it, zero.

    Args:
        gaps: rows (label, measure, value, low, high), in the order they shall appear; optionally
            `group` (rows under a heading), `source` (its colour), and `paper`, what the paper
            reports, drawn as a bar across the row.
        points: rows (label, measure, value), one for each task or pair behind a mean; optionally
            `task`: up to five have a shape each, which the legend names.
        panels: measure → title of its panel.
        digits: write the difference and its interval beside a single panel with so many digits.
        width: of the figure, inches.
    """
    rows, places = _places(gaps)
    tasks = list(dict.fromkeys(points["task"])) if "task" in points else []
    named = 1 < len(tasks) <= len(SHAPES)
    published = "paper" in gaps and gaps["paper"].notna().any()
    size = (width, 0.62 + 0.2 * (named or published) + _LINE * len(rows))
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axes, (measure, title) in zip(all_axes.flat, panels.items()):
        axes.axvline(0, color="0.55", lw=0.7, zorder=1)
        _draw_points(axes, points[points["measure"] == measure], places, tasks if named else [])
        _draw_gaps(axes, gaps[gaps["measure"] == measure], places, published)
        _cut(axes, gaps[gaps["measure"] == measure], points[points["measure"] == measure])
        axes.set_title(textwrap.fill(title, 24) if len(panels) > 1 else title, fontsize=7)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6 if len(panels) == 1 else 4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="0.92")
        axes.set_axisbelow(True)
    _name_rows(all_axes[0, 0], rows)
    if digits is not None:
        _write_values(all_axes[0, 0], gaps, places, digits)
    _legend(figure, all_axes[0, 0], tasks if named else [], published)
    return figure


def _places(gaps: pd.DataFrame) -> tuple[list[tuple[str, bool]], dict[str, int]]:
    """The rows from above, as (text, whether it is a heading), and the height of each label."""
    rows: list[tuple[str, bool]] = []
    group = None
    labels = gaps.drop_duplicates("label")
    for row in labels.to_dict("records"):
        if row.get("group") and row["group"] != group:
            group = row["group"]
            rows.append((group, True))
        rows.append((row["label"], False))
    count = len(rows)
    return rows, {text: count - 1 - i for i, (text, heading) in enumerate(rows) if not heading}


def _draw_points(axes: Axes, points: pd.DataFrame, places: dict, named: list[str]) -> None:
    for row in points.to_dict("records"):
        if row["label"] not in places or not np.isfinite(row["value"]):
            continue
        shape = SHAPES[named.index(row["task"])] if named else "."
        tone = colour(row["source"]) if row.get("source") else _DARK
        height = places[row["label"]] - BELOW
        (point,) = axes.plot(row["value"], height, shape, color=tone, alpha=0.5, clip_on=False)
        point.set(markersize=3.2, markeredgewidth=0.6)


def _draw_gaps(axes: Axes, gaps: pd.DataFrame, places: dict, published: bool) -> None:
    for row in gaps.to_dict("records"):
        height = places[row["label"]]
        tone = colour(row["source"]) if row.get("source") else _DARK
        bar = error_bar(row["value"], row["low"], row["high"])
        error = None if np.isnan(bar).any() else bar
        axes.errorbar(row["value"], height, xerr=error, color=tone, marker="o", ms=4.2, lw=1.3)
        if published and np.isfinite(row["paper"]):
            axes.plot(row["paper"], height, "|", color="black", ms=11, mew=1.8, zorder=4)


def _cut(axes: Axes, gaps: pd.DataFrame, points: pd.DataFrame) -> None:
    """End the axis near the values; an interval of few runs would squeeze all others."""
    published = gaps["paper"].dropna() if "paper" in gaps else []
    shown = np.array([0, *points["value"], *gaps["value"], *published], float)
    shown = shown[np.isfinite(shown)]
    middle = gaps[["low", "high"]].quantile([0.1, 0.9]).to_numpy().ravel()
    shown = np.append(shown, middle[np.isfinite(middle)])
    margin = 0.08 * (np.ptp(shown) or 1)
    axes.set_xlim(shown.min() - margin, shown.max() + margin)


def _name_rows(axes: Axes, rows: list[tuple[str, bool]]) -> None:
    axes.set_yticks(range(len(rows)), [text for text, _ in reversed(rows)])
    for label, (_, heading) in zip(axes.get_yticklabels(), reversed(rows)):
        if heading:
            label.set_fontweight("bold")
    axes.set_ylim(-0.65, len(rows) - 0.4)


def _write_values(axes: Axes, gaps: pd.DataFrame, places: dict, digits: int) -> None:
    for row in gaps.to_dict("records"):
        text = f"{row['value']:+.{digits}f}".replace("-", "−")
        if np.isfinite(row["low"]):
            limits = f"  [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
            text += limits.replace("-", "−")
        axes.annotate(
            text, (1, places[row["label"]]), xycoords=axes.get_yaxis_transform(),
            xytext=(8, 0), textcoords="offset points", va="center", fontsize=7,
            annotation_clip=False,
        )  # fmt: skip


def _legend(figure: Figure, axes: Axes, tasks: list[str], published: bool) -> None:
    for task, shape in zip(tasks, SHAPES):
        axes.plot([], [], shape, color="0.4", ms=3.5, ls="none", label=task)
    if published:
        axes.plot([], [], "|", color="black", ms=9, mew=1.8, ls="none", label="the paper's gap")
    if tasks or published:
        figure.legend(loc="outside upper right", ncols=len(tasks) + published, handlelength=1)
