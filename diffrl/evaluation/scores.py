"""From trials to numbers: success with intervals, paired differences, the protocol in words.

A table has one row per trial and the columns of ``vla_trials.csv`` (see `diffrl.evaluation`).
Trials that ended in an error are counted, but enter no rate.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from diffrl.base.arm import POLICY_MODES, Arm
from diffrl.base.control import SETTLE_STEPS
from diffrl.base.intervals import (
    holm,
    interval_over_tasks,
    least_p,
    mcnemar,
    odds_ratio_over_tasks,
    sign_flip_test,
    stratified_bootstrap,
    wilson,
)
from diffrl.presets import ALGORITHMS
from diffrl.sim.tasks import get_task

ARM = ["source", "mode"]  # what is compared; training seeds are pooled
TRIAL = ["task", "start_state", "trial_seed", "training_seed"]  # what two arms share in a pair
EFFECTS = {  # of the four arms of RL data; weights of (source, mode)
    "diffusion − gaussian": (0.5, 0.5, -0.5, -0.5),
    "without noise − with it": (0.5, -0.5, 0.5, -0.5),
    "interaction": (1.0, -1.0, -1.0, 1.0),
}
_TESTED = ["p", "p_holm", "tasks", "low_tasks", "high_tasks", "p_tasks", "p_tasks_holm", "by_seed"]
_CELLS = [Arm(source, mode).joined(" ") for source in ALGORITHMS for mode in POLICY_MODES]
_DIFFUSION, _GAUSSIAN = _CELLS[:2], _CELLS[2:]
_DEMONSTRATOR = [Arm("operator").joined(" ")]
CONTRASTS = {  # each a mean over (firsts, seconds) of mean(firsts) − mean(seconds)
    "RL − demonstrator": [(_CELLS, _DEMONSTRATOR)],
    "diffusion − gaussian": [([d], [g]) for d, g in zip(_DIFFUSION, _GAUSSIAN)],
    "without noise − with it": [(both[:1], both[1:]) for both in (_DIFFUSION, _GAUSSIAN)],
    "diffusion − gaussian, without noise": [(_DIFFUSION[:1], _GAUSSIAN[:1])],
    "diffusion − gaussian, with noise": [(_DIFFUSION[1:], _GAUSSIAN[1:])],
    "diffusion − demonstrator, without noise": [(_DIFFUSION[:1], _DEMONSTRATOR)],
    "gaussian − demonstrator, without noise": [(_GAUSSIAN[:1], _DEMONSTRATOR)],
}
LADDER = {  # smoothness alone; cloning and filtering alone; RL's share; the latent
    "steady demonstrator − demonstrator": [(["steady recorded"], _DEMONSTRATOR)],
    "diffusion clone − demonstrator": [(["diffusion_clone deterministic"], _DEMONSTRATOR)],
    "gaussian clone − demonstrator": [(["gaussian_clone deterministic"], _DEMONSTRATOR)],
    "diffusion − its clone": [(_DIFFUSION[:1], ["diffusion_clone deterministic"])],
    "gaussian − its clone": [(_GAUSSIAN[:1], ["gaussian_clone deterministic"])],
    "zero first latent − diffusion": [(["diffusion_zero deterministic"], _DIFFUSION[:1])],
}
REGISTERED = {  # of a preset: written into docs/LOG.md before its runs, each family tested alone
    "libero": {
        "primary": (
            "diffusion − gaussian, without noise",
            "diffusion − demonstrator, without noise",
            "gaussian − demonstrator, without noise",
        ),
        "secondary": (*LADDER, "without noise − with it"),
    },
}
PAPER = {"diffusion": 0.819, "operator": 0.766, "human": 0.766, "gaussian": 0.693}
"""Mean success on 130 tasks by training data: 81.9 %, and what follows from the abstract's +5.3 and
+12.6 points [P]. The paper's demonstrators are people; the scripted operator stands beside them."""


_LIMITS = ("success", "low", "high")


def summarise(table: pd.DataFrame, by: Sequence[str] = ("suite", *ARM)) -> pd.DataFrame:
    """Success of each group with its 95 % intervals: over trials, and over tasks.

    Columns: `by`, trials (errors not among them), errors, successes, success, low, high in [0, 1]:
    Wilson's interval of the pooled trials, which is about these tasks and networks. Where a group
    holds tasks, low_tasks and high_tasks are Student's t over their rates (start states and
    training seeds averaged; cut to [0, 1]), around their mean; NaN for a single task.
    """
    rows = []
    for group, part in table.groupby(list(by), sort=True):
        played = part[part["status"] != "error"]
        won = played["status"] == "success"
        rate = won.mean() if len(played) else np.nan
        counts = [len(played), len(part) - len(played), int(won.sum()), rate]
        tasks = won.groupby(played["task"].map(_original)).mean()
        over_tasks = interval_over_tasks(tasks)[1:] if len(tasks) else (np.nan, np.nan)
        rows.append(
            [*group, *counts, *wilson(counts[2], len(played)), *np.clip(over_tasks, 0.0, 1.0)]
        )
    columns = [*by, "trials", "errors", "successes", "success", "low", "high"]
    result = pd.DataFrame(rows, columns=[*columns, "low_tasks", "high_tasks"])
    return result[columns] if "task" in by else result


def levels(table: pd.DataFrame) -> pd.DataFrame:
    """`summarise` per suite and arm; where arms met different trials, on the shared ones, too.

    Only rows of the same trials stand beside each other: the new first column, ``met``, tells
    whether a row is of all that its arm met ("own") or of what every arm met ("shared").
    """
    shared = table[met_by_all(table, ["suite"], ARM)]
    parts = [("own", table)] if len(shared) == len(table) else [("own", table), ("shared", shared)]
    rates = pd.concat([summarise(part).assign(met=met) for met, part in parts], ignore_index=True)
    return rates[["met", *rates.columns.drop("met")]]


def readable(summary: pd.DataFrame) -> str:
    """A table of `summarise` for a terminal: rates and their intervals in per cent.

    >>> table = pd.DataFrame({"suite": ["a"], "success": [0.5], "low": [0.1], "high": [0.9]})
    >>> print(readable(table))
    suite success [95 % Wilson]
        a   50.0 % [10.0, 90.0]
    """
    shown = summary.drop(columns=[name for name in summary if name.partition("_")[0] in _LIMITS])
    limits = zip(100 * summary["success"], 100 * summary["low"], 100 * summary["high"])
    shown["success [95 % Wilson]"] = [f"{r:.1f} % [{a:.1f}, {b:.1f}]" for r, a, b in limits]
    if "low_tasks" in summary:
        over = zip(100 * summary["low_tasks"], 100 * summary["high_tasks"])
        shown["95 % over tasks"] = [
            f"[{a:.1f}, {b:.1f}]" if np.isfinite(a) else "–" for a, b in over
        ]
    return str(shown.to_string(index=False))


def with_means(table: pd.DataFrame, suites: Sequence[str]) -> pd.DataFrame:
    """`summarise` per suite and arm, with the means of each arm over the suites it learned.

    `suites` are those that the VLAs were trained on, the new column ``trained_on``; an arm that
    played all of them, two or more, gets two more rows. ``mean_suites`` is the mean of the suites'
    rates, every suite of one weight (the literature's). ``mean_tasks`` is the mean of the tasks'
    rates; its low and high are Wilson's of the pooled trials. Intervals of ``mean_suites`` come
    from the suites' own, whose lower and upper arms are added as variances (MOVER, Zou & Donner
    2008, doi 10.1002/sim.3095); low_tasks and high_tasks likewise.
    """
    result, own = summarise(table), table[table["suite"].isin(suites)]
    rows = []
    for _, part in own.groupby(ARM, sort=True):
        if len(suites) > 1 and part["suite"].nunique() == len(suites):
            rows += [_mean_of_suites(part), _mean_of_tasks(part)]
    result = pd.concat([result, *rows], ignore_index=True)
    result.insert(1 + len(ARM), "trained_on", "+".join(suites))
    return result


def with_absent(rates: pd.DataFrame, absent: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rates with rows of no trials, a suite each, for what was planned and is not there.

    absent: source and mode of each arm, or also the training seed of each VLA.
    """
    if not absent:
        return rates
    none = rates[rates.columns.intersection(["suite", "trained_on"])].drop_duplicates()
    none = none.assign(trials=0, errors=0, successes=0)
    rows = [none.assign(**who) for who in absent]
    return pd.concat([rates, *rows], ignore_index=True)[list(rates)]


def _mean_of_tasks(part: pd.DataFrame) -> pd.DataFrame:
    rates = _task_rates(part)
    return summarise(part.assign(suite="mean_tasks")).assign(success=rates.mean())


def _mean_of_suites(part: pd.DataFrame) -> pd.DataFrame:
    each, rates = summarise(part), _task_rates(part)
    row = summarise(part.assign(suite="mean_suites")).assign(success=each["success"].mean())
    row["low"], row["high"] = _mover(each[["success", "low", "high"]].to_numpy())
    suites = rates.index.get_level_values("suite")
    over_tasks = np.array([interval_over_tasks(own) for _, own in rates.groupby(suites)])
    row["low_tasks"], row["high_tasks"] = np.clip(_mover(over_tasks), 0.0, 1.0)
    return row


def _task_rates(part: pd.DataFrame) -> pd.Series:
    played = part[part["status"] != "error"]
    won = played["status"] == "success"
    return won.groupby([played["suite"], played["task"]]).mean()


def _mover(bounds: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of independent estimates; bounds: (k, 3) of value, low, high."""
    value, low, high = bounds.T
    below, above = np.sqrt(np.mean((value - low) ** 2)), np.sqrt(np.mean((high - value) ** 2))
    scale = np.sqrt(len(value))
    return value.mean() - below / scale, value.mean() + above / scale


def scaling(table: pd.DataFrame, demonstrations: int) -> pd.DataFrame:
    """Success over the number of demonstrations per task, of the arms that come in several.

    A source ``name:count`` was trained on `count` a task, ``name`` on `demonstrations`; trials and
    training seeds that a point of its curve lacks are left out. Columns: suite, source (without
    the count), mode, demonstrations, trials, …, success, low, high.
    """
    parts = table["source"].str.extract(r"^(?P<source>\w+)(?::(?P<count>\d+))?$")
    counts = pd.to_numeric(parts["count"]).fillna(demonstrations).astype(int)
    table = table.assign(source=parts["source"], demonstrations=counts).dropna(subset="source")
    curve = ["suite", *ARM]
    points = table.groupby(curve)["demonstrations"].transform("nunique")
    shared = table[(points > 1) & met_by_all(table, curve, "demonstrations")]
    return summarise(shared, (*curve, "demonstrations"))


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Trials of several suites as those of one, "mean_tasks"; those of one suite as they are."""
    return table.assign(suite="mean_tasks") if table["suite"].nunique() > 1 else table


def met_by_all(table: pd.DataFrame, within: Sequence[str], among: Sequence[str] | str) -> pd.Series:
    """Tell of each trial whether all groups `among` `within` have one of the same start and seeds.

    Rates of groups that met other trials differ by those, too: start states are not equally hard.
    A trial that ended in an error for one group has no result there, and counts for none.
    """
    among = [among] if isinstance(among, str) else list(among)
    trial = list(dict.fromkeys([*within, *TRIAL]))
    each = table[trial].assign(group=table.groupby(among).ngroup())
    each = each[table["status"] != "error"]
    wanted = each.groupby(list(within))["group"].transform("nunique")
    met = each.groupby(trial)["group"].transform("nunique") == wanted
    return met.reindex(table.index, fill_value=False)


def compare(table: pd.DataFrame, chosen: Sequence[tuple[str, str]] | None = None) -> pd.DataFrame:
    """Paired differences between arms, "<source> <mode>", in each suite: `chosen`, or all pairs.

    A pair is the same task, start state, trial seed and training seed. Columns: suite, first,
    second, pairs, difference (first − second) with its 95 % bootstrap interval (start states are
    drawn, with all their pairs, within each task; NaN where no start state differs), only_first
    and only_second (pairs), p, p_holm (Holm over the suite's pairs), tasks (those where first is
    ahead, of all), low_tasks and high_tasks (Student's t over the tasks' differences), p_tasks,
    p_tasks_holm (likewise; NaN where so few tasks could not make so many pairs significant) and
    by_seed (the difference of each training seed). p is McNemar's, exact. With several training
    seeds the signs of whole start states are flipped instead, because trials from the same start
    state are not independent; for one seed the two tests are the same.

    p is about the networks and the data at hand. Behind the data of a task stands one expert, so
    p_tasks flips the signs of whole tasks; and training the networks again may give others, which
    `by_seed` hints at: a difference that one seed lacks is none.
    """
    rows = []
    for suite, wide in _wide(table):
        pairs = chosen or list(combinations(wide.columns, 2))
        found = [_pair(wide, a, b) for a, b in pairs if {a, b} <= set(wide.columns)]
        rows += [{"suite": suite, **row} for row in _corrected(found)]
    columns = ["suite", "first", "second", "pairs", "difference", "low", "high", "only_first"]
    return pd.DataFrame(rows, columns=[*columns, "only_second", *_TESTED])


def factorial(table: pd.DataFrame) -> pd.DataFrame:
    """Tell the class of the policy from the noise at collection: effects of a 2 × 2 design.

    The four arms are diffusion and gaussian, deterministic and stochastic; a suite that lacks one
    has no rows. Each effect is a mean over start states of a contrast of the four (EFFECTS), in
    rates: the class averaged over noise, the noise averaged over class, and how much the class
    means more without noise than with it. Without errors the first two add up to diffusion without
    noise − Gaussian with it. Columns: suite, effect, trials (of each arm), then as `compare`;
    both corrections are over the suite's three effects.
    """
    rows = []
    for suite, wide in _wide(table):
        cells = wide.reindex(columns=_CELLS).dropna().astype(float)
        if cells.empty:
            continue
        found = [
            {"effect": name, "trials": len(cells), **_effect(cells @ np.array(weights))}
            for name, weights in EFFECTS.items()
        ]
        rows += [{"suite": suite, **row} for row in _corrected(found)]
    columns = ["suite", "effect", "trials", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, *_TESTED])


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Contrasts (CONTRASTS, LADDER) of each suite, as points and odds ratios, over tasks.

    Near the ceiling points hide effects: the paper's odds ratio of 2.00 would be 3.3 points at
    93 %. All arms of a contrast meet the same trials; training seeds and start states are
    averaged within each task, and tasks are the replicates. Columns: contrast, scope (the
    suite), points with low and high (Student's t over tasks), p_tasks (signs of whole
    tasks flipped, not corrected), odds_ratio (Mantel-Haenszel; strata are the tasks and the
    pairs of arms) with
    or_low and or_high (jackknife over tasks), tasks, seeds. A contrast whose arms a suite lacks has
    no row.
    """
    columns = ["contrast", "scope", "points", "low", "high", "p_tasks"]
    columns += ["odds_ratio", "or_low", "or_high", "tasks", "seeds"]
    rows = []
    for suite, wide in _wide(table):
        for name, strata in (CONTRASTS | LADDER).items():
            won = _complete(wide, strata)
            if len(won):
                seeds = won.index.get_level_values("training_seed").nunique()
                rows.append([name, suite, *_contrast(won, strata), seeds])
    return pd.DataFrame(rows, columns=columns)


def contrasts_by_task(table: pd.DataFrame) -> pd.DataFrame:
    """The values whose mean over tasks `effects` gives: scope, contrast, task, points."""
    rows = [
        (suite, name, task, 100 * value)
        for suite, wide in _wide(table)
        for name, strata in (CONTRASTS | LADDER).items()
        for task, value in _by_task(_complete(wide, strata), strata).items()
    ]
    return pd.DataFrame(rows, columns=["scope", "contrast", "task", "points"])


def _complete(wide: pd.DataFrame, strata: list[Any]) -> pd.DataFrame:
    """The trials of `wide` that every arm of a contrast has played; none if it lacks an arm."""
    needed = {arm for firsts, seconds in strata for arm in (*firsts, *seconds)}
    return wide.reindex(columns=sorted(needed)).dropna().astype(float)


def _by_task(won: pd.DataFrame, strata: list[Any]) -> pd.Series:
    """A contrast on each task, as a difference of rates."""
    tasks = won.index.get_level_values("task").map(_original)
    gaps = [won[firsts].mean(axis=1) - won[seconds].mean(axis=1) for firsts, seconds in strata]
    return (sum(gaps) / len(gaps)).groupby(tasks).mean()


def _contrast(won: pd.DataFrame, strata: list[Any]) -> list[Any]:
    """Points, odds ratio and count of tasks of one planned contrast; won: rows of TRIAL by arm."""
    tasks = won.index.get_level_values("task").map(_original)
    by_task = _by_task(won, strata)
    mean, low, high = interval_over_tasks(by_task)
    tables, labels = [], []
    for task, part in won.groupby(tasks):
        for firsts, seconds in strata:
            first, second = part[firsts].to_numpy(), part[seconds].to_numpy()
            tables.append([first.sum(), (1 - first).sum(), second.sum(), (1 - second).sum()])
            labels.append(task)
    ratio = odds_ratio_over_tasks(tables, labels)
    points = [100 * value + 0.0 for value in (mean, low, high)]  # + 0: no −0
    return [*points, sign_flip_test(by_task), *ratio, len(by_task)]


def excluded(effects: pd.DataFrame) -> pd.DataFrame:
    """What the intervals over tasks of `effects` leave out: zero, and the paper's gaps [P].

    Columns: contrast, scope, zero, paper_points, paper_points_excluded, paper_odds_ratio,
    paper_odds_ratio_excluded; the last four of diffusion's gaps to the Gaussian's and to the
    demonstrator's only. An interval that was not to be had (NaN) excludes nothing.
    """
    rows = []
    for row in effects.itertuples():
        (first, _, second) = row.contrast.split(",")[0].partition(" − ")
        other = {"gaussian": "gaussian", "demonstrator": "human"}.get(second)
        points = ratio = np.nan
        if first == "diffusion" and other:
            points = 100 * (PAPER[first] - PAPER[other])
            odds = [PAPER[name] / (1 - PAPER[name]) for name in (first, other)]
            ratio = odds[0] / odds[1]
        rows.append(
            [row.contrast, row.scope, _outside(0.0, row.low, row.high)]
            + [points, _outside(points, row.low, row.high)]
            + [ratio, _outside(ratio, row.or_low, row.or_high)]
        )
    columns = ["contrast", "scope", "zero", "paper_points", "paper_points_excluded"]
    return pd.DataFrame(rows, columns=[*columns, "paper_odds_ratio", "paper_odds_ratio_excluded"])


def _outside(value: float, low: float, high: float) -> bool:
    return bool(value < low or value > high)


def mixtures(table: pd.DataFrame) -> pd.DataFrame:
    """`compare` each mixture of sources (``a+b``) with the arms it is drawn from.

    A part of a source (``a:24``), which nobody learned alone, is compared as the whole of it: a
    mixture at equal total, as one at the union, stands beside both whole sources.
    """
    arms = table[ARM].drop_duplicates()
    known = set(arms["source"] + " " + arms["mode"])
    pairs = []
    for source, mode in arms[arms["source"].str.contains("+", regex=False)].to_numpy():
        sources, modes = source.split("+"), mode.split("+")
        modes = modes * len(sources) if len(modes) == 1 else modes
        mixed = Arm(source, mode).joined(" ")
        for name, its in zip(sources, modes, strict=True):
            alone, whole = (Arm(n, its).joined(" ") for n in (name, name.partition(":")[0]))
            pairs.append((mixed, alone if alone in known else whole))
    return compare(table, pairs) if pairs else compare(table[:0])


def _wide(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each suite with its trials: a row per trial, a column per arm; NaN where not played."""
    table = table.assign(arm=table["source"] + " " + table["mode"])
    played = table[table["status"] != "error"]
    for suite, part in table.groupby("suite", sort=True):
        own = played[played["suite"] == suite]
        won = own.assign(won=(own["status"] == "success").astype(float))
        yield (
            suite,
            won.pivot(index=TRIAL, columns="arm", values="won").reindex(
                columns=sorted(part["arm"].unique())
            ),
        )


def _pair(wide: pd.DataFrame, first: str, second: str) -> dict[str, Any]:
    both = wide[[first, second]].dropna()
    row = {"first": first, "second": second, "pairs": len(both)}
    if both.empty:
        return {**row, "only_first": 0, "only_second": 0, "p": np.nan, "by_seed": ""}
    only_first, only_second, exact = mcnemar(both[first], both[second])
    row |= _effect(both[first] - both[second])
    row |= {"only_first": only_first, "only_second": only_second}
    several = both.index.get_level_values("training_seed").nunique() > 1
    return row if several else row | {"p": exact}


def _effect(gaps: pd.Series) -> dict[str, Any]:
    """Mean, interval and tests of a contrast (n,), indexed by TRIAL."""
    states = gaps.groupby(TRIAL[:-1], sort=False).mean()
    tasks = states.groupby(lambda key: _original(key[0])).mean()
    mean, low, high = stratified_bootstrap(states, states.index.get_level_values("task"))
    if not states.any():
        low = high = np.nan  # nothing differed: resampling that would claim to be certain
    per_seed = gaps.groupby(["training_seed", gaps.index.get_level_values("task")]).mean()
    by_seed = per_seed.groupby("training_seed").mean()  # tasks weigh alike, as in the difference
    _, low_tasks, high_tasks = interval_over_tasks(tasks)
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "p": sign_flip_test(states, states.index.get_level_values("task")),
        "tasks": f"{(tasks > 0).sum()} of {len(tasks)}",
        "n_tasks": len(tasks),
        "low_tasks": low_tasks,
        "high_tasks": high_tasks,
        "p_tasks": sign_flip_test(tasks),
        "by_seed": " ".join(f"{value:+.3f}" for value in by_seed.round(9) + 0.0),  # no −0
    }


def _original(task: str) -> str:
    """The official task that a variant of LIBERO-PRO belongs to; one expert made the data of both.

    ``libero_object_swap/3`` belongs to ``libero_object/3``, so variants are pooled as one task. The
    variant `task` asks for another thing, and shares only the scene with it.
    """
    suite, _, index = task.partition("/")
    return "_".join(suite.split("_")[:2]) + "/" + index


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for name in ("p", "p_tasks"):
        least = [
            float(least_p(row.get("n_tasks", 0))) if name == "p_tasks" else 0.0 for row in rows
        ]
        for row, p in zip(rows, holm([row.get(name, np.nan) for row in rows], least)):
            row[f"{name}_holm"] = p
    return rows


def protocol(table: pd.DataFrame, pictures: Any) -> str:
    """Return the protocol of a table of trials in one line, to be printed beside its numbers.

    pictures: what the policy looks at, anything with `image_size` (pixels, square) and `detail`
    ("exact" or "reduced"), such as a policy or a VLA's settings; None where it looks at none.
    """
    limits = sorted({get_task(task).max_steps for task in table["task"].unique()})
    once = table.drop_duplicates([*ARM, "task", "start_state", "trial_seed"])
    counts = once.groupby([*ARM, "task"]).size()
    kinds = sorted({name.split("/")[0] for name in table["start_state"]})
    each = str(counts.min()) if counts.nunique() == 1 else f"{counts.min()}–{counts.max()}"
    seen = "no pictures" if pictures is None else pictures_in_words(pictures)
    return (
        f"{' and '.join(kinds)} start states, {SETTLE_STEPS} settle steps of (0, …, 0, −1), "
        f"at most {'/'.join(map(str, limits))} control steps at 20 Hz, "
        f"{each} {'trial' if each == '1' else 'trials'} per task, {seen}"
    )


def pictures_in_words(pictures: Any) -> str:
    """Return size and detail of what a policy looks at: protocol and captions name them."""
    size = f"{pictures.image_size} × {pictures.image_size}"
    return f"pictures of {size} pixels in {pictures.detail} detail"


def paper(rates: pd.DataFrame) -> pd.DataFrame:
    """The paper's mean success beside rows of `rates`: suite, source, mode, value in [0, 1] [P].

    It prints one number a source and does not say whether its data were collected with noise:
    that the number stands beside the data without is our choice.
    """
    known = rates[rates["source"].isin(PAPER) & (rates["mode"] != "stochastic")]
    table = known[["suite", *ARM]].drop_duplicates().reset_index(drop=True)
    return table.assign(value=table["source"].map(PAPER))


def beside_paper(pairs: pd.DataFrame) -> pd.DataFrame:
    """Gaps to diffusion RL in the same mode (operator and human: deterministic), ours and [P].

    pairs: of `compare`. Columns: suite, source, mode, gap (diffusion's success minus the row's)
    with its interval low, high, and paper, the gap in the paper; beside the operator it is that to
    people. Stochastic rows have none (see `paper`).
    """
    rows = []
    for pair in pairs.itertuples():
        (ours, mode), (source, other) = Arm.parse(pair.first), Arm.parse(pair.second)
        matched = mode == ("deterministic" if other == "recorded" else other)
        if ours == "diffusion" != source and matched:
            known = source in PAPER and mode == "deterministic"
            gap = PAPER["diffusion"] - PAPER[source] if known else np.nan
            rows.append([pair.suite, source, other, pair.difference, pair.low, pair.high, gap])
    return pd.DataFrame(rows, columns=["suite", *ARM, "gap", "low", "high", "paper"])
