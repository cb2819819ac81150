"""A finding, how it is shown in a notebook, and numbers in words."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from diffrl.base import artifacts, bundles
from diffrl.figures import save_figure
from diffrl.presets import Preset
from diffrl.quality import MEASURES

BETTER = {name: measure.better for name, measure in MEASURES.items()} | {
    **{"success": +1, "auc": +1, "jerk_at_90": MEASURES["jerk_rms"].better}
}  # which direction of a measure is better; 0: neither


class Finding(NamedTuple):
    """A figure with the table behind it, its caption, and what it says (Markdown)."""

    name: str  # of its files: "05_gaps"
    figure: Figure
    data: pd.DataFrame
    caption: str  # n, interval, protocol, preset
    text: str = ""


def recorded(preset: Preset, name: str, stage: Callable[[Preset], pd.DataFrame]) -> pd.DataFrame:
    """A table of a preset: what `stage` finds or computes, or a restored run's record.

    Of a part of a preset, the rows of its tasks; tables that compare have rows of its own.

    A run that was unpacked from evidence (``diffrl.evidence``) has its tables and not its data
    sets, so nothing can be found or continued there; ``reproduce --force`` computes it anew.
    """
    own = name.startswith(("vla", "quality"))
    path = artifacts.runs_dir(preset.name) / (preset.tables_of if own else "") / name
    kept = artifacts.restored(preset.name) and path.is_file()
    table = pd.read_csv(path) if kept else stage(preset)
    return table if own else table[table["task"].isin(preset.tasks)].reset_index(drop=True)


def show(preset: str, *findings: Finding | None, heading: str = "") -> None:
    """Save each finding and display it: the heading, figure, caption, text. None shows nothing.

    preset: its name. heading: of the section, Markdown; it is left out with the findings.
    """
    found = [finding for finding in findings if finding is not None]
    if heading and found:
        _markdown(heading)
    for one in found:
        save_figure(one.figure, preset, one.name, one.data, one.caption, one.text)
        _display(one.figure)
        _markdown(f"*{' '.join(one.caption.split())}*")
        if one.text:
            _markdown(one.text)


def show_kept(
    preset: str, name: str, draw: Callable[[pd.DataFrame], Finding] | None = None
) -> bool:
    """Show a finding that the tables of a restored run cannot make; tell whether there is one.

    Evidence keeps no states. But git keeps each figure of the reference run with the table behind
    it: `draw` makes the finding anew from that table. Without `draw`, or without the table, the
    kept picture is displayed: of episodes' pictures there is no table.
    """
    folder = artifacts.root() / "figures" / preset
    if draw is not None and (folder / bundles.NUMBERS).is_file():
        tables = bundles.read(folder / bundles.NUMBERS)
        if f"{name}.csv" in tables:
            show(preset, draw(pd.read_csv(io.StringIO(tables[f"{name}.csv"]))))
            return True
    path = folder / f"{name}.png"
    if path.is_file():
        from IPython.display import Image

        _display(Image(filename=str(path), width=700))
        _markdown(f"*Kept from the reference run: `figures/{preset}/{name}.png`.*")
    return path.is_file()


def _markdown(text: str) -> None:
    from IPython.display import Markdown

    _display(Markdown(text))


def _display(what) -> None:
    from IPython.display import display

    display(what)


# -- numbers in words ------------------------------------------------------------------------------
def signed(value: float, digits: int = 1) -> str:
    """ "+6.6", "−0.8"; a minus sign, not a hyphen."""
    return f"{value:+.{digits}f}".replace("-", "−")


def with_interval(value: float, low: float, high: float, unit: str = "", digits: int = 1) -> str:
    """ "+6.6 points [+2.6, +10.5]"; without an interval where there is none."""
    text = signed(value, digits) + (f" {unit}" if unit else "")
    if np.isfinite(low) and np.isfinite(high):
        text += f" [{signed(low, digits)}, {signed(high, digits)}]"
    return text


def times(value: float, low: float, high: float) -> str:
    """ "1.25 times [1.13, 1.38]"."""
    text = f"{value:.2f} times"
    return text + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else "")


def verdict(p: float, family: str = "") -> str:
    """ "(not significant, $p$ = 0.77)"; of a single task or run there is no test.

    family: the tests that p is corrected for, in words.
    """
    if not np.isfinite(p):
        return "(too few for a test)"
    corrected = f", corrected for {family}" if family else ""
    return f"({'significant' if p < 0.05 else 'not significant'}, $p$ = {p:.2g}{corrected})"


def listed(words: list[str]) -> str:
    """ "a, b and c"; "none"."""
    if not words:
        return "none"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
