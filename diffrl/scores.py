"""From trials to numbers: success with intervals, paired differences, the protocol in words.

A table has one row per trial and the columns of ``vla_trials.csv`` (see `diffrl.evaluation`).
Trials that ended in an error are counted, but enter no rate.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from diffrl.sim.tasks import get_task
from diffrl.statistics import holm, mcnemar, sign_flip_test, stratified_bootstrap, wilson
from diffrl.vla.play import SETTLE

ARM = ["source", "mode"]  # what is compared; training seeds are pooled
PAPER = {"diffusion": 0.819, "operator": 0.766, "human": 0.766, "gaussian": 0.693}
"""Mean success on 130 tasks by training data: 81.9 %, and what follows from the abstract's +5.3 and
+12.6 points [P]. The paper's demonstrators are people; the scripted operator stands beside them."""


def summarise(table: pd.DataFrame, by: Sequence[str] = ("suite", *ARM)) -> pd.DataFrame:
    """Success of each group with its 95 % Wilson interval.

    Columns: `by`, trials (errors not among them), errors, successes, success, low, high in [0, 1].
    """
    rows = []
    for group, part in table.groupby(list(by), sort=True):
        played = part[part["status"] != "error"]
        successes = int((played["status"] == "success").sum())
        rate = successes / len(played) if len(played) else np.nan
        counts = [len(played), len(part) - len(played), successes, rate]
        rows.append([*group, *counts, *wilson(successes, len(played))])
    columns = [*by, "trials", "errors", "successes", "success", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def scaling(table: pd.DataFrame, demonstrations: int) -> pd.DataFrame:
    """Success over the number of demonstrations per task, of the arms that come in several.

    A source ``name:count`` was trained on `count` a task, ``name`` on `demonstrations`. Columns:
    suite, source (without the count), mode, demonstrations, trials, …, success, low, high.
    """
    rates = summarise(table)
    parts = rates["source"].str.extract(r"^(?P<source>\w+)(?::(?P<count>\d+))?$")
    rates = rates.assign(source=parts["source"], demonstrations=parts["count"].astype("Int64"))
    rates["demonstrations"] = rates["demonstrations"].fillna(demonstrations).astype(int)
    rates = rates[rates["source"].notna()].sort_values(["suite", *ARM, "demonstrations"])
    several = rates.groupby(["suite", *ARM])["demonstrations"].transform("nunique") > 1
    return rates[several].reset_index(drop=True)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Paired differences between all arms (source, mode), in each suite.

    A pair is the same task, start state, trial seed and training seed. Columns: suite, first,
    second, pairs, difference (first − second) with its 95 % bootstrap interval (start states are
    drawn, with all their pairs, within each task), only_first, only_second, p, p_holm (Holm over
    the suite's pairs), by_seed (the difference of each training seed). p is McNemar's, exact; with
    several training seeds it is that of flipping the signs of whole start states, of which
    McNemar's is the case of one seed: the same state twice is no second witness.

    All of it but the last is about the networks that were trained: training again may give others,
    and how much that changes only `by_seed` hints at. A difference that one seed lacks is none.
    """
    key = ["suite", "task", "start_state", "trial_seed", "training_seed"]
    played = table[table["status"] != "error"].copy()
    played["arm"] = played["source"] + " " + played["mode"]
    played["won"] = played["status"] == "success"
    rows = []
    for suite, part in played.groupby("suite", sort=True):
        wide = part.pivot(index=key, columns="arm", values="won")
        found = [_pair(suite, wide, a, b) for a, b in combinations(wide.columns, 2)]
        adjusted = holm(np.array([row[-2] for row in found])) if found else []
        rows += [[*row, p] for row, p in zip(found, adjusted)]
    columns = ["suite", "first", "second", "pairs", "difference", "low", "high"]
    columns += ["only_first", "only_second", "p", "by_seed", "p_holm"]
    return pd.DataFrame(rows, columns=columns)


def _pair(suite: str, wide: pd.DataFrame, first: str, second: str) -> list:
    both = wide[[first, second]].dropna().astype(bool)
    if both.empty:
        return [suite, first, second, 0, *[np.nan] * 3, 0, 0, np.nan, ""]
    gap = both[first].astype(float) - both[second].astype(float)
    states = gap.groupby(["task", "start_state", "trial_seed"], sort=False).mean()
    interval = stratified_bootstrap(
        states.to_numpy(), states.index.get_level_values("task").to_numpy()
    )
    only_first, only_second, p = mcnemar(both[first].to_numpy(), both[second].to_numpy())
    by_seed = gap.groupby("training_seed").mean()
    if len(by_seed) > 1:
        p = sign_flip_test(states.to_numpy())
    seeds = " ".join(f"{value:+.3f}" for value in by_seed)
    return [suite, first, second, len(both), *interval, only_first, only_second, p, seeds]


def protocol(table: pd.DataFrame) -> str:
    """Return the protocol of a table of trials in one line, to be printed beside its numbers."""
    limits = sorted({get_task(task).max_steps for task in table["task"].unique()})
    counts = table.drop_duplicates(["task", "start_state", "trial_seed"]).groupby("task").size()
    kinds = sorted({name.split("/")[0] for name in table["start_state"]})
    each = str(counts.min()) if counts.nunique() == 1 else f"{counts.min()}–{counts.max()}"
    return (
        f"{' and '.join(kinds)} start states, {SETTLE} settle steps of (0, …, 0, −1), at most "
        f"{'/'.join(map(str, limits))} control steps at 20 Hz, {each} trials per task"
    )


def paper(rates: pd.DataFrame) -> pd.DataFrame:
    """The paper's mean success beside rows of `rates`: suite, source, mode, value in [0, 1] [P].

    It prints one number a source: data collected with exploration noise have none.
    """
    known = rates[rates["source"].isin(PAPER) & (rates["mode"] != "stochastic")]
    table = known[["suite", *ARM]].drop_duplicates().reset_index(drop=True)
    return table.assign(value=table["source"].map(PAPER))


def beside_paper(rates: pd.DataFrame) -> pd.DataFrame:
    """Gaps to diffusion RL of the same mode (operator and human: deterministic), ours and [P].

    Columns: suite, source, mode, success, low, high, gap, paper, paper_gap; gaps are diffusion's
    success minus the row's, NaN where there is no such diffusion arm. The operator's row has the
    paper's number of people, and stochastic rows have none.
    """
    modes = rates["mode"].replace("recorded", "deterministic")
    diffusion = rates[rates["source"] == "diffusion"].set_index(["suite", "mode"])["success"]
    matched = diffusion.reindex(pd.MultiIndex.from_arrays([rates["suite"], modes])).to_numpy()
    table = rates[["suite", *ARM, "success", "low", "high"]].copy()
    table["gap"] = matched - table["success"]
    table["paper"] = table["source"].map(PAPER).where(table["mode"] != "stochastic")
    table["paper_gap"] = PAPER["diffusion"] - table["paper"]
    return table
