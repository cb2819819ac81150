"""Figures of trajectory quality (notebook 03)."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from diffrl.base import intervals
from diffrl.figures.style import (
    DOUBLE,
    SINGLE,
    arm_label,
    arm_order,
    arm_style,
    colour,
    error_bar,
    style,
)
from diffrl.quality import MEASURES
from diffrl.quality.consistency import at_phases
from diffrl.quality.smoothness import speed_profile

FOREST = (  # the measures of the summary, in reading order: smoothness, efficiency, consistency
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


# Teleoperation is of another task: it is held against the others only where the task matters less.
ANY_TASK = ("jerk_rms", "jerk_mean", "angular_jerk_rms", "action_change", "still_share")


def axis_label(measure: str) -> str:
    """ "Jerk, RMS (m/s³)"."""
    label, unit, _ = MEASURES[measure]
    return f"{label} ({unit})" if unit else label


@style
def measure_distributions(units: pd.DataFrame, measure: str = "jerk_rms") -> Figure:
    """Distribution of one measure: a panel per task, a row per arm, mean and its 95 % interval.

    units: rows (source, mode, task, start_state, measure, value) of `diffrl.quality.measure`.
    Teleoperation is of another task: a reference that every panel repeats.
    """
    rows = units[units["measure"] == measure]
    reference = rows["source"] == "teleoperation"
    tasks = list(dict.fromkeys(rows["task"][~reference])) or [None]
    arms, columns = arm_order(rows), min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    row = 0.3 if lines < 4 else 0.24  # inches; so that fifteen tasks fit on a page
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(SINGLE + 0.6 if columns == 1 else DOUBLE, 0.5 + lines * (0.3 + row * len(arms))),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for axes, task in zip(panels.flat, tasks):
        for height, (source, mode) in enumerate(reversed(arms)):
            arm = (rows["source"] == source) & (rows["mode"] == mode)
            _raincloud(axes, rows[arm & (reference | (rows["task"] == task))], height)
        axes.set_title(task if len(tasks) > 1 else "")
        axes.tick_params(axis="x", labelbottom=True)
        axes.set_yticks(range(len(arms)), [arm_label(*arm) for arm in reversed(arms)])
        axes.tick_params(axis="y", length=0)
    if rows["value"].min() >= 0:
        panels[0, 0].set_xlim(left=0)  # after all panels: it ends their common scaling
    for axes in list(panels.flat)[len(tasks) :]:
        axes.set_visible(False)
    if len(tasks) == 1:
        panels[0, 0].set_xlabel(axis_label(measure))
    else:
        figure.supxlabel(axis_label(measure), fontsize=8)
    return figure


def _raincloud(axes, rows, height):
    """Density above the line, the points below it, mean with interval on it: one arm, one task."""
    if rows.empty:
        return
    source, mode, values = rows["source"].iloc[0], rows["mode"].iloc[0], rows["value"].to_numpy()
    tone, stochastic = colour(source), mode == "stochastic"
    if len(values) > 2 and np.ptp(values) > 0:
        grid = np.linspace(values.min(), values.max(), 200)
        density = gaussian_kde(values)(grid)
        cloud = height + 0.1 + 0.45 * density / density.max()
        axes.fill_between(
            grid,
            height + 0.1,
            cloud,
            facecolor="white" if stochastic else tone,
            alpha=1 if stochastic else 0.35,
            edgecolor="none",
        )
        axes.plot(grid, cloud, color=tone, lw=0.8, ls=arm_style(source, mode)["linestyle"])
    jitter = 0.14 * (np.arange(len(values)) * 0.618 % 1 - 0.5)  # golden ratio: even, no random
    axes.plot(values, height - 0.2 + jitter, ".", color=tone, ms=2.2, alpha=0.6, mew=0)
    mean, low, high = intervals.stratified_bootstrap(values)
    error = error_bar(mean, low, high)
    axes.errorbar(mean, height, xerr=error, **_interval(source, mode), capsize=2)


@style
def quality_forest(summary: pd.DataFrame, task: str = "all", measures=FOREST) -> Figure:
    """All measures at a glance: one small panel each, an arm per row, 95 % intervals.

    summary: `quality.csv`. The arrow beside a title points to the better side.
    """
    rows = summary[(summary["task"] == task) & summary["measure"].isin(measures)]
    rows = rows[(rows["source"] != "teleoperation") | rows["measure"].isin(ANY_TASK)]
    arms, shown = arm_order(rows), [m for m in measures if m in set(rows["measure"])]
    columns = 4
    lines = -(-len(shown) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(DOUBLE, 0.2 + lines * (0.68 + 0.15 * len(arms))),
        sharey=True,
        squeeze=False,
    )
    for axes, measure in zip(panels.flat, shown):
        label, unit, better = MEASURES[measure]
        for height, (source, mode) in enumerate(reversed(arms)):
            arm = (rows["source"] == source) & (rows["mode"] == mode)
            for value, low, high in rows[arm & (rows["measure"] == measure)][
                ["value", "low", "high"]
            ].to_numpy():
                error = error_bar(value, low, high)
                axes.errorbar(value, height, xerr=error, **_interval(source, mode))
        arrow = {1: "\N{NO-BREAK SPACE}→", -1: "\N{NO-BREAK SPACE}←", 0: ""}[better]
        axes.set_title(textwrap.fill(label + arrow, 22), fontsize=7)
        axes.set_xlabel(unit, fontsize=7, labelpad=1)
        axes.set_yticks(range(len(arms)), [arm_label(*arm) for arm in reversed(arms)])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.locator_params(axis="x", nbins=3)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="0.9")
        axes.set_axisbelow(True)
    for axes in list(panels.flat)[len(shown) :]:
        axes.set_visible(False)
    return figure


@style
def end_effector_paths(paths: pd.DataFrame, start_state: str) -> Figure:
    """Paths of the end-effector seen from above and from the front, a column per arm.

    paths: rows (source, mode, start_state, step, x, y, z) in m. Every success is thin, the one from
    `start_state` – the same in every column – is bold, from dot to square.
    """
    arms = arm_order(paths)
    low, high = (100 * paths[["x", "y", "z"]].agg(f) for f in ("min", "max"))
    extent = 1.06 * (high - low)  # cm
    width = min(1.35, (DOUBLE - 0.6) / len(arms))
    figure, panels = plt.subplots(
        2,
        len(arms),
        figsize=(0.6 + width * len(arms), 0.9 + width * (extent["x"] + extent["z"]) / extent["y"]),
        height_ratios=[extent["x"], extent["z"]],
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    for column, (source, mode) in enumerate(arms):
        chosen = paths[(paths["source"] == source) & (paths["mode"] == mode)]
        for axes, (across, up) in zip(panels[:, column], (("y", "x"), ("y", "z"))):
            for state, path in chosen.groupby("start_state", sort=False):
                points = 100 * path[[across, up]].to_numpy()
                if state == start_state:
                    axes.plot(*points.T, color=colour(source), lw=1.6, zorder=3)
                    for point, marker in ((points[0], "o"), (points[-1], "s")):
                        axes.plot(*point, marker, color="black", ms=3.5, zorder=4, clip_on=False)
                else:
                    axes.plot(*points.T, color=colour(source), lw=0.5, alpha=0.35)
            axes.set_aspect("equal")
            axes.locator_params(axis="x", nbins=4)
            axes.locator_params(axis="y", nbins=3)
            axes.set_xlabel(f"{across} (cm)" if up == "z" else "")
        panels[0, column].set_title(arm_label(source, mode, newline=True), fontsize=7)
    panels[0, 0].set_ylabel("above\nx (cm)")
    panels[1, 0].set_ylabel("front\nz (cm)")
    return figure


def path_table(trajectories) -> pd.DataFrame:
    """End-effector positions as rows (source, mode, start_state, step, x, y, z), in m."""
    return pd.concat(
        [
            pd.DataFrame(t.position, columns=["x", "y", "z"]).assign(
                source=t.source, mode=t.mode, start_state=t.start_state, step=range(len(t.position))
            )
            for t in trajectories
        ],
        ignore_index=True,
    )


def shared_start_state(paths: pd.DataFrame) -> str:
    """The start state from which the most arms succeeded; the first of them, by name."""
    arms = paths.drop_duplicates(["source", "mode", "start_state"]).groupby("start_state").size()
    return str(arms.idxmax())


def phase_profiles(trajectories, phases: int = 50, seed: int = 0) -> pd.DataFrame:
    """What the two phase figures show, for trajectories of one task.

    Returns rows (source, mode, phase, quantity, value, low, high), phase in [0, 1]. quantity
    "speed" (m/s): median and the 10-90 % band of trajectories; "action variance" (six motion
    commands, full command = 1): the variance and its 95 % bootstrap interval over trajectories.
    """
    arms, rows = {}, []
    for trajectory in trajectories:
        arms.setdefault(trajectory.arm, []).append(trajectory)
    phase, rng = np.linspace(0, 1, phases), np.random.default_rng(seed)
    for (source, mode), group in arms.items():
        speed = np.stack(
            [at_phases(speed_profile(t.position, t.rate)[:, None], phases)[:, 0] for t in group]
        )
        low, middle, high = np.quantile(speed, [0.1, 0.5, 0.9], axis=0)
        actions = np.stack([at_phases(t.actions[:, :6], phases) for t in group])  # (n, phases, 6)
        draws = actions[rng.integers(len(group), size=(300, len(group)))]
        # a resample's variance misses a share 1/n twice: as any sample's, and for its doubles
        spread = draws.var(axis=1).sum(axis=-1) * (len(group) / max(len(group) - 1, 1)) ** 2
        limits = np.quantile(spread, [0.025, 0.975], axis=0)
        variance = actions.var(axis=0, ddof=1).sum(axis=-1)
        shared = {"source": source, "mode": mode, "phase": phase}
        for quantity, columns in {
            "speed": (middle, low, high),
            "action variance": (variance, *limits),
        }.items():
            values = dict(zip(("value", "low", "high"), columns))
            rows.append(pd.DataFrame({**shared, "quantity": quantity, **values}))
    return pd.concat(rows, ignore_index=True)


@style
def speed_profiles(profiles: pd.DataFrame) -> Figure:
    """End-effector speed over phase: a panel per arm, median and 10-90 % band of trajectories."""
    rows = profiles[profiles["quantity"] == "speed"]
    arms = arm_order(rows)
    figure, panels = plt.subplots(
        1,
        len(arms),
        figsize=(max(SINGLE, min(DOUBLE, 1.0 + 1.35 * len(arms))), 1.75),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, (source, mode) in zip(panels.flat, arms):
        arm = rows[(rows["source"] == source) & (rows["mode"] == mode)]
        _band(axes, arm, source, mode, scale=100)
        axes.set_title(arm_label(source, mode, newline=True), fontsize=7)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 50, 100])
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 0].set_ylabel("speed (cm/s)")
    figure.supxlabel("phase (% of duration)", fontsize=8)
    return figure


@style
def action_variance_over_phase(profiles: pd.DataFrame) -> Figure:
    """Variance of the motion command over phase with its 95 % interval: a panel per mode.

    Only arms of one mode share a panel, since noise at collection is itself a variance.
    """
    rows = profiles[profiles["quantity"] == "action variance"]
    arms = arm_order(rows)
    modes = [m for m in ("recorded", "deterministic", "stochastic") if m in set(rows["mode"])]
    width = max(SINGLE, 0.5 + 2.2 * len(modes))
    figure, panels = plt.subplots(
        1, len(modes), figsize=(width, 2.1), sharex=True, sharey=True, squeeze=False
    )
    for source, mode in arms:
        arm = rows[(rows["source"] == source) & (rows["mode"] == mode)]
        _band(panels[0, modes.index(mode)], arm, source, mode)
    for axes, mode in zip(panels.flat, modes):
        axes.set_title(mode)
        axes.set_xlim(0, 100)
        axes.legend(
            *_by_source(axes),
            loc="upper center",
            handlelength=2.2,
            borderaxespad=0,
            labelspacing=0.2,
        )
        axes.set_ylim(0, 1.25 * rows["high"].max())
    panels[0, 0].set_ylabel("action variance")
    figure.supxlabel("phase (% of duration)", fontsize=8)
    return figure


def _by_source(axes):
    """Legend entries of a panel whose title already names the mode."""
    handles, labels = axes.get_legend_handles_labels()
    return handles, [label.removesuffix(f", {axes.get_title()}") for label in labels]


def _band(axes, arm, source, mode, scale=1.0):
    line = {k: v for k, v in arm_style(source, mode).items() if not k.startswith("marker")}
    phase = 100 * arm["phase"]
    axes.plot(phase, scale * arm["value"], **line, label=arm_label(source, mode))
    low, high = scale * arm["low"], scale * arm["high"]
    axes.fill_between(phase, low, high, color=line["color"], alpha=0.18, lw=0)


def _interval(source, mode):
    return {**arm_style(source, mode), "linestyle": "none", "elinewidth": 1.2, "zorder": 5}
