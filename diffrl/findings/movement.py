"""Notebooks 02 and 03: what was recorded and thrown away, and how the data move."""

import numpy as np
import pandas as pd

from diffrl import figures
from diffrl.base.arm import POLICY_MODES, Arm
from diffrl.base.intervals import interval_over_tasks
from diffrl.experiments import factorial_effects
from diffrl.findings.finding import BETTER, Finding, listed, signed, times, verdict, with_interval
from diffrl.findings.training import _count

GAPS = {  # the planned comparisons, in the order of the figure
    "Diffusion − Gaussian, without noise": ("diffusion-deterministic", "gaussian-deterministic"),
    "Diffusion − Gaussian, with noise": ("diffusion-stochastic", "gaussian-stochastic"),
    "Diffusion, with − without noise": ("diffusion-stochastic", "diffusion-deterministic"),
    "Gaussian, with − without noise": ("gaussian-stochastic", "gaussian-deterministic"),
    "Diffusion − demonstrator": ("diffusion-deterministic", "operator-recorded"),
    "Gaussian − demonstrator": ("gaussian-deterministic", "operator-recorded"),
}
MOVED = {
    "jerk_rms": "Jerk, RMS (m/s³)",
    "ldlj_cartesian": "Log dimensionless jerk, path",
    "steps": "Steps to success",
    "conditional_action_variance": "Action variance given state",
}
EFFECTS = {
    "diffusion − gaussian": "diffusion instead of Gaussian",
    "white − correlated": "white instead of correlated noise",
    "faded − cut": "cross-faded instead of cut chunks",
}
FACTORIAL = """## Is it the policy class?

Data sets of one policy each cannot answer this. A factorial experiment can: policy × exploration
noise (correlated over the chunk, white) × hand-over between chunks (cut, cross-faded), on the same
tasks and seeds. An effect is a contrast of the eight arms of one task and seed.
`python -m diffrl experiment factorial` runs it."""
SHORT = {  # of the effects, in the figure
    "diffusion − gaussian": "Diffusion − Gaussian",
    "white − correlated": "white − correlated noise",
    "faded − cut": "cross-faded − cut chunks",
}
WAYS = {  # of the factorial: what both policies share
    "": "correlated noise, cut",
    " fade": "correlated noise, faded",
    " white": "white noise, cut",
    " white fade": "white noise, faded",
}


# -- notebook 02 -----------------------------------------------------------------------------------
def thrown_away(record: pd.DataFrame, preset: str) -> Finding:
    """The share of attempts that failed; record: `generation.csv`, of the preset's tasks."""
    played = record["episodes"] + record["failures"]
    shares = record.assign(share=record["failures"] / played.clip(lower=1))
    mean = shares.groupby(["source", "mode"])["share"].mean()
    told = [f"{Arm(*arm).label}: {100 * mean[arm]:.1f} %" for arm in figures.arm_order(record)]
    errors = int(record["errors"].sum())
    text = f"Thrown away on average over tasks: {'; '.join(told)}. "
    text += f"Attempts whose physics diverged: {errors} of {int(record['attempts'].sum())}."
    caption = f"""Attempts from fresh start states that failed and are not in the data: a dot per
    task ({record["task"].nunique()}), mean with Student's t interval (95 %) over tasks. Preset
    {preset}: up to {int(record["episodes"].max())} successes a source and task."""
    figure = figures.share_strips(shares, "attempts thrown away (%)")
    return Finding("02_thrown_away", figure, shares, caption, text)


def commands(actions: pd.DataFrame, preset: str) -> Finding:
    """What the sources command on one task; actions: `figures.action_statistics`' rows."""
    moving = actions[actions["dimension"] < 6]
    spread = moving.groupby("source")["std"].mean()
    ordered = [source for source, _ in figures.arm_order(actions.assign(mode="recorded"))]
    told = listed([f"{figures.arm_label(source)} {spread[source]:.2f}" for source in ordered])
    caption = f"""Commands of each source on {actions["suite"].iloc[0]}, experts without noise:
    mean, one standard deviation (thick) and 1-99 % range (thin) over the moving steps. *Human* is
    LIBERO's whole suite, published moments. No interval: it describes what was recorded. Preset
    {preset}."""
    text = f"The mean standard deviation of the six motion commands: {told} (full command = 1)."
    return Finding("02_actions", figures.action_statistics(actions), actions, caption, text)


# -- notebook 03 -----------------------------------------------------------------------------------
def against_demonstrator(summary: pd.DataFrame, preset: str) -> Finding:
    """Every measure of the RL data against the demonstrator's; summary: `quality.csv`."""
    base = next(a for a in figures.arm_order(summary) if a.mode == "recorded")
    changes = figures.quality_changes(summary, base)
    sentences = []
    for source in ("diffusion", "gaussian"):
        own = changes[(changes["source"] == source) & (changes["mode"] == "deterministic")]
        if own.empty:
            continue
        better, worse = own[own["high"] < 0], own[own["low"] > 0]
        count = f"{len(better)} of {len(own)} measures are better than the demonstrator's"
        names = listed(
            [f"{_uncapital(r.label)} ({signed(r.percent, 0)} %)" for r in worse.itertuples()]
        )
        label = Arm(source, "deterministic").label
        sentences.append(f"**{label}**: {count}; worse: {names}.")
    tasks = int(changes["tasks"].max())
    caption = f"""Change of each measure against the demonstrator's data in per cent: geometric mean
    over {_count(tasks, "task")}; blue is better: smoother (above the first line), shorter (between
    the lines), more consistent (below). Bold: the 95 % interval over tasks excludes zero.
    Successful episodes only. Preset {preset}."""
    figure = figures.quality_heatmap(changes)
    return Finding("03_summary", figure, changes, caption, " ".join(sentences))


def _uncapital(label: str) -> str:
    return label[0].lower() + label[1:]


def gaps(summary: pd.DataFrame, preset: str) -> Finding:
    """The planned comparisons in four measures; summary: `quality.csv`."""
    table, points = quality_gaps(summary)
    titles = {name: MOVED[name] for name in dict.fromkeys(table["measure"])}
    tasks = points["task"].nunique()
    caption = f"""Differences of the data sets, a dot per task ({tasks}), their mean with Student's
    t interval (95 %) over tasks; no correction for several comparisons. Successful episodes. Preset
    {preset}."""
    figure = figures.gap_plot(table, points, titles, better=BETTER)
    return Finding("03_gaps", figure, table, caption, jerk_sentence(summary))


def quality_gaps(summary: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows and points of `figures.gap_plot`: planned comparisons, over tasks.

    Their tests are those of ``quality_tests.csv``, corrected for all comparisons of quality.
    """
    rows, points = [], []
    for measure in MOVED:
        wide = _by_task(summary, measure)
        for label, (first, second) in GAPS.items():
            if not {first, second} <= set(wide):
                continue
            change = (wide[first] - wide[second]).dropna()
            if change.empty:
                continue
            value = dict(zip(("value", "low", "high"), interval_over_tasks(change)))
            rows.append({"label": label, "measure": measure, **value, "n": len(change)})
            for task, each in change.items():
                points.append({"label": label, "measure": measure, "task": task, "value": each})
    return pd.DataFrame(rows), pd.DataFrame(points)


def _by_task(summary: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The mean of one measure: a row per task, a column per arm."""
    own = summary[(summary["measure"] == measure) & (summary["task"] != "all")]
    return own.assign(arm=own["source"] + "-" + own["mode"]).pivot(
        index="task", columns="arm", values="value"
    )


def jerk_sentence(summary: pd.DataFrame) -> str:
    """How the diffusion policy's jerk compares with the Gaussian's, and at equal speed.

    At equal speed and path length the measure is each episode's jerk · T³ / path length; older
    records lack it, and have it made of the tasks' means.
    """
    names = ("jerk_rms", "steps", "path_length", "dimensionless_jerk")
    log = {name: np.log(_by_task(summary, name)) for name in names}
    sentences = []
    for mode in POLICY_MODES:
        arms = (f"diffusion-{mode}", f"gaussian-{mode}")
        if not set(arms) <= set(log["jerk_rms"]):
            continue
        jerk, time, length = ((log[n][arms[0]] - log[n][arms[1]]).dropna() for n in names[:3])
        still = jerk + 3 * time - length
        if set(arms) <= set(known := log["dimensionless_jerk"]):
            still = (known[arms[0]] - known[arms[1]]).dropna()
        plain = times(*np.exp(interval_over_tasks(jerk)))
        equal = times(*np.exp(interval_over_tasks(still)))
        name = {"deterministic": "Without", "stochastic": "With"}[mode]
        sentences.append(
            f"{name} noise the diffusion policy's data have {plain} the jerk of the Gaussian's "
            f"over {_count(len(jerk), 'task')}; at equal speed and path length {equal}."
        )
    return " ".join(sentences)


def paths(table: pd.DataFrame, task: str, preset: str) -> Finding:
    """Paths of one task; table: `figures.path_table`."""
    start = figures.shared_start_state(table)
    caption = f"""End-effector paths on {task} from above (top) and from the front (bottom), all
    successes of each arm ({_episodes(table)}); black, from dot to square: start state {start}. What
    leaves the box of 99 % of all positions is cut off. Preset {preset}."""
    return Finding("03_paths", figures.end_effector_paths(table, start), table, caption)


def _episodes(table: pd.DataFrame) -> str:
    each = table.drop_duplicates(["source", "mode", "start_state"])
    counts = each.groupby(["source", "mode"]).size()
    return f"n = {counts.min()}" + (f" to {counts.max()}" if counts.nunique() > 1 else "")


def phases(profiles: pd.DataFrame, task: str, preset: str) -> Finding:
    """Speed and variance over phase on one task; profiles: `figures.phase_profiles`."""
    variance = profiles[profiles["quantity"] == "action variance"]
    mean = variance.groupby(["source", "mode"])["value"].mean()
    told = [f"{Arm(*arm).label} {mean[arm]:.3f}" for arm in figures.arm_order(variance)]
    caption = f"""Speed of the hand and variance of the six motion commands (full command = 1; log
    axis, cut below) over phase, the share of an episode's duration, on {task}. Bands: 80 % of the
    episodes (speed), 95 % bootstrap interval over episodes (variance); with noise: dashed, no
    bands. Preset {preset}."""
    text = f"Mean variance over phase: {listed(told)}."
    return Finding("03_phases", figures.phase_curves(profiles), profiles, caption, text)


def factorial(runs: pd.DataFrame, preset: str) -> Finding | None:
    """Effects of policy, noise and hand-over; runs: of the experiment `factorial`."""
    if runs.empty:
        return None
    measures = ("jerk_rms", "ldlj_cartesian", "steps", "success")
    effects = factorial_effects(runs, measures)
    effects = effects[effects["mode"] == "deterministic"] if len(effects) else effects
    if effects.empty:
        return None
    tasks = list(effects.columns[effects.columns.get_loc("p_holm") + 1 :])
    factor = np.where(effects["measure"] == "success", 100, 1)
    numbers = ["difference", "low", "high", *tasks]
    effects = effects.assign(**{name: factor * effects[name] for name in numbers})
    gaps = effects.rename(columns={"difference": "value", "effect": "label"})
    crossed = gaps["label"].str.contains("×")
    gaps = gaps.assign(group=np.where(crossed, "Interactions", "Main effects"))
    points = gaps.melt(["label", "measure"], tasks, "task", "value_of_task")
    titles = {name: MOVED.get(name, "Success (points)") for name in measures}
    caption = f"""Effects when the policies play without noise: mean over pairs of
    {_count(len(tasks), "task")} and {runs["seed"].nunique()} seeds with Student's t interval
    (95 %), and the mean on each task. {len(runs) // 2}
    runs on official start states. Preset {preset}."""
    points = points.rename(columns={"value_of_task": "value"})
    shown = (t.assign(label=t["label"].replace(SHORT)) for t in (gaps, points))
    figure = figures.gap_plot(*shown, titles, better=BETTER)
    text = "Jerk: " + _told(gaps, "jerk_rms", "m/s³")
    text += " Success: " + _told(gaps, "success", "points")
    text += " $p$ is corrected for seven effects."
    return Finding("03_factorial_effects", figure, effects, caption, text)


def _told(gaps: pd.DataFrame, measure: str, unit: str) -> str:
    rows = gaps[gaps["measure"] == measure].set_index("label")
    told = []
    for effect, words in EFFECTS.items():
        if effect in rows.index:
            row = rows.loc[effect]
            value = with_interval(row["value"], row["low"], row["high"], unit)
            told.append(f"{words} {value} {verdict(row['p_holm'])}")
    return "; ".join(told) + "."


def ways(runs: pd.DataFrame, preset: str) -> Finding | None:
    """Diffusion − Gaussian in each cell of the factorial, paired by task and seed."""
    if runs.empty:
        return None
    quiet = runs[runs["mode"] == "deterministic"]
    rows, points = [], []
    for measure in ("jerk_rms", "jerk_at_90", "success"):
        wide = quiet.pivot(index=["task", "seed"], columns="arm", values=measure)
        for way, label in WAYS.items():
            if not {f"diffusion{way}", f"gaussian{way}"} <= set(wide):
                continue
            change = (wide[f"diffusion{way}"] - wide[f"gaussian{way}"]).dropna()
            change = 100 * change if measure == "success" else change
            if len(change) < 2:
                continue
            value = dict(zip(("value", "low", "high"), interval_over_tasks(change)))
            shared = {"group": "Diffusion − Gaussian", "label": label, "measure": measure}
            rows.append({**shared, **value, "n": len(change)})
            for (task, _), each in change.items():
                points.append({"label": label, "measure": measure, "task": task, "value": each})
    if not rows:
        return None
    titles = {
        "jerk_rms": "Jerk in the end (m/s³)",
        "jerk_at_90": "Jerk at the first 90 % (m/s³)",
        "success": "Success (points)",
    }
    table = pd.DataFrame(rows)
    caption = f"""Diffusion − Gaussian where both move in the same way: a small mark per task and
    seed, the mean with Student's t interval (95 %) over them. *At the first 90 %* compares policies
    that are equally good. Preset {preset}."""
    figure = figures.gap_plot(table, pd.DataFrame(points), titles, better=BETTER)
    return Finding("03_factorial_ways", figure, table, caption)
