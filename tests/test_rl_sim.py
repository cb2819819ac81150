"""RL with LIBERO's simulator: rollouts that do not depend on company, exact resumption."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from diffrl import policy as policies
from diffrl.base import checkpoint
from diffrl.base.errors import UserError
from diffrl.policy.features import Layout
from diffrl.presets import CloneConfig, OperatorConfig, Preset, RLConfig
from diffrl.rl import train
from diffrl.rl.bc import Clone, demonstration_rows
from diffrl.rl.collect import TRAINING_STARTS, Collector
from diffrl.rl.learn import WALL_CLOCK, Learner, improve
from diffrl.rl.rollout import Rollout, rollout
from diffrl.rl.stage import train_expert
from diffrl.sim.observation import observe
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import fresh_start_states, official_start_states

pytestmark = pytest.mark.sim
TASK = "libero_object/0"
TINY = RLConfig(
    copies=4, decisions=3, iterations=5, max_steps=20, epochs=2, minibatch=30, critic_warmup=1,
    measure_every=2, measure_starts=2, cross_fade=2, noise_start=2.0, noise_anneal=1.0,
    observe_tail=True, reward_scaling=True,
    physics="training", exact_last=0.4,  # so a killed run goes on in either
)  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    torch.set_num_threads(1)
    return load_scene(TASK)


def make_policy(scene, algorithm="diffusion", rl=TINY, seed=0):
    """A policy with random weights and the normalisers of a few start states."""
    starts = fresh_start_states(scene, 8, 123)
    observation = observe(scene, starts.states, starts.fixtures)
    config = policies.make_config(algorithm, CloneConfig(width=32, horizon=6, chunk=4), rl)
    tail = rl.cross_fade if rl.observe_tail else 0
    policy = policies.make_policy(config, Layout.of(TASK, observation, tail), seed)
    actions = torch.linspace(-0.4, 0.4, 50)[:, None].expand(50, 7)
    policy.fit(policy.with_tail(policy.features(observation), policy.no_tail(8)), actions)
    if tail:
        torch.nn.init.constant_(policy.encoder.gain, 0.5)  # as after some RL: the tail decides, too
    return policy


def outcome(trial):
    return trial.start_state, trial.success, trial.steps, trial.episode.checksum()


@pytest.mark.parametrize("settle", [True, False])
def test_an_episode_whose_physics_diverges_enters_no_rate_of_training(scene, settle, monkeypatch):
    rl = dataclasses.replace(TINY, decisions=2, max_steps=40, physics="exact")
    collector = Collector(make_policy(scene), scene, rl, 0, threads=1)
    reset, step = collector.simulator.reset, collector.simulator.step

    def diverge_at_first(starts, copies):
        reset(starts, copies=copies)
        if len(copies) == rl.copies:
            collector.simulator.error[1] = collector.simulator.done[1] = True

    def diverge(actions):
        done = step(actions)
        if not settle and collector.episodes == rl.copies:
            collector.simulator.error[1] = collector.simulator.done[1] = done.error[1] = True
        return done

    if settle:
        monkeypatch.setattr(collector.simulator, "reset", diverge_at_first)
    monkeypatch.setattr(collector.simulator, "step", diverge)
    batch = collector.collect(torch.Generator().manual_seed(0))
    assert batch.ended[0].tolist() == [False, True, False, False]
    assert (batch.successes, batch.lengths, batch.errors) == ([], [], 1)


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_trial_does_not_depend_on_its_company_nor_on_the_threads(scene, algorithm):
    policy = make_policy(scene, algorithm)
    starts = fresh_start_states(scene, 19, 7)  # more than one block of rows
    options = {"mode": "stochastic", "record": True, "max_steps": 12}
    together = rollout(policy, scene, starts, threads=2, **options)
    again = rollout(policy, scene, starts[[17, 3]], threads=1, **options)
    assert [outcome(trial) for trial in again] == [outcome(together[17]), outcome(together[3])]
    other = rollout(policy, scene, starts[[3]], seed=1, **options)
    assert outcome(other[0]) != outcome(together[3])


def test_a_recorded_trial_is_a_valid_episode_that_its_states_confirm(scene):
    policy = make_policy(scene)
    trial = rollout(policy, scene, official_start_states(scene)[[4]], record=True, max_steps=10)[0]
    episode = trial.episode.validate()
    assert episode.start_state == "official/4"
    assert (episode.length, len(episode.states)) == (10, 11)
    assert (episode.source, episode.mode) == ("diffusion", "deterministic")
    seen = observe(scene, episode.states, episode.fixtures)
    np.testing.assert_array_equal(episode.observations["object_pos"], seen.object_pos)
    assert np.ptp(episode.states[:, 0]) == pytest.approx(10 / 20)  # 10 steps at 20 Hz


def test_trials_beyond_the_number_of_copies_wait_for_a_free_one(scene, monkeypatch):
    policy = make_policy(scene)
    starts = fresh_start_states(scene, 5, 7)
    options = {"mode": "stochastic", "record": True, "max_steps": 8}
    at_once = rollout(policy, scene, starts, **options)
    monkeypatch.setattr("diffrl.rl.rollout.COPIES", 2)
    assert [outcome(t) for t in rollout(policy, scene, starts, **options)] == [
        outcome(t) for t in at_once
    ]


def test_demonstrations_become_decisions_and_repeat_their_last_action(scene):
    policy = make_policy(scene)
    trials = rollout(policy, scene, fresh_start_states(scene, 2, 7), record=True, max_steps=9)
    episodes = [trial.episode for trial in trials]
    features, plans = demonstration_rows(policy, scene, episodes)
    assert features["state"].shape == (18, policy.layout.size)
    assert plans.shape == (18, 6, 7)
    expected = torch.from_numpy(episodes[0].actions).float()
    assert torch.equal(plans[2], expected[2:8])
    assert torch.equal(plans[8], expected[8].expand(6, 7))
    with pytest.raises(UserError, match="no demonstrations of libero_object/0"):
        demonstration_rows(policy, scene, [])
    foreign = dataclasses.replace(episodes[0], task="libero_goal/0")
    with pytest.raises(UserError, match="libero_goal/0 cannot be cloned for libero_object/0"):
        demonstration_rows(policy, scene, [foreign])


def test_staggered_copies_end_at_different_times_and_each_episode_has_its_own_start(scene):
    policy = make_policy(scene)
    staggered = Collector(policy, scene, dataclasses.replace(TINY, decisions=5), 0)
    batch = staggered.collect(torch.Generator().manual_seed(0))
    first = batch.ended.int().argmax(0)  # the limit is 5 decisions of 4 steps
    assert first.tolist() == [1, 2, 3, 4]
    assert torch.equal(batch.truncated, batch.ended)
    assert len(batch.last_features["state"]) == int(batch.truncated.sum())
    assert staggered.episodes == 4 + int(batch.ended.sum())
    assert staggered.start_seed >= TRAINING_STARTS

    together = Collector(policy, scene, dataclasses.replace(TINY, staggered=False), 0)
    assert not together.collect(torch.Generator().manual_seed(0)).ended.any()
    together.collect(torch.Generator().manual_seed(0))
    assert together.episodes == 8  # all began anew
    assert (together.simulator.elapsed == 12).all()


def test_the_last_iterations_are_played_in_exact_physics(scene):
    learner = Learner(make_policy(scene), scene, TINY)
    seen = []
    for _ in range(TINY.iterations):
        learner.iterate()
        seen.append((learner.collector.simulator.physics, learner.collector.simulator.substeps))
    assert seen == [("training", 12)] * 3 + [("exact", 25)] * 2


@pytest.mark.parametrize(
    ("seen", "successes", "limit", "expected"),
    [
        ((1, 1), 0, 0.01, "exact"),  # training's 40 of 40 are not what the policy can do
        ((1, 1), 12, 0.01, "training"),
        ((1, 1), 11, 0.01, "training"),  # fewer, but so may chance have it
        ((1, 1), 0, None, "training"),
        ((0, 0), 12, 0.01, "exact"),  # none of 40: there is nothing to learn from
        ((0, 0), 2, 0.01, "training"),
        ((0.05, 0), 12, 0.01, "training"),  # noise may have it so
    ],
)
def test_training_physics_is_left_for_good_where_it_misleads_the_policy(
    scene, monkeypatch, seen, successes, limit, expected
):
    config = dataclasses.replace(
        TINY, exact_last=0.0, reward_scaling=False, measure_starts=12, physics_check=limit
    )
    outcomes = iter([{"episodes": 20, "success": success, "errors": 0} for success in seen * 2])
    monkeypatch.setattr(Learner, "_outcomes", lambda self, batch: next(outcomes))

    def play(policy, first, count):
        return [Rollout(str(k), "deterministic", 0, k < successes) for k in range(count)]

    learner = Learner(make_policy(scene), scene, config)
    for _ in range(2):
        learner.iterate()
    learner.measure(play)
    again = Learner(make_policy(scene), scene, config)
    again.restore(learner.state())  # the checkpoint remembers it
    for learned in (learner, again):
        learned.iterate()
        assert learned.physics == learned.diagnostics[-1]["physics"] == expected
    assert [row["physics"] for row in learner.diagnostics[:2]] == ["training"] * 2
    if expected == "exact":  # what is measured later does not bring it back
        successes = round(seen[-1] * config.measure_starts)
        learner.measure(play)
        assert learner.physics == expected


def test_the_last_observation_of_a_time_out_is_from_before_the_reset(scene):
    policy = make_policy(scene)
    config = dataclasses.replace(TINY, copies=1, max_steps=8, decisions=2, staggered=False)
    collector = Collector(policy, scene, config, 0)
    batch = collector.collect(torch.Generator().manual_seed(0))
    assert batch.ended.flatten().tolist() == [False, True]
    assert not torch.equal(batch.last_features["state"], batch.next_features["state"])
    start = fresh_start_states(scene, 1, collector.start_seed, first=1)
    collector.simulator.reset(start)
    fresh = policy.with_tail(policy.features(collector.simulator.observation), policy.no_tail(1))
    torch.testing.assert_close(batch.next_features["state"], fresh["state"])


def test_policy_and_critic_see_the_tail_that_will_be_blended(scene, monkeypatch):
    policy = make_policy(scene)
    collector = Collector(policy, scene, TINY, 0)
    left, execute = [], policy.execute

    def spy(plan, tail):
        actions, own = execute(plan, tail)
        left.append(own.clone())
        return actions, own

    monkeypatch.setattr(policy, "execute", spy)
    batch = collector.collect(torch.Generator().manual_seed(0))
    columns = policy.layout.tail_columns
    assert columns == 2 * 7 + 1
    seen = batch.features["state"].view(3, 4, -1)[:, :, -columns:]
    assert (seen[0] == 0).all()  # nobody has a plan yet
    for decision in (1, 2):
        for copy in range(4):
            tail = [*left[decision - 1][copy].flatten(), 1.0]
            expected = [0.0] * columns if batch.ended[decision - 1, copy] else tail
            assert seen[decision, copy].tolist() == expected
    cut = batch.truncated.nonzero()  # a time-out is valued with the tail that it would go on with
    assert len(cut)
    for row, (decision, copy) in zip(batch.last_features["state"], cut):
        assert row[-columns:].tolist() == [*left[decision][copy].flatten(), 1.0]
    last = batch.next_features["state"][:, -columns:]
    going = ~batch.ended[-1]
    assert torch.equal(last[going, :-1], left[-1][going].flatten(1))


def learn(algorithm, threads, path):
    """Train, or go on from the checkpoint at `path`; tell each checkpoint on stdout."""
    torch.set_num_threads(1)
    scene = load_scene(TASK)
    learner = Learner(make_policy(scene, algorithm), scene, TINY, 0, threads)
    if os.path.exists(path):
        learner.restore(checkpoint.load(path, "key"))

    def play(policy, first, count):
        return rollout(policy, scene, fresh_start_states(scene, 2, 9), max_steps=8)

    def save():
        checkpoint.save(path, learner.state(), "key")
        print("saved", learner.iteration, flush=True)

    improve(learner, play, save)


def run(path, algorithm, threads, kill_after=None, delay=0.0):
    """`learn` in a process of its own, killed `delay` seconds after so many checkpoints."""
    script = f"import test_rl_sim; test_rl_sim.learn({algorithm!r}, {threads}, {str(path)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=os.path.dirname(__file__),
        stdout=subprocess.PIPE,
        text=True,
    )
    if kill_after is not None:
        for _ in range(kill_after):
            assert process.stdout.readline().startswith("saved")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)


def content(path):
    """A checkpoint without its wall-clock numbers."""
    tree = checkpoint.load(path, "key")
    tree.pop("seconds")
    for row in tree["diagnostics"]:
        for name in WALL_CLOCK:
            row.pop(name)
    return tree


def same(first, second):
    """Whether two trees are equal, arrays bit by bit and NaN equal to NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor | np.ndarray):
        return np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True)
    return first == second or (first != first and second != second)


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_run_killed_and_resumed_on_other_threads_ends_with_the_same_bytes(tmp_path, algorithm):
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    run(whole, algorithm, threads=1)
    moment = random.SystemRandom()  # any one: none may change a byte
    kill = {"kill_after": moment.randrange(1, TINY.iterations - 1), "delay": moment.random() / 20}
    print(kill)
    run(part, algorithm, threads=2, **kill)
    run(part, algorithm, threads=1)
    assert content(whole)["iteration"] == TINY.iterations
    assert same(content(part), content(whole))


def small_preset(**clone):
    """Settings that train an expert in about a minute."""
    return Preset(
        name="test",
        tasks=(TASK,),
        demonstrations=OperatorConfig(count=2),
        clone=CloneConfig(**{"steps": 600, "measure_starts": 4, **clone}),
        rl=RLConfig(
            copies=6,
            decisions=4,
            iterations=2,
            epochs=2,
            measure_every=1,
            measure_starts=2,
            evaluation_starts=3,
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_an_expert_is_trained_recorded_and_found_again(tmp_path, algorithm):
    preset = small_preset()
    rows = train_expert(preset, TASK, algorithm, folder=tmp_path)
    assert list(rows["mode"]) == ["deterministic", "stochastic"]
    assert list(rows["trials"]) == [3, 3]
    assert (rows["low"] <= rows["success"]).all()
    assert rows["control_steps"].iloc[0] > 0
    assert policies.load(tmp_path).config.algorithm == algorithm
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert set(trials["start_state"]) == {"official/0", "official/1", "official/2"}
    diagnostics = pd.read_csv(tmp_path / "diagnostics.csv")
    assert list(diagnostics["iteration"]) == [1, 2]
    weights = (tmp_path / "policy.safetensors").stat()
    again = train_expert(preset, TASK, algorithm, folder=tmp_path)
    pd.testing.assert_frame_equal(again, rows)
    assert (tmp_path / "policy.safetensors").stat().st_mtime_ns == weights.st_mtime_ns


@pytest.mark.parametrize(
    ("clone", "message"),
    [
        ({"steps": 1, "measure_starts": 2}, r"never succeeded on its 2 held-out start states"),
        ({"steps": 9, "learning_rate": 1e30}, r"The cloning loss is (nan|inf)"),
    ],
)
def test_a_run_that_fails_writes_no_expert_and_leaves_an_older_one_alone(tmp_path, clone, message):
    before = {"policy.safetensors", "config.json", "expert.done.json", "clone.csv"}
    for name in before:
        (tmp_path / name).write_text("older")
    with pytest.raises(UserError, match=message):
        train_expert(small_preset(**clone), TASK, "diffusion", folder=tmp_path)
    there = {path.name for path in tmp_path.iterdir()}
    signs = {"train.log", "checkpoint", "expert.failed.json", ".lock"}
    assert there - signs == before
    assert {(tmp_path / name).read_text() for name in before} == {"older"}


@pytest.mark.slow
def test_the_image_policy_is_cloned_and_improved_by_the_same_code(scene, tmp_path):
    from diffrl.sim.camera import Renderer

    try:
        Renderer(scene, 64)
    except UserError as error:
        pytest.skip(str(error))
    preset = small_preset(encoder="image", network="unet", steps=2, batch=4)
    run = train.Training(preset, TASK, "diffusion", folder=tmp_path)
    policy = run.new_policy()
    assert policy.cameras == ("agentview",)
    trial = rollout(policy, scene, fresh_start_states(scene, 1, 7), record=True, max_steps=8)[0]
    clone = Clone(policy, *demonstration_rows(policy, scene, [trial.episode]), preset.clone)
    clone.train(2)
    rl = dataclasses.replace(
        preset.rl, copies=2, decisions=2, minibatch=20, max_steps=16, critic_warmup=1
    )
    learner = Learner(policy, scene, rl)
    before = policy.encoder.trunk.layers[0].weight.clone()
    first, second = learner.iterate(), learner.iterate()
    assert np.isfinite([first["critic_loss"], second["actor_loss"]]).all()
    assert not torch.equal(policy.encoder.trunk.layers[0].weight, before)
