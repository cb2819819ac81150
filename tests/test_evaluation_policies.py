"""Policies that can be evaluated are what their files say."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_samples import EXPERTS, TASK, Seen, run

from diffrl.base import artifacts
from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.evaluation import policies
from diffrl.evaluation import stage as evaluation_stage
from diffrl.evaluation.play import play
from diffrl.evaluation.policies import BLOCK, open_policy
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.scores import summarise
from diffrl.evaluation.stage import plan
from diffrl.presets import get_preset


@pytest.mark.sim
def test_an_oracle_of_what_an_expert_generated_succeeds_every_time(libero_run, tmp_path):
    from diffrl.data.attributes import libero_attributes
    from diffrl.data.hdf5 import write_episodes
    from diffrl.generation.attempts import Player
    from diffrl.sim.scene import load_scene

    scene, made = load_scene(TASK), []
    for algorithm, mode in (("diffusion", "deterministic"), ("gaussian", "stochastic")):
        folder = libero_run / EXPERTS / f"{algorithm}-seed0"
        play = Player(scene, Arm(algorithm, mode), get_preset("smoke"), [folder])
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


def test_the_vla_decides_for_a_robot_what_it_decides_in_any_company(tmp_path):
    import vla_samples

    from diffrl.vla import model as vla

    vla.save(vla_samples.make_model(), tmp_path, {})
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


def test_a_model_that_acts_otherwise_is_another_policy_under_the_same_name(tmp_path):
    import vla_samples

    from diffrl.vla import model as vla

    model = vla_samples.make_model()
    keys = set()
    for chunk in (2, 1):
        model.config = replace(model.config, chunk=chunk)
        vla.save(model, tmp_path, {})
        evaluation_stage._policy.cache_clear()
        keys.add(evaluation_stage._key(f"compact:{tmp_path}"))
    assert len(keys) == 2


def test_a_model_s_identity_is_what_its_files_say_but_not_how_it_came_to_be(tmp_path):
    import vla_samples

    from diffrl.vla import model as vla

    vla.save(vla_samples.make_model(), tmp_path, {})
    path, prints = tmp_path / "model.json", []
    description = artifacts.read_json(path)
    for change in ({}, {"about": {"minutes": 2}}, {"config": description["config"] | {"new": 1}}):
        artifacts.write_json(path, description | change)
        prints.append(open_policy(f"compact:{tmp_path}").fingerprint)
    assert prints[0] == prints[1] != prints[2]  # as stored: a default of later code is not in it


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


# ---- trials in the simulator, errors apart from failures -----------------------------------------


@pytest.mark.sim
def test_a_trial_s_every_state_is_the_same_in_any_company(libero_run):
    trials, kept = plan([TASK], BLOCK + 1), []
    for copies, order in ((BLOCK + 1, 1), (2, -1)):
        policy = open_policy(f"expert:{libero_run / EXPERTS / 'diffusion-seed0'}?mode=stochastic")
        played = play(policy, trials[::order], copies, keep=lambda trial: True)
        kept.append(played[::order])
    assert len({outcome.steps for outcome in kept[0]}) > 2  # or swapped trials would not show
    for one, other in zip(*kept):
        assert (one.trial, one.status, one.steps) == (other.trial, other.status, other.steps)
        assert np.array_equal(one.states, other.states)


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


class Wrong(policies.Random):
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


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("compact", "train-vla --data FILE --out {}`"), ("expert", "diffrl train ")],
)
def test_a_folder_without_a_policy_is_named_with_the_command_that_makes_one(kind, remedy, tmp_path):
    with pytest.raises(UserError) as told:
        open_policy(f"{kind}:{tmp_path}")
    assert str(told.value).startswith(f"{tmp_path} holds no ")
    assert remedy.format(tmp_path) in str(told.value)


@pytest.mark.sim
def test_unknown_start_states_are_refused_by_name():
    for name in ("official/50", "somewhere/1", "fresh/1", "official"):
        with pytest.raises(UserError, match=name):
            play(Wrong(), [Trial(TASK, name, 0)], copies=1)
