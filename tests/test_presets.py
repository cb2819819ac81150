"""Presets are found by their names, and say where their settings come from."""

import inspect
import re

import pytest

from diffrl import presets
from diffrl.base.errors import UserError
from diffrl.presets import get_preset


@pytest.mark.parametrize("name", [3, None, ["smoke"], "smoek"])
def test_what_names_no_preset_is_refused_with_the_names(name):
    with pytest.raises(UserError, match=r"There is no preset .*choose one of smoke, laptop"):
        get_preset(name)
    assert get_preset("smoke").name == "smoke"


def lines_of(name):
    """The source lines of a preset's definition."""
    text = inspect.getsource(presets)
    start = text.index(f"_{name.upper()} = Preset(")
    return text[start : text.index("\n)\n", start)].splitlines()


@pytest.mark.parametrize("name", ["pixels", "gpu", "paper"])
def test_every_setting_of_a_preset_that_looks_names_its_source(name):
    settings = [line for line in lines_of(name) if re.match(r" {8}\w+=", line)]
    assert len(settings) > 10
    bare = [line for line in settings if not re.search(r"#.*(\[[PSGDLC]\]|as preset)", line)]
    assert bare == []


def test_what_the_presets_call_dppos_is_dppos():
    paper = get_preset("paper").rl
    assert (paper.gamma, paper.gae_lambda, paper.gamma_denoising) == (0.999, 0.95, 0.99)
    assert (paper.target_kl, paper.reward_scaling, paper.log_prob_clamp) == (1.0, True, True)
    assert (paper.clip, paper.clip_first, paper.clip_rate) == (0.01, 0.001, 3.0)
    assert (paper.sigma_floor, paper.gaussian_std, paper.critic_warmup) == (0.1, 0.1, 2)
    assert (paper.prediction, paper.spacing, paper.sampling_steps) == ("epsilon", "leading", 5)
    assert paper.critic == "policy"  # the state beside pictures would be a deviation


@pytest.mark.parametrize("name", ["gpu", "paper"])
def test_the_papers_own_observation_is_drawn_exactly(name):
    clone = get_preset(name).clone
    assert (clone.encoder, clone.network, clone.detail) == ("image", "unet", "exact")
    assert (clone.image_size, clone.wrist) == (128, False)
