"""Progress of a map: its workers report what share of an item is done, and one bar adds it up."""

import sys
from multiprocessing.context import BaseContext
from typing import Any

from tqdm import tqdm

POLL = 1.0  # s between two looks at the workers' shares
_FORMAT = "{l_bar}{bar}| {n:g}/{total} [{elapsed}<{remaining}]"
_slot: tuple[Any, int] | None = None  # a shared array, and this worker's place in it


class Shares:
    """What share of its item each of `workers` processes has done, in memory that they share."""

    def __init__(self, workers: int, context: BaseContext):
        self.array = context.RawArray("d", workers)

    def total(self) -> float:
        """Return the sum over the workers, in items."""
        return float(sum(self.array))


def use_slot(shares: Shares, index: int) -> None:
    """Let this process report as worker `index`."""
    global _slot
    _slot = shares.array, index


def report(share: float) -> None:
    """Report that this worker has done a share (0 to 1) of its item; elsewhere nothing happens."""
    if _slot is not None:
        array, index = _slot
        array[index] = share


def progress(total: int, description: str, unit: str = "task") -> tqdm:
    """Return a progress bar on stderr with the remaining time; in a log it writes once in 10 s."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        mininterval=0.2 if live else 10.0,
        miniters=0,  # or a leap, as of items that are found done, hides every share after it
        smoothing=0,  # the mean rate: shares come in leaps
        bar_format=_FORMAT,
    )


def advance(bar: tqdm, items: float) -> None:
    """Move a bar on to `items` (a whole number and shares); it never goes back."""
    bar.update(max(round(items, 2) - bar.n, 0))
