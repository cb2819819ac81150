"""RL of a policy that looks, with LIBERO's simulator and its pictures."""

import dataclasses

import numpy as np
import pytest
import torch
from test_rl_sim import TASK, TINY, same

from diffrl import policy as policies
from diffrl.base import checkpoint
from diffrl.base.arm import Arm
from diffrl.base.artifacts import Stage
from diffrl.base.errors import UserError
from diffrl.evaluation.stage import Job, evaluate, evaluate_preset, plan
from diffrl.generation.stage import generate
from diffrl.policy.features import Layout
from diffrl.presets import (
    PRESETS,
    CloneConfig,
    EvaluationConfig,
    GenerationConfig,
    Preset,
    QualityConfig,
    VLAConfig,
)
from diffrl.quality.stage import run_quality
from diffrl.rl.bc import demonstration_rows
from diffrl.rl.collect import Collector
from diffrl.rl.learn import WALL_CLOCK, Learner
from diffrl.rl.records import FORMAT, config_of, expert_folder
from diffrl.rl.rollout import Senses, rollout
from diffrl.sim.observation import observe
from diffrl.sim.painters import Painters
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import fresh_start_states
from diffrl.vla.stage import fit

pytestmark = pytest.mark.sim
CLONE = CloneConfig(
    encoder="frozen", image_size=64, wrist=True, feature_noise=0.1, width=32, horizon=6, chunk=4
)
RL = dataclasses.replace(TINY, copies=3, iterations=4, critic="state")


@pytest.fixture(scope="module")
def scene():
    torch.set_num_threads(1)
    found = load_scene(TASK)
    try:
        Painters(TASK, ["agentview"], 64, "reduced").draw(*still(found, 1))
    except UserError as error:
        pytest.skip(str(error))
    return found


def still(scene, n):
    """States and fixtures of some fresh start states."""
    starts = fresh_start_states(scene, n, 7)
    return starts.states, starts.fixtures


def make_policy(scene, algorithm="diffusion", rl=RL):
    states, fixtures = still(scene, 8)
    seen = observe(scene, states, fixtures)
    layout = Layout.of(TASK, seen, rl.cross_fade).seen_by(CLONE)
    policy = policies.make_policy(policies.make_config(algorithm, CLONE, rl), layout, 0)
    with Painters(TASK, layout.cameras, 64, "reduced") as painters:
        features = policy.features(seen, painters.draw(states, fixtures))
    policy.fit(features, torch.linspace(-0.4, 0.4, 50)[:, None].expand(50, 7))
    return policy


def test_spawned_painters_draw_the_same_pictures(scene):
    states, fixtures = still(scene, 5)
    cameras = ("agentview", "robot0_eye_in_hand")
    here = Painters(TASK, cameras, 64, "reduced").draw(states, fixtures)
    assert here.shape == (5, 2, 64, 64, 3)
    with Painters(TASK, cameras, 64, "reduced", workers=2) as painters:
        assert np.array_equal(painters.draw(states, fixtures), here)
        assert np.array_equal(painters.draw(states[3:4], fixtures[3:4]), here[3:4])
        loaded = painters.loaded()
    assert "mujoco" in loaded
    assert "torch" not in loaded  # so it cannot touch CUDA


def test_a_policy_looks_once_a_decision_and_one_of_states_never(scene):
    collector = Collector(make_policy(scene), scene, RL, 0)
    drawn, draw = [], collector.senses.painters.draw

    def count(states, fixtures):
        drawn.append(len(states))
        return draw(states, fixtures)

    collector.senses.painters.draw = count
    batch = collector.collect(torch.Generator().manual_seed(0))
    assert len(batch.features["cells"]) == RL.decisions * RL.copies
    ends = int(batch.truncated.sum())
    assert sum(drawn) == (RL.decisions + 1) * RL.copies + ends  # and what the last one led to
    blind = policies.make_policy(collector.policy.config, collector.policy.layout.blind)
    assert Senses(blind, scene, collector.simulator).painters is None
    collector.close()


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_run_that_looks_goes_on_from_its_checkpoint_to_the_same_bytes(scene, tmp_path, algorithm):
    def content(learner):
        tree = learner.state()
        del tree["seconds"]
        for row in tree["diagnostics"]:
            for name in WALL_CLOCK:
                del row[name]
        return tree

    whole = Learner(make_policy(scene, algorithm), scene, RL, 0, threads=1)
    part = Learner(make_policy(scene, algorithm), scene, RL, 0, threads=2)
    for _ in range(4):  # the last two in the exact physics
        whole.iterate()
    for _ in range(2):
        part.iterate()
    checkpoint.save(tmp_path / "a.safetensors", part.state(), "key")
    again = Learner(make_policy(scene, algorithm), scene, RL, 0, threads=1)
    again.restore(checkpoint.load(tmp_path / "a.safetensors", "key"))
    for _ in range(2):
        again.iterate()
    assert same(content(again), content(whole))
    first, last = whole.policy, make_policy(scene, algorithm)
    assert not torch.equal(first.encoder.cell[0].weight, last.encoder.cell[0].weight)


def test_a_trial_that_looks_does_not_depend_on_its_company(scene):
    policy = make_policy(scene)
    starts = fresh_start_states(scene, 5, 7)

    def outcomes(starts):
        trials = rollout(policy, scene, starts, "stochastic", record=True, max_steps=8)
        return [(trial.start_state, trial.episode.checksum()) for trial in trials]

    assert outcomes(starts[[3, 1]]) == [outcomes(starts)[3], outcomes(starts)[1]]


def test_demonstrations_are_seen_as_the_policy_sees_its_own_states(scene):
    policy = make_policy(scene)
    trial = rollout(policy, scene, fresh_start_states(scene, 1, 7), record=True, max_steps=4)[0]
    features, plans = demonstration_rows(policy, scene, [trial.episode])
    assert features["cells"].shape == (4, 2, 16, 272)
    assert len(plans) == 4
    with Painters(TASK, policy.cameras, 64, "reduced") as painters:
        picture = painters.draw(trial.episode.states[2:3], trial.episode.fixtures[None])
    seen = policy.features(
        observe(scene, trial.episode.states[2:3], trial.episode.fixtures), picture
    )
    assert torch.equal(features["cells"][2], seen["cells"][0])


TINY_SERIES = Preset(
    name="tiny-pixels",
    tasks=(TASK,),
    clone=CLONE,
    rl=RL,
    generation=GenerationConfig(episodes=3, max_attempts=3),
    quality=QualityConfig(episodes=3, resamples=50),
    vla=VLAConfig(
        data=("diffusion-deterministic",),
        further=(),
        image_size=64,
        frame_stride=8,
        horizon=4,
        chunk=4,
        width=32,
        heads=2,
        steps=2,
        batch=2,
        held_out=1,
    ),
    evaluation=EvaluationConfig(trials=1),
)


@pytest.mark.slow
def test_data_of_a_policy_that_looks_go_through_quality_vla_and_evaluation(
    scene, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setitem(PRESETS, "tiny-pixels", TINY_SERIES)
    folder = expert_folder(TINY_SERIES, TASK, "diffusion", 0)
    policies.save(folder, make_policy(scene))
    config = config_of(TINY_SERIES, TASK, "diffusion", 0)
    Stage(folder, "expert", config, format=FORMAT).finish({"rows": []}, seed=0)

    def short(*arguments, **options):
        """A rollout of an untrained policy, cut and called a success."""
        trials = rollout(*arguments, **options, max_steps=24)
        for trial in trials:
            trial.success = trial.episode.success = True
            trial.episode.rewards[-1] = 1
        return trials

    monkeypatch.setattr("diffrl.rl.rollout.rollout", short)
    row = generate(TINY_SERIES, TASK, Arm("diffusion", "deterministic")).iloc[0]
    assert row["episodes"] == 3
    quality = run_quality("tiny-pixels")
    assert {t.source for t in quality.trajectories} >= {"diffusion"}
    record = fit(("diffusion-deterministic", 0), TINY_SERIES)
    assert record["minutes"] >= 0
    trials = evaluate_preset(TINY_SERIES, workers=1)
    assert (trials["status"] != "error").all()
    own = Job(f"expert:{folder}", tuple(plan([TASK], 1)), tmp_path / "own", Arm("diffusion", "x"))
    assert (evaluate([own], workers=1)["status"] != "error").all()
