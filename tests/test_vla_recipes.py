"""The commands that train the big models on our data."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from diffrl.presets import PRESETS
from diffrl.vla import recipes

PARSE = """
import sys
import draccus
from lerobot.configs import parser
from lerobot.configs.train import TrainPipelineConfig
arguments = sys.argv[1:]
if any(a.startswith("--policy.path") for a in arguments):  # whose settings lie on the hub
    arguments = parser.filter_path_args(["policy"], arguments)
    arguments = [a for a in arguments if not a.startswith("--policy.")]
else:
    import lerobot.policies.factory
config = draccus.parse(TrainPipelineConfig, args=arguments)
print(config.dataset.repo_id, config.steps, config.batch_size, config.rename_map)
"""


def test_the_recipe_s_commands_name_the_preset_s_data():
    lines = recipes.commands(PRESETS["smoke"], "diffusion-deterministic")
    assert all("--suite libero_object" in typed[-1] for typed in list(lines.values())[1:])
    assert all("exports/diffusion-deterministic" in lines[model][0] for model in ("SmolVLA", "π0"))
    assert "runs/smoke/datasets/diffusion-deterministic/libero_object --to" in lines["export"][0]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_recipe_exports_the_tasks_that_our_own_model_learns_and_no_others(preset):
    exported = {
        argument.rpartition("/")[2]
        for argument in shlex.split(recipes.commands(preset, "x")["export"][0])
        if argument.startswith("runs/")
    }
    learned = {task for task in preset.tasks if task.split("/")[0] in exported}
    assert learned == set(preset.vla_tasks)


@pytest.mark.skipif(
    "LEROBOT_PYTHON" not in os.environ, reason="LEROBOT_PYTHON names no environment with lerobot"
)
@pytest.mark.parametrize(("model", "size"), [("SmolVLA", "20000 64 {"), ("π0", "30000 32 {")])
def test_lerobot_s_own_parser_takes_the_recipe(model, size):
    command = shlex.split(recipes.commands(PRESETS["smoke"], "gaussian-stochastic")[model][0])
    run = [os.environ["LEROBOT_PYTHON"], "-c", PARSE, *command[1:]]
    result = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"diffrl/gaussian-stochastic {size}")
    assert command[0] == "lerobot-train"
    assert Path(run[0]).with_name(command[0]).exists()
