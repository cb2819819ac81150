"""Notebooks 04 and 05: what the VLAs learn, and which data train the better one."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from diffrl import figures
from diffrl.base.arm import Arm
from diffrl.base.intervals import holm, least_p
from diffrl.evaluation import scores
from diffrl.figures.style import of_arm
from diffrl.figures.vla import loss_curves, predicted_chunks
from diffrl.findings.finding import Finding, listed, signed, verdict, with_interval
from diffrl.findings.training import _count, _range
from diffrl.presets import VLAConfig

SCALING = """## Fewer demonstrations, and mixed ones

`python -m diffrl train-vla --further` trains VLAs on the first demonstrations of each task, and on
two sources that are drawn from equally often. All have the same number of optimiser steps and play
the same trials."""
BEYOND = """## Out of distribution

LIBERO-PRO plays LIBERO's tasks with other words (`lan`), other looks of the things (`object`),
changed places (`swap`) and other goals (`task`). A routine that is tied to places should fail under
`swap`, and a model that does not listen under `task`. Success under `lan` alone shows neither."""

TOLD = {  # contrasts in words; where none was registered, these stand in the text
    "RL − demonstrator": "RL's data teach the VLA {} compared with the demonstrator's",
    "diffusion − gaussian": "Diffusion − Gaussian is {}",
    "without noise − with it": "Collecting without noise instead of with it is worth {}",
}
FACTORIAL = "three effects"  # those of the factorial: policy, noise and their interaction
CHANGED = {  # what a suite of LIBERO-PRO changes
    **{"lan": "other words", "object": "other looks"},
    **{"swap": "changed places", "task": "other goals"},
}


# -- notebook 04 -----------------------------------------------------------------------------------
def losses(table: pd.DataFrame, config: VLAConfig, preset: str) -> Finding:
    """The loss of each VLA on its own data; table: `vla.stage.losses_of`."""
    last = table[table["step"] == table["step"].max()]
    mean = last.groupby(["source", "mode"])["held_out"].mean()
    told = [f"{Arm(*arm).label} {mean[arm]:.3f}" for arm in figures.arm_order(table)]
    text = f"Held-out loss at the end: {listed(told)}. **This is no ranking**: consistent data are "
    text += "easier to predict, and only success in notebook 5 says which teach more."
    counts = table.groupby(["source", "mode"])["training_seed"].nunique()
    alike = counts.nunique() == 1
    seeds = _count(counts.max(), "training seed") if alike else f"{_range(counts)} training seeds"
    same = "both of the averaged weights" if "train" in table else "thin: of the current weights"
    caption = f"""Flow-matching loss of the compact VLA on each source's own data: training (thin)
    and {config.held_out} held-out episodes of each task (bold; at most 64 frames), {same}; mean
    over {seeds}, no interval. The VLA sees
    {scores.pictures_in_words(config)}. Preset {preset}."""
    return Finding("04_losses", loss_curves(table), table, caption, text)


def predictions(samples: pd.DataFrame, config: VLAConfig, preset: str) -> Finding:
    """What a VLA would do beside what an episode did; samples: `vla.stage.predictions_of`."""
    arms = figures.arm_order(samples)
    best = [arm for arm in arms if arm == Arm("diffusion", "deterministic")] or arms
    shown = samples[of_arm(samples, *best[0])]
    error = _error(samples)
    told = [f"{arm.label} {error[tuple(arm)]:.2f}" for arm in arms]
    text = "Mean distance of a sampled motion command from the episode's (full command = 1): "
    text += f"{listed(told)}, each on its own source's episode."
    caption = f"""Chunks sampled by the VLA trained on {best[0].label} (seed {config.seeds[0]};
    thin, {samples["sample"].max() + 1} samples) and what a held-out episode (black, n = 1) did at
    three moments. The VLA sees {scores.pictures_in_words(config)}. Preset {preset}."""
    return Finding("04_predictions", predicted_chunks(shown), samples, caption, text)


def _error(samples: pd.DataFrame) -> pd.Series:
    keys = ["source", "mode", "moment", "step", "dimension"]
    moving = samples[samples["dimension"] < 6]
    done = moving[moving["sample"] < 0].set_index(keys)["value"]
    drawn = moving[moving["sample"] >= 0].join(done.rename("done"), on=keys)
    return (drawn["value"] - drawn["done"]).abs().groupby([drawn["source"], drawn["mode"]]).mean()


# -- notebook 05 -----------------------------------------------------------------------------------
def gaps(trials: pd.DataFrame, preset: str, protocol: str) -> Finding | None:
    """The contrasts between sources over tasks, beside the paper's; first what was registered.

    trials: of the suites that the data are of, whose tasks are taken together. None where the arms
    of all contrasts are missing.
    """
    plan = scores.REGISTERED.get(preset.partition(":")[0], {})
    table, points = contrast_rows(trials, plan)
    if table.empty:
        return None
    tasks = points["task"].nunique()
    named = table["label"].map(_capital)
    figure = figures.gap_plot(
        table.assign(measure="points", label=named),
        points.assign(measure="points", label=points["label"].map(_capital)),
        {"points": "success of the VLA: first data − second data (points)"},
        digits=1,
        width=6.2,
    )
    families = {name: family for family, names in plan.items() for name in names}
    sizes = Counter(families.get(name, "") for name in table["label"])
    factors = scores.factorial(scores.pooled(trials)).set_index("effect")["p_tasks_holm"]
    sentences = []
    for contrast in families or TOLD:
        for row in table[table["label"] == contrast].itertuples():
            words = TOLD.get(contrast, _capital(contrast) + " is {}")
            told = words.format(with_interval(row.value, row.low, row.high, "points"))
            told += f" over {_count(row.tasks, 'task')} "
            family = families.get(contrast, "")
            if not family and contrast in factors:
                told += verdict(float(factors[contrast]), FACTORIAL)
            else:
                told += verdict(row.p_holm, _count(sizes[family], f"{family} contrast".strip()))
            sentences.append(f"{told}{_beside_paper(row, trials)}.")
    caption = f"""Differences in success of a compact VLA trained on one source each: a dot per task
    ({tasks}), mean with Student's t interval (95 %) over tasks; bars: the paper's gaps, of π0 on
    130 tasks, its people beside our demonstrator. {_capital(protocol)}; training seeds:
    {_range(table["seeds"])}.{_shared(trials)} Preset {preset}."""
    return Finding("05_success", figure, table, caption, " ".join(sentences))


def _beside_paper(row, trials: pd.DataFrame) -> str:
    """What a contrast's interval says of the paper's gap; of odds where the gap has no room."""
    if not np.isfinite([row.paper, row.low, row.high]).all():
        return ""
    strata = scores.CONTRASTS[row.label]
    arms = [Arm.parse(name) for _, seconds in strata for name in seconds]
    rates = scores.summarise(trials, scores.ARM).set_index(scores.ARM)["success"]
    level = 100 * float(np.mean([rates[tuple(arm)] for arm in arms]))
    if level + row.paper <= 100:
        says = "includes" if row.low <= row.paper <= row.high else "excludes"
        return f"; the interval {says} the paper's {signed(row.paper)}"
    text = f"; the paper's {signed(row.paper)} has no room above {level:.1f} %"
    if not np.isfinite([row.or_low, row.or_high]).all():
        return text
    says = "includes" if row.or_low <= row.paper_odds_ratio <= row.or_high else "excludes"
    odds = f"{row.odds_ratio:.2f} [{row.or_low:.2f}, {row.or_high:.2f}]"
    return f"{text}, and the odds ratio, {odds}, {says} the paper's {row.paper_odds_ratio:.2f}"


def _shared(trials: pd.DataFrame) -> str:
    """A caption's sentence where not all arms have met the same trials."""
    counts = trials.groupby(scores.ARM).size()
    few = " Not all arms have as many: each comparison is on the trials that its arms share."
    return few if counts.nunique() > 1 else ""


def _capital(contrast: str) -> str:
    """ "Diffusion − Gaussian, with noise" of a contrast's name; a protocol as a sentence."""
    text = contrast.replace("gaussian", "Gaussian").replace("with it", "with noise")
    return text[0].upper() + text[1:]


def contrast_rows(
    trials: pd.DataFrame, plan: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows and points of `figures.gap_plot` for the contrasts over all tasks.

    plan: families of contrasts that were registered, in their order. Holm's correction is within a
    family; the contrasts that are of none are one more, and come last.
    """
    trials = scores.pooled(trials)
    effects = scores.effects(trials)
    if effects.empty:
        return effects, pd.DataFrame()
    paper = scores.excluded(effects)[["paper_points", "paper_odds_ratio"]]
    table = effects.rename(columns={"contrast": "label", "points": "value"}).reset_index(drop=True)
    table = table.join(paper.rename(columns={"paper_points": "paper"}))
    ranks = {name: rank for rank, names in enumerate(plan.values()) for name in names}
    rank = table["label"].map(ranks).fillna(len(plan))
    families = [part for _, part in table.groupby(rank)]
    corrected = [holm(part["p_tasks"], least_p(part["tasks"])) for part in families]
    table = pd.concat(families, ignore_index=True).assign(p_holm=np.concatenate(corrected))
    each = scores.contrasts_by_task(trials).rename(columns={"contrast": "label", "points": "value"})
    return table, each


def tasks(trials: pd.DataFrame, preset: str, protocol: str) -> Finding | None:
    """Success per task against the demonstrator's; None without a demonstrator."""
    shared = trials[scores.met_by_all(trials, ["task"], scores.ARM)]
    rates = scores.summarise(shared, ("suite", "task", *scores.ARM))
    arms = figures.arm_order(rates)
    base = next((arm for arm in arms if arm.mode == "recorded"), None)
    if base is None or len(arms) < 2:
        return None
    rate = rates.set_index(["task", "source", "mode"])["success"].unstack(["source", "mode"])
    told = []
    for arm in arms:
        if arm != base:
            ahead = int((rate[tuple(arm)] > rate[tuple(base)]).sum())
            told.append(f"{arm.label} on {ahead}")
    text = f"Of {_count(len(rate), 'task')} the model is ahead of the demonstrator's with "
    text += f"{listed(told)}. A task's data are of one expert, so a cell is that expert's way."
    caption = f"""Success per task: of the VLA of the demonstrator's data in per cent, and of the
    others in points above that. n = {rates["trials"].max()} trials a cell; intervals:
    `05_tasks.csv` of `numbers.zip`. {_capital(protocol)}.{_shared(trials)} Preset {preset}."""
    return Finding("05_tasks", figures.success_differences(rates, base), rates, caption, text)


def beyond(other: pd.DataFrame, preset: str, protocol: str) -> Finding | None:
    """Success on suites that no source has data of; None where none is played."""
    if other.empty:
        return None
    rates = scores.summarise(other)
    seeds = scores.summarise(other, ("suite", *scores.ARM, "training_seed"))
    told = []
    for suite, own in rates.groupby("suite"):
        best = own[own["success"] == own["success"].max()]
        spread = f"{100 * own['success'].min():.0f} to {100 * own['success'].max():.0f} %"
        if own["success"].max() == 0:
            told.append(f"`{suite}`: no trial of any source succeeds")
        else:
            ahead = [f", {Arm(row.source, row.mode).label} ahead" for row in best.itertuples()]
            told.append(f"`{suite}`: {spread}{ahead[0] if len(ahead) == 1 else ''}")
    text = "; ".join(told) + "."
    pooled = other.assign(suite="out of distribution")
    kind = scores.factorial(pooled).set_index("effect").reindex(["diffusion − gaussian"]).iloc[0]
    if np.isfinite(kind["difference"]):
        points, low, high = (
            100 * float(kind[n]) for n in ("difference", "low_tasks", "high_tasks")
        )
        gap = with_interval(points, low, high, "points")
        text += f" Over all of them diffusion − Gaussian is {gap} "
        text += f"{verdict(float(kind['p_tasks_holm']), FACTORIAL)}."
    caption = f"""Success on LIBERO-PRO's suites, which no source has data of: Wilson's 95 %
    intervals over trials, a dot per training seed. {_capital(protocol)}. Preset {preset}."""
    titles = {suite: CHANGED.get(suite.rpartition("_")[2], "") for suite in rates["suite"]}
    titles = {suite: f"{words}\n{suite}".strip() for suite, words in titles.items()}
    figure = figures.success_forest(rates, seeds, titles)
    return Finding("05_out_of_distribution", figure, rates, caption, text)


def scaling(played: pd.DataFrame, whole: int, preset: str, protocol: str) -> Finding | None:
    """Success over the number of demonstrations; None where only one number was tried.

    played: trials of the suites that the data are of, whose tasks are taken together; whole:
    demonstrations of the full data sets.
    """
    curve = scores.scaling(scores.pooled(played), whole)
    if curve.empty:
        return None
    caption = f"""Success over the number of demonstrations per task, Wilson's 95 % intervals over
    n = {curve["trials"].max()} trials, the same at all points of a curve. {_capital(protocol)}.
    Preset {preset}."""
    told = []
    for (source, mode), own in curve.groupby(["source", "mode"], sort=False):
        few, many = (own.loc[own["demonstrations"].agg(f)] for f in ("idxmin", "idxmax"))
        told.append(
            f"{Arm(source, mode).label} {100 * few['success']:.0f} % with "
            f"{int(few['demonstrations'])} and {100 * many['success']:.0f} % with "
            f"{int(many['demonstrations'])}"
        )
    text = f"Success by the number of demonstrations a task: {listed(told)}."
    return Finding("05_scaling", figures.scaling_curve(curve), curve, caption, text)
