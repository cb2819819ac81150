"""Every number that docs/laptop.md and the report state is the records' number, rounded."""

import re
from pathlib import Path

import pandas as pd

from diffrl import experiments
from diffrl.base.intervals import holm
from diffrl.experiments import EXPERIMENTS, effects, factorial_effects
from diffrl.findings import training

ROOT = Path(__file__).parents[1]
LAPTOP = ROOT / "results" / "laptop"


def said(preset="laptop"):
    """The page of a preset's findings in one line, with hyphens as minus signs."""
    text = (ROOT / "docs" / f"{preset}.md").read_text(encoding="utf-8")
    return " ".join(text.split()).replace("−", "-")


def gap(row, unit, digits=1, scale=1.0):
    """`+2.6 m/s³ [+1.2, +4.1]`: a difference and its interval."""
    low, high, value = (scale * row[name] for name in ("low", "high", "difference"))
    return f"{value:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def runs_of(name):
    table = pd.read_csv(LAPTOP / "experiments.csv")
    chosen = EXPERIMENTS[name]
    table = table[table["arm"].isin([variant.name for variant in chosen.variants])]
    return table[table["task"].isin(chosen.tasks)]


def test_the_page_states_the_numbers_of_the_seeds():
    measures = (*experiments.SUCCESS, "jerk_rms")
    found = effects(runs_of("seeds"), [("gaussian", "diffusion")], measures)
    found = found.set_index(["mode", "measure"]).loc["deterministic"]
    text = said()
    assert f"by {gap(found.loc['auc'], '', 2)}" in text
    tests = notebook_1()
    assert f"($p$ = {tests['diffusion', 'auc']:.2f}, corrected for eight tests)" in text
    assert gap(found.loc["success"], " points", scale=100) in text
    assert f"roughly**: {gap(found.loc['jerk_rms'], ' m/s³ of jerk')}" in text
    assert f"this is not significant ($p$ = {tests['diffusion', 'jerk_rms']:.3f})" in text
    assert tests["diffusion", "jerk_rms"] > 0.05
    assert found.loc["jerk_rms", "p_holm"] < 0.05  # for the six tests of the log's day


def notebook_1():
    """The corrected p of the eight tests of notebook 1, by arm and measure."""
    arms = {"diffusion": "own", "diffusion Gaussian's rate": "the Gaussian's"}
    tests = training.differences(runs_of("rates"), "gaussian", {"": arms})[2]
    assert len(tests) == 8
    assert set(tests["measure"]) == {"success", "auc", "jerk_rms", "steps"}
    return tests.set_index(["arm", "measure"])["p_holm"]


def test_the_page_states_the_numbers_of_the_rates():
    runs, own = runs_of("rates"), "diffusion Gaussian's rate"
    pairs = [("gaussian", own), ("diffusion", own)]
    found = effects(runs, pairs, ("success", "auc", "jerk_rms"))
    found = found.set_index(["mode", "measure", "base"]).sort_index()
    jerk = found.loc[("deterministic", "jerk_rms")]
    quiet = runs[runs["mode"] == "deterministic"].groupby("arm")[["success", "jerk_rms"]].mean()
    text = said()
    assert f"rate the diffusion policy has {gap(jerk.loc['diffusion'], ' m/s³ of jerk')}" in text
    row = jerk.loc["gaussian"]
    value, low, high = (f"{row[name]:+.1f}" for name in ("difference", "low", "high"))
    assert f"stays {value} m/s³ [{low}, {high}] rougher" in text
    share = jerk.loc["diffusion", "difference"] / (
        jerk.loc["diffusion", "difference"] - jerk.loc["gaussian", "difference"]
    )
    assert f"That is {100 * share:.0f} % of its distance" in text
    assert len(found) == 10
    family = f"$p$ = {jerk.loc['diffusion', 'p_holm']:.2f}, corrected for the ten tests"
    assert f"Neither is significant: {family}" in text
    assert f"$p$ = {notebook_1()[own, 'jerk_rms']:.2f}, corrected for notebook 1's eight" in text
    report = " ".join((ROOT / "docs" / "report.md").read_text(encoding="utf-8").split())
    ends = [f"{-jerk.loc['diffusion', name]:.1f}" for name in ("difference", "high", "low")]
    less = "policy has {} m/s³ [{}, {}] less jerk than with its own, and still ".format(*ends)
    assert less + f"{value[1:]} [{low[1:]}, {high[1:]}] more than the Gaussian policy." in report
    success = 100 * quiet["success"]
    assert f"{success[own]:.1f} % against {success['diffusion']:.1f} % with its own" in text
    assert found.loc[("deterministic", "success", "diffusion"), "p_holm"] > 0.05


def test_the_page_states_the_numbers_of_the_experts():
    experts = pd.read_csv(LAPTOP / "experts.csv").query("mode == 'deterministic'")
    means = 100 * experts.groupby("algorithm")[["success", "clone_success"]].mean()
    for algorithm, form in (
        ("diffusion", "succeed on {success:.1f} % of the official start states, from "
                      "{clone_success:.1f} % of their clones"),
        ("gaussian", "the Gaussian's on {success:.1f} %, from {clone_success:.1f} %"),
    ):  # fmt: skip
        assert form.format(**means.loc[algorithm]) in said()
    change = experts["success"] - experts["clone_success"]
    assert (len(change), (change > 0).sum(), (change == 0).sum()) == (30, 28, 1)
    worse = experts[change < 0].iloc[0]
    name = f"Gaussian on {worse['task']}, from {100 * worse['clone_success']:.0f} to"
    assert worse["algorithm"] == "gaussian"
    assert f"one less ({name} {100 * worse['success']:.0f} %)" in said()


def test_the_page_states_the_numbers_of_the_ablations():
    runs = experiments.renamed(pd.read_csv(LAPTOP / "experiments.csv"))
    runs = runs[runs["task"] == "libero_object/0"]
    found = effects(runs, [("diffusion", "diffusion white")], ("auc",))
    row = found.set_index("mode").loc["deterministic"]
    assert gap(row, " of the area under the curve", 2) in said()
    noisy = runs[runs["mode"] == "stochastic"].query("seed > 0").groupby("arm")["success"].mean()
    cost = noisy["diffusion"] - noisy["diffusion floor 0.1"]
    assert f"costs the noisy mode {100 * cost:.0f} points" in said()


def test_the_page_states_the_numbers_of_the_data_sets():
    tests = pd.read_csv(LAPTOP / "quality_tests.csv").set_index(["first", "second", "measure"])
    tests = tests.sort_index()
    classes = tests.loc[("diffusion/deterministic", "gaussian/deterministic")]
    text = said()
    assert f"have {gap(classes.loc['jerk_rms'], ' m/s³ of RMS jerk')}" in text
    assert classes.loc["jerk_rms", "tasks"] == "13 of 15"
    for measure, form in (
        ("steps", "{:.1f} steps quicker [{:.1f}, {:.1f}]"),
        ("ldlj_cartesian", "differs by only {:.2f} [{:.2f}, {:.2f}]"),
    ):
        row = classes.loc[measure]
        assert form.format(-row["difference"], -row["high"], -row["low"]) in text
    assert (classes["p_tasks_holm"] > 0.05).all()
    jerk = tests.loc[("diffusion/deterministic", "operator/recorded", "jerk_rms")]
    values = "{difference:.1f} m/s³ higher [{low:.1f}, {high:.1f}]".format(**jerk)
    assert f"RMS jerk is {values}" in text


def test_the_page_states_the_numbers_of_the_factorial():
    runs = runs_of("factorial")
    found = factorial_effects(runs, ("jerk_rms", "success")).set_index(
        ["mode", "measure", "effect"]
    )
    jerk, success = (found.loc[("deterministic", name)] for name in ("jerk_rms", "success"))
    text = said()
    row = jerk.loc["diffusion − gaussian"]
    values = [f"{row[name]:+.1f}" for name in ("difference", "low", "high")]
    assert "{} m/s³ for the diffusion policy [{}, {}]".format(*values) in text
    assert f"noise adds {gap(jerk.loc['white − correlated'], ' m/s³')}" in text
    assert f"changes it by {gap(jerk.loc['faded − cut'], ' m/s³')}" in text
    quiet = runs[runs["mode"] == "deterministic"]
    base = effects(quiet, [("gaussian", "diffusion")], ("jerk_rms",)).iloc[0]
    assert gap(base, " m/s³") in text
    for effect, form in (
        ("white − correlated", "costs {:.1f} points of success [{:.1f}, {:.1f}]"),
        ("faded − cut", "cross-fading {:.1f} [{:.1f}, {:.1f}]"),
    ):
        row = -100 * success.loc[effect, ["difference", "high", "low"]].astype(float)
        assert form.format(*row) in text


def test_the_page_states_the_numbers_of_the_evaluation():
    table = pd.read_csv(LAPTOP / "effects.csv").rename(columns={"points": "difference"})
    table = table.set_index(["scope", "contrast"])
    text = said()
    taught = table.loc[("libero_object", "RL − demonstrator")]
    assert f"began from**: {gap(taught, ' points')}" in text
    seven = table.loc["libero_object", "p_tasks"]
    corrected = dict(zip(seven.index, holm(seven)))["RL − demonstrator"]
    said_p = f"($p$ = {taught['p_tasks']:.3f} uncorrected, {corrected:.3f} corrected for the seven"
    assert said_p in text
    kind = table.loc[("libero_object", "diffusion − gaussian")]
    values = [f"{kind['difference']:+.2f}", f"{kind['low']:+.1f}", f"{kind['high']:+.1f}"]
    assert "its effect is {} points [{}, {}]".format(*values) in text
    odds = "{odds_ratio:.2f} [{or_low:.2f}, {or_high:.2f}]".format(**kind)
    assert f"Its odds ratio, {odds}," in text
    away = table.loc[("out of distribution", "diffusion − gaussian")]
    assert f"class's effect is {gap(away, ' points')}" in text
    away = table.loc[("out of distribution", "RL − demonstrator")]
    assert f"by {gap(away, ' points')} ($p$ = {away['p_tasks']:.3f}, uncorrected)" in text
    factors = pd.read_csv(LAPTOP / "evaluation_effects.csv").set_index(["suite", "effect"])
    noise = factors.loc[("libero_object", "without noise − with it")]
    shares = 100 * noise[["difference", "low_tasks", "high_tasks"]].astype(float)
    assert "costs {:.1f} points [{:.1f}, {:.1f}] over tasks".format(*shares) in text
    assert f"Uncorrected its $p$ is {noise['p_tasks']:.3f}; corrected for the three effects" in text
    each = f"it is {noise['p_tasks_holm']:.2f} over tasks and {noise['p_holm']:.3f} over start"
    assert each in text
    rates = pd.read_csv(LAPTOP / "evaluation.csv").set_index(["suite", "source", "mode"])["success"]
    words = rates["libero_object_lan", "diffusion", "deterministic"]
    looks = rates["libero_object_object", "gaussian", "deterministic"]
    assert f"reach {100 * words:.0f} %; over start states" in text
    assert f"at {100 * looks:.0f} %, and not significantly" in text


def test_the_report_states_what_readme_and_the_page_state():
    """Its numbers are theirs, which the tests above compare with the records."""
    report = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").split("## Limits")[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = said() + " ".join(readme.split()).replace("−", "-")
    findings = " ".join(report.split("## ", 1)[1].split()).replace("−", "-")
    intervals = re.findall(r"\[[-+\d., ]+\]", findings)
    shares = re.findall(r"\d[\d.]* %", findings)
    assert (len(intervals), len(shares)) == (11, 12)
    known = known.replace("+", "")
    assert [part for part in intervals + shares if part.replace("+", "") not in known] == []
