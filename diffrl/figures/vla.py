"""Figures of the VLA's training (notebook 04)."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.figures.data import AXES
from diffrl.figures.style import DOUBLE, arm_label, arm_order, arm_style, colour, style


@style
def loss_curves(losses: pd.DataFrame) -> Figure:
    """Flow-matching loss over optimiser steps: training (thin) and held-out episodes (bold).

    losses: rows (source, mode, training_seed, step, loss, train, held_out); several seeds are
    averaged. Both curves are of the averaged weights; records without `train`, which are older,
    show `loss` instead, and that is of the weights of each step.
    """
    thin = "train" if "train" in losses and losses["train"].notna().all() else "loss"
    figure, axes = plt.subplots(figsize=(DOUBLE - 1.2, 2.4))
    for source, mode in arm_order(losses):
        arm = losses[(losses["source"] == source) & (losses["mode"] == mode)]
        mean = arm.groupby("step")[[thin, "held_out"]].mean()
        line = {**arm_style(source, mode), "marker": ""}
        axes.plot(mean.index, mean["held_out"], **line, label=arm_label(source, mode))
        axes.plot(mean.index, mean[thin], **{**line, "lw": 0.6, "alpha": 0.7})
    axes.plot([], [], color="0.4", label="bold: held-out episodes")
    axes.plot([], [], color="0.4", lw=0.6, label="thin: training")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("flow-matching loss")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y", lw=0.4, color="0.9")
    figure.legend(loc="outside right upper")
    return figure


@style
def predicted_chunks(samples: pd.DataFrame, dimensions=(0, 1, 2, 6)) -> Figure:
    """Chunks that a VLA samples (thin) beside what the held-out episode did (black).

    samples: rows (source, mode, moment, sample, step, dimension, value); sample −1 is the episode.
    A row of panels per moment, a column per action dimension.
    """
    moments = list(dict.fromkeys(samples["moment"]))
    figure, panels = plt.subplots(
        len(moments),
        len(dimensions),
        figsize=(DOUBLE, 0.5 + 1.1 * len(moments)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for line, moment in zip(panels, moments):
        for axes, dimension in zip(line, dimensions):
            chosen = (samples["moment"] == moment) & (samples["dimension"] == dimension)
            for (source, sample), part in samples[chosen].groupby(["source", "sample"]):
                look = {"color": colour(source), "lw": 0.7, "alpha": 0.6}
                if sample < 0:
                    look = {"color": "black", "lw": 1.4, "marker": ".", "markersize": 3}
                axes.plot(part["step"], part["value"], **look)
            axes.axhline(0, color="0.9", lw=0.6, zorder=0)
        line[0].set_ylabel(f"at {moment}\ncommand")
    for axes, dimension in zip(panels[0], dimensions):
        axes.set_title(AXES[dimension])
    for axes in panels[-1]:
        axes.set_xlabel("control step")
    panels[0, 0].set_ylim(-1.05, 1.05)
    panels[0, 0].set_xticks(np.arange(0, samples["step"].max() + 1, 4))
    drawn = samples.loc[samples["sample"] >= 0, "source"].iloc[0]
    did = plt.Line2D([], [], color="black", marker=".", markersize=3)
    lines = [did, plt.Line2D([], [], color=colour(drawn), linewidth=0.9)]
    words = ("what the held-out episode did", "what the VLA would do, a line a sample")
    figure.legend(lines, words, loc="outside upper center", ncols=2)
    return figure
