"""The list of attempts beside a data set: everything that was tried for it, discarded or not."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from diffrl.base.errors import UserError

OUTCOMES = ("success", "failure", "error")  # error: the physics diverged


def attempts_path(dataset: Path) -> Path:
    """Return where the list of a data set's attempts lies, or would lie."""
    return Path(dataset).with_suffix(".attempts.csv")


def read_attempts(dataset: Path, columns: Sequence[str] = ("outcome",)) -> pd.DataFrame:
    """Return these columns of the list, a row per attempt; no rows where there is no list.

    Raises:
        UserError: it is damaged, or no list of attempts.
    """
    path = attempts_path(dataset)
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        table = pd.read_csv(path)[list(columns)]
        whole = table["outcome"].isin(OUTCOMES).all() and table.notna().all(axis=None)
    except (LookupError, ValueError):  # pandas' own errors are of these kinds
        whole = False
    if not whole:
        raise UserError(
            f"{path} is no whole list of attempts: generate the data set again, or move the list "
            "away if the data set is not diffrl's."
        )
    return table
