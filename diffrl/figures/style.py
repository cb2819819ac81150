"""One look for all figures: palette, sizes, and how a figure is saved.

Colours are those of Okabe & Ito (2008), which stay different with the common colour-vision
deficiencies; a source has one colour everywhere. The mode is fill and line style: filled and solid
is deterministic (or recorded), open and dashed is stochastic, so figures survive a grey printer.
"""

import functools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffrl.base import artifacts
from diffrl.base.arm import IN_WORDS, Arm
from diffrl.base.errors import UserError

COLOURS = {
    "operator": "#666666",
    "human": "#009E73",
    "teleoperation": "#CC79A7",
    "gaussian": "#D55E00",
    "diffusion": "#0072B2",
    "steady": "#C8C8C8",
    "gaussian_clone": "#FFB000",
    "diffusion_clone": "#56B4E9",
    "diffusion_zero": "#332288",
}
_OTHER = ("#882255", "#117733", "#AA4499", "#4B2E05")  # sources that are not the series' own

SINGLE, DOUBLE = 3.5, 7.1  # inches: one and two columns of a paper

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures look the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "figure.dpi": 110,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: editors and journals can read the text
    "figure.constrained_layout.use": True,
}


def style(draw):
    """Decorator: draw a figure with the house style, leaving the user's own settings alone."""

    @functools.wraps(draw)
    def drawn(*arguments, **options):
        with mpl.rc_context(_RC):
            figure = draw(*arguments, **options)
        plt.close(figure)  # the notebook shows the returned figure, and shows it once
        return figure

    return drawn


def colour(source: str) -> str:
    """The colour of a source; sources of the user's own get the free ones by their name."""
    if source in COLOURS:
        return COLOURS[source]
    return _OTHER[sum(map(ord, source)) % len(_OTHER)]


def arm_label(source: str, mode: str = "recorded", newline: bool = False) -> str:
    """Return `Arm.label`; with `newline` the mode has a line of its own."""
    arm = Arm(source, mode)
    if not newline:
        return arm.label
    return "\n".join(filter(None, (Arm(source).label, IN_WORDS.get(mode, mode))))


def arm_style(source: str, mode: str = "recorded") -> dict:
    """Line and marker properties of an arm, for `Axes.plot` and `Axes.errorbar`."""
    stochastic = mode == "stochastic"
    return {
        "color": colour(source),
        "linestyle": (0, (3.5, 1.5)) if stochastic else "-",
        "marker": "o",
        "markerfacecolor": "white" if stochastic else colour(source),
        "markeredgecolor": colour(source),
    }


def arm_order(table: pd.DataFrame) -> list[Arm]:
    """The arms of a table in the order of the series: operator … diffusion."""
    arms = {Arm(source, mode) for source, mode in zip(table["source"], table["mode"])}
    return sorted(arms, key=lambda arm: arm.order)


def of_arm(table: pd.DataFrame, source: str, mode: str) -> pd.Series:
    """Which rows of a table are of an arm, bool (n,)."""
    return (table["source"] == source) & (table["mode"] == mode)


def error_bar(value, low, high) -> np.ndarray:
    """Lengths below and above values (n,) for `Axes.errorbar`, (2, n); rounding makes none < 0."""
    lengths = np.array([np.subtract(value, low), np.subtract(high, value)], float)
    return np.maximum(lengths.reshape(2, -1), 0)


def save_figure(
    figure: Figure, preset: str, name: str, data: pd.DataFrame, caption: str, text: str = ""
) -> dict[str, Path]:
    """Write runs/<preset>/figures/<name>.{pdf,png,csv,txt}, each atomically; returns their paths.

    The text file has the caption and, in a second paragraph, `text`: what the figure says. The PDF
    carries no date, so the same data give the same bytes. Raises UserError when the table behind
    the figure is empty or the caption is missing.
    """
    if data.empty or not caption.strip():
        raise UserError(
            f"Figure {name}: give the table that it was drawn from, and a caption with n, interval "
            "and protocol; a figure without them is not saved."
        )
    folder = artifacts.figures_dir(preset)
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv", "txt")}
    with mpl.rc_context(_RC):
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            with artifacts.atomic_path(paths[suffix]) as temporary:
                figure.savefig(temporary, metadata=metadata)
    artifacts.write_csv(paths["csv"], data)
    with artifacts.atomic_path(paths["txt"]) as temporary:
        paragraphs = [" ".join(part.split()) for part in (caption, text) if part]
        temporary.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return paths
