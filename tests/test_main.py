"""The command line: the right function, and one paragraph when something is wrong."""

import inspect
import subprocess
import sys
from dataclasses import replace

import pytest

from diffrl.__main__ import COMMANDS, GO_ON, main, resolve
from diffrl.base.errors import UserError
from diffrl.presets import PRESETS, get_preset


def run(*arguments):
    command = [sys.executable, "-m", "diffrl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_function_with_typed_and_documented_parameters(command):
    function = resolve(command)
    assert inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


def test_without_a_command_the_usage_lists_all():
    result = run()
    assert result.returncode == 2
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reprodcue"], "did you mean reproduce?"),
        (["reproduce", "--preset", "labtop"], "did you mean 'laptop'"),
        (["reproduce", "--prest", "smoke"], "--preset"),
        (["reproduce", "--only", "three"], "--only"),
        (["reproduce", "--only", "9"], "numbered 1 to 5"),
    ],
)
def test_bad_input_is_told_with_the_nearest_name_and_no_traceback(arguments, told):
    result = run(*arguments)
    assert result.returncode != 0
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_unknown_task_is_told_without_a_traceback_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    result = run("train", "--task", "libero_objekt/0", "--preset", "smoke")
    assert result.returncode == 1
    assert "libero_object" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_algorithm_is_told_and_no_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    for task in ([], ["--task", "libero_object/0"]):
        assert main(["train", *task, "--algorithm", "diffuse", "--preset", "smoke"]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "There is no algorithm 'diffuse': choose diffusion or gaussian" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seed", "-1"], "--seed is -1: give a whole number that is at least 0"),
        (["--seed", "-1", "--task", "libero_object/0"], "--seed is -1"),
        (["--tensorboard"], "--tensorboard follows a single expert: name its --task"),
        (["--threads", "2"], "--threads is for a single expert: name its --task"),
        (["--task", "libero_object/0", "--workers", "2"], "--workers is for many experts"),
        (["--task", "libero_object/0", "--suite", "libero_object"], "--suite is for many experts"),
    ],
)
def test_options_that_no_training_can_have_are_told(options, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    assert main(["train", *options, "--preset", "smoke"]) == 1
    assert told in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("generate --task libero_object/0 --suite libero_object", "leave it out beside --task"),
        ("quality a.hdf5 --json --csv", "--json and --csv exclude each other"),
        ("operator --attempts 0", "--attempts is 0"),
        ("operator --seed -1", "--seed is -1"),
        ("operator --noise nan", "--noise is nan"),
        ("operator --noise inf", "--noise is inf"),
        ("benchmark simulator --seconds nan", "--seconds, --rounds and --states must be positive"),
        ("benchmark simulator --seconds inf", "--seconds, --rounds and --states must be positive"),
        ("experiment seeds --seeds 9", "Experiment seeds has the seeds 1, 2"),
    ],
)
def test_options_that_would_be_ignored_or_mean_nothing_are_told(
    arguments, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    assert main(arguments.split()) == 1
    assert told in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_no_vla_learns_from_has_none_to_train_evaluate_or_wait_for(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    part = ["--preset", "laptop:libero_goal"]
    for command in ("train-vla", "evaluate"):
        assert main([command, *part]) == 1
        assert "No VLA of preset laptop learns from libero_goal" in capsys.readouterr().err
    assert main(["status", *part]) == 0
    assert "VLA" not in capsys.readouterr().out


def test_a_mujoco_gl_that_mujoco_does_not_know_is_told(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "bogus")
    for command in ("doctor", "tasks"):
        result = run(command)
        assert result.returncode == 1
        assert "MUJOCO_GL" in result.stderr + result.stdout
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "continues this work."), (["--force"], "continues this work without --force;")],
)
def test_ctrl_c_names_the_command_that_goes_on(options, told, monkeypatch, capsys):
    def work(force: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffrl.__main__.resolve", lambda command: work)
    assert main(["reproduce", *options]) == 130
    assert told in capsys.readouterr().err


def test_a_users_error_is_one_paragraph(capsys):
    assert main(["unknown"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: There is no command 'unknown'")
    assert "\n\n" not in told


def test_a_tilde_is_the_home_folder_in_every_command_s_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments in (["validate", "~/a+b.hdf5"], ["train-vla", "--out=~/m", "--data=~/a+b.hdf5"]):
        result = run(*arguments)
        assert result.returncode == 1
        assert str(tmp_path / "a+b.hdf5") in "".join((result.stdout + result.stderr).split("\n"))
        assert "Traceback" not in result.stderr
    assert "without ~" in run("validate", "~nobody-of-this-name/a.hdf5").stderr


def test_a_help_names_every_parameter():
    result = run("reproduce", "--help")
    assert result.returncode == 0
    assert all(flag in result.stdout for flag in ("--preset", "--from", "--only", "--force"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_itself_and_only_tasks_that_exist(name):
    from diffrl.sim.tasks import get_task

    preset = get_preset(name)
    assert preset.name == name
    assert [get_task(task).id for task in preset.tasks] == list(preset.tasks)


def test_the_papers_preset_has_its_130_tasks():
    assert len(set(get_preset("paper").tasks)) == 130


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UserError, match="smoke, laptop, libero, pixels, gpu, paper"):
        get_preset("huge")


def test_a_task_may_have_its_own_count_of_demonstrations_and_settings():
    laptop = replace(get_preset("laptop"), own=(("libero_spatial/0", "rl.iterations", 72),))
    harder, other = laptop.of("libero_spatial/0"), laptop.of("libero_object/0")
    counts = dict(laptop.demonstrations.counts)
    assert harder.demonstrations.count == counts["libero_spatial/0"] != laptop.demonstrations.count
    assert (harder.rl.iterations, other.rl) == (72, laptop.rl)
    assert harder.of("libero_spatial/0") == harder
    own = (("libero_object/0", "demonstrations.noise", 0.5),)
    assert replace(laptop, own=own).of("libero_object/0").demonstrations.noise == 0.5


@pytest.mark.parametrize(
    ("stage", "setting", "value"),
    [
        ("clone", "encoder", "Image"),
        ("rl", "annealing", "linear"),
        ("demonstrations", "source", "robot"),
        ("vla", "vision", "resnet"),
    ],
)
def test_a_setting_that_is_no_choice_is_refused_by_name(stage, setting, value):
    with pytest.raises(UserError, match=f"no {setting} '{value}': choose "):
        get_preset("smoke").with_settings({f"{stage}.{setting}": value})


def test_no_demonstrations_are_refused_before_any_is_collected():
    with pytest.raises(UserError, match=r"demonstrations\.count is 0"):
        get_preset("smoke").with_settings({"demonstrations.count": 0})


def test_a_vla_may_learn_some_of_a_presets_tasks():
    laptop = get_preset("laptop")
    assert laptop.vla_tasks == tuple(f"libero_object/{index}" for index in range(10))
    few = replace(laptop, tasks=("libero_goal/7", "libero_object/3"))
    assert few.vla_tasks == ("libero_object/3",)
    assert get_preset("smoke").vla_tasks == get_preset("smoke").tasks


def test_the_commands_that_go_on_with_a_preset_s_run_are_those_that_take_a_preset_to_work_on():
    takes = {name for name in COMMANDS if "preset" in inspect.signature(resolve(name)).parameters}
    assert takes - GO_ON == {"plan", "dry-run", "reproduce", "evidence"}  # reproduce does it itself
    assert takes >= GO_ON
