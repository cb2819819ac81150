"""A policy class of one's own: ten lines and a registration."""

from dataclasses import replace

import pytest
import torch

from diffrl import policy as policies
from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.data.hdf5 import read_episodes
from diffrl.evaluation.stage import Job, evaluate, plan
from diffrl.generation.stage import dataset_path, generate
from diffrl.policy.nets import mlp
from diffrl.presets import CloneConfig, GenerationConfig, OperatorConfig, Preset, RLConfig
from diffrl.quality.stage import load_datasets
from diffrl.rl.records import expert_folder
from diffrl.rl.stage import train_expert

TASK = "libero_object/0"
SETTINGS = RLConfig(
    copies=4, decisions=4, iterations=2, epochs=1, measure_every=1, measure_starts=2,
    evaluation_starts=2, physics="training", minibatch=50,
)  # fmt: skip


class Unbounded(policies.ChainPolicy):
    """A plan is what a small network says, and noise of a fixed deviation."""

    steps, random_start = 1, False

    def __init__(self, config, layout):
        super().__init__(config, layout)
        self.layers = mlp((self.encoder.size, config.width, config.width, config.horizon * 7))

    def exploration(self):
        return 0.05

    def transition(self, condition, latent, step, mode, scored=False):
        return self.layers(condition).view_as(latent), self.noise_scale * torch.tensor(0.05)

    def loss(self, features, plans, generator):
        return (self.layers(self._condition(features)).view_as(plans) - plans).square().mean()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(policies, "_registered", {})
    policies.register("unbounded", Unbounded)
    return "unbounded"


@pytest.mark.sim
def test_a_registered_class_is_trained_generates_data_and_is_evaluated(
    registered, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    preset = Preset(
        name="test",
        tasks=(TASK,),
        demonstrations=OperatorConfig(count=2),
        clone=CloneConfig(steps=600, measure_starts=4),
        rl=SETTINGS,
        generation=GenerationConfig(episodes=2, max_attempts=16),
    )
    rows = train_expert(preset, TASK, registered)
    assert set(rows["algorithm"]) == {registered}
    folder = expert_folder(preset, TASK, registered, 0)
    assert type(policies.load(folder)) is Unbounded

    made = generate(preset, TASK, Arm(registered, "stochastic"))
    path = dataset_path(preset, TASK, Arm(registered, "stochastic"))
    assert made["episodes"].item() == 2
    assert {episode.source for episode in read_episodes(path)} == {registered}
    assert [t.arm for t in load_datasets([path])] == [(registered, "stochastic")] * 2

    trials = tuple(plan([TASK], 2))
    job = Job(f"expert:{folder}", trials, tmp_path / "played", Arm(registered, "deterministic"))
    table = evaluate([job], workers=1)
    # the same start states, noise and policy as in training's own last look at it
    final = rows[rows["mode"] == "deterministic"]
    assert (table["status"] == "success").sum() == final["successes"].item()


def test_an_algorithm_that_nobody_registered_is_refused_before_anything_is_computed(tmp_path):
    preset = Preset(name="test", tasks=(TASK,), rl=replace(SETTINGS, iterations=1))
    with pytest.raises(UserError, match=r"no algorithm 'transformer': choose diffusion or gauss"):
        train_expert(preset, TASK, "transformer", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_is_given_once_and_is_one_word(registered):
    policies.register(registered, Unbounded)  # again: the same
    for name in (registered, "diffusion"):
        with pytest.raises(UserError, match="choose another name"):
            policies.register(name, type("Other", (Unbounded,), {}))
    with pytest.raises(UserError, match="needs one word"):
        policies.register("two words", Unbounded)


def test_the_class_of_each_algorithm_has_its_own_clip_and_rate():
    config = RLConfig(clip=0.1, gaussian_clip=0.2, actor_learning_rate=1e-4)
    gaussian, diffusion = map(policies.policy_class, ("gaussian", "diffusion"))
    assert gaussian.setting(config, "clip") == 0.2
    assert gaussian.setting(config, "actor_learning_rate") == config.gaussian_learning_rate
    assert diffusion.setting(config, "clip") == Unbounded.setting(config, "clip") == 0.1
    assert diffusion.setting(config, "actor_learning_rate") == 1e-4
