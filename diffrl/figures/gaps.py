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
    better: Mapping[str, int] | None = None,
    apart: str | None = None,
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
        better: measure → +1 or −1, the direction that is better, which an arrow then shows.
        apart: a group that has axes of its own below, because its effects are of another size.
    """
    blocks = [gaps]
    if apart is not None and (gaps["group"] == apart).any():
        blocks = [gaps[gaps["group"] != apart], gaps[gaps["group"] == apart]]
    tasks = list(dict.fromkeys(points["task"])) if "task" in points else []
    tasks = tasks if 1 < len(tasks) <= len(SHAPES) else []
    published = "paper" in gaps and gaps["paper"].notna().any()
    figure, lines = _panels(blocks, len(panels), width, 0.2 * bool(tasks or published))
    for block, line in zip(blocks, lines):
        places = _draw_block(line, block, points, list(panels), tasks)
        if digits is not None:
            _write_values(line[0], block, places, digits)
    for above, below, (measure, title) in zip(lines[0], lines[-1], panels.items()):
        if len(panels) == 1:
            below.set_xlabel(title)
            continue
        above.set_title(textwrap.fill(title, 24), fontsize=7)
        if side := (better or {}).get(measure):
            text, end = ("better →", "right") if side > 0 else ("← better", "left")
            below.set_xlabel(text, loc=end, fontsize=7, color="0.35", labelpad=1)
    _legend(figure, lines[0, 0], tasks, published)
    return figure


def _panels(blocks: list, count: int, width: float, more: float) -> tuple[Figure, np.ndarray]:
    """Axes (blocks, count), each block as high as its rows and headings; `more` inches above."""
    heights = [len(_places(block)[0]) + 1.6 * (block is not blocks[-1]) for block in blocks]
    figure, lines = plt.subplots(
        len(blocks), count, figsize=(width, 0.75 + more + _LINE * sum(heights)), sharey="row",
        height_ratios=heights, squeeze=False,
    )  # fmt: skip
    for axes in lines.flat:
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6 if count == 1 else 4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="0.92")
        axes.set_axisbelow(True)
    return figure, lines


def _draw_block(
    line: np.ndarray, block: pd.DataFrame, points: pd.DataFrame, measures: list, tasks: list[str]
) -> dict[str, int]:
    """Draw the rows that share a line of axes; return the height of each row's label."""
    rows, places = _places(block)
    published = "paper" in block and block["paper"].notna().any()
    for axes, measure in zip(line, measures):
        own = points[(points["measure"] == measure) & points["label"].isin(places)]
        shown = block[block["measure"] == measure]
        axes.axvline(0, color="0.55", lw=0.7, zorder=1)
        _cut(axes, shown, own)
        _draw_points(axes, own, places, tasks)
        _draw_gaps(axes, shown, places, published)
    axes = line[0]
    axes.set_yticks(range(len(rows)), [text for text, _ in reversed(rows)])
    for label, (_, heading) in zip(axes.get_yticklabels(), reversed(rows)):
        if heading:
            label.set_fontweight("bold")
    axes.set_ylim(-0.65, len(rows) - 0.4)
    return places


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
        if not np.isfinite(row["value"]):
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
        left, right = axes.get_xlim()
        inside = 0.015 * (right - left)
        for end, gone, shape in (
            (left + inside, row["low"] < left, "<"),
            (right - inside, row["high"] > right, ">"),
        ):
            if gone:  # the interval goes on beyond the axis
                axes.plot(end, height, shape, color=tone, ms=3.6, zorder=4)


def _cut(axes: Axes, gaps: pd.DataFrame, points: pd.DataFrame) -> None:
    """End the axis where the usual intervals end: one of two runs is so wide that it hides all."""
    published = gaps["paper"].dropna() if "paper" in gaps else []
    shown = np.array([0, *points["value"], *gaps["value"], *published], float)
    shown = shown[np.isfinite(shown)]
    length = gaps["high"] - gaps["low"]
    usual = gaps.loc[length <= 3 * length.median(), ["low", "high"]]
    shown = np.append(shown, usual)
    margin = 0.08 * (np.ptp(shown) or 1)
    axes.set_xlim(shown.min() - margin, shown.max() + margin)


def _write_values(axes: Axes, gaps: pd.DataFrame, places: dict, digits: int) -> None:
    _beside(axes, "mean  [95 %]", max(places.values()) + 0.95, color="0.35")
    for row in gaps.to_dict("records"):
        text = f"{row['value']:+.{digits}f}".replace("-", "−")
        if np.isfinite(row["low"]):
            limits = f"  [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
            text += limits.replace("-", "−")
        _beside(axes, text, places[row["label"]])


def _beside(axes: Axes, text: str, height: float, **look) -> None:
    axes.annotate(
        text, (1, height), xycoords=axes.get_yaxis_transform(), xytext=(8, 0), fontsize=7,
        textcoords="offset points", va="center", annotation_clip=False, **look,
    )  # fmt: skip


def _legend(figure: Figure, axes: Axes, tasks: list[str], published: bool) -> None:
    for task, shape in zip(tasks, SHAPES):
        axes.plot([], [], shape, color="0.4", ms=3.5, ls="none", label=task)
    if published:
        axes.plot([], [], "|", color="black", ms=9, mew=1.8, ls="none", label="the paper's gap")
    if tasks or published:
        figure.legend(loc="outside upper center", ncols=len(tasks) + published, handlelength=1)
