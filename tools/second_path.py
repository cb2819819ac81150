"""Compute the headline numbers of a packed run a second time, without the package.

    .venv/bin/python tools/second_path.py laptop

Reads the trials in `results/<preset>/` with pandas and nothing of diffrl, recomputes success,
planned contrasts and odds ratios from their textbook formulas, and compares
them with the tables that the package wrote. Ends with status 1 if one differs by more than 1e-6.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

RL = [
    (source, mode)
    for source in ("diffusion", "gaussian")
    for mode in ("deterministic", "stochastic")
]
SHOWN = [("operator", "recorded")]
STEADY = [("steady", "recorded")]
ZERO = [("diffusion_zero", "deterministic")]
CLONES = {name: [(f"{name}_clone", "deterministic")] for name in ("diffusion", "gaussian")}
CONTRASTS = {  # first arms, second arms; several rows: their mean
    "RL − demonstrator": [(RL, SHOWN)],
    "diffusion − gaussian": [(RL[:1], RL[2:3]), (RL[1:2], RL[3:])],
    "without noise − with it": [(RL[:1], RL[1:2]), (RL[2:3], RL[3:])],
    "diffusion − gaussian, without noise": [(RL[:1], RL[2:3])],
    "diffusion − gaussian, with noise": [(RL[1:2], RL[3:])],
    "diffusion − demonstrator, without noise": [(RL[:1], SHOWN)],
    "gaussian − demonstrator, without noise": [(RL[2:3], SHOWN)],
    "steady demonstrator − demonstrator": [(STEADY, SHOWN)],
    "diffusion clone − demonstrator": [(CLONES["diffusion"], SHOWN)],
    "gaussian clone − demonstrator": [(CLONES["gaussian"], SHOWN)],
    "diffusion − its clone": [(RL[:1], CLONES["diffusion"])],
    "gaussian − its clone": [(RL[2:3], CLONES["gaussian"])],
    "zero first latent − diffusion": [(ZERO, RL[:1])],
}


def over_tasks(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of one value a task and Student's 95 % interval."""
    if np.ptp(values) == 0:  # no spread is known
        return values.mean(), np.nan, np.nan
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def read(folder: Path, name: str) -> pd.DataFrame:
    """Read a table that lies beside the records or, if it is large, in them."""
    if (folder / name).is_file():
        return pd.read_csv(folder / name)
    with zipfile.ZipFile(folder / "records.zip") as records:
        return pd.read_csv(records.open(name))


def trials_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per trial and a column per arm: 1 for success, 0 for failure.

    A task of LIBERO-PRO counts as the task of LIBERO that it changes.
    """
    table = table[table["status"] != "error"]
    won = (table["status"] == "success").astype(float)
    task = table["task"].str.replace(r"^(libero_[a-z0-9]+)[^/]*", r"\1", regex=True).rename("like")
    keys = [table[name] for name in ("task", "start_state", "trial_seed", "training_seed")]
    arms = pd.MultiIndex.from_arrays([task, *keys, table["source"], table["mode"]])
    return pd.Series(won.to_numpy(), arms).unstack(["source", "mode"])


def in_scope(table: pd.DataFrame, scope: str, trained_on: list[str]) -> pd.DataFrame:
    """Return the trials that a row of the package's tables is about."""
    learned = table["suite"].isin(trained_on)
    if scope in ("mean_tasks", "mean_suites"):
        return table[learned]
    return table[~learned] if scope == "out of distribution" else table[table["suite"] == scope]


def success(own: pd.DataFrame, scope: str) -> float:
    """Return the rate of one arm's trials, or the mean of the suites' or tasks' rates."""
    won = own["status"] == "success"
    level = {"mean_suites": "suite", "mean_tasks": "task"}.get(scope)
    return won.mean() if level is None else won.groupby(own[level]).mean().mean()


def contrast(won: pd.DataFrame, strata: list) -> dict[str, float]:
    """Return points with their interval over tasks, and the Mantel-Haenszel odds ratio."""
    arms = [arm for pair in strata for side in pair for arm in side]
    won = won[list(dict.fromkeys(arms))].dropna()
    above, below, by_task = 0.0, 0.0, []
    for _, part in won.groupby(level="like"):
        gaps = []
        for firsts, seconds in strata:
            first, second = part[firsts].to_numpy(), part[seconds].to_numpy()
            gaps.append(first.mean() - second.mean())
            total = first.size + second.size
            above += first.sum() * (1 - second).sum() / total
            below += (1 - first).sum() * second.sum() / total
        by_task.append(100 * np.mean(gaps))
    points, low, high = over_tasks(np.array(by_task))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"points": points, "low": low, "high": high, "odds_ratio": above / below}


def expected(folder: Path) -> list[tuple[str, float, float]]:
    """Return (what, the number recomputed here, the package's) of every headline number."""
    found = []
    table, rates = read(folder, "vla_trials.csv"), read(folder, "evaluation.csv")
    played = table[table["status"] != "error"]
    trained_on = [suite for suite in table["suite"].unique() if suite.count("_") == 1]
    if "trained_on" in rates:
        trained_on = rates["trained_on"].iloc[0].split("+")
    for row in rates.itertuples():
        own = in_scope(played, row.suite, trained_on)
        own = own[(own["source"] == row.source) & (own["mode"] == row.mode)]
        name = f"{row.suite}, VLA of {row.source} {row.mode}"
        found.append((name, success(own, row.suite), row.success))
    for row in read(folder, "effects.csv").to_dict("records"):
        won = trials_of(in_scope(table, row["scope"], trained_on))
        for column, value in contrast(won, CONTRASTS[row["contrast"]]).items():
            found.append((f"{row['scope']}, {row['contrast']}: {column}", value, row[column]))
    experts = pd.read_csv(folder / "experts.csv")
    with zipfile.ZipFile(folder / "records.zip") as records:
        trials = pd.read_csv(records.open("experts_trials.csv"))
    trials = trials[(trials["policy"] != "clone") & ~trials["error"]]
    of_run = trials["run"].str.extract(r"^(.+)-(\d+)/(\w+)-seed(\d+)/$")
    trials = trials.assign(task=of_run[0] + "/" + of_run[1], algorithm=of_run[2])
    for key, part in experts.groupby(["algorithm", "mode"]):
        same = (trials["algorithm"] == key[0]) & (trials["mode"] == key[1])
        rate = trials[same].groupby("task")["success"].mean().mean()
        theirs = part.groupby("task")["success"].mean().mean()  # training seeds first
        found.append((f"expert {key[0]} {key[1]}", rate, theirs))
    return found


def main() -> int:
    folder = (
        Path(__file__).parents[1] / "results" / (sys.argv[1] if len(sys.argv) > 1 else "laptop")
    )
    wrong = 0
    for what, mine, theirs in expected(folder):
        same = np.isclose(mine, theirs, rtol=0, atol=1e-6, equal_nan=True)
        wrong += not same
        print(f"{'equal' if same else 'DIFFERENT':10} {mine:12.6f} {theirs:12.6f}  {what}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
