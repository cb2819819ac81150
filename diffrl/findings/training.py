"""Notebook 01: what RL did to the clones, by task, seed and setting."""

import pandas as pd

from diffrl import experiments, figures
from diffrl.base import intervals
from diffrl.base.intervals import interval_over_tasks
from diffrl.findings.finding import BETTER, Finding, listed, verdict, with_interval
from diffrl.presets import get_preset

MEASURED = {  # of an experiment's runs: title of the panel, unit and factor of the difference
    "success": ("Success (points)", 100),
    "auc": ("Area under the learning curve", 1),
    "jerk_rms": ("Jerk, RMS (m/s³)", 1),
    "steps": ("Steps to success", 1),
}
CLASSES = """## Is it the class, the rate or the seed?

Demonstrations, weights and noise change with the seed, and each policy has its own learning rate.
`python -m diffrl experiment rates` trains both policies with three seeds on three tasks, and the
diffusion policy with the Gaussian's rate and clip as well."""
ABLATIONS = """## One setting at a time

`python -m diffrl experiment ablations` changes one setting at a time, three seeds each, from the
same demonstrations. What must follow a setting follows it, such as the discount of a shorter
chunk."""
NOISE = "Predicting the noise"  # changes success tenfold as much as the other groups do
GROUPS = {  # of the ablations' variants: name → what the figure calls it
    "Chain and network": {
        "DDPM, last 10 of 20": "DDPM, last 10 of 20 steps",
        "leading": "leading steps",
        "U-Net": "U-Net",
        "chunk 4": "chunk of 4",
        "horizon 12": "horizon of 12",
    },
    "Exploration": {
        "floor 0.05": "the floor held at 0.05",
        "floor 0.1": "the floor held at 0.1",
        "white": "white noise",
        "fade": "cross-faded chunks",
    },
    "Learning": {
        "annealed": "annealed rate",
        "synchronous": "synchronous resets",
        "Gaussian's rate": "the Gaussian's rate",
    },
    "Demonstrations": {
        f"{count} demonstrations": f"{count} demonstrations" for count in (5, 10, 20, 50)
    },
    NOISE: {
        "epsilon": "epsilon",
        "epsilon leading": "epsilon, leading steps",
        "epsilon sharp clone": "epsilon, sharp clone",
        "DPPO's defaults": "DPPO's defaults",
        "DPPO's defaults sharp clone": "DPPO's defaults, sharp clone",
        "DPPO's defaults sharp clone faster": "DPPO's defaults, sharp clone, faster",
    },
}


def success(trials: pd.DataFrame, preset: str) -> Finding:
    """Success of clones and experts on the official start states.

    trials: `records.final_trials`, of the preset's tasks.
    """
    fair = trials[~trials["error"]]
    groups = fair.groupby(["task", "source", "mode", "policy"], sort=False)["success"]
    rates = groups.agg(successes="sum", trials="count").reset_index()
    quiet = rates[rates["mode"] == "deterministic"]
    share = quiet.assign(value=100 * quiet["successes"] / quiet["trials"])
    share = share.pivot_table("value", "task", ["source", "policy"])
    sentences = [
        f"Without noise {_policy(source)} succeeds on {share[source, 'expert'].mean():.1f} % of "
        f"the official start states, its clones on {share[source, 'clone'].mean():.1f} %."
        for source in _sources(rates)
    ]
    if {"diffusion", "gaussian"} <= set(rates["source"]):
        gap = (share["diffusion", "expert"] - share["gaussian", "expert"]).dropna()
        where = _count(len(gap), "task")
        if len(gap) < len(share):
            where = f"the {where} that both have learned"
        if len(gap):
            told = with_interval(*interval_over_tasks(gap), "points")
            sentences.append(f"Diffusion − Gaussian is {told} over {where}.")
    starts = fair.groupby(["task", "source", "mode", "policy", "training_seed"]).size().max()
    seeds = _range(fair.groupby("task")["training_seed"].nunique())
    low, high = intervals.wilson(rates["trials"].min() // 2, rates["trials"].min())
    caption = f"""Success on {starts} official start states a task: clone (open) and expert after RL
    (filled). Training seeds: {seeds}. A rate's Wilson interval (95 %) is at most
    ± {50 * (high - low):.0f} points. Preset {preset}."""
    return Finding("01_success", figures.dumbbells(rates), rates, caption, " ".join(sentences))


def learning(curves: pd.DataFrame, preset: str) -> Finding:
    """The mean of the learning curves over tasks; curves: `records.learning_curves`."""
    mean = figures.mean_curves(curves)
    sentences = []
    for source in _sources(mean):
        own = mean[mean["source"] == source]
        good = own.loc[own["value"] >= 0.9, "steps"]
        reached = f"ends at {100 * own['value'].iloc[-1]:.0f} %"
        if len(good):
            reached = f"reaches 90 % after {good.iloc[0] / 1000:.0f} thousand control steps"
        start = f"begins at {100 * own['value'].iloc[0]:.0f} % and {reached}"
        sentences.append(f"The mean of {_policy(source)} {start}.")
    counts, learned = mean.groupby("source", sort=False)["tasks"].max(), curves.groupby("source")
    count, shared = int(counts.max()), set.intersection(*learned["task"].agg(set))
    over = f"mean over {_count(count, 'task')}"
    if not shared:
        each = ", ".join(f"{n} of {_policy(source)}" for source, n in counts.items())
        over = f"mean over the tasks of each class ({each}; they share none)"
    elif len(shared) < curves["task"].nunique():
        over = f"mean over the {_count(count, 'task')} that all classes have learned"
    band = "Student's t interval (95 %) over tasks" if count > 1 else "Wilson's 95 % interval"
    caption = f"""Success without noise on held-out start states during RL: {over},
    {band}. A run that has stopped keeps its last value. At 0 the clones.
    Preset {preset}."""
    figure = figures.mean_learning(mean)
    return Finding("01_learning_curves", figure, mean, caption, " ".join(sentences))


def learning_by_task(curves: pd.DataFrame, preset: str) -> Finding:
    """The appendix of `learning`: every task's own curves."""
    rl = get_preset(preset).rl
    where = ", in training physics" if rl.physics == "training" else ""
    if where and rl.physics_check is not None:
        where += " until it misleads the policy"
    caption = f"""Success during RL, a panel a task. Without noise: on held-out start states, with
    Wilson's 95 % intervals over n episodes (n in the table); the clone is at 0. With noise: of the
    training episodes{where}, of which the first are cut short. Preset {preset}."""
    return Finding("01_learning_by_task", figures.learning_curves(curves), curves, caption)


def classes(runs: pd.DataFrame, preset: str) -> Finding | None:
    """The diffusion policy against the Gaussian, with its own rate and with the Gaussian's.

    runs: `experiments.finished_runs` of the experiments `seeds` and `rates`; None without a pair.
    """
    names = {
        "diffusion": "its own learning rate",
        "diffusion Gaussian's rate": "the Gaussian's rate",
    }
    found = differences(runs, "gaussian", {"Diffusion − Gaussian": names})
    if found is None:
        return None
    gaps, points, tests = found
    sentences = []
    for arm, name in names.items():
        told = []
        for measure, unit in (("success", "points of success"), ("jerk_rms", "m/s³ of jerk")):
            row = tests[(tests["arm"] == arm) & (tests["measure"] == measure)]
            if len(row):
                middle, low, high = _scaled(row.iloc[0], measure)
                value = with_interval(middle, low, high, unit)
                told.append(f"{value} {verdict(row['p_holm'].iloc[0])}")
        if told:
            sentences.append(f"With {name} it has {listed(told)}.")
    caption = _caption(runs, preset, "The diffusion policy against the Gaussian policy")
    figure = figures.gap_plot(gaps, points, _titles(gaps), better=BETTER)
    text = f"The diffusion policy ($p$ is corrected for {len(tests)} tests). {' '.join(sentences)}"
    return Finding("01_classes", figure, gaps, caption, text)


def ablations(runs: pd.DataFrame, preset: str) -> Finding | None:
    """What each setting changes against the base; runs: those of the experiment `ablations`."""
    groups = {
        group: {f"diffusion {name}": label for name, label in labels.items()}
        for group, labels in GROUPS.items()
    }
    found = differences(runs, "diffusion", groups)
    if found is None:
        return None
    gaps, points, _ = found
    wins = gaps[gaps["measure"] == "success"].set_index("label")
    lower = wins[wins["high"] < 0].sort_values("value")
    higher = wins[wins["low"] > 0].sort_values("value")
    jerk = gaps[(gaps["measure"] == "jerk_rms") & (gaps["low"] * gaps["high"] > 0)]
    quiet = runs[(runs["mode"] == "deterministic") & (runs["arm"] == "diffusion")]
    p = intervals.least_p(runs["seed"].nunique())
    raised = f"; these raise it: {_effects(higher, 'points')}" if len(higher) else ""
    text = (
        f"The base succeeds on {100 * quiet['success'].mean():.1f} %. Of {len(wins)} changes, "
        f"these lower success with an interval that excludes zero: {_effects(lower, 'points')}"
        f"{raised}. These change the jerk: {_effects(jerk.set_index('label'), 'm/s³')}. "
        f"With {runs['seed'].nunique()} seeds no sign-flip $p$ is below {p:.2g}; the base was "
        f"tuned.{_with_another_net(preset)}"
    )
    more = "No mark: too few successes. Arrows: the interval goes on. "
    caption = _caption(runs, preset, "One setting changed, against the base", more)
    figure = figures.gap_plot(gaps, points, _titles(gaps), better=BETTER, apart=NOISE)
    return Finding("01_ablations", figure, gaps, caption, text)


RESIDUAL = "diffusion epsilon leading sharp white slow, residual net"  # of experiment `epsilon`


def _with_another_net(preset: str) -> str:
    """What becomes of ε-prediction in DPPO's own net, where those runs are there."""
    runs = experiments.finished_runs(preset, "epsilon", "training")
    quiet = runs[runs["mode"] == "deterministic"] if len(runs) else runs
    residual = quiet[quiet["arm"].str.startswith(RESIDUAL)] if len(quiet) else quiet
    if residual.empty:
        return ""
    reached = " ".join(f"{100 * success:.0f}" for success in residual["success"])
    return (
        " With DPPO's residual net, white noise and a rate of 2e-4 epsilon reaches "
        f"{reached} %, by seed."
    )


def differences(
    runs: pd.DataFrame, base: str, groups: dict[str, dict[str, str]]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame] | None:
    """Differences of an experiment's arms to `base`, paired by task and seed, without noise.

    groups: heading → arm → label. Returns the rows and points of `figures.gap_plot`, and the tests
    (`experiments.effects`); None if no pair of runs is there.
    """
    quiet = runs[runs["mode"] == "deterministic"] if len(runs) else runs
    pairs = [(base, arm) for arms in groups.values() for arm in arms]
    measures = [name for name in MEASURED if name in quiet]
    tests = experiments.effects(quiet, pairs, measures) if len(quiet) else pd.DataFrame()
    if tests.empty:
        return None
    gaps, points = [], []
    wide = quiet.pivot(index=["task", "seed"], columns="arm", values=measures)
    for group, arms in groups.items():
        for arm, label in arms.items():
            for row in tests[tests["arm"] == arm].to_dict("records"):
                measure, name = row["measure"], {"group": group, "label": label}
                value = dict(zip(("value", "low", "high"), _scaled(row, measure)))
                gaps.append({**name, "arm": arm, "measure": measure, **value, "n": row["n"]})
                change = MEASURED[measure][1] * (wide[measure, arm] - wide[measure, base]).dropna()
                for (task, seed), each in change.items():
                    place = {"task": task, "seed": seed, "measure": measure, "value": each}
                    points.append({**name, **place})
    return pd.DataFrame(gaps), pd.DataFrame(points), tests


def _scaled(row, measure: str) -> list[float]:
    return [MEASURED[measure][1] * row[name] for name in ("difference", "low", "high")]


def _titles(gaps: pd.DataFrame) -> dict[str, str]:
    return {name: title for name, (title, _) in MEASURED.items() if name in set(gaps["measure"])}


def _caption(runs: pd.DataFrame, preset: str, what: str, more: str = "") -> str:
    tasks = _count(runs["task"].nunique(), "task")
    return f"""{what}: differences paired by task and seed ({tasks}, {runs["seed"].nunique()} seeds;
    a small mark each), their mean with Student's t interval (95 %). Played without noise from
    official start states. {more}Preset {preset}."""


def _effects(rows: pd.DataFrame, unit: str) -> str:
    digits = 0 if unit == "points" else 1
    named = [
        f"*{label}* ({row['value']:+.{digits}f} {unit})".replace("-", "−")
        for label, row in rows.iterrows()
    ]
    return listed(named)


def _sources(table: pd.DataFrame) -> list[str]:
    """The policy classes of a table, the diffusion policy first."""
    return sorted(set(table["source"]), key=lambda name: (name != "diffusion", name))


def _policy(source: str) -> str:
    return f"the {source if source != 'gaussian' else 'Gaussian'} policy"


def _range(counts: pd.Series) -> str:
    """ "3", or "1 to 3" where they differ."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _count(n: int, what: str) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    number = words[n] if n < len(words) else str(n)
    return f"{number} {what}{'' if n == 1 else 's'}"
