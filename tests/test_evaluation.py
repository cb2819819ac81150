"""Evaluation: planned trials, records that depend on nothing else, errors apart from failures."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from diffrl import artifacts, evaluation, scores
from diffrl.errors import UserError
from diffrl.evaluation import COLUMNS, Arm, Job, evaluate, plan
from diffrl.presets import ALGORITHMS, MODES, VLAConfig, get_preset
from diffrl.rl.rollout import in_blocks
from diffrl.scores import (
    beside_paper,
    compare,
    effects,
    excluded,
    factorial,
    mixtures,
    protocol,
    scaling,
    summarise,
)
from diffrl.vla import adapters, openpi
from diffrl.vla.adapters import BLOCK, Trial, open_policy
from diffrl.vla.fit import model_folder
from diffrl.vla.play import play

TASK = "libero_object/0"
EXPERTS = "experts/libero_object-0"  # of preset laptop


# ---- plans and numbers -----------------------------------------------------------------------


def test_a_plan_names_each_task_s_first_official_start_states_in_order():
    trials = plan(["libero_goal/7", TASK], 2)
    assert trials == [
        Trial("libero_goal/7", "official/0", 0),
        Trial("libero_goal/7", "official/1", 0),
        Trial(TASK, "official/0", 0),
        Trial(TASK, "official/1", 0),
    ]
    assert plan([TASK], 1, seed=3) == [Trial(TASK, "official/0/fixtures-3", 3)]


def test_a_preset_plays_its_own_tasks_and_a_few_trials_of_the_further_suites():
    laptop = get_preset("laptop")
    trials = evaluation.plan_of(laptop)
    assert trials[0] == Trial(TASK, "official/0", 0)
    own = [trial for trial in trials if trial.task in laptop.vla_tasks]
    assert len(own) == 10 * laptop.evaluation.trials
    others = {trial.task.split("/")[0] for trial in trials} - {"libero_object"}
    assert others == set(laptop.evaluation.suites)
    assert len(trials) == len(own) + 4 * 10 * laptop.evaluation.suite_trials


@pytest.mark.parametrize("trials", [0, 51])
def test_more_trials_than_official_start_states_are_refused(trials):
    with pytest.raises(UserError, match="50 official start"):
        plan([TASK], trials)


def test_a_trial_that_is_asked_for_twice_is_planned_once():
    assert plan([TASK, "libero_goal/7", TASK], 2) == plan([TASK, "libero_goal/7"], 2)
    smoke = get_preset("smoke")
    twice = replace(smoke, evaluation=replace(smoke.evaluation, suites=("libero_object",)))
    trials = evaluation.plan_of(twice)
    assert len(set(trials)) == len(trials) == 10 * smoke.evaluation.suite_trials


def test_unknown_suites_tasks_and_policies_are_refused_by_name():
    with pytest.raises(UserError, match="libero_objects"):
        evaluation.tasks_of(["libero_objects"])
    with pytest.raises(UserError, match="libero_object/10"):
        plan(["libero_object/10"], 1)
    with pytest.raises(UserError, match="robot"):
        open_policy("robot:arm")
    with pytest.raises(UserError, match="not complete"):
        open_policy("compact:")
    with pytest.raises(UserError, match="must be numbers"):
        open_policy("openpi:ws://127.0.0.1:1?model=m&timeout=soon")


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


def test_two_training_seeds_share_their_start_states_and_are_told_apart():
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


def test_the_policy_and_the_noise_are_told_apart_and_add_up_to_the_comparison_that_mixes_them():
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


def test_a_scaling_curve_joins_the_parts_of_a_source_and_leaves_mixtures_out():
    outcomes = {"diffusion": "ssss", "diffusion:25": "sssf", "diffusion:10": "sfff"}
    curve = scaling(trials_table(outcomes | {"operator": "ssff", "operator+diffusion": "ssss"}), 50)
    assert set(curve["source"]) == {"diffusion"}
    assert curve["demonstrations"].tolist() == [10, 25, 50]
    assert curve["success"].tolist() == [0.25, 0.75, 1.0]


def test_what_notebook_05_says_of_laptop_is_what_the_records_say():
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
    for name, function in (("effects.csv", effects), ("evaluation_effects.csv", factorial)):
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
    arms = [f"{policy} {mode}" for policy in ALGORITHMS for mode in MODES]
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
    assert sorted(told) == [*(f"gaussian {mode}" for mode in MODES), "operator recorded"]
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
        for mode in MODES:
            assert rate[task, ahead, mode] - rate[task, behind, mode] > 0.05
    rates = tables["evaluation.csv"].set_index(["suite", "source", "mode"]).loc["libero_object"]
    for source, mode in rates.index:
        assert rates.loc[(source, mode), "low"] > scores.PAPER[source]


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


def test_blocks_make_a_row_independent_of_its_company_and_place():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 96), torch.nn.GELU(), torch.nn.Linear(96, 56))
    rows = torch.randn(2 * BLOCK + 3, 40)
    with torch.no_grad():
        together = in_blocks(net, rows, block=BLOCK)
        alone = torch.cat([in_blocks(net, row[None], block=BLOCK) for row in rows])
        order = torch.randperm(len(rows))
        shuffled = in_blocks(net, rows[order], block=BLOCK)
    assert torch.equal(together, alone)
    assert torch.equal(together[order], shuffled)


# ---- openpi's wire -----------------------------------------------------------------------------


def test_messages_have_the_bytes_of_openpi_s_own_client():
    message = {
        "observation/state": np.arange(3, dtype=np.float32),
        "prompt": "go",
        "n": np.float64(2.5),
        "flag": True,
    }
    golden = (  # openpi_client 0.1.2, msgpack_numpy.Packer().pack
        "84b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c40c0000"
        "00000000803f00000040c4056474797065a33c6634c40573686170659103a670726f6d7074a2676fa16ecb40"
        "04000000000000a4666c6167c3"
    )
    assert openpi.pack(message).hex() == golden
    again = openpi.unpack(bytes.fromhex(golden))
    assert np.array_equal(again["observation/state"], message["observation/state"])
    assert again["n"] == 2.5


def test_an_array_that_contradicts_itself_is_refused():
    lie = {b"__ndarray__": True, b"data": b"\x00" * 8, b"dtype": "<f8", b"shape": [7]}
    with pytest.raises(ValueError, match="reshape"):
        openpi.unpack(openpi.pack({"actions": lie}))
    with pytest.raises(ValueError, match="cannot be sent"):
        openpi.pack({"x": np.array([object()])})


@pytest.fixture
def serve():
    """Start `openpi_server.py` with a behaviour; returns its address."""
    children = []

    def start(behaviour: str, *arguments: str) -> str:
        script = Path(__file__).with_name("openpi_server.py")
        command = [sys.executable, str(script), behaviour, *arguments]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        children.append(child)
        return f"ws://127.0.0.1:{int(child.stdout.readline())}"

    yield start
    for child in children:
        child.kill()
        child.wait()


class Seen:
    """An observation of n robots at rest."""

    def __init__(self, n: int):
        self.eef_pos = np.zeros((n, 3))
        self.eef_quat = np.tile([1.0, 0.0, 0.0, 0.0], (n, 1))
        self.gripper_qpos = np.zeros((n, 2))


def ask(policy, trials: list[Trial]) -> np.ndarray:
    for trial in trials:
        policy.begin(trial, "pick up the alphabet soup")
    images = np.zeros((len(trials), 2, 256, 256, 3), np.uint8)
    return policy.act(Seen(len(trials)), images, trials)


def test_a_sound_server_s_actions_are_executed(serve, tmp_path):
    recorded = np.random.default_rng(0).uniform(-1, 1, (40, 7))
    np.save(tmp_path / "actions.npy", recorded)
    policy = open_policy(f"openpi:{serve('replay', str(tmp_path / 'actions.npy'))}?model=replay")
    trial = Trial(TASK, "official/0", 0)
    assert np.array_equal(ask(policy, [trial])[0], recorded[:5])
    assert np.array_equal(ask(policy, [trial])[0], recorded[5:10])
    assert not policy.failures
    assert policy.metadata == {"robot": "test"}


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("nan", "not finite"),
        ("shape", r"shape \(10, 6\)"),
        ("text", "out of memory"),
        ("garbage", "cannot be used"),
        ("silent", "within 0.5 s"),
        ("mute", "within 0.5 s"),
        ("frozen", "within 0.5 s"),
        ("liar", "greeting"),
    ],
)
def test_a_lying_or_slow_server_gives_errors_that_name_it_and_no_hang(serve, behaviour, message):
    address = serve(behaviour)
    policy = open_policy(f"openpi:{address}?model=lies&timeout=0.5")
    policy.sent_size = 2048 if behaviour == "frozen" else 224  # more than the wire itself holds
    trials = [Trial(TASK, f"official/{i}", 0) for i in range(6)]
    actions = ask(policy, trials)
    assert actions.shape == (6, 5, 7)
    assert set(policy.failures) == set(trials)
    assert address in policy.failures[trials[0]]
    assert re.search(message, policy.failures[trials[0]])
    assert "not asked again after 3 failures" in policy.failures[trials[-1]]


def test_a_server_s_model_has_a_name_by_which_its_trials_are_kept():
    with pytest.raises(UserError, match=r"openpi:ws://127\.0\.0\.1:9\?model=<name>"):
        open_policy("openpi:ws://127.0.0.1:9")
    one, two = (open_policy(f"openpi:ws://127.0.0.1:9?model={name}") for name in ("one", "two"))
    assert one.fingerprint != two.fingerprint
    assert two.fingerprint == open_policy("openpi:ws://127.0.0.1:10?model=two").fingerprint


def test_a_server_that_is_not_there_gives_errors_and_advice():
    policy = open_policy("openpi:ws://127.0.0.1:9?model=none&timeout=2")
    trial = Trial(TASK, "official/0", 0)
    ask(policy, [trial])
    assert "start it, or correct host and port" in policy.failures[trial]


PROXIES = ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "socks_proxy", "no_proxy")


@pytest.fixture
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_server_on_this_machine_is_asked_past_any_proxy(serve, tmp_path, monkeypatch, no_proxies):
    for name in PROXIES[:-1]:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    np.save(tmp_path / "actions.npy", np.zeros((40, 7)))
    address = serve("replay", str(tmp_path / "actions.npy"))
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        policy = open_policy(f"openpi:{address.replace('127.0.0.1', host)}?model=near")
        ask(policy, [Trial(TASK, "official/0", 0)])
        assert not policy.failures


def test_a_proxy_that_fails_is_named_without_its_password(monkeypatch, no_proxies):
    monkeypatch.setenv("https_proxy", "http://me:secret@127.0.0.1:9")
    policy = open_policy("openpi:ws://policy.invalid:8000?model=far&timeout=2")
    trial = Trial(TASK, "official/0", 0)
    ask(policy, [trial])
    told = policy.failures[trial]
    assert "through the proxy http://127.0.0.1:9," in told
    assert "no_proxy=policy.invalid" in told
    assert "secret" not in told


def test_a_proxy_that_needs_a_package_is_told(monkeypatch, no_proxies):
    monkeypatch.setitem(sys.modules, "python_socks", None)
    monkeypatch.setitem(sys.modules, "python_socks.sync", None)
    monkeypatch.setenv("socks_proxy", "http://127.0.0.1:9")
    policy = open_policy("openpi:ws://policy.invalid:8000?model=far&timeout=2")
    trial = Trial(TASK, "official/0", 0)
    ask(policy, [trial])
    assert "python-socks" in policy.failures[trial]
    assert "socks5h://127.0.0.1:9" in policy.failures[trial]


@pytest.mark.parametrize(
    ("address", "variables", "proxy"),
    [
        ("ws://host:80", {}, None),
        ("ws://host:80", {"http_proxy": "http://a:1"}, "http://a:1"),
        ("wss://host", {"http_proxy": "http://a:1"}, None),
        ("wss://host", {"https_proxy": "http://a:1", "http_proxy": "http://b:1"}, "http://a:1"),
        ("ws://host", {"https_proxy": "http://a:1", "http_proxy": "http://b:1"}, "http://a:1"),
        ("ws://host", {"socks_proxy": "http://a:1"}, "socks5h://a:1"),
        ("ws://host:80", {"http_proxy": "http://a:1", "no_proxy": "host"}, None),
        ("ws://sub.localhost:80", {"http_proxy": "http://a:1"}, None),
        ("ws://[::1]:80", {"http_proxy": "http://a:1"}, None),
        ("ws://127.0.0.9", {"http_proxy": "http://a:1"}, None),
        ("ws://host:port", {"http_proxy": "http://a:1"}, None),
    ],
)
def test_the_proxy_of_an_address_is_the_one_that_websockets_would_take(
    monkeypatch, no_proxies, address, variables, proxy
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert openpi.proxy_for(address) == proxy
    if re.fullmatch(r"wss?://host(:\d+)?", address):  # of another machine: the oracle
        assert get_proxy(parse_uri(address)) == proxy


def test_a_server_that_dies_costs_only_the_trials_that_needed_it(serve):
    policy = open_policy(f"openpi:{serve('dies')}?model=dies&timeout=2")
    trials = [Trial(TASK, f"official/{i}", 0) for i in range(3)]
    ask(policy, trials)
    assert list(policy.failures) == trials[2:]
    assert "broke the connection" in policy.failures[trials[2]]


def test_a_lerobot_environment_that_lacks_lerobot_is_told():
    policy = open_policy(f"lerobot:{sys.executable}?checkpoint=nowhere")
    with pytest.raises(UserError, match="No module named 'lerobot'"):
        ask(policy, [Trial(TASK, "official/0", 0)])
    with pytest.raises(UserError, match="does not start"):
        ask(open_policy("lerobot:/no/python?checkpoint=x"), [Trial(TASK, "official/0", 0)])


@pytest.mark.skipif(
    "LEROBOT_PYTHON" not in os.environ, reason="LEROBOT_PYTHON names no environment with lerobot"
)
def test_a_lerobot_checkpoint_acts_as_in_lerobot_itself_and_plays_a_whole_trial(tmp_path):
    python, rng = os.environ["LEROBOT_PYTHON"], np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 2, 256, 256, 3), np.uint8)
    images[:, 0] //= 8  # the first camera is in the dark
    upright, state = images[0, :, ::-1, ::-1], [0, 0, 0, np.pi, 0, 0, 0, 0]  # of `Seen`
    folder = tmp_path / "pretrained_model"
    folder.mkdir()
    np.savez(folder / "seen.npz", images=upright, state=np.array(state, np.float32))
    script = Path(__file__).with_name("lerobot_checkpoint.py")
    subprocess.run([python, "-I", str(script), str(folder)], check=True, timeout=300)
    name = f"lerobot:{python}?checkpoint={folder}&replan=10"
    policy, trial = open_policy(name), Trial(TASK, "official/0", 0)
    policy.begin(trial, "do it")
    actions = policy.act(Seen(1), images, [trial])
    assert not policy.failures
    expected = np.load(folder / "expected.npy").clip(-1, 1)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(actions[0], expected, atol=1e-5)
    swapped = policy.act(Seen(1), images[:, ::-1], [trial])
    assert np.abs(swapped - actions).max() > 1e-3  # each camera is where it belongs
    policy.server.kill()
    table = run(name, plan([TASK], 1), tmp_path / "records", workers=1)
    assert table["status"].tolist() == ["failure"]  # random weights: a whole trial, no error


# ---- in the simulator ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    """A data set of three demonstrations by the scripted operator."""
    from diffrl.data.attributes import libero_attributes
    from diffrl.data.hdf5 import write_episodes
    from diffrl.data.operator import operator_demonstrations
    from diffrl.presets import OperatorConfig
    from diffrl.sim.scene import load_scene

    scene = load_scene(TASK)
    episodes, _ = operator_demonstrations(scene, 3, 0, OperatorConfig(count=3))
    path = tmp_path_factory.mktemp("data") / "soup_demo.hdf5"
    write_episodes(path, episodes, libero_attributes(scene.task))
    return path


def run(policy: str, trials: list[Trial], folder: Path, **options) -> pd.DataFrame:
    return evaluate([Job(policy, tuple(trials), folder, Arm("test"))], **options)


@pytest.mark.sim
def test_an_oracle_of_what_an_expert_generated_succeeds_every_time(laptop_run, tmp_path):
    from diffrl.data.attempts import Player
    from diffrl.data.attributes import libero_attributes
    from diffrl.data.hdf5 import write_episodes
    from diffrl.sim.scene import load_scene

    scene, made = load_scene(TASK), []
    for algorithm, mode in (("diffusion", "deterministic"), ("gaussian", "stochastic")):
        folder = laptop_run / EXPERTS / f"{algorithm}-seed0"
        play = Player(scene, algorithm, mode, get_preset("smoke"), [folder])
        made += [(algorithm, a.episode) for a in play(0, 12) if a.outcome == "success"]
    for algorithm in ("diffusion", "gaussian"):
        path = tmp_path / f"{algorithm}_demo.hdf5"
        write_episodes(path, [e for a, e in made if a == algorithm], libero_attributes(scene.task))
        trials = list(open_policy(f"oracle:{path}").episodes)
        table = run(f"oracle:{path}", trials, tmp_path / algorithm, workers=1)
        assert len(table) >= 3
        assert (table["status"] == "success").all()


@pytest.mark.sim
def test_an_oracle_succeeds_where_its_episodes_did_and_a_random_policy_fails(
    demonstrations, tmp_path
):
    oracle = open_policy(f"oracle:{demonstrations}")
    trials = list(oracle.episodes)
    table = run(f"oracle:{demonstrations}", trials, tmp_path / "oracle")
    assert (table["status"] == "success").all()
    lengths = [oracle.episodes[trial].length for trial in trials]
    assert table["steps"].tolist() == lengths
    table = run("random:", plan([TASK], 10), tmp_path / "random")
    assert table["status"].tolist() == ["failure"] * 10
    assert table["steps"].tolist() == [280] * 10


@pytest.mark.sim
def test_the_command_plans_an_oracle_s_own_episodes_films_trials_and_tells_errors(
    demonstrations, serve, tmp_path, capsys
):
    """One call each: an oracle's plan, a film, errors tried once more, and the exit's code."""
    name = next(iter(open_policy(f"oracle:{demonstrations}").episodes)).start_state
    out = tmp_path / "oracle"
    options = {"trials": 2, "workers": 1, "out": out, "videos": (name,)}
    assert evaluation.main(f"oracle:{demonstrations}", **options) == 0
    (film,) = (out / "videos").iterdir()
    assert film.name.endswith("-success.mp4")
    assert film.stat().st_size > 10_000
    assert len(pd.read_csv(out / "trials.csv")) == 2
    out, policy = tmp_path / "dead", f"openpi:{serve('dies')}?model=dies&timeout=5"
    options = {"suite": (TASK,), "trials": 1, "workers": 1, "out": out}
    assert evaluation.main(policy, **options) == 1  # not one trial was played
    alive = f"openpi:{serve('still')}?model=dies&timeout=20"
    assert evaluation.main(alive, **options) == 1  # a recorded error is found again
    assert evaluation.main(alive, **options, retry_errors=True) == 0
    assert pd.read_csv(out / "trials.csv")["status"].tolist() == ["failure"]
    assert "official start states" in capsys.readouterr().out


@pytest.mark.sim
def test_a_perturbed_suite_is_played_from_its_own_start_states(tmp_path):
    tasks = [f"libero_object_{kind}/0" for kind in ("swap", "lan")]
    table = run("random:", plan(tasks, 1), tmp_path, workers=1)
    assert table["suite"].tolist() == [task.split("/")[0] for task in tasks]
    assert table["status"].tolist() == ["failure"] * 2


def records(folder: Path) -> str:
    """A folder's trials.csv without its only wall-clock column."""
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds").to_csv()


def test_the_vla_decides_for_a_robot_what_it_decides_in_any_company(tmp_path):
    import test_vla

    from diffrl.vla import model as vla

    vla.save(test_vla.make_model(), tmp_path, {})
    policy, rng = open_policy(f"compact:{tmp_path}"), np.random.default_rng(0)
    trials, n = plan([TASK], BLOCK + 3), BLOCK + 3
    images = rng.integers(0, 256, (n, 2, policy.image_size, policy.image_size, 3), np.uint8)
    seen = Seen(n)
    seen.eef_pos = rng.normal(size=(n, 3))

    def decide(rows: list[int]) -> np.ndarray:
        for row in rows:
            policy.begin(trials[row], "pick up the alphabet soup")
        part = Seen(len(rows))
        part.eef_pos = seen.eef_pos[rows]
        return policy.act(part, images[rows], [trials[row] for row in rows])

    together = decide(list(range(n)))
    assert len(np.unique(together, axis=0)) == n
    assert np.array_equal(together, np.concatenate([decide([row]) for row in range(n)]))
    order = rng.permutation(n)
    assert np.array_equal(together[order], decide(order.tolist()))


@pytest.mark.sim
def test_a_trial_s_every_state_is_the_same_in_any_company(laptop_run):
    trials, kept = plan([TASK], BLOCK + 1), []
    for copies, order in ((BLOCK + 1, 1), (2, -1)):
        policy = open_policy(f"expert:{laptop_run / EXPERTS / 'diffusion-seed0'}?mode=stochastic")
        played = play(policy, trials[::order], copies, keep=lambda trial: True)
        kept.append(played[::order])
    assert len({outcome.steps for outcome in kept[0]}) > 2  # or swapped trials would not show
    for one, other in zip(*kept):
        assert (one.trial, one.status, one.steps) == (other.trial, other.status, other.steps)
        assert np.array_equal(one.states, other.states)


@pytest.mark.sim
def test_records_do_not_depend_on_batch_processes_order_or_interruption(tmp_path):
    import test_vla

    from diffrl.vla import model as vla

    vla.save(test_vla.make_model(), tmp_path / "model", {})
    policy = f"compact:{tmp_path / 'model'}"
    trials = plan([TASK], 3)
    run(policy, trials, tmp_path / "alone", workers=1, copies=1)
    run(policy, trials, tmp_path / "together", workers=2, copies=2)
    assert records(tmp_path / "alone") == records(tmp_path / "together")
    # two trials first, in the other order, then all of them: the record is the same again
    run(policy, trials[:0:-1], tmp_path / "continued", workers=1, copies=3)
    before = pd.read_csv(tmp_path / "continued" / "trials.csv")
    run(policy, trials, tmp_path / "continued", workers=1, copies=3)
    after = pd.read_csv(tmp_path / "continued" / "trials.csv")
    assert records(tmp_path / "alone") == records(tmp_path / "continued")
    assert after["seconds"].tolist()[1:] == before["seconds"].tolist()[::-1]  # not played again


@pytest.mark.sim
def test_a_killed_evaluation_keeps_every_trial_that_had_ended(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    played, real = [], evaluation.write_json

    def write(path, records):
        real(path, records)
        played.append(len(records))
        if len(played) == 2:
            raise Killed

    monkeypatch.setattr(evaluation, "write_json", write)
    trials, policy = plan([TASK], 4), "random:"
    with pytest.raises(Killed):
        item = (Job(policy, tuple(trials), tmp_path, Arm("random")), "key", trials, 1, ())
        evaluation._play_shard(item)
    (tmp_path / "checkpoint" / "key" / ".a-1.tmp.json").touch()  # what a kill amid a write leaves
    assert len(evaluation._recorded(tmp_path, "key")) == 2


def test_a_model_that_acts_otherwise_is_another_policy_under_the_same_name(tmp_path):
    import test_vla

    from diffrl.vla import model as vla

    model = test_vla.make_model()
    keys = set()
    for chunk in (2, 1):
        model.config = replace(model.config, chunk=chunk)
        vla.save(model, tmp_path, {})
        evaluation._policy.cache_clear()
        keys.add(evaluation._key(f"compact:{tmp_path}"))
    assert len(keys) == 2


def test_a_model_s_identity_is_what_its_files_say_but_not_how_it_came_to_be(tmp_path):
    import test_vla

    from diffrl.vla import model as vla

    vla.save(test_vla.make_model(), tmp_path, {})
    path, prints = tmp_path / "model.json", []
    description = artifacts.read_json(path)
    for change in ({}, {"about": {"minutes": 2}}, {"config": description["config"] | {"new": 1}}):
        artifacts.write_json(path, description | change)
        prints.append(open_policy(f"compact:{tmp_path}").fingerprint)
    assert prints[0] == prints[1] != prints[2]  # as stored: a default of later code is not in it


def test_trials_of_another_policy_stay_where_they_are(tmp_path):
    artifacts.write_json(tmp_path / "checkpoint" / "other" / "a.json", [])
    assert evaluation._recorded(tmp_path, "key") == {}
    assert (tmp_path / "checkpoint" / "other" / "a.json").exists()


def test_a_preset_whose_vlas_are_not_trained_is_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    with pytest.raises(UserError, match="train-vla --preset smoke"):
        evaluation.evaluate_preset(get_preset("smoke"), workers=1)
    assert not list(tmp_path.rglob("*.csv"))


def test_shards_hold_a_task_each_or_shares_of_it_where_tasks_are_few():
    many, few = plan(["libero_object/0", "libero_object/1"], 6), plan(["libero_object/0"], 5)
    assert [len(shard) for shard in evaluation._shards(many, workers=1)] == [6, 6]
    assert [len(shard) for shard in evaluation._shards(few, workers=2)] == [3, 2]


@pytest.mark.sim
def test_vlas_of_fewer_and_mixed_demonstrations_are_evaluated_when_they_are_trained(
    tmp_path, monkeypatch
):
    import test_vla

    from diffrl.vla import model as vla

    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = get_preset("smoke")
    preset = replace(smoke, evaluation=replace(smoke.evaluation, trials=1))
    assert evaluation.evaluate_further(preset, workers=1).empty
    vla.save(test_vla.make_model(), model_folder("smoke", "diffusion-deterministic:10", 0), {})
    assert evaluation.evaluate_further(preset, workers=1).empty  # of other settings, perhaps
    monkeypatch.setattr(evaluation, "finished", lambda preset, data, seed: data.endswith(":10"))
    found = evaluation.evaluate_further(preset, workers=1)
    assert found[["source", "mode"]].values.tolist() == [["diffusion:10", "deterministic"]]
    assert (tmp_path / "runs" / "smoke" / "vla_further_trials.csv").exists()
    assert not (tmp_path / "runs" / "smoke" / "vla_trials.csv").exists()


@pytest.mark.sim
@pytest.mark.parametrize("mode", ["deterministic", "stochastic"])
def test_an_expert_acts_as_in_the_rollouts_that_made_its_data(tmp_path, mode):
    from diffrl import policy as policies
    from diffrl.rl.rollout import rollout
    from diffrl.sim.scene import load_scene
    from diffrl.sim.starts import official_start_states

    preset, scene = get_preset("smoke"), load_scene(TASK)
    config = policies.make_config("gaussian", preset.clone, preset.rl)
    layout = policies.Layout(TASK, len(scene.object_names), len(scene.goal_names), 0)
    policies.save(tmp_path, policies.make_policy(config, layout))
    starts = official_start_states(scene)[:2]
    played = rollout(policies.load(tmp_path), scene, starts, mode, threads=1, record=True)
    expert = open_policy(f"expert:{tmp_path}?mode={mode}")
    outcomes = play(expert, plan([TASK], 2), copies=2, keep=lambda trial: True)
    for trial, outcome in zip(played, outcomes):
        assert outcome.steps == trial.steps
        assert np.array_equal(np.array(outcome.states), trial.episode.states)


@pytest.mark.sim
def test_the_openpi_adapter_drives_whole_episodes_and_errors_are_kept_apart(
    demonstrations, serve, tmp_path
):
    trial, episode = next(iter(open_policy(f"oracle:{demonstrations}").episodes.items()))
    np.save(tmp_path / "actions.npy", episode.actions)
    policy = f"openpi:{serve('replay', str(tmp_path / 'actions.npy'))}?model=replay&timeout=20"
    table = run(policy, [trial], tmp_path / "sound", workers=1)
    assert table["status"].tolist() == ["success"]
    assert table["steps"].tolist() == [episode.length]
    policy = f"openpi:{serve('dies')}?model=dies&timeout=5"
    table = run(policy, plan([TASK], 2), tmp_path / "dead", workers=1)
    assert table["status"].tolist() == ["error", "error"]
    assert "policy server" in (tmp_path / "dead" / "trials.json").read_text()
    assert summarise(table).iloc[0]["trials"] == 0


class Wrong(adapters.Random):
    """A policy for another robot, or a broken one."""

    def __init__(self, size: int = 6, value: float = 0.0):
        super().__init__()
        self.size, self.value = size, value

    def act(self, observation, images, trials):
        return np.full((len(trials), self.chunk, self.size), self.value)


@pytest.mark.sim
def test_actions_of_a_wrong_size_or_without_a_value_stop_the_evaluation():
    with pytest.raises(UserError, match=r"shape \(1, 8, 6\); expected \(1, 8, 7\)"):
        play(Wrong(size=6), plan([TASK], 1), copies=1)
    with pytest.raises(UserError, match="not finite"):
        play(Wrong(size=7, value=np.nan), plan([TASK], 1), copies=1)


@pytest.mark.sim
def test_unknown_start_states_are_refused_by_name():
    for name in ("official/50", "somewhere/1", "fresh/1", "official"):
        with pytest.raises(UserError, match=name):
            play(Wrong(), [Trial(TASK, name, 0)], copies=1)
