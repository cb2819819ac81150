"""Scores: rates, comparisons and effects of planned trials."""

import numpy as np
import pandas as pd
import pytest
from evaluation_samples import TASK

from diffrl.base.arm import Arm
from diffrl.evaluation import scores
from diffrl.evaluation.scores import (
    LADDER,
    beside_paper,
    compare,
    contrasts_by_task,
    effects,
    excluded,
    factorial,
    levels,
    mixtures,
    protocol,
    scaling,
    summarise,
    with_means,
)
from diffrl.evaluation.stage import COLUMNS
from diffrl.presets import VLAConfig

CLONED = [(kind, tail) for kind in ("diffusion", "gaussian") for tail in ("", "_clone")]
CLONED += [("diffusion", "_zero")]


def trials_table(outcomes: dict[str, str], task: str = TASK) -> pd.DataFrame:
    """A table with one row per letter: s success, f failure, e error."""
    status = {"s": "success", "f": "failure", "e": "error"}
    rows = [
        ["libero_object", task, source, "deterministic", 0, f"official/{i}", 0, status[x], 10, 1.0]
        for source, letters in outcomes.items()
        for i, x in enumerate(letters)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_errors_enter_no_rate_and_are_counted():
    row = summarise(trials_table({"diffusion": "sssfee"})).iloc[0]
    assert (row.trials, row.errors, row.successes) == (4, 2, 3)
    assert row.success == 0.75
    assert row.low < 0.75 < row.high


def test_arms_are_compared_on_the_same_start_states_only():
    table = trials_table({"diffusion": "ssssssss", "gaussian": "sffffffe", "operator": "ssssffff"})
    pairs = compare(table).set_index(["first", "second"])
    first = pairs.loc[("diffusion deterministic", "gaussian deterministic")]
    assert (first.pairs, first.only_first, first.only_second) == (7, 6, 0)
    assert np.isclose(first.difference, 6 / 7)
    assert np.isclose(first.p, 2 * 0.5**6)
    assert first.p_holm == 3 * first.p


def test_two_training_seeds_share_their_start_states_and_keep_their_own_rows():
    one = trials_table({"diffusion": "ssssssss", "gaussian": "ssssffff"})
    two = trials_table({"diffusion": "ssffssff", "gaussian": "ssffssff"}).assign(training_seed=1)
    alone, both = (compare(table).iloc[0] for table in (one, pd.concat([one, two])))
    assert (alone["by_seed"], both["by_seed"]) == ("+0.500", "+0.500 +0.000")
    assert both["pairs"] == 16
    assert np.isclose(both["difference"], 0.25)
    # the same two networks twice: as many pairs, but no more start states, so no narrower
    twice = compare(pd.concat([one, one.assign(training_seed=1)])).iloc[0]
    assert (twice["low"], twice["high"]) == (alone["low"], alone["high"])
    assert twice["p"] == pytest.approx(alone["p"])


def test_tasks_weigh_alike_in_a_difference_its_test_and_each_seed_s_where_errors_thin_one_out():
    rare = {"diffusion": "ssss" + 46 * "e", "gaussian": "ffff" + 46 * "e"}
    often = {"diffusion": 20 * "s" + 30 * "f", "gaussian": 30 * "s" + 20 * "f"}
    tables = [trials_table(rare), trials_table(often, TASK[:-1] + "1")]
    row = compare(pd.concat(tables)).iloc[0]
    assert row.difference == pytest.approx((1.0 - 0.2) / 2)
    assert row.by_seed == "+0.400"
    both = pd.concat([table.assign(training_seed=seed) for table in tables for seed in (0, 1)])
    assert compare(both).iloc[0].p == pytest.approx(2 / 2**4, abs=0.01)  # all four must turn


def test_levels_of_arms_that_met_different_trials_are_shown_on_the_shared_ones_too():
    alike = trials_table({"diffusion": "ssff", "gaussian": "ffss"})
    assert list(levels(alike)["met"]) == ["own", "own"]
    few = trials_table({"diffusion": "ssffff", "gaussian": "ff"})
    found = levels(few).set_index(["met", "source"])["success"]
    assert found["own", "diffusion"] == pytest.approx(1 / 3)
    assert (found["shared", "diffusion"], found["shared", "gaussian"]) == (1.0, 0.0)


def test_a_trial_that_ended_in_an_error_for_one_arm_is_none_that_all_have_met():
    table = trials_table({"diffusion": "ssffff", "diffusion:10": "sseeee"})
    points = scaling(table, 48).set_index("demonstrations")
    assert list(points["trials"]) == [2, 2]
    assert list(points["success"]) == [1.0, 1.0]


def four_arms(outcomes: dict[str, str]) -> pd.DataFrame:
    """As `trials_table`, of arms called ``source mode``."""
    table = trials_table(outcomes)
    arms = table["source"].str.split(expand=True)
    return table.assign(source=arms[0], mode=arms[1])


RL_ARMS = {
    "diffusion deterministic": "ssssssss",
    "diffusion stochastic": "ssssssff",
    "gaussian deterministic": "sssssfff",
    "gaussian stochastic": "sfffffff",
}


def test_the_effects_of_policy_and_noise_add_up_to_the_comparison_that_mixes_them():
    effects = factorial(four_arms(RL_ARMS)).set_index("effect")["difference"]
    assert np.isclose(effects["diffusion − gaussian"], ((8 - 5) + (6 - 1)) / 16)
    assert np.isclose(effects["without noise − with it"], ((8 - 6) + (5 - 1)) / 16)
    assert np.isclose(effects["interaction"], ((8 - 6) - (5 - 1)) / 8)
    pairs = compare(four_arms(RL_ARMS)).set_index(["first", "second"])["difference"]
    crossed = pairs["diffusion deterministic", "gaussian stochastic"]
    assert np.isclose(effects.iloc[:2].sum(), crossed)


def test_effects_need_all_four_arms_and_use_only_trials_without_an_error():
    three = {arm: letters for arm, letters in RL_ARMS.items() if arm != "gaussian stochastic"}
    assert factorial(four_arms(three)).empty
    table = four_arms(RL_ARMS | {"gaussian stochastic": "eeffffff"})
    assert factorial(table)["trials"].unique().tolist() == [6]


def test_one_bad_task_is_one_witness_against_a_policy_however_many_start_states_it_has():
    bad = four_arms({"diffusion deterministic": "s" * 50, "gaussian deterministic": "f" * 50})
    same = four_arms({"diffusion deterministic": "s" * 50, "gaussian deterministic": "s" * 50})
    others = [same.assign(task=f"libero_object/{k}") for k in range(1, 6)]
    row = compare(pd.concat([bad, *others])).iloc[0]
    assert (row["p"] < 1e-3, row["tasks"], row["p_tasks"]) == (True, "1 of 6", 1)


def test_variants_of_a_task_pooled_are_one_witness_for_a_policy():
    table = four_arms(RL_ARMS)
    variants = [table.assign(task=f"libero_object_{kind}/0") for kind in ("lan", "swap")]
    assert set(factorial(pd.concat(variants).assign(suite="both"))["tasks"]) <= {"0 of 1", "1 of 1"}
    other = table.assign(task="libero_goal_lan/0")  # the same number in another suite is no variant
    both = factorial(pd.concat([*variants, other]).assign(suite="both"))
    assert all(tasks.endswith("of 2") for tasks in both["tasks"])


def test_tests_over_tasks_are_corrected_for_their_number_as_those_over_start_states_are():
    tables = [four_arms(RL_ARMS).assign(task=f"libero_object/{k}") for k in range(10)]
    pairs = compare(pd.concat(tables))
    assert len(pairs) == 6
    assert pairs["p_tasks"].min() == pytest.approx(2 / 2**10)
    assert pairs["p_tasks_holm"].min() == pytest.approx(6 * 2 / 2**10)


def test_arms_that_never_differ_claim_no_interval_and_arms_without_a_trial_keep_their_row():
    table = trials_table({"diffusion": "ssss", "gaussian": "ssss", "operator": "eeee"})
    pairs = compare(table).set_index("second")
    assert pairs.loc["gaussian deterministic", ["difference", "p"]].tolist() == [0, 1]
    assert pairs.loc["gaussian deterministic", ["low", "high"]].isna().all()
    assert pairs.loc["operator deterministic", "pairs"].tolist() == [0, 0]
    assert pairs.loc["operator deterministic", "p_holm"].isna().all()


def test_a_mixture_is_compared_with_its_parts_alone():
    arms = {"operator recorded": "sfff", "diffusion deterministic": "ssff"}
    others = {"gaussian stochastic": "ffff", "diffusion stochastic": "ffff"}
    both = {"operator+diffusion recorded+deterministic": "sssf"}
    found = mixtures(four_arms(arms | others | both))
    (mixed,) = both
    assert found[["first", "second"]].values.tolist() == [[mixed, part] for part in arms]
    crossed = "gaussian+diffusion stochastic+deterministic"
    found = mixtures(four_arms(arms | others | {crossed: "ssff"}))
    assert found["second"].tolist() == ["gaussian stochastic", "diffusion deterministic"]
    assert mixtures(four_arms(arms | others)).empty


def test_gaps_beside_the_paper_s_are_those_to_diffusion_in_the_same_mode():
    pairs = compare(four_arms(RL_ARMS | {"operator recorded": "ssffffff"}))
    gaps = beside_paper(pairs).set_index(["source", "mode"])
    assert gaps["gap"].to_dict() == {
        ("gaussian", "deterministic"): 3 / 8,
        ("gaussian", "stochastic"): 5 / 8,
        ("operator", "recorded"): 6 / 8,
    }
    assert np.isclose(gaps.loc[("gaussian", "deterministic"), "paper"], 0.126)
    assert np.isclose(gaps.loc[("operator", "recorded"), "paper"], 0.053)
    assert np.isnan(gaps.loc[("gaussian", "stochastic"), "paper"])


def test_a_scaling_curve_counts_only_the_training_seeds_that_all_its_points_have():
    part = trials_table({"diffusion": "ssss", "diffusion:10": "sfff"})
    more = trials_table({"diffusion": "ffff"}).assign(training_seed=1)
    curve = scaling(pd.concat([part, more]), 50)
    assert curve["trials"].tolist() == [4, 4]
    assert curve["success"].tolist() == [0.25, 1.0]


def test_a_scaling_curve_counts_only_the_start_states_that_all_its_points_have():
    part = trials_table({"diffusion:10": "ssss", "diffusion": "ssssffff"})
    curve = scaling(part, 50)
    assert curve["trials"].tolist() == [4, 4]
    assert curve["success"].tolist() == [1.0, 1.0]


def test_the_protocol_says_how_many_trials_the_arms_have():
    table = trials_table({"diffusion": "ssssffff", "gaussian": "ssss"})
    assert "4–8 trials per task" in protocol(table, None)


def test_so_few_tasks_that_no_pair_could_be_significant_give_no_corrected_p():
    arms = {f"arm{i}": "s" * i + "f" * (8 - i) for i in range(8)}
    tasks = [f"libero_object/{i}" for i in range(6)]
    pairs = compare(pd.concat([trials_table(arms, task) for task in tasks]))
    assert (pairs["p_tasks"].dropna() >= 2 / 2**6).all()  # 28 pairs: never below 0.05
    assert pairs["p_tasks_holm"].isna().all()
    fewer = compare(pd.concat([trials_table({"a": "ss", "b": "ff"}, task) for task in tasks]))
    assert fewer["p_tasks_holm"].tolist() == [2 / 2**6]


def test_one_task_has_a_contrast_but_no_test_of_it():
    (row,) = effects(trials_table({"diffusion": "sssf", "gaussian": "sfff"})).to_dict("records")
    assert row["points"] == 50
    assert np.isnan([row["low"], row["high"], row["p_tasks"]]).all()


def test_equal_tasks_give_no_interval_of_the_odds_ratio_and_exclude_nothing():
    arms = {"diffusion": "sssf", "gaussian": "sffs"}
    table = effects(pd.concat([trials_table(arms, f"libero_object/{i}") for i in range(4)]))
    row = table.iloc[0]
    assert row["odds_ratio"] == pytest.approx(3.0)
    assert np.isnan([row["or_low"], row["or_high"]]).all()
    assert not excluded(table)["paper_odds_ratio_excluded"].any()


def test_every_planned_contrast_has_the_values_of_its_tasks():
    arms = [Arm("operator"), Arm("steady", "recorded")]
    arms += [Arm(f"{kind}{tail}", "deterministic") for kind, tail in CLONED]
    tables = []
    for place, arm in enumerate(arms):
        for task in ("libero_object/0", "libero_goal/1"):
            own = trials_table({arm.source: "s" * (place % 4) + "f" * 4}, task)
            tables.append(own.assign(mode=arm.mode, suite="mean_tasks"))
    table = pd.concat(tables)
    each = contrasts_by_task(table).groupby("contrast")["points"].mean()
    found = effects(table).set_index("contrast")["points"]
    assert set(LADDER) <= set(found.index) == set(each.index)
    assert each.to_dict() == pytest.approx(found.to_dict())


def test_a_scaling_curve_joins_the_parts_of_a_source_and_leaves_mixtures_out():
    outcomes = {"diffusion": "ssss", "diffusion:25": "sssf", "diffusion:10": "sfff"}
    curve = scaling(trials_table(outcomes | {"operator": "ssff", "operator+diffusion": "ssss"}), 50)
    assert set(curve["source"]) == {"diffusion"}
    assert curve["demonstrations"].tolist() == [10, 25, 50]
    assert curve["success"].tolist() == [0.25, 0.75, 1.0]


def test_the_protocol_is_told_in_one_line():
    table = trials_table({"diffusion": "sf", "gaussian": "ff"})
    line = protocol(table, VLAConfig(image_size=96, detail="reduced"))
    assert "official start states, 10 settle steps" in line
    assert "280 control steps" in line
    assert "2 trials per task" in line
    assert "pictures of 96 × 96 pixels in reduced detail" in line
    assert protocol(table, None).endswith("no pictures")


def test_planned_contrasts_have_their_points_odds_ratio_and_interval_over_tasks_by_hand():
    arms = RL_ARMS | {"operator recorded": "ssssffff"}
    easy = four_arms(arms)
    hard = four_arms(arms | {"operator recorded": "sfffffff"}).assign(task="libero_object/1")
    found = effects(pd.concat([easy, hard])).set_index("contrast")
    row = found.loc["RL − demonstrator"]  # 20 of 32 against 4 of 8, and against 1 of 8
    assert row["points"] == pytest.approx(100 * (0.125 + 0.5) / 2)
    half = 12.7062 * 100 * 0.375 / 2  # t.975 of one degree of freedom, two tasks
    assert (row["low"], row["high"]) == pytest.approx(
        (row["points"] - half, row["points"] + half), rel=1e-4
    )
    assert row["odds_ratio"] == pytest.approx((20 * 4 + 20 * 7) / (12 * 4 + 12 * 1))
    assert (row["p_tasks"], row["tasks"], row["seeds"]) == (0.5, 2, 1)
    kind = found.loc["diffusion − gaussian"]  # strata: without noise 8:5, with noise 6:1, twice
    assert kind["odds_ratio"] == pytest.approx((8 * 3 + 6 * 7) / (0 * 5 + 2 * 1))
    assert "diffusion − demonstrator, without noise" not in effects(four_arms(RL_ARMS))["contrast"]
    said = excluded(pd.DataFrame([{**kind, "contrast": kind.name, "low": -3.0, "high": 3.0,
                                   "or_low": 0.4, "or_high": 2.05}])).iloc[0]  # fmt: skip
    assert (said["zero"], said["paper_points_excluded"]) == (False, True)
    assert said["paper_odds_ratio"] == pytest.approx(2.0045, abs=1e-4)
    assert not said["paper_odds_ratio_excluded"]


def test_where_nothing_differs_a_contrast_has_no_interval_and_excludes_nothing():
    arms = dict.fromkeys([*RL_ARMS, "operator recorded"], "ffff")
    tables = [four_arms(arms).assign(task=f"libero_object/{k}") for k in range(3)]
    found = effects(pd.concat(tables))
    assert len(found) == len(scores.CONTRASTS)
    assert found[["low", "high", "odds_ratio", "or_low", "or_high"]].isna().all(axis=None)
    said = excluded(found)
    assert not said[["zero", "paper_points_excluded", "paper_odds_ratio_excluded"]].any(axis=None)


def test_means_weigh_every_suite_or_every_task_alike():
    suites = {  # suite: (task, outcomes)
        "libero_object": [(0, "ssss"), (1, "ssff")],
        "libero_goal": [(0, "ffff"), (1, "fffs"), (2, "ssss")],
    }
    table = pd.concat(
        trials_table({"diffusion": letters}, f"{suite}/{k}").assign(suite=suite)
        for suite, tasks in suites.items()
        for k, letters in tasks
    )
    found = with_means(table, tuple(suites)).set_index("suite")
    assert set(found["trained_on"]) == {"libero_object+libero_goal"}
    assert found.loc["libero_object", "success"] == 6 / 8
    assert found.loc["mean_suites", "success"] == pytest.approx((6 / 8 + 5 / 12) / 2)
    assert found.loc["mean_tasks", "success"] == pytest.approx((1 + 0.5 + 0 + 0.25 + 1) / 5)
    both, goal = found.loc["mean_suites"], found.loc["libero_goal"]
    below = np.hypot(6 / 8 - found.loc["libero_object", "low"], goal.success - goal.low) / 2
    assert both.low == pytest.approx(both.success - below)
    assert both.trials == found.loc["mean_tasks", "trials"] == 20
    one = with_means(table[table["suite"] == "libero_goal"], tuple(suites))
    assert set(one["suite"]) == {"libero_goal"}  # not all suites were played: no mean of them
    unseen = with_means(table, ("libero_object",))
    assert set(unseen["suite"]) == set(suites)


def test_the_ladder_s_contrasts_say_what_smoothness_cloning_and_rl_do():
    letters = {
        "operator recorded": "ssffffff",
        "steady recorded": "sssfffff",
        "diffusion_clone deterministic": "ssssffff",
        "diffusion deterministic": "ssssssff",
    }
    points = effects(four_arms(letters)).set_index("contrast")["points"]
    assert points["steady demonstrator − demonstrator"] == pytest.approx(12.5)
    assert points["diffusion clone − demonstrator"] == pytest.approx(25)
    assert points["diffusion − its clone"] == pytest.approx(25)
    assert points["diffusion − demonstrator, without noise"] == pytest.approx(50)
    assert not {"gaussian − its clone", "zero first latent − diffusion"} & set(points.index)


def test_a_mixture_at_equal_total_stands_beside_both_whole_sources():
    letters = {
        "operator:24+diffusion:24 recorded+deterministic": "ssssffff",
        "operator+diffusion recorded+deterministic": "ssssssff",
        "operator recorded": "ssffffff",
        "diffusion deterministic": "ssssssff",
    }
    pairs = mixtures(four_arms(letters))
    seen = pairs.groupby("first")["second"].agg(set).to_dict()
    assert seen == {name: set(list(letters)[2:]) for name in list(letters)[:2]}


def test_a_terminal_shows_rates_and_intervals_in_per_cent():
    trials = pd.DataFrame({"suite": "a", "source": "x", "mode": "recorded", "task": ["a/0", "a/1"]})
    trials = trials.assign(status=["success", "failure"])
    head, row = scores.readable(scores.summarise(trials)).splitlines()
    assert head.endswith("successes success [95 % Wilson] 95 % over tasks")
    assert " ".join(row.split()).endswith("1 50.0 % [9.5, 90.5] [0.0, 100.0]")
    alone = scores.readable(scores.summarise(trials[:1]))
    assert " ".join(alone.split()).endswith("1 100.0 % [20.7, 100.0] –")
