"""Runs for the tests of experiments."""

from diffrl.experiments import EXPERIMENTS

ARMS = {arm.name: arm for chosen in EXPERIMENTS.values() for arm in chosen.variants}
