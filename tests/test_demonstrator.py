"""The scripted operator: plans, grasps, noise, and what it can do in LIBERO's simulator."""

from types import SimpleNamespace

import data_samples as samples
import numpy as np
import pandas as pd
import pytest

from diffrl.base.errors import UserError
from diffrl.demonstrator.commands import command_statistics, human_statistics
from diffrl.demonstrator.episodes import operator_demonstrations, operator_episodes, plan, skills_of
from diffrl.demonstrator.front import opening, room
from diffrl.demonstrator.grasps import find_grasps
from diffrl.demonstrator.manner import LIMIT, MANNERS, Tremor
from diffrl.demonstrator.motion import DOWN, turned
from diffrl.demonstrator.stage import calibrate, idle
from diffrl.demonstrator.things import is_covered
from diffrl.demonstrator.workspace import Workspace
from diffrl.presets import OperatorConfig
from diffrl.sim.scene import load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states
from diffrl.sim.tasks import SUITES

TASK = "libero_object/0"
BASE = np.array([-0.6, 0.0, 0.0])  # the robot's foot


def scene_with(*goal):
    return SimpleNamespace(goal=goal)


def box(size, centre=(0, 0, 0)):
    line = np.linspace(-1, 1, 7)
    grid = np.stack(np.meshgrid(line, line, line), axis=-1).reshape(-1, 3)
    return np.array(centre) + grid * np.array(size) / 2


def ring(radius, thickness, height):
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    walls = []
    for r in np.linspace(radius - thickness, radius, 3):
        for z in np.linspace(0, height, 9):
            walls.append(np.stack([r * np.cos(angle), r * np.sin(angle), z + 0 * angle], axis=1))
    return np.concatenate(walls)


# ---- plans -----------------------------------------------------------------------------------


def test_a_drawer_is_shut_after_something_was_put_in():
    scene = scene_with(("close", "cabinet_bottom_region"), ("in", "bowl", "cabinet_bottom_region"))
    assert [term[0] for term in plan(scene)] == ["in", "close"]


def test_a_microwave_is_shut_after_something_was_put_in():
    scene = scene_with(("close", "microwave_1"), ("in", "mug", "microwave_1_heating_region"))
    assert [term[0] for term in plan(scene)] == ["in", "close"]


def test_an_empty_drawer_is_shut_before_something_is_put_on_the_cabinet():
    scene = scene_with(("on", "bowl", "cabinet_top_side"), ("close", "cabinet_top_region"))
    assert [term[0] for term in plan(scene)] == ["close", "on"]


def test_a_bowl_is_carried_before_another_is_stacked_on_it():
    scene = scene_with(("on", "bowl_1", "bowl_2"), ("in", "bowl_2", "tray_contain_region"))
    assert [term[1] for term in plan(scene)] == ["bowl_2", "bowl_1"]


def test_skills_are_named_in_the_order_of_the_plan():
    scene = scene_with(("on", "pot", "stove_cook_region"), ("turnon", "stove"))
    assert skills_of(scene) == "turn + take, put"


# ---- grasps ----------------------------------------------------------------------------------


def test_a_box_is_taken_across_its_narrow_side():
    points = box((0.09, 0.04, 0.05), centre=(0.2, 0.1, 0.5))
    best = find_grasps(points, np.array([0.2, 0.1, 0.5]), np.zeros((0, 3)), DOWN, BASE)[0]
    assert best.kind == "across"
    assert best.width == pytest.approx(0.04)
    assert np.abs(best.hand[:, 1]) == pytest.approx([0, 1, 0])


def test_a_grasp_turns_with_the_thing():
    points = box((0.09, 0.04, 0.05)) @ turned(np.deg2rad(30)).T
    best = find_grasps(points, np.zeros(3), np.zeros((0, 3)), DOWN, BASE)[0]
    assert np.abs(best.hand[:, 1]) == pytest.approx([0.5, np.sqrt(0.75), 0], abs=1e-9)


def test_a_bowl_is_taken_at_its_rim_with_one_finger_inside():
    best = find_grasps(ring(0.054, 0.006, 0.05), np.zeros(3), np.zeros((0, 3)), DOWN, BASE)[0]
    radial = best.offset[:2] / np.linalg.norm(best.offset[:2])
    assert best.kind == "rim"
    assert np.linalg.norm(best.offset[:2]) == pytest.approx(0.051, abs=0.002)
    assert abs(radial @ best.hand[:2, 1]) == pytest.approx(1)


def test_a_neighbour_moves_the_grasp_to_the_other_side():
    bowl = ring(0.054, 0.006, 0.05)
    free = find_grasps(bowl, np.zeros(3), np.zeros((0, 3)), DOWN, BASE)[0]
    wall = box((0.2, 0.02, 0.2), centre=(0, np.sign(free.offset[1]) * 0.09, 0.1))
    assert find_grasps(bowl, np.zeros(3), wall, DOWN, BASE)[0].offset[1] * free.offset[1] <= 0


def test_something_too_wide_and_solid_has_no_grasp():
    points = box((0.2, 0.2, 0.1))
    assert find_grasps(points, np.zeros(3), np.zeros((0, 3)), DOWN, BASE) == []


# ---- noise -----------------------------------------------------------------------------------


def test_no_noise_means_no_randomness_in_the_manner():
    manner = MANNERS["libero_object"].scaled(0.0)
    assert (manner.spread, manner.waver, manner.pause, manner.detour, manner.aim) == (0,) * 5
    assert not any(manner.tremor)


def test_tremor_is_standard_normal_with_memory():
    tremor = Tremor(np.random.default_rng(0))
    samples = np.array([tremor.step().copy() for _ in range(20_000)])
    assert samples.std(axis=0) == pytest.approx(np.ones(7), abs=0.06)
    neighbours = np.mean(samples[1:] * samples[:-1], axis=0)
    assert neighbours == pytest.approx(np.full(7, Tremor.memory), abs=0.06)


# ---- tables ----------------------------------------------------------------------------------


def test_idle_means_no_motion_and_the_same_gripper_command():
    actions = np.zeros((4, 7))
    actions[:, 6] = [-1, 1, 1, 1]
    actions[3, 0] = 0.2
    assert idle(actions).tolist() == [True, False, True, False]


def test_calibration_pools_tasks_and_flags_what_is_off():
    axes = ("x", "y", "z", "rx", "ry", "rz", "gripper")
    row = {"task": "libero_object/0", "episodes": 1, "steps": 160, "moving": 147}
    row |= {f"sum_{a}": 0.0 for a in axes} | {f"square_{a}": 147 * 0.268**2 for a in axes}
    table = calibrate(pd.DataFrame([row])).set_index("quantity")
    assert table.operator["std x"] == pytest.approx(0.268)
    assert table.within["std x"]
    assert not table.within["std rx"]
    assert table.within["length"]
    assert table.operator["idle share"] == pytest.approx(13 / 160)


# ---- in the simulator ------------------------------------------------------------------------


def play(scene, starts, noise, seed=0, threads=1):
    config = OperatorConfig(noise=noise)
    return [episode for episode, _ in operator_episodes(scene, starts, seed, config, threads)]


@pytest.mark.sim
def test_a_steady_operator_puts_the_soup_into_the_basket_every_time():
    scene = load_scene(TASK)
    episodes = play(scene, fresh_start_states(scene, 5, seed=3), noise=0.0)
    assert all(episode.success for episode in episodes)


@pytest.mark.sim
def test_episodes_are_valid_varied_and_do_not_depend_on_what_runs_beside_them():
    scene = load_scene(TASK)
    starts = fresh_start_states(scene, 3, seed=4)
    together = play(scene, starts, noise=1.0, threads=2)
    alone = play(scene, starts[2], noise=1.0)[0]
    assert together[2].validate().states.tobytes() == alone.states.tobytes()
    assert together[2].actions.tobytes() == alone.actions.tobytes()
    assert np.abs(alone.actions[:, :6]).max() <= LIMIT
    other = play(scene, starts[2], noise=1.0, seed=1)[0]
    assert other.actions[:20].tobytes() != alone.actions[:20].tobytes()


@pytest.mark.sim
def test_demonstrations_are_successes_and_too_few_are_an_error():
    scene = load_scene(TASK)
    episodes, attempts = operator_demonstrations(scene, 2, 0, OperatorConfig(max_attempts=6))
    assert len(episodes) == 2
    assert all(e.success and e.source == "operator" for e in episodes)
    assert 2 <= attempts <= 6
    assert all(e.start_state.startswith("fresh/") for e in episodes)
    with pytest.raises(UserError, match="libero_object/0"):
        operator_demonstrations(scene, 2, 0, OperatorConfig(max_attempts=1))


@pytest.mark.sim
def test_no_more_episodes_play_side_by_side_than_demonstrations_are_wanted(monkeypatch):
    sizes = []

    class Counted(Simulator):
        def __init__(self, scene, n, threads):
            sizes.append(n)
            super().__init__(scene, n, threads)

    monkeypatch.setattr("diffrl.demonstrator.episodes.Simulator", Counted)
    scene = load_scene(TASK)
    found, attempts = operator_demonstrations(scene, 2, 0, OperatorConfig(), threads=1)
    together = play(scene, fresh_start_states(scene, attempts + 2, seed=0), noise=1.0)
    assert sizes == [2, attempts + 2]
    same = [episode for episode in together[:attempts] if episode.success]
    assert [e.states.tobytes() for e in found] == [e.states.tobytes() for e in same]
    assert [e.actions.tobytes() for e in found] == [e.actions.tobytes() for e in same]
    assert [e.attempt for e in found] == [e.attempt for e in same]


def seen(task):
    """The workspace at a fresh start state of a task, and its goal's first region."""
    scene = load_scene(task)
    starts = fresh_start_states(scene, 1, seed=5)
    see = Workspace(scene)
    see.look(starts.states[0], starts.fixtures[0])
    return see, next(term[2] for term in scene.goal if len(term) > 2)


@pytest.mark.sim
@pytest.mark.parametrize(
    ("task", "height"), [("libero_10/9", 0.144), ("libero_90/86", 0.135), ("libero_90/89", 0.069)]
)
def test_a_covered_place_is_entered_from_its_side_without_a_wall(task, height):
    see, target = seen(task)
    assert is_covered(see, target)
    np.testing.assert_array_equal(opening(see, target), [0, 1, 0])
    low, high = room(see, target)
    assert high[2] - low[2] == pytest.approx(height, abs=0.002)
    assert np.isfinite([low[0], high[0], high[1]]).all()


@pytest.mark.sim
@pytest.mark.parametrize(
    "task",
    [
        pytest.param("libero_90/86", id="a book between the boards of a shelf"),
        pytest.param("libero_90/89", id="a book under the lower board"),
        pytest.param("libero_90/32", id="a bottle laid in a drawer that is too low for it"),
        pytest.param("libero_10/9", id="a mug into a microwave that is then shut"),
    ],
)
def test_a_place_is_filled_that_nothing_reaches_upright_from_above(task):
    scene = load_scene(task)
    assert play(scene, fresh_start_states(scene, 1, seed=123), noise=1.0, seed=123)[0].success


# ---- commands of sources against the published moments of the human sets -------------------------


def test_idle_steps_do_not_count():
    busy = samples.sample_episode(0, length=40)
    busy.actions[:, 6] = 1.0
    idle = samples.sample_episode(1, length=40)
    idle.actions[:] = 0.0
    idle.actions[:, 6] = -1.0
    alone, both = command_statistics([busy]), command_statistics([busy, idle])
    np.testing.assert_allclose(both["std"][:6], alone["std"][:6])
    np.testing.assert_allclose(alone["mean"][:6], busy.actions[:, :6].mean(axis=0))


@pytest.mark.parametrize("suite", SUITES)
def test_the_human_gripper_follows_our_sign(suite):
    table = human_statistics(suite)
    if suite == "libero_90":
        assert table is None  # nobody published them
    else:
        gripper = table.iloc[6]
        assert abs(gripper["mean"]) < 1  # both signs occur
        np.testing.assert_allclose(gripper["std"] ** 2 + gripper["mean"] ** 2, 1, atol=0.01)
