"""Heat maps of differences to the demonstrator: a colour says which side is better."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.base.arm import Arm
from diffrl.base.intervals import interval_over_tasks
from diffrl.figures.style import DOUBLE, arm_label, arm_order, style
from diffrl.figures.success import task_names
from diffrl.quality import MEASURES

PALETTE = "RdBu"  # blue is better, red worse; readers without red-green vision see both
SHOWN = (  # the measures of the summary, in reading order: smoothness, efficiency, consistency
    "jerk_rms",
    "angular_jerk_rms",
    "ldlj_cartesian",
    "sparc",
    "action_change",
    "steps",
    "path_length",
    "still_share",
    "position_variance",
    "warped_position_variance",
    "action_variance",
    "conditional_action_variance",
)
PARTS = ("jerk_rms", "steps", "position_variance")  # where smoothness, … begin
_BAD: dict[
    str, tuple[str, Callable]
] = {  # what a log or negative measure becomes, so that less is better and a ratio makes sense
    "ldlj": ("Dimensionless jerk, speed", lambda value: np.exp(-value)),
    "ldlj_cartesian": ("Dimensionless jerk, path", lambda value: np.exp(-value)),
    "sparc": ("Spectral arc length", np.negative),
}


def quality_changes(summary: pd.DataFrame, base: Arm, measures=SHOWN) -> pd.DataFrame:
    """How much of each measure an arm has more or less than `base`, in per cent, over tasks.

    summary: `quality.csv`. Rows (source, mode, measure, label, percent, low, high, tasks): the
    geometric mean over tasks of the ratio to `base` with Student's t (95 %), NaN of one task. All
    are turned so that less is better: of LDLJ it is the dimensionless jerk itself, whose logarithm
    it is; of the spectral arc length its size.
    """
    each = summary[(summary["task"] != "all") & summary["measure"].isin(measures)]
    rows = []
    for measure in measures:
        label, size = _BAD.get(measure, (MEASURES[measure].label, lambda value: value))
        own = each[each["measure"] == measure]
        wide = own.pivot_table("value", "task", ["source", "mode"])
        for arm in arm_order(own):
            if arm == base or arm.source == "teleoperation" or tuple(base) not in wide:
                continue
            values = pd.DataFrame({"arm": wide[tuple(arm)], "base": wide[tuple(base)]}).dropna()
            with np.errstate(divide="ignore", invalid="ignore"):
                change = np.log(size(values["arm"]) / size(values["base"]))
            change = change[np.isfinite(change)]
            if len(change):
                percent = 100 * np.expm1(np.array(interval_over_tasks(change)))
                rows.append((*arm, measure, label, *percent, len(change)))
    columns = ["source", "mode", "measure", "label", "percent", "low", "high", "tasks"]
    return pd.DataFrame(rows, columns=columns)


def _part(measure: str) -> str:
    """Which part of the summary a measure belongs to: the last of `PARTS` that has begun."""
    begun = [first for first in PARTS if SHOWN.index(first) <= SHOWN.index(measure)]
    return begun[-1]


@style
def quality_heatmap(changes: pd.DataFrame, limit: float = 50) -> Figure:
    """Measures are rows, arms columns: the change against the demonstrator in per cent.

    changes: `quality_changes`. Blue is better. Bold: the interval over tasks leaves out zero. Lines
    part what `SHOWN` has in this order: smoothness, efficiency, consistency.
    """
    arms, labels = arm_order(changes), list(dict.fromkeys(changes["label"]))
    wide = changes.pivot_table("percent", "label", ["source", "mode"]).loc[labels, arms]
    sure = changes.assign(sure=(changes["low"] > 0) | (changes["high"] < 0))
    sure = sure.pivot_table("sure", "label", ["source", "mode"]).loc[labels, arms].to_numpy() > 0.5
    text = wide.map(lambda value: "" if np.isnan(value) else f"{value:+.0f} %".replace("-", "−"))
    size = (min(DOUBLE, 2.3 + 0.95 * len(arms)), max(2.4, 0.75 + 0.2 * len(labels)))
    label = "change against the demonstrator (%)\nblue is better"
    figure = _heat(wide, text, limit, label, size, PALETTE + "_r")
    _finish(figure, arms, labels)
    of = changes.drop_duplicates("label")["measure"].map(_part)
    for row in np.flatnonzero(of.to_numpy()[1:] != of.to_numpy()[:-1]) + 1:
        figure.axes[0].axhline(float(row), color="black", lw=0.8)
    for cell, bold in zip(figure.axes[0].texts, sure.ravel()[np.isfinite(wide).to_numpy().ravel()]):
        cell.set_fontweight("bold" if bold else "normal")
    return figure


@style
def success_differences(rates: pd.DataFrame, base: Arm, limit: float = 30) -> Figure:
    """Tasks are rows, arms columns: success against that of `base`, in points; blue is better.

    rates: rows (task, source, mode, successes, trials); several rows of a cell (seeds) are pooled.
    The first column, without colour, is the base's own success.
    """
    pooled = rates.groupby(["task", "source", "mode"], sort=False)[["successes", "trials"]].sum()
    value = (100 * pooled["successes"] / pooled["trials"]).unstack(["source", "mode"])
    arms = [arm for arm in arm_order(rates) if arm != base]
    tasks = list(dict.fromkeys(rates["task"]))
    known = value.loc[tasks, [tuple(base)]]
    gaps = value.loc[tasks, arms].sub(known.to_numpy()[:, 0], axis=0)
    text = gaps.map(lambda gap: "" if np.isnan(gap) else f"{gap:+.0f}".replace("-", "−"))
    names = task_names(tasks)
    size = (DOUBLE, max(2.1, 0.75 + 0.2 * len(tasks)))
    label = f"points above {arm_label(*base).lower()}"
    figure = _heat(pd.concat([known * np.nan, gaps], axis=1), text, limit, label, size)
    for row, share in enumerate(known.to_numpy()[:, 0]):
        figure.axes[0].text(0.5, row + 0.5, f"{share:.0f} %", ha="center", va="center", fontsize=7)
    _finish(figure, [base, *arms], names)
    return figure


def _heat(values, text, limit: float, label: str, size, palette: str = PALETTE) -> Figure:
    figure, axes = plt.subplots(figsize=size)
    text = text.reindex(columns=values.columns, fill_value="")
    sns.heatmap(
        values.to_numpy(float),
        **{"vmin": -limit, "vmax": limit, "cmap": palette, "annot": text.to_numpy(), "fmt": ""},
        annot_kws={"fontsize": 7},
        linewidths=1,
        cbar_kws={"label": label, "shrink": 0.9, "aspect": 22, "extend": "both"},
        ax=axes,
    )
    return figure


def _finish(figure: Figure, arms, labels) -> None:
    axes = figure.axes[0]
    names = [arm_label(arm.source, arm.mode, newline=True) for arm in arms]
    axes.set_xticks(np.arange(len(arms)) + 0.5, names, rotation=0)
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels, rotation=0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
