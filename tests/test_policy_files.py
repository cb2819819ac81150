"""Saved policies come back exactly, or are refused by name."""

import dataclasses
import json

import pytest
import torch
from policy_samples import LAYOUT, config_of, draw, make

from diffrl import policy as policies
from diffrl.base.errors import UserError
from diffrl.presets import PRESETS, get_preset


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_saved_policy_comes_back_exactly(algorithm, tmp_path):
    policy = make(algorithm, finetuned_steps=3 if algorithm == "diffusion" else None)
    features, noise = draw(policy)
    policies.save(tmp_path, policy)
    again = policies.load(tmp_path)
    assert torch.equal(again.sample(features, noise)[0], policy.sample(features, noise)[0])
    assert again.layout == policy.layout


def test_broken_or_foreign_weights_are_refused_by_name(tmp_path):
    policies.save(tmp_path, make())
    weights = tmp_path / "policy.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"policy\.safetensors cannot be read"):
        policies.load(tmp_path)
    policies.save(tmp_path / "other", make(width=16))
    weights.write_bytes((tmp_path / "other" / weights.name).read_bytes())
    with pytest.raises(UserError, match="belongs to another network"):
        policies.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"policy\.safetensors cannot be read"):
        policies.load(tmp_path)


def test_a_description_of_another_version_is_refused(tmp_path):
    policies.save(tmp_path, make())
    path = tmp_path / "policy.json"
    description = json.loads(path.read_text())
    description["config"]["colour"] = "blue"
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="does not describe a policy"):
        policies.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"horizon": 8, "chunk": 8, "cross_fade": 4}, "cross_fade"),
        ({"noise_correlation": 1.0}, "noise_correlation"),
        ({"finetuned_steps": 6}, "finetuned_steps"),
        ({"algorithm": "gaussian", "gaussian_std": 0.5}, "gaussian_std"),
        ({"algorithm": "transformer"}, "transformer"),
        ({"prediction": "X0"}, "no prediction 'X0': choose epsilon or x0"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, named):
    with pytest.raises(UserError, match=named):
        make(**settings)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_every_preset_describes_a_policy(name, algorithm):
    preset = get_preset(name)
    config = policies.make_config(algorithm, preset.clone, preset.rl)
    assert config.chunk == preset.clone.chunk
    assert config.prediction == preset.rl.prediction


def test_a_policy_saved_before_a_setting_existed_is_read_and_written_as_it_was(tmp_path):
    policies.save(tmp_path, make())
    text = (tmp_path / "policy.json").read_text()
    assert not any(name in text for name in ("noise_everywhere", "tail"))
    again = policies.load(tmp_path)
    assert (again.config.noise_everywhere, again.layout.tail) == (False, 0)
    observing = policies.make_policy(
        config_of("diffusion", width=32, horizon=6, chunk=4, cross_fade=2),
        dataclasses.replace(LAYOUT, tail=2),
    )
    policies.save(tmp_path / "tail", observing)
    assert policies.load(tmp_path / "tail").layout.tail == 2
