"""Figures of training (notebook 01) and of episodes as pictures (notebooks 01, 02, 05)."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.base.arm import LABELS, Arm
from diffrl.base.errors import UserError
from diffrl.base.intervals import mean_interval
from diffrl.figures.style import (
    DOUBLE,
    SINGLE,
    arm_label,
    arm_order,
    arm_style,
    colour,
    of_arm,
    style,
)
from diffrl.figures.success import task_names


def mean_curves(curves: pd.DataFrame, points: int = 60) -> pd.DataFrame:
    """The mean over tasks of learning curves, on common control steps; a stop is carried forward.

    curves: `records.learning_curves`. Rows (source, mode, steps, value, low, high, tasks): between
    two measurements a task's value is interpolated, and after its last one it stays. The interval
    is Student's t over tasks, cut to [0, 1]; of a single task it is the curve's own. The axis ends
    where 90 % of the runs have ended. Sources that share tasks are compared on those alone.
    """
    own = curves[curves["mode"] == "deterministic"]
    shared = own.groupby("task")["source"].transform("nunique") == own["source"].nunique()
    own = own[shared] if shared.any() else own
    ends = own.groupby(["task", "source"])["steps"].max()
    grid, rows = np.linspace(0, ends.quantile(0.9), points), []
    for source, arm in own.groupby("source", sort=False):
        columns = ("value", "low", "high")
        each = np.array(
            [
                [np.interp(grid, task["steps"], task[column]) for column in columns]
                for _, task in arm.sort_values("steps").groupby("task", sort=False)
            ]
        )
        mean, low, high = each[0] if len(each) == 1 else mean_interval(each[:, 0])
        rows.append(
            pd.DataFrame({"steps": grid, "value": mean, "low": low, "high": high}).assign(
                source=source, mode="deterministic", tasks=len(each)
            )
        )
    table = pd.concat(rows, ignore_index=True)
    return table.assign(low=table["low"].clip(lower=0), high=table["high"].clip(upper=1))


@style
def mean_learning(curves: pd.DataFrame) -> Figure:
    """Success over control steps: the mean over tasks and its band, a line a policy class.

    curves: `mean_curves`.
    """
    figure, axes = plt.subplots(figsize=(SINGLE + 0.9, 2.4))
    for source, mode in arm_order(curves):
        arm = curves[curves["source"] == source]
        steps, line = arm["steps"] / 1000, arm_style(source, mode) | {"marker": ""}
        axes.plot(steps, 100 * arm["value"], **line, label=LABELS.get(source, source))
        band = {"color": line["color"], "alpha": 0.18, "lw": 0}
        axes.fill_between(steps, 100 * arm["low"], 100 * arm["high"], **band)
    axes.set(xlabel="control steps (thousands)", ylabel="success without noise (%)", ylim=(0, 101))
    axes.set_xlim(0, curves["steps"].max() / 1000)
    axes.grid(axis="y", lw=0.4, color="0.9")
    axes.legend(loc="lower right")
    return figure


@style
def learning_curves(
    curves: pd.DataFrame,
    ylabel: str = "success (%)",
    scale: float = 100,
    runs: pd.DataFrame | None = None,
) -> Figure:
    """Success over control steps, a line and its interval per arm; a panel per task if several.

    curves: rows (source, mode, steps, value, low, high), optionally `task`; value in [0, 1]. Say in
    the caption what the interval is: Wilson over trials, or `intervals.mean_interval` over seeds.
    Arms with noise, which are dashed, have the line alone.
    runs: `experiments.held_out_curves`, the seeds behind such a mean: a thin line each.
    """
    groups = list(curves.groupby("task", sort=False)) if "task" in curves else [("", curves)]
    tasks = [task for task, _ in groups]
    names = dict(zip(tasks, task_names(tasks, 24))) if len(groups) > 1 else {}
    columns = min(len(groups), 3)
    lines = -(-len(groups) // columns)
    width = SINGLE + 0.4 if columns == 1 else DOUBLE
    figure, panels = plt.subplots(
        lines, columns, figsize=(width, 0.5 + min(1.9 * lines, 8.9)), sharey=True, squeeze=False
    )
    for axes, (task, rows) in zip(panels.flat, groups):
        for arm in arm_order(rows):
            _curve(axes, rows[of_arm(rows, *arm)].sort_values("steps"), arm, scale)
        if runs is not None:
            for (source, _), run in runs[runs["task"] == task].groupby(["algorithm", "seed"]):
                thin = {"color": colour(source), "lw": 0.6, "alpha": 0.7, "clip_on": False}
                axes.plot(run["control_steps"] / 1000, scale * run["measured_success"], **thin)
        axes.set_title(names.get(task, ""), fontsize=7)
        axes.set_xlim(left=0)
        axes.grid(axis="y", lw=0.4, color="0.9")
    panels[0, 0].set_ylim(0, 1.02 * scale)
    for axes in list(panels.flat)[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel("control steps (thousands)", fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    drawn = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    named = [arm_label(*arm) for arm in arm_order(curves)]  # not every panel holds every arm
    figure.legend(
        [drawn[name] for name in named], named, loc="outside upper center", ncols=min(len(named), 2)
    )
    return figure


def _curve(axes, rows: pd.DataFrame, arm: Arm, scale: float) -> None:
    """One arm's line; with its measurements and their interval where it plays without noise."""
    steps, line = rows["steps"] / 1000, arm_style(*arm) | {"markersize": 3}
    noisy = arm.mode == "stochastic"
    line |= {"marker": "", "lw": 1.0} if noisy else {}
    axes.plot(steps, scale * rows["value"], **line, label=arm.label, clip_on=False, zorder=3)
    if not noisy:
        band = {"color": line["color"], "alpha": 0.18, "lw": 0}
        axes.fill_between(steps, scale * rows["low"], scale * rows["high"], **band)


@style
def contact_sheet(rows: dict[str, np.ndarray], times=None, upside_down: bool = True) -> Figure:
    """Episodes as strips of pictures, one per row.

    rows: label → images (n, H, W, 3) uint8, n the same in all; times (n,) s or, for rows of their
    own times, label → (n,). LIBERO stores images upside down (OpenGL); they are turned here.
    """
    counts = {label: len(images) for label, images in rows.items()}
    if len(set(counts.values())) != 1:
        raise UserError(f"Contact sheet: every row needs as many pictures as the others: {counts}.")
    count = next(iter(counts.values()))
    size = (DOUBLE - 0.9) / count
    figure, panels = plt.subplots(
        len(rows), count, figsize=(DOUBLE, (size + 0.16) * len(rows)), squeeze=False
    )
    for line, (label, images) in zip(panels, rows.items()):
        stamps = times[label] if isinstance(times, dict) else times
        for column, (axes, image) in enumerate(zip(line, images)):
            axes.imshow(image[::-1] if upside_down else image, interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if stamps is not None:
                axes.set_title(f"{stamps[column]:.1f} s", fontsize=7, pad=2)
        line[0].set_ylabel(
            textwrap.fill(label, 13), fontsize=7, rotation=0, ha="right", va="center"
        )
    return figure
