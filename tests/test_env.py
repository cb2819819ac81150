"""The gymnasium faces."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from diffrl.errors import UserError
from diffrl.sim.env import LiberoEnv, LiberoVectorEnv, env_id
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import official_start_states
from diffrl.sim.tasks import PRO_SUITES, SUITES, suite_tasks

TASK = "libero_object/0"
pytestmark = pytest.mark.filterwarnings("ignore:.*A Box observation space.*")


@pytest.fixture(scope="module")
def scene():
    return load_scene(TASK)


def equal(first, second):
    return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


def row(observation, i):
    return {name: rows[i] for name, rows in observation.items()}


def test_every_task_of_libero_and_libero_pro_is_registered():
    for suite in SUITES + PRO_SUITES:
        assert all(env_id(task.id) in gymnasium.registry for task in suite_tasks(suite))


def test_gymnasiums_own_check_passes(scene):
    environment = gymnasium.make(env_id(TASK))
    check_env(environment.unwrapped)
    environment.close()


def test_the_observation_lies_in_the_declared_space(scene):
    environment = LiberoEnv(TASK)
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    environments = LiberoVectorEnv(TASK, num_envs=2)
    observation, _ = environments.reset(seed=0)
    assert environments.observation_space.contains(observation)


def test_a_seed_decides_the_episode_and_another_seed_gives_another(scene):
    environment = LiberoEnv(TASK)
    first, _ = environment.reset(seed=7)
    second, _ = environment.reset(seed=7)
    other, _ = environment.reset(seed=8)
    follower, _ = environment.reset()
    assert equal(first, second)
    assert not equal(first, other)
    assert not equal(other, follower)


def test_a_copy_of_the_vector_environment_equals_a_single_one_with_its_seed(scene):
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 3, 7)).astype(np.float32)
    environments = LiberoVectorEnv(TASK, num_envs=3, threads=2)
    batch = [environments.reset(seed=11)[0], *(environments.step(a)[0] for a in actions)]
    single = LiberoEnv(TASK)
    alone = [single.reset(seed=12)[0], *(single.step(a[1])[0] for a in actions)]
    assert all(equal(row(b, 1), a) for b, a in zip(batch, alone, strict=True))


def test_official_start_states_are_chosen_by_number(scene):
    environment = LiberoEnv(TASK, start="official")
    observation, info = environment.reset(options={"start": 4})
    assert info["start_state"] == "official/4"
    assert info["instruction"] == scene.instruction
    same, _ = LiberoEnv(TASK, start=official_start_states(scene)[4]).reset(seed=1)
    assert equal(observation, same)
    with pytest.raises(UserError, match="0 to 49"):
        environment.reset(options={"start": 50})


def test_a_vector_environment_takes_a_start_state_for_each_copy(scene):
    environments = LiberoVectorEnv(TASK, num_envs=2, threads=1, start="official")
    info = environments.reset(options={"start": [3, 7]})[1]
    assert info["start_state"].tolist() == ["official/3", "official/7"]
    info = environments.reset(options={"start": 5})[1]
    assert info["start_state"].tolist() == ["official/5", "official/5"]
    for wrong in ([1, 2, 3], 0.5, -1):
        with pytest.raises(UserError, match=r"[Ss]tart"):
            environments.reset(options={"start": wrong})
    with pytest.raises(UserError, match="start='official'"):
        LiberoEnv(TASK).reset(options={"start": 3})


def test_a_start_that_flies_apart_while_settling_is_truncated_with_an_error(scene):
    start = official_start_states(scene)[[0, 1]]
    start.states[0, 1 + scene.model.nq :] = 1e9
    single = LiberoEnv(TASK, start=start)
    single.reset(options={"start": 0})
    _, _, terminated, truncated, info = single.step(np.zeros(7))
    assert (terminated, truncated, info["error"]) == (False, True, True)
    with pytest.raises(gymnasium.error.ResetNeeded):
        single.step(np.zeros(7))
    several = LiberoVectorEnv(TASK, num_envs=2, threads=1, start=start)
    several.reset(options={"start": [0, 1]})
    _, _, _, truncations, info = several.step(np.zeros((2, 7)))
    assert truncations.tolist() == info["error"].tolist() == [True, False]
    info = several.step(np.zeros((2, 7)))[4]  # the next episode begins
    assert info["_start_state"].tolist() == [True, False]


def test_the_step_limit_truncates_and_the_episode_is_over(scene):
    environment = LiberoEnv(TASK, max_steps=2)
    environment.reset(seed=0)
    flags = [environment.step(np.zeros(7))[2:4] for _ in range(2)]
    assert flags == [(False, False), (False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        environment.step(np.zeros(7))


def test_success_terminates_with_reward_one(scene):
    start = official_start_states(scene)[0]
    soup, basket = scene.goal[0][1:]
    model = scene.model
    joint = model.body_jntadr[scene.body_id(soup)]
    address = 1 + model.jnt_qposadr[joint]
    basket_body = model.body(model.site_bodyid[scene.site_id(basket)]).rootid[0]
    basket_address = 1 + model.jnt_qposadr[model.body_jntadr[basket_body]]
    start.states[0, address : address + 2] = start.states[0, basket_address : basket_address + 2]
    start.states[0, address + 2] = start.states[0, basket_address + 2] + 0.06
    environment = LiberoEnv(TASK, start=start)
    environment.reset(seed=0)
    for _ in range(40):
        _, reward, terminated, truncated, info = environment.step(np.zeros(7))
        if terminated:
            break
        assert reward == 0.0
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"success": True, "error": False}


def test_an_ended_copy_begins_its_next_episode_in_the_next_step(scene):
    environments = gymnasium.make_vec(env_id(TASK), num_envs=2, max_steps=2)
    assert environments.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    first, begun = environments.reset(seed=0)
    environments.step(np.zeros((2, 7)))
    _, _, _, truncations, info = environments.step(np.zeros((2, 7)))
    assert truncations.all()
    assert "start_state" not in info
    after, rewards, terminations, truncations, info = environments.step(np.ones((2, 7)))
    assert not np.any([rewards, terminations, truncations])
    assert (info["start_state"] != begun["start_state"]).all()
    assert not equal(first, after)


def test_copies_of_different_tasks_share_a_vector_environment(scene):
    tasks = [TASK, "libero_goal/0"]
    environments = LiberoVectorEnv(tasks, num_envs=2)
    observation, _ = environments.reset(seed=5)
    alone, _ = LiberoEnv(tasks[1]).reset(seed=6)
    bodies = len(alone["object_pos"])
    assert np.array_equal(observation["object_pos"][1, :bodies], alone["object_pos"])
    assert np.array_equal(observation["eef_pos"][1], alone["eef_pos"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "libero_object/99"}, "libero_object/99"),
        ({"task": TASK, "start": "somewhere"}, "'fresh', 'official'"),
        ({"task": TASK, "cameras": ("frontdoor",)}, "agentview"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        LiberoEnv(**arguments)


def test_an_action_beyond_the_bounds_is_refused(scene):
    environment = LiberoEnv(TASK)
    environment.reset(seed=0)
    with pytest.raises(UserError, match="clip"):
        environment.step(np.full(7, 1.5))


def test_a_vector_environment_wants_a_task_for_each_copy(scene):
    with pytest.raises(UserError, match="num_envs=3"):
        LiberoVectorEnv([TASK, TASK], num_envs=3)


@pytest.mark.sim
def test_images_come_with_the_observation_when_asked_for(scene):
    environment = LiberoEnv(TASK, cameras=("agentview",), image_size=64, render_mode="rgb_array")
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    assert observation["agentview_image"].std() > 10
    assert np.array_equal(environment.render(), observation["agentview_image"][::-1])
    environment.close()
