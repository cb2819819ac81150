"""Figures of success rates: before and after RL, thrown away, per suite, over demonstrations."""

import textwrap
from collections.abc import Mapping
from itertools import takewhile

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.base import intervals
from diffrl.base.arm import IN_WORDS, LABELS, POLICY_MODES
from diffrl.figures.style import (
    DOUBLE,
    SINGLE,
    arm_label,
    arm_order,
    arm_style,
    colour,
    error_bar,
    of_arm,
    style,
)
from diffrl.sim.tasks import get_task


@style
def dumbbells(rates: pd.DataFrame) -> Figure:
    """Success before and after RL: a row per task, a panel per mode, clone (open) → expert (full).

    rates: rows (task, source, mode, policy, successes, trials), policy "clone" or "expert".
    """
    rates = rates.assign(value=100 * rates["successes"] / rates["trials"])
    modes = [mode for mode in POLICY_MODES if mode in set(rates["mode"])]
    sources = list(dict.fromkeys(arm.source for arm in arm_order(rates)))
    tasks = list(dict.fromkeys(rates["task"]))
    size = (DOUBLE, 0.75 + (0.11 + 0.1 * len(sources)) * len(tasks))
    figure, panels = plt.subplots(
        1, len(modes), figsize=size, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.06}
    )
    for axes, mode in zip(panels.flat, modes):
        for index, source in enumerate(sources):
            own = rates[(rates["mode"] == mode) & (rates["source"] == source)]
            wide = own.pivot_table("value", "task", "policy").reindex(tasks)
            height = np.arange(len(tasks))[::-1] + 0.2 * ((len(sources) - 1) / 2 - index)
            tone, look = colour(source), {"clip_on": False, "zorder": 3}
            axes.hlines(height, wide["clone"], wide["expert"], color=tone, lw=1.6, alpha=0.55)
            axes.plot(wide["clone"], height, "o", color=tone, mfc="white", ms=3.6, **look)
            label = LABELS.get(source, source).removesuffix(" RL")
            axes.plot(wide["expert"], height, "o", color=tone, ms=4.2, **look, label=label)
        axes.set_title(f"acting {IN_WORDS[mode]}")
        axes.set_xlabel("success (%)")
        axes.set_xlim(0, 100)
        axes.set_yticks(range(len(tasks)), task_names(tasks)[::-1])
        axes.set_ylim(-0.6, len(tasks) - 0.4)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="0.9")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    clone = plt.Line2D([], [], marker="o", color="0.3", mfc="white", ms=3.6, ls="none")
    figure.legend(
        [clone, *handles], ["clone, before RL", *(f"{label}, after RL" for label in labels)],
        loc="outside upper right", ncols=len(labels) + 1, handlelength=1,
    )  # fmt: skip
    return figure


@style
def share_strips(shares: pd.DataFrame, xlabel: str) -> Figure:
    """A row per arm: a dot per task, the mean over tasks with Student's t interval (95 %).

    shares: rows (source, mode, task, share), share in [0, 1].
    """
    arms = arm_order(shares)
    figure, axes = plt.subplots(figsize=(SINGLE + 1.2, 0.6 + 0.27 * len(arms)))
    for height, arm in enumerate(reversed(arms)):
        own = 100 * shares.loc[of_arm(shares, *arm), "share"]
        heights = np.full(len(own), height - 0.27)
        (dots,) = axes.plot(own, heights, ".", color=colour(arm.source), alpha=0.5, clip_on=False)
        dots.set(markersize=3.4, linestyle="none")
        mean, low, high = intervals.interval_over_tasks(own)
        error = None if np.isnan(low) else error_bar(mean, max(low, 0), min(high, 100))
        mark = {**arm_style(*arm), "linestyle": "none", "clip_on": False}
        axes.errorbar(mean, height, xerr=error, **mark)
    axes.set_yticks(range(len(arms)), [arm_label(*arm) for arm in reversed(arms)])
    axes.set_ylim(-0.6, len(arms) - 0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(xlabel)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", lw=0.4, color="0.9")
    return figure


@style
def success_forest(
    rates: pd.DataFrame,
    seeds: pd.DataFrame | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Success of each arm with Wilson's 95 % interval: a panel per suite, side by side.

    rates: rows (suite, source, mode, successes, trials). seeds: rows like those of rates, one per
    training seed; drawn as a dot below where several. titles: suite → what its panel is called.
    """
    suites, arms = list(dict.fromkeys(rates["suite"])), arm_order(rates)
    size = (min(DOUBLE, 2.2 + 1.5 * len(suites)), 0.8 + 0.25 * len(arms))
    figure, panels = plt.subplots(1, len(suites), figsize=size, sharey=True, squeeze=False)
    for axes, suite in zip(panels.flat, suites):
        for height, (source, mode) in enumerate(reversed(arms)):
            mine = {"suite": suite, "source": source, "mode": mode}
            look = arm_style(source, mode) | {"linestyle": "none"}
            for row in _rates(rates, mine):
                low, high = intervals.wilson(row.successes, row.trials)
                error = 100 * error_bar(row.value, low, high)
                axes.errorbar(100 * row.value, height, xerr=error, clip_on=False, **look)
            own = [] if seeds is None else _rates(seeds, mine)
            for one in own if len(own) > 1 else ():
                dot = {"marker": ".", "markersize": 4, "alpha": 0.6, "clip_on": False}
                axes.plot(100 * one.value, height - 0.28, **look | dot)
        axes.set_title((titles or {}).get(suite, suite))
        axes.set_xlabel("success (%)")
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 50, 100])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="0.9")
    panels[0, 0].set_yticks(range(len(arms)), [arm_label(*arm) for arm in reversed(arms)])
    panels[0, 0].set_ylim(-0.6, len(arms) - 0.4)
    return figure


def _rates(table, wanted):
    """The rows of an arm, with their rate `value`."""
    chosen = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return list(chosen.assign(value=chosen["successes"] / chosen["trials"]).itertuples())


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


def task_names(tasks: list[str], width: int = 32) -> list[str]:
    """Name tasks by their id and by the words of their instruction that others do not share."""
    names = []
    for task in map(get_task, tasks):
        own = [get_task(t).instruction.split() for t in tasks if get_task(t).suite == task.suite]
        words = task.instruction.split()
        first, last = (_shared(own, side) if len(own) > 1 else 0 for side in (1, -1))
        rest = " ".join(words[first : len(words) - last])
        names.append(f"{task.id} {textwrap.shorten(rest, width, placeholder=' …')}".strip())
    return names


def _shared(sentences: list[list[str]], side: int) -> int:
    """How many words all sentences share, from their beginning (1) or their end (-1)."""
    columns = zip(*(words[::side] for words in sentences))
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
