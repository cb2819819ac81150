"""What docs/laptop.md and README say of results is what the records say."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from policy_samples import ARMS
from scipy.stats import fisher_exact

from diffrl import experiments
from diffrl.base import intervals
from diffrl.base.arm import POLICY_MODES
from diffrl.evaluation import scores
from diffrl.evaluation.scores import compare, factorial, summarise
from diffrl.evidence import packed_table
from diffrl.experiments import EXPERIMENTS, effects, factorial_effects
from diffrl.presets import ALGORITHMS, get_preset

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_what_the_page_says_of_laptop_s_clones_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experts.csv")
    noise_free = table[table["mode"] == "deterministic"]
    clones = noise_free[noise_free["algorithm"] == "diffusion"]["clone_success"]
    assert len(clones) == 15
    assert 7 <= (clones > 0.7).sum() <= 8
    laptop = get_preset("laptop")
    counts = [laptop.of(task).demonstrations.count for task in laptop.tasks]
    assert (min(counts), max(counts)) == (1, 20)


def test_what_the_page_says_of_the_official_start_states_is_what_the_records_say(laptop_run):
    laptop = laptop_run
    experts = pd.read_csv(laptop / "experts.csv").query("algorithm == 'diffusion'")
    success = experts[experts["mode"] == "deterministic"].set_index("task")["success"]
    short = {"libero_spatial/0": 0.94, "libero_90/1": 0.9}
    assert success[[*short]].to_dict() == short
    assert success.drop([*short]).min() >= 0.98

    noise = pd.read_csv(laptop / "expert_noise.csv")
    each = noise.pivot(index=["algorithm", "mode", "task"], columns="noise_seed", values="success")
    latents = each.loc["diffusion", "deterministic"]
    assert np.ptp(latents.mean()) < 0.01
    assert np.ptp(latents.drop([*short]).to_numpy(), axis=1).max() < 0.041
    assert sorted(latents.loc["libero_spatial/0"]) == [0.86, 0.92, 0.94]
    for algorithm in ALGORITHMS:
        spans = np.ptp(each.loc[algorithm, "stochastic"].to_numpy(), axis=1)
        assert 0.07 <= spans.mean() < 0.085

    held_out = pd.read_csv(laptop / "tried" / "held_out.csv")
    assert (held_out["trials"] == 192).all()
    known = held_out.set_index(["task", "algorithm", "try"])["successes"]

    def chance(*of_try):  # p of a try's difference from the expert
        expert = known[(*of_try[:2], "expert")]
        return fisher_exact([(n, 192 - n) for n in (expert, known[of_try])]).pvalue

    goals = known["libero_90/1", "diffusion"]
    assert goals.idxmax() == "expert"
    bowl = known["libero_spatial/0", "diffusion"]
    assert len(bowl.drop("expert")) == 3
    assert [*bowl[bowl > bowl["expert"]].index] == ["more-demonstrations"]
    ahead = chance("libero_spatial/0", "diffusion", "more-demonstrations")
    assert ahead < 0.05 < 3 * ahead
    rival = ("libero_spatial/0", "gaussian")
    assert chance(*rival, "more-demonstrations") < 0.001
    shares = [goals["expert"], bowl["expert"], bowl["more-demonstrations"], *known[rival]]
    rounded = [0.98, 0.86, 0.94, 0.62, 0.94]
    assert [count / 192 for count in shares] == pytest.approx(rounded, abs=0.006)
    gaussian = pd.read_csv(laptop / "experts.csv").query("algorithm == 'gaussian'")
    gaussian = gaussian[gaussian["mode"] == "deterministic"].set_index("task")
    assert gaussian.loc[rival[0], "success"] < gaussian.loc[rival[0], "clone_success"]
    gap = success["libero_spatial/0"] - gaussian.loc[rival[0], "success"]
    assert gap == pytest.approx(0.3)
    folders = (
        laptop / "experts" / "libero_spatial-0" / "gaussian-seed0",
        laptop / "tried" / "libero_spatial-0-more-demonstrations-gaussian",
    )
    of_ten, of_twenty = (
        pd.read_csv(folder / "diagnostics.csv").query("measured > 0") for folder in folders
    )
    assert len(pd.read_csv(folders[0] / "diagnostics.csv")) == 36
    assert of_twenty["iteration"].iloc[0] == 5
    assert of_twenty["measured_success"].iloc[0] > of_ten["measured_success"].max()
    tried = pd.read_csv(laptop / "tried" / "libero_90-1-small-batches-constant" / "trials.csv")
    tried = tried.query("policy == 'expert' and mode == 'deterministic'")
    assert (tried["success"].sum(), len(tried)) == (49, 50)
    chosen = pd.read_csv(laptop / "experts" / "libero_spatial-0/diffusion-seed0/diagnostics.csv")
    measured = chosen.loc[chosen["measured"] > 0, "measured_success"]
    assert (len(measured), round(measured.max(), 2)) == (8, 0.96)


def test_what_the_page_says_of_the_vlas_is_what_the_records_say():
    """Its prose (and README's) has few numbers to compare, so each claim is repeated here."""
    folder = Path(__file__).parents[1] / "results" / "laptop"
    trials = pd.read_csv(folder / "vla_trials.csv")
    names = {
        "evaluation.csv": summarise(trials),
        "evaluation_pairs.csv": compare(trials),
        "evaluation_tasks.csv": summarise(trials, ("suite", "task", "source", "mode")),
        "evaluation_seeds.csv": summarise(trials, ("suite", "source", "mode", "training_seed")),
    }
    away = trials[trials["suite"] != "libero_object"].assign(suite="out of distribution")
    for name, function in (("effects.csv", scores.effects), ("evaluation_effects.csv", factorial)):
        names[name] = pd.concat(map(function, (trials, away)), ignore_index=True)
    gaps = pd.read_csv(folder / "effects.csv").set_index(["scope", "contrast"]).sort_index()
    kind = gaps.loc[("libero_object", "diffusion − gaussian")]
    assert (kind["low"] < 0 < kind["high"] < 12.6) & (kind["or_high"] > 2.004)
    taught = gaps.loc[("libero_object", "RL − demonstrator")]
    assert taught["low"] > 0
    assert taught["or_low"] > 1
    assert taught["p_tasks"] < 0.05
    assert gaps.loc[("out of distribution", "RL − demonstrator"), "low"] > 0
    tables = {name: pd.read_csv(folder / name) for name in names}
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, names[name], check_dtype=False, atol=1e-9)
    factors = pd.read_csv(folder / "evaluation_effects.csv").set_index(["suite", "effect"])
    own = trials[trials["suite"] == "libero_object"]
    assert (trials["status"] != "error").all()
    assert len(own) == 10 * 50 * 5 * 2
    assert (own.groupby(["task", "source", "mode", "training_seed"]).size() == 50).all()

    pairs = tables["evaluation_pairs.csv"].set_index(["suite", "first", "second"])
    seeds = pairs["by_seed"].str.split(expand=True).astype(float)
    arms = [f"{policy} {mode}" for policy in ALGORITHMS for mode in POLICY_MODES]
    for arm in arms:
        pair = pairs.loc[("libero_object", arm, "operator recorded")]
        assert (seeds.loc[pair.name] > 0).all()
        assert pair["p_holm"] < 0.05 < pair["p_tasks_holm"]
        assert int(pair["tasks"].split()[0]) in (7, 8, 9)
    for first, second in itertools.combinations(arms, 2):
        assert pairs.loc[("libero_object", first, second), "p_holm"] > 0.05
    kind = factors.loc[("libero_object", "diffusion − gaussian")]
    assert -0.03 < kind["low"] < 0 < kind["high"] < 0.03
    noise = factors.loc[("libero_object", "without noise − with it")]
    assert noise["low"] > 0
    assert 0.05 < noise["p_holm"] < 0.06
    assert all(float(gap) > 0 for gap in noise["by_seed"].split())

    def beats_all(arm, suite):
        """The pairs (n,) of an arm that is ahead of every other with each training seed."""
        mine = pairs.loc[suite].query("first == @arm or second == @arm")
        sign = np.where(mine.index.get_level_values("first") == arm, 1, -1)
        gaps = mine["by_seed"].str.split(expand=True).astype(float)
        assert (gaps.mul(sign, axis=0) > 0).all(axis=None)
        return mine.set_axis([a if b == arm else b for a, b in mine.index])

    words = beats_all("diffusion deterministic", "libero_object_lan")
    told = words.index[words["p_holm"] < 0.05]
    assert sorted(told) == [*(f"gaussian {mode}" for mode in POLICY_MODES), "operator recorded"]
    assert factors.loc[("libero_object_lan", "diffusion − gaussian"), "p_holm"] < 0.05
    looks = beats_all("gaussian deterministic", "libero_object_object")
    assert (looks["p_holm"] > 0.05).all()
    assert (pairs["p_tasks_holm"] > 0.05).all()
    done = trials[trials["status"] == "success"].groupby(["suite", "task"])["source"].nunique()
    assert "libero_object_swap" not in done
    assert done.loc["libero_object_task"].to_dict() == {"libero_object_task/1": 3}
    assert factors.loc[("out of distribution", "diffusion − gaussian"), "p_holm"] > 0.05
    beyond = trials[trials["suite"] != "libero_object"]
    assert (beyond.groupby(["suite", "task", "source", "mode", "training_seed"]).size() == 5).all()

    rate = tables["evaluation_tasks.csv"].set_index(["task", "source", "mode"])["success"]
    for task, ahead in (("libero_object/1", "gaussian"), ("libero_object/5", "diffusion")):
        behind = "diffusion" if ahead == "gaussian" else "gaussian"
        for mode in POLICY_MODES:
            assert rate[task, ahead, mode] - rate[task, behind, mode] > 0.05
    rates = tables["evaluation.csv"].set_index(["suite", "source", "mode"]).loc["libero_object"]
    for source, mode in rates.index:
        assert rates.loc[(source, mode), "low"] > scores.PAPER[source]


def test_what_the_page_says_of_the_factorial_is_what_the_records_say():
    """Its prose (and README's) has no numbers to compare, so each claim is repeated here."""
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experiments.csv")
    chosen = EXPERIMENTS["factorial"]
    names = [arm.name for arm in chosen.variants]
    runs = table[table["arm"].isin(names) & table["task"].isin(chosen.tasks)]
    objects, other = list(chosen.tasks[:2]), chosen.tasks[2]
    assert len(runs) == 2 * 72
    found = factorial_effects(runs, ("jerk_rms", "ldlj_cartesian", "steps", "success"))
    found = found.set_index(["mode", "measure", "effect"]).sort_index()
    policy, noise, fade = "diffusion − gaussian", "white − correlated", "faded − cut"
    for mode in ("deterministic", "stochastic"):
        jerk = found.loc[mode, "jerk_rms"]
        assert -jerk.loc[policy, "high"] < jerk.loc[policy, "low"] < 0  # more room on one side
        assert len(set(np.sign(jerk.loc[policy, list(chosen.tasks)]))) == 2
        assert jerk.loc[noise, "low"] > 0 > jerk.loc[fade, "high"]
        assert (jerk.loc[fade, list(chosen.tasks)] < 0).all()
        assert jerk.loc[[noise, fade], "difference"].abs().min() > jerk.loc[policy, "difference"]
        assert (jerk["n"] == 8).all()
        assert jerk.loc[noise, "p"] == 2 / 2**8  # each of the blocks
        assert jerk["p_holm"].min() == 7 * 2 / 2**8 > 0.05
        ldlj = found.loc[mode, "ldlj_cartesian"]
        assert ldlj.loc[noise, "high"] < 0 < ldlj.loc[fade, "high"]
        assert ldlj.loc[fade, "low"] < 0 < found.loc[(mode, "steps", fade), "low"]
    success = found.loc["deterministic", "success"]
    assert (success.loc[[noise, fade], "high"] < 0).all()
    assert (success.loc[[noise, fade], "p_holm"] < 0.05).all()
    interaction = success.loc["policy × hand-over"]
    assert interaction["difference"] > 0
    assert interaction["p_holm"] > 0.05

    quiet = runs[runs["mode"] == "deterministic"]
    base = quiet.pivot(
        index=["arm", "task", "seed"], columns="mode", values=["success", "jerk_rms"]
    )
    base = base.droplevel("mode", axis=1).loc[["diffusion", "gaussian"]]
    assert (base["success"].groupby("arm").mean() > 0.97).all()
    change = base["jerk_rms"].loc["diffusion"] - base["jerk_rms"].loc["gaussian"]
    by_task = change.groupby("task").mean()
    assert (by_task[objects] > 2).all()
    assert abs(by_task[other]) < 0.1
    pairs = [(name.replace("diffusion", "gaussian"), name) for name in names[:4]]
    paired = effects(quiet, pairs, ("jerk_rms", "jerk_at_90", "success"))
    assert len(paired) == 12  # the tests that the page says it corrects for
    row = paired[(paired["arm"] == "diffusion") & (paired["measure"] == "jerk_rms")].iloc[0]
    assert 0 < row["low"] < 0.1
    assert row["p_holm"] > 0.5
    mean = quiet.groupby("arm")["jerk_rms"].mean()
    for own in ("diffusion", "gaussian"):  # for both alike
        assert mean[own] < mean[f"{own} white"]
        assert mean[f"{own} fade"] < min(mean[own], mean[f"{own} white fade"])
        assert mean[f"{own} white fade"] < mean[f"{own} white"]
    rise = (quiet["jerk_kept"] - quiet["jerk_clone"]).groupby([quiet["task"], quiet["arm"]]).mean()
    assert (rise[objects] > 0).all()


def test_what_the_page_says_of_the_seeds_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experiments.csv")
    chosen = EXPERIMENTS["seeds"]
    runs = table[table["arm"].isin(ALGORITHMS) & table["task"].isin(chosen.tasks)]
    quiet = runs[runs["mode"] == "deterministic"]
    assert len(quiet) == 18
    assert np.isfinite(quiet["steps_to_90"]).groupby(quiet["arm"]).sum().tolist() == [9, 8]
    assert (quiet["clone_success"] >= 2 / 3).sum() == 14
    assert (quiet["jerk_kept"] - quiet["jerk_clone"]).groupby(quiet["arm"]).mean().min() > 0
    wide = quiet.pivot(index=["task", "seed"], columns="arm")
    ahead = {
        name: wide[name, "diffusion"] - wide[name, "gaussian"]
        for name in ("auc", "clone_success", "jerk_rms", "jerk_clone")
    }
    assert {name: (change > 0).sum() for name, change in ahead.items()} == {
        **{"auc": 8, "clone_success": 4, "jerk_rms": 8, "jerk_clone": 9}
    }
    assert ahead["jerk_rms"].groupby("task").mean().min() > 0
    found = effects(runs, [("gaussian", "diffusion")], (*experiments.SUCCESS, "jerk_rms"))
    found = found.set_index(["measure", "mode"]).sort_index()
    assert (found["difference"] > 0).all()
    assert found.loc["jerk_rms", "p_holm"].between(0.04, 0.05).all()
    assert (found.drop("jerk_rms")["p_holm"] > 0.05).all()
    assert len(set(chosen.tasks) & set(EXPERIMENTS["factorial"].tasks)) == 2  # six pairs are shared


def test_what_the_page_says_of_the_rates_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experiments.csv")
    equal, chosen = "diffusion Gaussian's rate", EXPERIMENTS["rates"]
    runs = table[table["arm"].isin([arm.name for arm in chosen.variants])]
    runs = runs[runs["task"].isin(chosen.tasks)]
    assert len(runs) == 27 * 2
    wide = runs.pivot(index=["mode", "task", "seed"], columns="arm", values="jerk_rms")
    closed = (
        (wide["diffusion"] - wide[equal]).groupby("mode").agg(["mean", lambda x: (x > 0).sum()])
    )
    left = (wide[equal] - wide["gaussian"]).groupby("mode").agg(["mean", lambda x: (x > 0).sum()])
    assert closed.iloc[:, 1].tolist() == left.iloc[:, 1].tolist() == [8, 8]
    share = (closed["mean"] / (closed["mean"] + left["mean"])).round(2)
    assert share.to_dict() == {"deterministic": 0.56, "stochastic": 0.42}
    pairs, measures = [("gaussian", equal), ("diffusion", equal)], ("success", "auc", "jerk_rms")
    found = effects(runs, pairs, measures).set_index(["measure", "base"]).sort_index()
    jerk = found.loc["jerk_rms"]
    assert (jerk["low"] * jerk["high"] > 0).all()
    assert (found["p_holm"] > 0.05).all()
    unseen = effects(runs[runs["task"] != "libero_object/0"], pairs, measures)
    less = unseen.set_index(["measure", "base"]).loc[("jerk_rms", "diffusion"), "difference"]
    more = jerk.loc["diffusion", "difference"]
    assert all(m < n < 0 for m, n in zip(more, less, strict=True))
    ahead = found[found["mode"] == "deterministic"].drop("jerk_rms")["difference"].unstack()
    assert (ahead["gaussian"] > 0).all()


def test_what_the_page_says_of_the_ablations_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experiments.csv")
    table = experiments.renamed(table)
    arms = [arm.name for arm in EXPERIMENTS["ablations"].variants]
    runs = table[table["arm"].isin(arms) & (table["task"] == "libero_object/0")]
    quiet = runs[runs["mode"] == "deterministic"]
    assert len(quiet) == 69
    epsilon = quiet["arm"].str.contains("epsilon|DPPO's defaults")
    noise, plan = quiet[epsilon], quiet[~epsilon]
    assert noise["success"].max() == 0.68
    assert not np.isfinite(noise["steps_to_90"]).any()
    assert plan["success"].min() == 0.82
    sharp = noise[noise["arm"].str.contains("sharp")].groupby("arm")["clone_success"].mean()
    assert sharp.between(0.3, 0.42).all()
    assert (plan["clone_success"] <= 0.42).sum() == 3
    wide = quiet.pivot(index="seed", columns="arm")
    at_base_rate = [arm for arm in arms if "epsilon" in arm]
    assert (wide["auc"][at_base_rate] < 0.12).all(axis=None)
    kept = [arm for arm in arms if "DPPO's defaults sharp" in arm]
    assert (wide["success"][kept].mean() > wide["clone_success"][kept].mean()).all()

    packed = Path(__file__).parents[1] / "results" / "laptop"
    rows = packed_table(packed, "experiments_diagnostics.csv").dropna(subset="success")
    faster = rows[rows["run"].str.startswith("diffusion-papers-settings-sharp-clone-faster/")]
    training = faster.groupby("run")["success"]
    ends = training.apply(lambda x: x.head(3).mean()), training.apply(lambda x: x.tail(3).mean())
    assert [end.round(2).tolist() for end in ends] == [[0.16, 0.37, 0.27], [0.67, 0.63, 0.60]]
    assert all(dict(ARMS[arm].changes).get("rl.noise_correlation", 0.8) for arm in at_base_rate)

    base, others = arms[0], [arm for arm in arms[1:] if arm in set(plan["arm"])]
    assert len(others) == 16
    change = {
        name: wide[name][others].sub(wide[name][base], axis=0)
        for name in ("success", "auc", "jerk_rms")
    }
    for arm in ("diffusion white", "diffusion fade"):
        assert (change["success"][arm] < 0).all()
    assert (~np.isfinite(wide["steps_to_90"]["diffusion fade"])).sum() == 1
    smoother = ["leading", "annealed", "synchronous", "floor 0.05", "Gaussian's rate"]
    rougher = ["U-Net", "50 demonstrations"]
    signs = change["jerk_rms"]
    assert [*signs.columns[(signs < 0).all()]] == [f"diffusion {name}" for name in smoother]
    assert [*signs.columns[(signs > 0).all()]] == [f"diffusion {name}" for name in rougher]
    found = effects(runs, [(base, arm) for arm in others], ("success", "auc", "jerk_rms"))
    found = found[found["mode"] == "deterministic"].set_index(["measure", "arm"])
    assert (found.loc["jerk_rms", "low"] < 0).all()
    assert (found.loc["jerk_rms", "high"] > 0).all()
    assert found.loc[("auc", "diffusion white"), "high"] < 0
    no_help = ["annealed", "chunk 4", "DDPM, last 10 of 20", "U-Net", "floor 0.1"]
    no_help += [f"{count} demonstrations" for count in (5, 10, 20, 50)]
    same = found.loc[[(m, f"diffusion {arm}") for m in ("success", "auc") for arm in no_help]]
    assert (same["low"] * same["high"] < 0).all()
    rougher_than_clone = wide["jerk_kept"][others].mean() - wide["jerk_clone"][others].mean()
    assert (rougher_than_clone > 0).all()
    noisy = runs[runs["mode"] == "stochastic"].groupby("arm")["success"].mean()
    assert noisy[base] - noisy["diffusion floor 0.1"] == pytest.approx(0.247, abs=0.001)


def test_what_the_page_says_of_the_data_is_what_the_records_say():
    """Its prose (and README's) has no numbers to compare, so each claim is repeated here."""
    folder = Path(__file__).parent.parent / "results" / "laptop"
    tests = pd.read_csv(folder / "quality_tests.csv").set_index(["first", "second", "measure"])
    tests = tests.sort_index()

    def better(first, second, *measures, sign=1):
        rows = tests.loc[(first, second)].loc[list(measures)]
        upwards = np.array([1 if name in dimensionless else -1 for name in measures])
        significant = rows["p_holm"] < 0.05
        return (significant & (sign * upwards * rows["difference"] > 0)).all()

    jerks = ("jerk_rms", "jerk_mean", "angular_jerk_rms")
    dimensionless = ("ldlj", "ldlj_cartesian", "sparc")
    consistent = ("action_variance", "warped_action_variance", "conditional_action_variance")
    consistent += ("position_variance",)
    for mode in ("deterministic", "stochastic"):
        gaussian, diffusion = f"gaussian/{mode}", f"diffusion/{mode}"
        claims = (*jerks, *dimensionless, "action_change", "conditional_action_variance")
        assert better(diffusion, gaussian, *claims, sign=-1)
        assert better(diffusion, gaussian, "steps", "gripper_switches")
    noisy = ("diffusion/deterministic", "gaussian/stochastic")
    assert better(*noisy, "position_variance", "warped_position_variance")
    assert (tests.loc[noisy].loc[["jerk_rms", "jerk_mean"], "difference"] > 0).all()
    for policy in ("gaussian/deterministic", "diffusion/deterministic"):
        assert better(policy, "operator/recorded", *consistent, *dimensionless, "angular_jerk_rms")
        corrected = tests.loc[(policy, "operator/recorded"), "p_holm"]
        assert (corrected.loc[["warped_position_variance", "endpoint_variance"]] > 0.05).all()
    assert better("gaussian/deterministic", "operator/recorded", *jerks)
    noise = ("diffusion/deterministic", "diffusion/stochastic")
    assert better(*noise, *consistent, *jerks, *dimensionless)
    ours = tests.loc[("diffusion/deterministic", "operator/recorded")]
    assert (ours.loc[["jerk_rms", "jerk_mean"], "difference"] > 0).all()
    values = pd.read_csv(folder / "quality.csv").set_index(["measure", "source", "mode", "task"])
    values = values.sort_index()
    for mode in ("deterministic", "stochastic"):
        of = {p: values["value"].loc[("jerk_rms", p, mode)] for p in ("diffusion", "gaussian")}
        less = (of["gaussian"] < of["diffusion"]).drop("all")
        assert sorted(less.index[~less]) == ["libero_goal/0", "libero_goal/7"]
        assert len(less) == 15


def readme_text():
    """README in one line."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    return " ".join(text.split()).replace("−", "-")


def test_what_readme_says_of_jerk_and_speed_is_what_the_records_say():
    root = Path(__file__).parent.parent
    table = pd.read_csv(root / "results" / "laptop" / "quality.csv")
    rows = table[(table["task"] != "all") & (table["mode"] == "deterministic")]
    means = rows.pivot_table(index="task", columns=["measure", "source"], values="value")

    def log_ratio(name):
        return np.log(means[name]["diffusion"] / means[name]["gaussian"])

    jerk, time, length = map(log_ratio, ("jerk_rms", "steps", "path_length"))
    assert len(jerk) == 15
    for gaps, said in (
        (jerk, "they have {:.2f} times the jerk of the Gaussian policy's data [{:.2f}, {:.2f}]"),
        (-3 * time, "Their higher speed alone gives a factor of {:.2f} [{:.2f}, {:.2f}]"),
        (length, "the length of their path {:.2f} [{:.2f}, {:.2f}]"),
        (
            jerk + 3 * time - length,
            "path length a factor of {:.2f} [{:.2f}, {:.2f}] is left, which",
        ),
    ):
        assert said.format(*np.exp(intervals.interval_over_tasks(gaps))) in readme_text()
    noisy = table[(table["mode"] == "stochastic") & (table["measure"] == "jerk_rms")]
    noisy = noisy[noisy["task"] != "all"].pivot(index="task", columns="source", values="value")
    factor = np.log(noisy["diffusion"] / noisy["gaussian"])
    tests = pd.read_csv(root / "results" / "laptop" / "quality_tests.csv")
    tests = tests[tests["measure"] == "jerk_rms"].set_index(["first", "second"])["p_tasks_holm"]
    quiet, loud = (
        tests[f"diffusion/{m}", f"gaussian/{m}"] for m in ("deterministic", "stochastic")
    )
    said = "with noise it is {:.2f} times [{:.2f}, {:.2f}], $p$ = {:.3f})"
    assert said.format(*np.exp(intervals.interval_over_tasks(factor)), loud) in readme_text()
    said = f"$p$ = {quiet:.3f} after correction for all 122 comparisons of quality"
    assert said in readme_text()
    report = (root / "docs" / "report.md").read_text(encoding="utf-8")
    assert f"{said}; with noise {loud:.3f})" in " ".join(report.split())


def test_what_readme_says_of_the_vlas_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "effects.csv")
    effects = table[table["scope"] == "libero_object"].set_index("contrast")
    interval = "{points:.1f} points{} [{low:+.1f}, {high:+.1f}]"
    taught, kind = effects.loc["RL − demonstrator"], effects.loc["diffusion − gaussian"]
    assert "+" + interval.format(" of success", **taught) in readme_text()
    assert "is " + interval.format("", **kind) in readme_text()
    assert (taught["tasks"], kind["tasks"]) == (10, 10)
    assert kind["p_tasks"] > 0.05
    paper = {name: 100 * (scores.PAPER["diffusion"] - scores.PAPER[name]) for name in scores.PAPER}
    alone = effects.loc["diffusion − demonstrator, without noise"]
    said = (
        f"is +{interval.format('', **alone)}; the paper reports {paper['human']:+.1f} there, over"
    )
    assert said in readme_text()
    corrected = dict(zip(effects.index, intervals.holm(effects["p_tasks"])))["RL − demonstrator"]
    assert len(effects) == 7
    for name in ("README.md", "docs/report.md"):
        text = " ".join((Path(__file__).parents[1] / name).read_text(encoding="utf-8").split())
        said = f"$p$ is {taught['p_tasks']:.3f}, and {corrected:.3f} after correction for the seven"
        assert said in text, name
    assert f"reports {paper['gaussian']:+.1f} points, which this" in readme_text()
    assert not kind["low"] <= paper["gaussian"] <= kind["high"]


def test_where_a_page_says_that_the_papers_gap_is_excluded_it_says_how_much_was_possible():
    folder = Path(__file__).parents[1] / "results" / "laptop"
    table = pd.read_csv(folder / "evaluation.csv").query("suite == 'libero_object'")
    most = 100 * (1 - table.loc[table["source"] == "gaussian", "success"].mean())
    said = f"Gaussian's data already reach {100 - most:.2f} %, so that at most +{most:.2f} points"
    kind = pd.read_csv(folder / "effects.csv").set_index(["scope", "contrast"])
    odds = "{odds_ratio:.2f} [{or_low:.2f}, {or_high:.2f}], does not exclude the paper's 2.00."
    odds = odds.format(**kind.loc[("libero_object", "diffusion − gaussian")])
    for name in ("README.md", "docs/report.md", "docs/laptop.md"):
        text = " ".join((folder.parents[1] / name).read_text(encoding="utf-8").split())
        assert f"But {'here ' * (name != 'docs/laptop.md')}the {said} were possible." in text, name
        assert f"dds ratio, {odds}" in text, name


def test_what_the_report_says_of_the_factorial_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experiments.csv")
    chosen = EXPERIMENTS["factorial"]
    runs = table[table["arm"].isin([variant.name for variant in chosen.variants])]
    runs = runs[runs["task"].isin(chosen.tasks)]
    found = factorial_effects(runs, ("jerk_rms",)).set_index(["mode", "effect"])
    found = found.loc["deterministic"]
    assert len(found) == 7
    report = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    report = " ".join(report.split()).replace("−", "-")
    for effect, said in (
        ("white − correlated", "white instead of correlated noise changes the jerk by"),
        ("faded − cut", "cross-faded chunks by"),
        ("diffusion − gaussian", "diffusion instead of Gaussian by"),
    ):
        row = found.loc[effect]
        interval = "{difference:+.1f} m/s³ [{low:+.1f}, {high:+.1f}]".format(**row)
        assert f"{said} {interval}" in report
        assert row["p_holm"] > 0.05
    least = 7 * 2 / 2 ** found["n"].max()
    said = (
        f"the eight pairs of task and seed that are left the smallest corrected $p$ is {least:.3f}"
    )
    assert (found["n"] == 8).all()
    assert said in report
