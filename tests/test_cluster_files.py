"""The files of cluster/ say what exists: commands, options, files, packages."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_prose import help_of

from diffrl.__main__ import COMMANDS
from diffrl.presets import PRESETS, get_preset

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())


def called(text):
    """Each ``-m diffrl COMMAND …`` of a script: the command and its options."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if found := re.search(r"-m diffrl ([\w-]+)([^#&|`]*)", line):
            yield found[1], re.findall(r"(?<!\S)--[a-z-]+", found[2])


def lines_of(name):
    return (CLUSTER / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_and_option_exists(path):
    named = list(called(path.read_text(encoding="utf-8")))
    if path.name in ("slurm.sh", "ray.yaml"):
        assert len(named) >= 3
    for command, options in named:
        assert command in COMMANDS, command
        for option in {*options} - {"--ray"}:
            assert f"{option} " in help_of(command), f"{command} {option}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_of_the_repository_that_is_named_exists(path):
    for name in re.findall(r"(?<![\w/])cluster/[\w.]+", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_the_slurm_script_is_bash_and_trains_the_expert_of_its_number(tmp_path):
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    stand_in = tmp_path / "python"  # says what it is asked to do; cluster/jobs.py runs for real
    stand_in.write_text(
        f'#!/bin/bash\n[ "$1" = -m ] && {{ echo "$@"; exit; }}\nexec {sys.executable} "$@"\n'
    )
    stand_in.chmod(0o755)
    environment = os.environ | {
        "PYTHON": str(stand_in),
        "USER": "me",
        "PYTHONPATH": str(ROOT),
    }

    def run(*arguments, **variables):
        result = subprocess.run(
            ["bash", script, *arguments],
            **{"cwd": ROOT, "env": environment | variables, "text": True, "check": True},
            stdout=subprocess.PIPE,
        )
        return shlex.split(result.stdout)

    asked = run(PRESET="paper", SLURM_ARRAY_TASK_ID="7")
    expected = "--preset paper --task libero_spatial/1 --algorithm diffusion --seed 1"
    assert asked == ["-m", "diffrl", "train", *expected.split()]
    assert run("rest", PRESET="gpu") == ["-m", "diffrl", "reproduce", "--preset", "gpu"]


def test_slurm_s_options_are_its_own():
    known = (
        "array cpus-per-task dependency gpus job-name mem nodes ntasks output parsable requeue time"
    )
    options = [
        option
        for line in lines_of("slurm.sh")
        if line.startswith("#SBATCH") or "sbatch --" in line
        for option in re.findall(r"(?<!\S)--([a-z-]+)", line)
    ]
    assert len(options) >= 10
    assert set(options) <= set(known.split())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_jobs_of_a_preset_are_its_experts(preset):
    command = [sys.executable, CLUSTER / "jobs.py", preset]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lines = subprocess.check_output(command, text=True, env=environment).splitlines()
    settings = get_preset(preset)
    seeds = sum(len(settings.of(task).rl.seeds) for task in settings.tasks)
    assert len(lines) == len(set(lines)) == 2 * seeds
    assert {line.split()[0] for line in lines} == set(settings.tasks)
    last = subprocess.check_output([*command, str(len(lines) - 1)], text=True, env=environment)
    assert last.strip() == lines[-1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Name a preset"),
        (["smoke", "0", "1"], "Name a preset"),
        (["nothing"], "nothing"),
        *((["smoke", number], f"no expert number {number}") for number in ("-1", "2", "x", "1.0")),
    ],
)
def test_a_job_that_does_not_exist_is_told_in_words_and_is_no_other(arguments, told):
    command = [sys.executable, CLUSTER / "jobs.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (1, "")
    assert told in run.stderr
    assert "Traceback" not in run.stderr


def test_ray_up_s_example_is_valid_and_starts_ray_on_every_node():
    config = yaml.safe_load((CLUSTER / "ray.yaml").read_text(encoding="utf-8"))
    util = pytest.importorskip("ray.autoscaler._private.util", reason="needs the extra cluster")
    util.validate_config(util.prepare_config(config) | {"cluster_synced_files": []})
    assert config["head_node_type"] in config["available_node_types"]
    for name in ("head", "worker"):
        assert "ray start" in config[f"{name}_start_ray_commands"][-1]
    for command in [*config["setup_commands"], *config["head_start_ray_commands"]]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    help_text = subprocess.check_output(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"], text=True
    )
    starts = [config[f"{name}_start_ray_commands"][-1] for name in ("head", "worker")]
    options = {option for line in starts for option in re.findall(r"--[a-z-]+", line)}
    assert options == {"--head", "--port", "--autoscaling-config", "--address"}
    assert all(option in help_text for option in options)


def test_the_image_copies_what_exists_and_installs_what_the_project_declares():
    lines = lines_of("Dockerfile")
    words = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert words <= {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    for source in (line.split()[1] for line in lines if line.startswith("COPY")):
        assert (ROOT / source).exists(), source
    text = "\n".join(lines)
    assert re.search(r"FROM python:3\.1[12]-slim", text)  # as pyproject.toml requires
    extras = re.search(r"-e '\.\[([a-z,]+)\]'", text)[1].split(",")
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras)
    assert "apt.txt" in text
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "runs"} <= set(left_out)


def test_the_image_s_shell_commands_are_shell():
    for line in lines_of("Dockerfile"):
        if line.startswith("RUN "):
            subprocess.run(["sh", "-n", "-c", line.removeprefix("RUN ")], check=True)
