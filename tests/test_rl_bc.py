"""Cloning: interrupted, stopped, refused."""

import pytest
import torch
from policy_samples import SMALL, make_small

from diffrl.base import checkpoint
from diffrl.base.errors import UserError
from diffrl.presets import ALGORITHMS, CloneConfig
from diffrl.rl.bc import Clone, fit_clone
from diffrl.rl.rollout import Rollout

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_clone(algorithm="diffusion", **settings):
    policy = make_small(algorithm)
    generator = torch.Generator().manual_seed(5)
    features = {"state": torch.randn(80, SMALL.size, generator=generator)}
    plans = torch.tanh(features["state"][:, :7]).unsqueeze(1).expand(80, 4, 7)
    settings = {"steps": 60, "measure_growth": 1.5, "first_measure": 20, "batch": 16, **settings}
    return Clone(policy, features, plans, CloneConfig(**settings))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def trials(successes, of=5):
    return [Rollout(f"fresh/0/{i}", "deterministic", 0, success=i < successes) for i in range(of)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_clone_that_was_interrupted_continues_to_the_same_weights(algorithm, killed_at, tmp_path):
    whole = make_clone(algorithm)
    fit_clone(whole, lambda policy: trials(1))

    class Killed(Exception):
        pass

    part = make_clone(algorithm)
    path = tmp_path / "clone.safetensors"

    def save():
        checkpoint.save(path, part.state(), "key")
        if len(part.curve) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        fit_clone(part, lambda policy: trials(1), save)
    again = make_clone(algorithm)
    again.restore(checkpoint.load(path, "key"))
    fit_clone(again, lambda policy: trials(1))
    assert [row["steps"] for row in again.curve] == [row["steps"] for row in whole.curve]
    assert equal(weights(again.policy), weights(whole.policy))


@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_a_clone_is_restored_to_the_device_that_its_policy_is_on():
    policy = make_small("diffusion").to("meta")
    frames = make_clone()
    clone = Clone(make_small("diffusion"), frames.features, frames.plans, frames.config)
    clone.policy, clone.parameters = policy, list(policy.parameters())
    clone.optimiser = torch.optim.AdamW(clone.parameters)
    clone.restore(frames.state())
    assert {p.device.type for p in clone.ema.shadow_params} == {"meta"}


def test_cloning_stops_at_the_set_success_and_keeps_the_averaged_weights():
    clone = make_clone(steps=1000)
    measured = []

    def measure(policy):
        measured.append(weights(policy))
        return trials(len(measured))

    assert fit_clone(clone, measure) == pytest.approx(0.4)
    assert clone.steps == 30  # first measured at 20, then at 30
    assert equal(weights(clone.policy), measured[-1])


def test_a_clone_is_measured_with_the_frozen_steps_that_rl_will_start_from():
    policy = make_small("diffusion", finetuned_steps=2)
    clone = make_clone()
    clone = Clone(policy, clone.features, clone.plans, clone.config)
    seen = []

    def measure(policy):
        pairs = zip(policy.frozen.parameters(), policy.denoiser.parameters(), strict=True)
        seen.append(all(torch.equal(frozen, learnt) for frozen, learnt in pairs))
        return trials(1)

    fit_clone(clone, measure)
    assert len(seen) > 1
    assert all(seen)


def test_a_start_state_that_ended_in_an_error_is_not_counted_as_measured():
    clone = make_clone()
    broken = Rollout("fresh/0/9", "deterministic", 0, error=True)
    fit_clone(clone, lambda policy: [*trials(2, of=4), broken])
    assert (clone.curve[-1]["success"], clone.curve[-1]["measured"]) == (0.5, 4)


def test_a_clone_that_never_succeeds_is_told_with_what_to_change():
    with pytest.raises(UserError, match=r"libero_object/0 never succeeded .* demonstrations.count"):
        fit_clone(make_clone(), lambda policy: trials(0))


def test_a_cloning_loss_that_is_not_finite_is_told():
    with pytest.raises(UserError, match=r"clone\.learning_rate"):
        fit_clone(make_clone(learning_rate=1e30), lambda policy: trials(3))
