"""The examples in docstrings run and show what they say."""

import doctest
import importlib

import pytest

FAST = (
    "diffrl.base.intervals",
    "diffrl.quality.trajectory",
    "diffrl.sim.starts",
    "diffrl.policy.diffusion",
    "diffrl.evaluation.scores",
)
SIMULATED = ("diffrl.sim.simulator", "diffrl.sim.scene")


def attempted(name: str) -> int:
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed
    return result.attempted


@pytest.mark.parametrize("name", FAST)
def test_the_examples_of_a_module_run(name):
    assert attempted(name) > 0


@pytest.mark.sim
@pytest.mark.parametrize("name", SIMULATED)
def test_the_examples_that_load_a_scene_run(name):
    assert attempted(name) > 0
