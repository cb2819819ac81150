"""Presets are found by their names, and say where their settings come from."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffrl import presets
from diffrl.base.arm import Arm
from diffrl.base.artifacts import runs_dir
from diffrl.base.errors import UserError
from diffrl.generation import stage as generation_stage
from diffrl.presets import get_preset
from diffrl.rl.ppo import noise_scale
from diffrl.vla import stage as vla_stage


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


@pytest.mark.parametrize(
    ("setting", "dppos"),
    [
        ("actor_learning_rate", "robomimic states 1e-4 constant, images 5e-5 or 1e-5, furniture"),
        ("gamma", "DPPO on manipulation: 0.999"),
        ("gamma_denoising", "DPPO: 0.99 in robomimic, 0.9 in furniture, 0.95 in d3il"),
        ("epochs", "DPPO: 5 in furniture and d3il"),
        ("ema", "[D], per optimiser step [C]; DPPO: every 10"),
        ("target_kl", "DPPO: 1"),
    ],
)
def test_where_a_setting_is_not_dppos_its_comment_says_what_dppos_is(setting, dppos):
    text = inspect.getsource(presets)
    found = re.search(rf"^    {setting}: .*(\n    # .*)*", text, re.MULTILINE)
    assert dppos in " ".join(found[0].replace("\n    #", "").split())


def test_where_our_choices_had_seen_official_start_states_is_said_at_their_mark():
    mark = " ".join(presets.__doc__.split()).partition("[C] our choice.")[2]
    assert "libero_object/0 that had been judged on its official start states" in mark


@pytest.mark.parametrize("name", ["gpu", "paper"])
def test_the_papers_own_observation_is_drawn_exactly(name):
    clone = get_preset(name).clone
    assert (clone.encoder, clone.network, clone.detail) == ("image", "unet", "exact")
    assert (clone.image_size, clone.wrist) == (128, False)


def test_the_vla_of_policies_that_look_learns_three_tasks_as_laptop_s_does():
    pixels, laptop = get_preset("pixels"), get_preset("laptop").vla
    suites = ("libero_object", "libero_spatial")
    assert pixels.vla_tasks == tuple(t for t in pixels.tasks if t.partition("/")[0] in suites)
    assert len(pixels.vla_tasks) == 3
    assert (pixels.vla.frame_stride, pixels.vla.steps) == (laptop.frame_stride, laptop.steps)
    assert pixels.vla.flow_draws == laptop.flow_draws


def test_a_part_of_a_preset_has_the_tasks_of_its_suites_and_the_whole_s_folder():
    whole = get_preset("libero")
    part = get_preset("libero", ("libero_object", "libero_10"))
    assert part.tasks == tuple(t for t in whole.tasks if t[:9] in ("libero_ob", "libero_10"))
    assert get_preset(part.full_name) == part
    assert part.full_name == "libero:libero_object+libero_10"
    assert runs_dir(part.full_name) == runs_dir("libero")
    assert replace(part, tasks=whole.tasks, suites=()) == whole
    assert get_preset("libero", ("libero_10", "libero_object")) == part  # whatever the order
    with pytest.raises(UserError, match=r"no task of a suite 'libero_goal'.*libero_object"):
        get_preset("smoke", ("libero_goal",))


def noise_schedule(rl):
    return [noise_scale(iteration, rl) for iteration in range(rl.iterations)]


def test_libero_trains_both_classes_alike_and_twenty_tasks_three_times():
    libero = get_preset("libero")
    assert len(set(libero.tasks)) == 130
    assert len(libero.vla_tasks) == 40
    seeds = {task: libero.of(task).rl.seeds for task in libero.tasks}
    thrice = [task for task in libero.tasks if seeds[task] == (0, 1, 2)]
    assert len(thrice) == 20
    assert set(thrice) <= set(libero.vla_tasks)
    assert {own for task, own in seeds.items() if task not in thrice} == {(0,)}
    laptop, rl = get_preset("laptop").rl, libero.rl
    assert noise_schedule(rl)[: laptop.iterations] == pytest.approx(noise_schedule(laptop))
    for task in ("libero_goal/0", "libero_10/2"):
        rl = libero.of(task).rl
        assert rl.physics == "training"
        assert rl.actor_learning_rate == rl.gaussian_learning_rate
        assert rl.clip == rl.gaussian_clip


def test_a_task_s_own_setting_comes_after_its_count_of_demonstrations():
    preset = get_preset("libero")
    assert preset.of("libero_object/3").demonstrations.count == 2
    retried = replace(preset, own=(("libero_object/3", "demonstrations.count", 20),))
    assert retried.of("libero_object/3").demonstrations.count == 20


@pytest.mark.parametrize("task", presets.RETRIED)
def test_a_task_that_is_trained_again_has_the_settings_of_the_rule(task):
    own = get_preset("libero").of(task)
    for key, value in presets.RETRY.items():
        stage, field = key.split(".")
        assert getattr(getattr(own, stage), field) == value


def test_libero_s_counts_of_demonstrations_follow_from_the_scan_by_the_rule_of_the_log():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "libero" / "clones.csv")
    assert (table["starts"] == 24).all()
    table["suite"] = table["task"].str.partition("/")[0]
    classes = table.set_index(["task", "demonstrations"])[["diffusion", "gaussian"]]
    scanned = table[table["task"].str[-1].isin(["0", "3", "4"])]
    means = scanned.groupby(["suite", "demonstrations"])[["diffusion", "gaussian"]].mean()
    room = means.max(axis=1) <= 0.75
    count = {suite: max(n for s, n in means[room].index if s == suite) for suite, _ in room.index}
    assert count == {"libero_object": 1, "libero_goal": 10, "libero_spatial": 10}
    larger = {1: 2, 10: 20}
    for task in classes.index.unique("task"):
        suite = task.partition("/")[0]
        nowhere = classes.loc[(task, count[suite])].min() < 0.1
        wanted = larger[count[suite]] if nowhere else count[suite]
        assert get_preset("libero").demonstrations.of(task).count == wanted, task  # before a retry
    assert len(classes.index.unique("task")) == 16  # all of Object, three of the two others
    assert get_preset("libero").of("libero_10/5").demonstrations.count == 10


def test_the_tremor_of_libero_s_demonstrator_fits_people_as_well_as_the_fitted_one():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "tremor.csv").set_index("who")
    people, fitted, used = (
        table.loc[who] for who in ("teleoperation", "operator, fitted", "operator of libero")
    )
    assert get_preset("libero").demonstrations.tremor == used["scale"]
    names = [f"{name}_by_speed" for name in ("jerk_rms", "action_change")]
    jerk, change = used[names] / people[names]
    assert jerk < 1 < change  # between the two that were matched

    def misfit(row):
        return float((np.log((row[names] / people[names]).astype(float)) ** 2).sum())

    assert misfit(used) <= misfit(fitted)
    log = (Path(__file__).parents[1] / "docs" / "LOG.md").read_text(encoding="utf-8")
    said = f"{100 * jerk:.0f} % of their jerk and {100 * change:.0f} % of their action change"
    assert said in " ".join(log.split())
    assert f"it gives {fitted['scale']:.2f} instead of 1.08" in " ".join(log.split())


def test_the_work_of_libero_that_its_main_arms_need_comes_first(monkeypatch):
    preset = get_preset("libero")
    assert preset.tasks[:40] == preset.vla_tasks
    models = vla_stage.models_of(preset)
    main = [data for data in preset.vla.data if preset.vla.seeds_of(data) == preset.vla.seeds]
    assert len(main) >= 3
    assert models[: len(main)] == [(data, 0) for data in main]
    assert [data for data, _ in models[: 3 * len(main)]] == 3 * main
    done: list[tuple[str, Arm]] = []

    def note(work, items, **_):
        done.extend(items)
        return [pd.DataFrame()]

    monkeypatch.setattr(generation_stage, "expert_folders", lambda preset, task, source: [])
    monkeypatch.setattr(generation_stage, "map_tasks", note)
    tasks = ("libero_goal/0", "libero_goal/1")
    generation_stage.repeat_all(preset, tasks)
    arms = [arm for arm in generation_stage.arms_of(preset) if arm.source != "human"]
    assert done == [(task, arm) for arm in arms for task in tasks]
    quiet = [Arm("operator"), *(Arm(name, "deterministic") for name in ("diffusion", "gaussian"))]
    assert set(arms[:3]) == set(quiet)
