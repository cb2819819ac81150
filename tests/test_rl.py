"""RL without a simulator: PPO's arithmetic, cloning, checkpoints, bad input."""

import dataclasses
import importlib.util
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import fisher_exact

from diffrl import artifacts
from diffrl import policy as policies
from diffrl.artifacts import FORCE, Stage
from diffrl.errors import UserError
from diffrl.policy.features import Layout
from diffrl.policy.nets import Critic
from diffrl.presets import MODES, CloneConfig, RLConfig, get_preset
from diffrl.rl import checkpoint, ppo, records, train
from diffrl.rl.bc import Clone, fit_clone
from diffrl.rl.collect import Batch
from diffrl.rl.journal import Journal
from diffrl.rl.learn import Learner
from diffrl.rl.ppo import (
    RewardScaler,
    actor_loss,
    augmented,
    batch_values,
    clip_range,
    gae,
    learning_rate,
    noise_scale,
    update,
)
from diffrl.rl.rollout import Trial, attainable, success_rate

LAYOUT = Layout("libero_object/0", objects=1, goals=1, joints=0)
ALGORITHMS = ("diffusion", "gaussian")


@pytest.fixture(autouse=True)
def _one_torch_thread():
    torch.set_num_threads(1)


def make(algorithm, **settings):
    config = policies.PolicyConfig(algorithm, width=32, horizon=4, chunk=4, **settings)
    return policies.make_policy(config, LAYOUT, seed=1)


# -- advantages


def plain_gae(rewards, values, next_values, ended, gamma, lam):
    """Sum over later decisions of the same episode, written as the definition has it."""
    advantages = np.zeros_like(rewards)
    for robot in range(rewards.shape[1]):
        for t in range(len(rewards)):
            weight, k = 1.0, t
            while True:
                delta = rewards[k, robot] + gamma * next_values[k, robot] - values[k, robot]
                advantages[t, robot] += weight * delta
                if ended[k, robot] or k + 1 == len(rewards):
                    break
                weight, k = weight * gamma * lam, k + 1
    return advantages


def test_gae_equals_a_plain_loop_with_successes_time_outs_and_staggered_starts():
    rng = np.random.default_rng(0)
    rewards, values = np.zeros((9, 4)), rng.random((9, 4))
    next_values = np.concatenate([values[1:], rng.random((1, 4))])
    ended = np.zeros((9, 4), bool)
    for t, robot in ((2, 0), (6, 0), (4, 1), (8, 2)):  # success
        ended[t, robot], rewards[t, robot], next_values[t, robot] = True, 1.0, 0.0
    for t, robot in ((1, 1), (5, 2)):  # time-out: the value of the last observation
        ended[t, robot], next_values[t, robot] = True, rng.random()
    arguments = [torch.from_numpy(x) for x in (rewards, values, next_values, ended)]
    advantages, returns = gae(*arguments, gamma=0.9, gae_lambda=0.8)
    expected = plain_gae(rewards, values, next_values, ended, 0.9, 0.8)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-12)


def test_with_lambda_one_a_success_is_worth_its_discounted_reward():
    rewards = torch.tensor([[0.0], [0.0], [1.0]])
    zeros, ended = torch.zeros(3, 1), torch.tensor([[False], [False], [True]])
    _, returns = gae(rewards, zeros, zeros, ended, gamma=0.5, gae_lambda=1.0)
    assert returns.flatten().tolist() == [0.25, 0.5, 1.0]


class FirstColumn(torch.nn.Module):
    """A critic that reads the value off the observation."""

    def forward(self, features):
        return features["state"][:, 0]


def make_batch(policy, decisions=6, robots=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = decisions * robots
    state = torch.randn(n, LAYOUT.size, generator=generator)
    _, chains = policy.sample({"state": state}, policy.noise(generator, n), "stochastic")
    grid = (decisions, robots)
    return Batch(
        features={"state": state},
        chains=chains.view(*grid, *chains.shape[1:]),
        rewards=torch.zeros(grid),
        ended=torch.zeros(grid, dtype=torch.bool),
        truncated=torch.zeros(grid, dtype=torch.bool),
        last_features=None,
        next_features={"state": torch.randn(robots, LAYOUT.size, generator=generator)},
        successes=[],
        lengths=[],
        steps=n * 4,
        errors=0,
    )


def test_a_success_is_not_bootstrapped_and_a_time_out_by_its_own_last_observation():
    batch = make_batch(make("gaussian"))
    batch.ended[2, 1] = batch.ended[3, 4] = True  # a success, a time-out
    batch.truncated[3, 4] = True
    batch.last_features = {"state": torch.full((1, LAYOUT.size), 7.0)}
    values, next_values = batch_values(FirstColumn(), batch)
    expected = torch.cat([values[1:], batch.next_features["state"][:, 0][None]])
    expected[2, 1], expected[3, 4] = 0.0, 7.0
    assert torch.equal(next_values, expected)


# -- PPO's loss


def test_the_clip_range_grows_exponentially_from_the_noisiest_step_to_the_last():
    clip = clip_range(5, first=0.001, last=0.01, rate=3.0)
    assert clip[0] == pytest.approx(0.001)
    assert clip[-1] == pytest.approx(0.01)
    middle = 0.001 + 0.009 * (math.exp(1.5) - 1) / (math.exp(3.0) - 1)
    assert float(clip[2]) == pytest.approx(middle)


def test_one_trained_step_has_the_last_clip():
    assert clip_range(1, 0.001, 0.01, 3.0).tolist() == [pytest.approx(0.01)]


def test_the_loss_and_its_gradient_equal_a_case_computed_by_hand():
    # Two decisions, advantages 3 and 1: normalised 1 and -1. Two steps, discounts 1/2 and 1.
    # Ratios: 1.5 (clipped at 1.2), 1.1; 0.5 (clipped at 0.8), 1.3 (worse, so not clipped).
    ratio = torch.tensor([[1.5, 1.1], [0.5, 1.3]], dtype=torch.float64)
    log_prob = ratio.log().requires_grad_()
    loss, watch = actor_loss(
        log_prob,
        torch.zeros_like(log_prob),
        torch.tensor([3.0, 1.0], dtype=torch.float64),
        torch.tensor([0.2, 0.2], dtype=torch.float64),
        gamma_denoising=0.5,
    )
    terms = [0.5 * 1.2, 1.1, -0.5 * 0.8, -1.3]
    assert loss.item() == pytest.approx(-sum(terms) / 4)
    loss.backward()
    # d(-A r)/d(log r) = -A r where the unclipped term is the smaller one, 0 where it is clipped
    expected = [[0.0, -1.1 / 4], [0.0, 1.3 / 4]]
    torch.testing.assert_close(log_prob.grad, torch.tensor(expected, dtype=torch.float64))
    kl = sum(r - 1 - math.log(r) for r in (1.5, 1.1, 0.5, 1.3)) / 4
    assert float(watch["approx_kl"]) == pytest.approx(kl)
    assert watch["clipfrac"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_makes_rewarded_plans_likelier(algorithm):
    policy, critic = make(algorithm), Critic(LAYOUT)
    batch = make_batch(policy, decisions=40, robots=8)
    batch.ended[:] = True
    good = batch.chains[:, :, -1].mean(dim=(2, 3)) > 0
    batch.rewards = good.float()
    chains = batch.chains.flatten(0, 1)

    def log_prob():
        with torch.no_grad():
            return policy.log_prob(batch.features, chains)[:, -1]

    before = log_prob()
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    config = RLConfig(minibatch=500)
    row = update(
        policy, critic, optimisers, batch, config, config.clip, torch.Generator().manual_seed(0)
    )
    gain = log_prob() - before
    assert gain[good.flatten()].mean() > gain[~good.flatten()].mean() + 1e-3
    assert row["approx_kl"] > 0
    assert [name for name in row if name.startswith("clipfrac")] == [
        f"clipfrac_{step}" for step in range(policy.steps)
    ]


def test_in_the_critic_s_warm_up_the_policy_stays_as_it_is():
    policy, critic = make("diffusion"), Critic(LAYOUT)
    before = [p.clone() for p in policy.parameters()]
    critic_before = [p.clone() for p in critic.parameters()]
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(policy)
    row = update(policy, critic, optimisers, batch, RLConfig(), 0.04, generator, learn_actor=False)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(critic_before, critic.parameters()))
    assert math.isnan(row["actor_loss"])


def test_a_loss_that_is_not_finite_is_told_with_the_setting_to_change():
    policy, critic = make("diffusion"), Critic(LAYOUT)
    batch = make_batch(policy)
    batch.rewards[0, 0] = math.nan
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters()),
        "critic": torch.optim.Adam(critic.parameters()),
    }
    with pytest.raises(UserError, match=r"nan: lower rl\.actor_learning_rate"):
        update(policy, critic, optimisers, batch, RLConfig(), 0.04, torch.Generator())


def test_the_exploration_noise_falls_linearly_to_the_policys_own():
    config = RLConfig(iterations=10, noise_start=2.0, noise_anneal=0.4)
    scales = [noise_scale(iteration, config) for iteration in (0, 1, 4, 9)]
    assert scales == pytest.approx([2, 1.75, 1, 1])
    assert noise_scale(0, RLConfig(noise_anneal=0.0, noise_start=2.0)) == 1


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_scaled_noise_spreads_the_plans_and_enters_their_probability(algorithm):
    policy = make(algorithm)
    own = policy.exploration()
    policy.noise_scale = 2.0
    assert policy.exploration() == pytest.approx(2 * own)
    condition = policy.encoder({"state": torch.zeros(1, LAYOUT.size)})
    latent, last = torch.zeros(1, policy.horizon, 7), torch.tensor([policy.steps - 1])
    _, std = policy.transition(condition, latent, last, "stochastic")
    assert float(std.detach().mean()) == pytest.approx(2 * own)


def test_the_learning_rate_is_constant_or_a_cosine_to_zero():
    cosine = RLConfig(annealing="cosine", iterations=10)
    assert learning_rate(2.0, 7, RLConfig(iterations=10)) == 2.0
    assert learning_rate(2.0, 0, cosine) == 2.0
    assert learning_rate(2.0, 5, cosine) == pytest.approx(1.0)
    assert learning_rate(2.0, 10, cosine) == pytest.approx(0.0)


def test_the_learning_rate_rises_over_the_first_iterations_in_which_the_policy_learns():
    config = RLConfig(critic_warmup=1)
    rates = [learning_rate(1.0, iteration, config, warmup=3) for iteration in range(6)]
    assert rates == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


# -- cloning


def make_clone(algorithm="diffusion", **settings):
    policy = make(algorithm)
    generator = torch.Generator().manual_seed(5)
    features = {"state": torch.randn(80, LAYOUT.size, generator=generator)}
    plans = torch.tanh(features["state"][:, :7]).unsqueeze(1).expand(80, 4, 7)
    settings = {"steps": 60, "measure_growth": 1.5, "first_measure": 20, "batch": 16, **settings}
    return Clone(policy, features, plans, CloneConfig(**settings))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_clone_that_was_interrupted_continues_to_the_same_weights(algorithm, killed_at, tmp_path):
    whole = make_clone(algorithm)
    fit_clone(whole, lambda policy: 0.2)

    class Killed(Exception):
        pass

    part = make_clone(algorithm)
    path = tmp_path / "clone.safetensors"

    def save():
        checkpoint.save(path, part.state(), "key")
        if len(part.curve) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        fit_clone(part, lambda policy: 0.2, save)
    again = make_clone(algorithm)
    again.restore(checkpoint.load(path, "key"))
    fit_clone(again, lambda policy: 0.2)
    assert [row["steps"] for row in again.curve] == [row["steps"] for row in whole.curve]
    assert equal(weights(again.policy), weights(whole.policy))


@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_a_clone_is_restored_to_the_device_that_its_policy_is_on():
    policy = make("diffusion").to("meta")
    frames = make_clone()
    clone = Clone(make("diffusion"), frames.features, frames.plans, frames.config)
    clone.policy, clone.parameters = policy, list(policy.parameters())
    clone.optimiser = torch.optim.AdamW(clone.parameters)
    clone.restore(frames.state())
    assert {p.device.type for p in clone.ema.shadow_params} == {"meta"}


def test_cloning_stops_at_the_set_success_and_keeps_the_averaged_weights():
    clone = make_clone(steps=1000)
    measured = []

    def measure(policy):
        measured.append(weights(policy))
        return 0.2 * len(measured)

    assert fit_clone(clone, measure) == pytest.approx(0.4)
    assert clone.steps == 30  # first measured at 20, then at 30
    assert equal(weights(clone.policy), measured[-1])


def test_a_clone_is_measured_with_the_frozen_steps_that_rl_will_start_from():
    policy = make("diffusion", finetuned_steps=2)
    clone = make_clone()
    clone = Clone(policy, clone.features, clone.plans, clone.config)
    seen = []

    def measure(policy):
        pairs = zip(policy.frozen.parameters(), policy.denoiser.parameters(), strict=True)
        seen.append(all(torch.equal(frozen, learnt) for frozen, learnt in pairs))
        return 0.2

    fit_clone(clone, measure)
    assert len(seen) > 1
    assert all(seen)


def test_a_clone_that_never_succeeds_is_told_with_what_to_change():
    with pytest.raises(UserError, match=r"libero_object/0 never succeeded .* demonstrations.count"):
        fit_clone(make_clone(), lambda policy: 0.0)


def test_a_cloning_loss_that_is_not_finite_is_told():
    with pytest.raises(UserError, match=r"clone\.learning_rate"):
        fit_clone(make_clone(learning_rate=1e30), lambda policy: 0.5)


# -- checkpoints


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    net = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    tree = {
        "optimiser": optimiser.state_dict(),
        "arrays": [np.arange(6.0).reshape(2, 3), np.array([True, False]), np.int64(3) + np.eye(2)],
        "strided": torch.arange(6).view(2, 3).T,
        "numbers": (1, 0.1, math.pi, None, "text", True),
        3: {"nan": math.nan, "empty": torch.zeros(2, 0)},
    }
    checkpoint.save(tmp_path / "c.safetensors", tree, "key")
    again = checkpoint.load(tmp_path / "c.safetensors", "key")
    assert again["numbers"] == tree["numbers"]
    assert math.isnan(again[3]["nan"])
    assert again[3]["empty"].shape == (2, 0)
    assert torch.equal(again["strided"], tree["strided"])
    for found, expected in zip(again["arrays"], tree["arrays"]):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    other = torch.optim.Adam(net.parameters(), lr=0.5)
    other.load_state_dict(again["optimiser"])
    assert str(other.state_dict()) == str(optimiser.state_dict())


def test_tensors_that_share_memory_are_saved_whole(tmp_path):
    weight = torch.ones(3)
    checkpoint.save(tmp_path / "c.safetensors", {"a": weight, "b": weight[:2]}, "key")
    again = checkpoint.load(tmp_path / "c.safetensors", "key")
    assert torch.equal(again["b"], torch.ones(2))


def test_a_broken_checkpoint_and_one_of_other_settings_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": torch.ones(50)}, "mine")
    whole = path.read_bytes()
    with pytest.raises(UserError, match=r"c\.safetensors belongs to other settings"):
        checkpoint.load(path, "other")
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"c\.safetensors cannot be read"):
        checkpoint.load(path, "mine")
    assert path.read_bytes() == whole[:-20]


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": 1}, "key")
    with pytest.raises(TypeError, match="cannot hold a set"):
        checkpoint.save(path, {"a": {1, 2}}, "key")
    assert checkpoint.load(path, "key") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_run_whose_checkpoint_is_of_other_settings_is_refused_before_it_writes(tmp_path):
    path = tmp_path / "checkpoint" / "rl.safetensors"
    checkpoint.save(path, {"a": 1}, "other")
    (path.parent / ".rl-1234.tmp.safetensors").touch()  # what a kill while saving leaves
    (tmp_path / "config.json").write_text("before")
    with pytest.raises(UserError, match=r"belongs to other settings.*--force"):
        train.train_expert("libero_object/0", "diffusion", get_preset("smoke"), folder=tmp_path)
    assert (tmp_path / "config.json").read_text() == "before"


def test_a_finished_run_takes_the_place_of_an_older_expert_and_its_marker(tmp_path):
    (tmp_path / "expert.done.json").write_text("{}")  # of other settings
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "clone.done.json").write_text("{}")
    run = train.Training("libero_object/0", "diffusion", get_preset("smoke"), folder=tmp_path)
    config = policies.make_config("diffusion", run.preset.clone, run.preset.rl)
    policy = policies.make_policy(config, LAYOUT)
    policies.save(run.work / "clone", policy)
    for name in ("clone/clone.done.json", "clone.csv"):
        (run.work / name).write_text("new")
    learner = SimpleNamespace(diagnostics=[{"iteration": 1}])
    for _ in range(2):  # a kill before the new marker lets it be done again
        run.publish(policy, learner, {"trials.csv": pd.DataFrame({"a": [1]})})
        assert pd.read_csv(tmp_path / "diagnostics.csv")["iteration"].tolist() == [1]
        assert not run.stage.marker.exists()
        assert artifacts.read_json(tmp_path / "config.json") == artifacts.plain(run.config)
        for name in ("clone/clone.done.json", "clone.csv"):
            assert (tmp_path / name).read_text() == "new"
        assert policies.load(tmp_path).config == policies.load(tmp_path / "clone").config


def test_reproduce_with_force_continues_no_older_checkpoint(tmp_path, monkeypatch):
    run = train.Training("libero_object/0", "diffusion", get_preset("smoke"), folder=tmp_path)
    monkeypatch.setattr(train.Training, "clone", lambda self: (None, 0.0))
    monkeypatch.setattr(train.Training, "learn", lambda self, policy: SimpleNamespace(seconds=0.0))
    monkeypatch.setattr(train.policies, "save", lambda folder, policy: None)
    checkpoint.save(run.checkpoint("rl"), {"a": 1}, run.key)
    run.train()
    assert run.checkpoint("rl").exists()
    monkeypatch.setenv(FORCE, repr(time.time() + 1))
    run.train()
    assert not run.checkpoint("rl").exists()


# -- records


def test_the_table_of_experts_is_collected_from_finished_runs_of_todays_settings_in_order(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    for algorithm in ("gaussian", "diffusion"):
        row = dict.fromkeys(records.COLUMNS, 0) | {
            "task": "libero_object/0",
            "algorithm": algorithm,
        }
        rows = [{**row, "mode": mode} for mode in ("stochastic", "deterministic")]
        folder = records.expert_folder("libero_object/0", algorithm, "smoke", 0)
        config = records.config_of("libero_object/0", algorithm, get_preset("smoke"), 0)
        Stage(folder, "expert", config).finish({"rows": rows})
    other = [{**row, "seed": 1}]
    folder = records.expert_folder("libero_object/0", "diffusion", "smoke", 1)
    Stage(folder, "expert", {"of": "other settings"}).finish({"rows": other})
    records.collect_records(get_preset("smoke"))
    table = pd.read_csv(tmp_path / "runs" / "smoke" / "experts.csv")
    assert ",".join(table.columns) == (
        "task,algorithm,mode,seed,trials,successes,success,low,high,control_steps,minutes,"
        "clone_success"
    )
    assert list(table["algorithm"]) == ["diffusion"] * 2 + ["gaussian"] * 2
    assert list(table["mode"]) == ["deterministic", "stochastic"] * 2


def test_errors_enter_no_rate():
    modes = ["deterministic", "deterministic", "stochastic", "stochastic"]
    success, error = [True, False, True, True], [False, True, False, False]
    trials = pd.DataFrame({"mode": modes, "success": success, "error": error})
    assert records.success_by_mode(trials) == {"deterministic": 1.0, "stochastic": 1.0}
    clone = {"deterministic": 0.5, "stochastic": 0.0}
    rows = records.expert_rows(("t", "diffusion", 0), trials, clone, steps=100, minutes=1.0)
    assert list(rows["trials"]) == [1, 2]
    assert list(rows["success"]) == [1.0, 1.0]
    assert list(rows["clone_success"]) == [0.5, 0.0]


def test_the_journal_appends_to_a_log_file_and_skips_what_is_not_a_number(tmp_path):
    journal = Journal(tmp_path, "run", bar=False)
    journal.phase("RL", 10, 3)
    journal.row({"success": 0.5, "sps": math.nan}, 4, ("success", "sps"))
    journal.close()
    text = (tmp_path / "train.log").read_text()
    assert "RL: 3 of 10 done" in text
    assert "success=0.5" in text
    assert "nan" not in text


def test_a_restart_goes_on_with_a_run_begun_by_force_and_other_experts_stay(tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Training, "clone", stop)
    names, smoke = ("libero_object/0", "diffusion"), get_preset("smoke")
    other = train.Training(*names, smoke.with_settings({"rl.iterations": 5}), folder=tmp_path)
    other.stage.finish({"rows": []})
    with pytest.raises(KeyboardInterrupt):
        train.train_expert(*names, smoke, folder=tmp_path)
    assert other.stage.found
    same = train.Training(*names, smoke, folder=tmp_path)
    same.stage.finish({"rows": []})
    with pytest.raises(KeyboardInterrupt):
        train.train_expert(*names, smoke, folder=tmp_path, force=True)
    assert not same.stage.marker.exists()


def test_an_expert_is_played_again_with_every_seed_of_its_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    played = []

    def play(run, policy, mode, seed, record=False):
        played.append((run.algorithm, mode, seed))
        return [Trial(f"official/{k}", mode, seed, success=k >= seed) for k in range(4)]

    found = []
    for algorithm in ALGORITHMS:
        folder = tmp_path / algorithm
        folder.mkdir()
        (folder / policies.WEIGHTS).write_text(algorithm)
        first = [Trial(f"official/{k}", mode, 0, success=True) for mode in MODES for k in range(4)]
        table = records.trial_table(first).assign(policy="expert")
        table.to_csv(folder / "trials.csv")
        found.append(("libero_object/0", algorithm, 0, folder))
    monkeypatch.setattr(train, "finished_experts", lambda preset: found)
    monkeypatch.setattr(train.Training, "play", play)
    monkeypatch.setattr(train.policies, "load", lambda folder: None)
    preset = get_preset("smoke").with_settings({"rl.evaluation_seeds": (0, 1)})
    table = train.evaluate_again(preset, workers=1)
    arms = [("diffusion", "deterministic"), ("diffusion", "stochastic"), ("gaussian", "stochastic")]
    assert played == [(*arm, 1) for arm in arms]  # the first seed's trials are those of the run
    assert table["success"].tolist() == [1.0, 0.75] * 3
    pd.testing.assert_frame_equal(train.evaluate_again(preset, workers=1), table)
    assert len(played) == 3  # found, not played again
    assert (tmp_path / "runs" / "smoke" / "expert_noise.csv").exists()


def test_further_seeds_of_the_noise_leave_an_expert_what_it_is():
    one, more = (
        get_preset("smoke").with_settings({"rl.evaluation_seeds": seeds})
        for seeds in ((0,), (0, 1))
    )
    task = "libero_object/0"
    assert records.config_of(task, "diffusion", one, 0) == records.config_of(
        task, "diffusion", more, 0
    )


def test_what_notebook_01_says_of_laptop_s_clones_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "experts.csv")
    noise_free = table[table["mode"] == "deterministic"]
    clones = noise_free[noise_free["algorithm"] == "diffusion"]["clone_success"]
    assert len(clones) == 15
    assert 7 <= (clones > 0.7).sum() <= 8
    laptop = get_preset("laptop")
    counts = [laptop.of(task).demonstrations.count for task in laptop.tasks]
    assert (min(counts), max(counts)) == (1, 20)


def test_what_notebook_01_says_of_the_settings_that_were_tried_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "tuning.csv")
    assert table["algorithm"].value_counts().to_dict() == {"diffusion": 10, "gaussian": 10}
    assert table["seed"].unique().tolist() == [0]
    rl = get_preset("laptop").rl  # the rows `laptop` are called after it
    own = f"rl.noise_start={rl.noise_start}; rl.actor_learning_rate={rl.actor_learning_rate}"
    assert table.loc[table["try"] == "laptop", "changes"].tolist() == [own, own]
    there = table[table["task"] == "libero_object/3"]
    good = there["measured"].map(lambda row: max(map(float, row.split())) >= 0.9)
    assert good.groupby(there["algorithm"]).sum().to_dict() == {"diffusion": 4, "gaussian": 9}
    assert there["algorithm"].value_counts().to_dict() == {"diffusion": 8, "gaussian": 10}
    assert not good[(there["algorithm"] == "diffusion") & (there["try"] == "laptop")].any()
    assert "laptop" not in there.loc[there.groupby("algorithm")["auc"].idxmax(), "try"].tolist()


def test_what_notebook_01_says_of_the_official_start_states_is_what_the_records_say(laptop_run):
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


def test_every_try_on_record_has_the_settings_that_the_tool_repeats(laptop_run):
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("retry", root / "tools" / "retry_expert.py")
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    folders = [path.parent for path in (laptop_run / "tried").glob("*/config.json")]
    assert len(folders) == 8
    for folder in folders:
        stored = artifacts.read_json(folder / "config.json")
        task, algorithm = stored["task"], stored["algorithm"]
        name = folder.name.removeprefix(f"{task.replace('/', '-')}-").removesuffix("-gaussian")
        wanted = records.config_of(task, algorithm, tool.preset_of(task, name), 0)
        assert artifacts.config_hash(stored) == artifacts.config_hash(wanted)


def test_tensorboard_gets_every_number_of_a_phase(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, "run", bar=False, tensorboard=True)
    for phase, offset in (("clone", 0.0), ("RL", 1.0)):
        journal.phase(phase, 10)
        for done in (1, 2):
            journal.row({"success": offset + done, "sps": math.nan}, done, ("success",))
    journal.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"clone/success", "RL/success"}
    found = [(event.step, event.value) for event in board.Scalars("RL/success")]
    assert found == [(1, 2.0), (2, 3.0)]


def judged(tmp_path, failing, best, rl):
    """What `judge` asks for, and its trials, of a policy that fails on some states."""
    preset = dataclasses.replace(get_preset("smoke"), rl=rl)
    run = train.Training("libero_object/0", "diffusion", preset, folder=tmp_path)
    asked = []

    def measure(count, policy, first=0, record=False):
        asked.append((first, count))
        states = range(first, first + count)
        return [Trial(f"fresh/{k}", "deterministic", 0, success=k not in failing) for k in states]

    run.measure = measure
    return asked, run.judge(None, best)


def test_every_candidate_is_measured_on_the_same_states_and_nobody_else_on_more(tmp_path):
    rl = RLConfig(measure_starts=4, confirm_starts=10)
    asked, trials = judged(tmp_path, {7}, 0.75, rl)
    assert asked == [(0, 4), (4, 4), (8, 2)]  # no state is played twice
    assert success_rate(trials) == 0.9
    asked, _ = judged(tmp_path, {0}, 0.75, rl)  # as good as the best: a candidate
    assert asked == [(0, 4), (4, 4), (8, 2)]
    asked, _ = judged(tmp_path, {0, 1}, 0.75, rl)  # behind it
    assert asked == [(0, 4)]
    asked, _ = judged(tmp_path, {0, 1, 2, 3}, -1.0, rl)  # the first one is always the best so far
    assert asked == [(0, 4), (4, 4), (8, 2)]
    assert judged(tmp_path, set(), 0.5, RLConfig(measure_starts=4))[0] == [(0, 4)]


def test_a_candidate_that_cannot_reach_the_best_any_more_is_measured_no_further(tmp_path):
    rl = RLConfig(measure_starts=4, confirm_starts=12)
    asked, trials = judged(tmp_path, {4, 5}, 0.9, rl)  # 10 of 12 at best
    assert asked == [(0, 4), (4, 4)]
    assert len(trials) == 8
    asked, _ = judged(tmp_path, {4}, 0.9, rl)  # 11 of 12 would do
    assert asked == [(0, 4), (4, 4), (8, 4)]
    trials = [Trial("a", "deterministic", 0, error=True), Trial("b", "deterministic", 0)]
    assert attainable(trials, 5) == 3 / 4  # the error counts in no rate


def test_the_best_is_chosen_by_its_confirmed_rate_among_policies_of_the_same_states():
    """A lucky first look does not win, nor does a second look that ended early."""
    rl = RLConfig(measure_starts=2, confirm_starts=4)
    learner = object.__new__(Learner)
    learner.config, learner.best, learner.best_success = rl, None, -1.0
    learner.seconds, learner.control_steps = 0.0, 0
    learner.policy = torch.nn.Linear(1, 1)
    chosen = []
    for number, played in enumerate(["1111"[:4], "0011", "1110", "11", "1111"]):
        torch.nn.init.constant_(learner.policy.weight, number)
        learner.diagnostics = [{"confirmed": 0, "confirmed_success": math.nan}]
        trials = [
            Trial(f"fresh/{k}", "deterministic", 0, success=c == "1", steps=5)
            for k, c in enumerate(played)
        ]
        if number == 0:
            trials[3].success = False  # three of four
        learner.measure(lambda policy, best, trials=trials: trials)
        chosen.append(int(learner.best["weight"]))
        row = learner.diagnostics[0]
        assert row["measured"] == 2
        assert row["measured_success"] == played[:2].count("1") / 2
        assert row["confirmed"] == (4 if len(played) == 4 else 0)
    assert chosen == [0, 0, 2, 2, 4]  # 3/4; 2/4; 3/4, a later equal; not confirmed; 4/4
    assert learner.best_success == 1.0
    assert learner.control_steps == 5 * 18


# -- DPPO's further options


def test_rewards_are_divided_by_the_running_deviation_of_the_discounted_return():
    scaler = RewardScaler(copies=2, gamma=0.5)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    found = scaler(rewards, ended)
    # returns: copy 0: 1, .5, then an episode begins: 1; copy 1: 0, 1, .5
    returns = np.array([1, 0.5, 1, 0, 1, 0.5])
    weight = 1e-4  # of the prior: mean 0, variance 1
    total = weight + 6
    mean = returns.sum() / total
    variance = (weight * (1 + mean**2) + ((returns - mean) ** 2).sum()) / total
    assert scaler.variance == pytest.approx(variance)
    np.testing.assert_allclose(found, rewards / math.sqrt(variance + 1e-8), rtol=1e-6)
    assert scaler.returns.tolist() == [1.0, 0.5]
    again = RewardScaler(2, 0.5)
    again.restore(scaler.state())
    more = torch.tensor([[0.0, 1.0]]), torch.tensor([[False, True]])
    assert torch.equal(again(*more), scaler(*more))
    assert again.returns.tolist() == [0.5, 0.0]
    again.begin()
    assert again.returns.tolist() == [0.0, 0.0]


def test_scaled_rewards_are_clipped_at_ten():
    scaler = RewardScaler(1, 0.99)
    rewards = torch.zeros(1000, 1)
    rewards[-1] = 1.0  # a rare success: the deviation is small
    assert float(scaler(rewards, torch.zeros(1000, 1, dtype=torch.bool))[-1]) == 10.0


def test_an_image_policys_ratio_is_one_before_its_first_step(monkeypatch):
    layout = dataclasses.replace(LAYOUT, image_size=32)
    config = policies.PolicyConfig("diffusion", width=16, horizon=4, chunk=4)
    policy, critic = policies.make_policy(config, layout, seed=1), Critic(layout)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    features = {"state": torch.randn(8, layout.size, generator=generator), "image": pixels}
    _, chains = policy.sample(features, policy.noise(generator, 8), "stochastic")
    batch = dataclasses.replace(
        make_batch(make("diffusion"), 4, 2),
        features=features,
        chains=chains.view(4, 2, *chains.shape[1:]),
        next_features={key: value[:2] for key, value in features.items()},
    )
    ratios = []

    def spy(new, old, *others):
        ratios.append((new - old).exp())
        return actor_loss(new, old, *others)

    monkeypatch.setattr(ppo, "actor_loss", spy)
    optimisers = {
        "actor": torch.optim.Adam(policy.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    update(policy, critic, optimisers, batch, RLConfig(epochs=2), 0.04, generator)
    torch.testing.assert_close(ratios[0], torch.ones(8, policy.steps), atol=1e-5, rtol=0)
    assert (ratios[1] - 1).abs().max() > 1e-3
    seen = augmented(policy, batch, generator).features["image"]
    assert not torch.equal(seen, pixels)  # it is augmented indeed
