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
CONTRASTS = {  # first arms, second arms; several rows: their mean
    "RL − demonstrator": [(RL, SHOWN)],
    "diffusion − gaussian": [(RL[:1], RL[2:3]), (RL[1:2], RL[3:])],
    "diffusion − gaussian, without noise": [(RL[:1], RL[2:3])],
    "diffusion − demonstrator, without noise": [(RL[:1], SHOWN)],
    "gaussian − demonstrator, without noise": [(RL[2:3], SHOWN)],
}


def over_tasks(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of one value a task and Student's 95 % interval."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def trials_of(table: pd.DataFrame, suite: str) -> pd.DataFrame:
    """Return a row per trial of one suite and a column per arm: 1 for success, 0 for failure."""
    table = table[(table["suite"] == suite) & (table["status"] != "error")]
    won = (table["status"] == "success").astype(float)
    keys = [table[name] for name in ("task", "start_state", "trial_seed", "training_seed")]
    arms = pd.MultiIndex.from_arrays([*keys, table["source"], table["mode"]])
    return pd.Series(won.to_numpy(), arms).unstack(["source", "mode"])


def contrast(won: pd.DataFrame, strata: list) -> dict[str, float]:
    """Return points with their interval over tasks, and the Mantel-Haenszel odds ratio."""
    arms = [arm for pair in strata for side in pair for arm in side]
    won = won[list(dict.fromkeys(arms))].dropna()
    above, below, by_task = 0.0, 0.0, []
    for _, part in won.groupby(level="task"):
        gaps = []
        for firsts, seconds in strata:
            first, second = part[firsts].to_numpy(), part[seconds].to_numpy()
            gaps.append(first.mean() - second.mean())
            total = first.size + second.size
            above += first.sum() * (1 - second).sum() / total
            below += (1 - first).sum() * second.sum() / total
        by_task.append(100 * np.mean(gaps))
    points, low, high = over_tasks(np.array(by_task))
    return {"points": points, "low": low, "high": high, "odds_ratio": above / below}


def expected(folder: Path) -> list[tuple[str, float, float]]:
    """Return (what, the number recomputed here, the package's) of every headline number."""
    found = []
    table = pd.read_csv(folder / "vla_trials.csv")
    rates = pd.read_csv(folder / "evaluation.csv")
    planned = pd.read_csv(folder / "effects.csv").set_index(["contrast", "scope"])
    suite = rates["suite"].iloc[0]
    won = trials_of(table, suite)
    for row in rates[rates["suite"] == suite].itertuples():
        if (row.source, row.mode) in won:
            rate = won[(row.source, row.mode)].mean()
            found.append((f"VLA of {row.source} {row.mode}", rate, row.success))
    for name, strata in CONTRASTS.items():
        for column, value in contrast(won, strata).items():
            found.append((f"{name}: {column}", value, planned.loc[(name, suite), column]))
    experts = pd.read_csv(folder / "experts.csv")
    with zipfile.ZipFile(folder / "records.zip") as records:
        trials = pd.read_csv(records.open("experts_trials.csv"))
    trials = trials[(trials["policy"] != "clone") & ~trials["error"]]
    of_run = trials["run"].str.extract(r"^(.+)-(\d+)/(\w+)-seed(\d+)/$")
    trials = trials.assign(task=of_run[0] + "/" + of_run[1], algorithm=of_run[2])
    for key, part in experts.groupby(["algorithm", "mode"]):
        same = (trials["algorithm"] == key[0]) & (trials["mode"] == key[1])
        rate = trials[same].groupby("task")["success"].mean().mean()
        found.append((f"expert {key[0]} {key[1]}", rate, part["success"].mean()))
    return found


def main() -> int:
    folder = (
        Path(__file__).parents[1] / "results" / (sys.argv[1] if len(sys.argv) > 1 else "laptop")
    )
    wrong = 0
    for what, mine, theirs in expected(folder):
        same = abs(mine - theirs) < 1e-6
        wrong += not same
        print(f"{'equal' if same else 'DIFFERENT':10} {mine:12.6f} {theirs:12.6f}  {what}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
