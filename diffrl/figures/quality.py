"""Figures of trajectory quality (notebook 03)."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.figures.style import DOUBLE, arm_label, arm_order, arm_style, colour, of_arm, style
from diffrl.quality.consistency import at_phases
from diffrl.quality.smoothness import speed_profile
from diffrl.quality.trajectory import Trajectory


@style
def end_effector_paths(paths: pd.DataFrame, start_state: str) -> Figure:
    """Paths of the end-effector seen from above and from the front, a column per arm.

    paths: rows (source, mode, start_state, step, x, y, z) in m. Every success is thin, the one from
    `start_state`, the same in every column, is bold and black, from dot to square. What leaves the
    box of 99 % of all positions is cut off, as one stray path would shrink all others.
    """
    arms = arm_order(paths)
    low, high = (100 * paths[["x", "y", "z"]].quantile(share) for share in (0.005, 0.995))
    low, high = low - 2, high + 2
    extent = high - low  # cm
    width = min(1.35, (DOUBLE - 0.6) / len(arms))
    figure, panels = plt.subplots(
        2,
        len(arms),
        figsize=(0.6 + width * len(arms), 1.15 + width * (extent["x"] + extent["z"]) / extent["y"]),
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
                    axes.plot(*points.T, color="black", lw=1.3, zorder=3)
                    for point, marker in ((points[0], "o"), (points[-1], "s")):
                        axes.plot(*point, marker, color="black", ms=3.8, zorder=4)
                else:
                    axes.plot(*points.T, color=colour(source), lw=0.6, alpha=0.4)
            axes.set_aspect("equal")
            axes.set_xlim(low[across], high[across])
            axes.set_ylim(low[up], high[up])
            axes.locator_params(axis="x", nbins=4)
            axes.locator_params(axis="y", nbins=3)
            axes.set_xlabel(f"{across} (cm)" if up == "z" else "")
        panels[0, column].set_title(arm_label(source, mode, newline=True), fontsize=7)
    panels[0, 0].set_ylabel("above\nx (cm)")
    panels[1, 0].set_ylabel("front\nz (cm)")
    marks = [plt.Line2D([], [], color="black", marker=m, ms=3.8, lw=1.3) for m in "os"]
    words = ["start, of one start state everywhere", "end of the same episode"]
    figure.legend(marks, words, loc="outside lower center", ncols=2)
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
    rows = []
    arms: dict[tuple[str, str], list[Trajectory]] = {}
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
def phase_curves(profiles: pd.DataFrame) -> Figure:
    """Speed (left) and variance of the commands (right, log) over phase, all arms in one panel.

    profiles: `phase_profiles`. Bands: of the speed 80 % of the trajectories, of the variance its
    95 % interval; of arms with noise, which are dashed, the line alone.
    """
    arms = arm_order(profiles)
    figure, (left, right) = plt.subplots(1, 2, figsize=(DOUBLE, 2.5), sharex=True)
    for quantity, axes, scale in (("speed", left, 100), ("action variance", right, 1)):
        for source, mode in arms:
            chosen = of_arm(profiles, source, mode) & (profiles["quantity"] == quantity)
            _band(axes, profiles[chosen], source, mode, scale)
        axes.set(xlim=(0, 100), xlabel="phase (% of duration)")
        axes.grid(axis="y", lw=0.4, color="0.9")
    left.set(ylabel="speed (cm/s)", ylim=(0, None), title="Speed: median, 80 % of the episodes")
    right.set(ylabel="variance (sum of six)", yscale="log")
    right.set_title("Variance of the commands: 95 % interval")
    shown = profiles.loc[profiles["quantity"] == "action variance", "value"]
    right.set_ylim(max(shown[shown > 0].quantile(0.02) / 2, 1e-5), 2 * shown.max())
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _band(axes, arm, source, mode, scale=1.0):
    line = {k: v for k, v in arm_style(source, mode).items() if not k.startswith("marker")}
    phase = 100 * arm["phase"]
    axes.plot(phase, scale * arm["value"], **line | {"lw": 1.2}, label=arm_label(source, mode))
    if mode != "stochastic":
        low, high = scale * arm["low"], scale * arm["high"]
        axes.fill_between(phase, low, high, color=line["color"], alpha=0.14, lw=0)
