"""Presets are found by their names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import diffrl
from diffrl.base.artifacts import runs_dir
from diffrl.base.errors import UserError
from diffrl.presets import get_preset


@pytest.mark.parametrize("name", [3, None, ["smoke"], "smoek"])
def test_what_names_no_preset_is_refused_with_the_names(name):
    with pytest.raises(UserError, match=r"There is no preset .*choose one of smoke, laptop"):
        get_preset(name)
    assert get_preset("smoke").name == "smoke"


def test_a_part_of_a_preset_has_the_tasks_of_its_suites_and_the_whole_s_folder():
    whole = get_preset("libero")
    part = get_preset("libero", ("libero_object", "libero_10"))
    assert part.tasks == tuple(t for t in whole.tasks if t[:9] in ("libero_ob", "libero_10"))
    assert get_preset(part.full_name) == part
    assert part.full_name == "libero:libero_object+libero_10"
    assert runs_dir(part.full_name) == runs_dir("libero")
    assert replace(part, tasks=whole.tasks, suites=()) == whole
    with pytest.raises(UserError, match=r"no task of a suite 'libero_goal'.*libero_object"):
        get_preset("smoke", ("libero_goal",))


def test_libero_trains_both_classes_alike_and_twenty_tasks_three_times():
    libero = get_preset("libero")
    assert len(set(libero.tasks)) == 130
    assert len(libero.vla_tasks) == 40
    seeds = {task: libero.of(task).rl.seeds for task in libero.tasks}
    thrice = [task for task in libero.tasks if seeds[task] == (0, 1, 2)]
    assert len(thrice) == 20
    assert set(thrice) <= set(libero.vla_tasks)
    assert {own for task, own in seeds.items() if task not in thrice} == {(0,)}
    for task in ("libero_goal/0", "libero_10/2"):
        rl = libero.of(task).rl
        assert rl.physics == "training"
        assert rl.actor_learning_rate == rl.gaussian_learning_rate
        assert rl.clip == rl.gaussian_clip


def test_the_tremor_of_libero_s_demonstrator_is_the_fitted_one():
    table = pd.read_csv(Path(diffrl.__file__).parent / "demonstrator" / "tremor.csv")
    fitted = table[table["who"] == "operator, fitted"].iloc[0]
    assert get_preset("libero").demonstrations.tremor == fitted["scale"]
    people = table[table["who"] == "teleoperation"].iloc[0]
    played = table[table["who"] == "operator"]

    def error(rows):
        names = ("jerk_rms_by_speed", "action_change_by_speed")
        return sum(np.log(rows[name].astype(float) / people[name]) ** 2 for name in names)

    assert error(fitted) <= error(played).min()  # no scale that was played comes nearer
