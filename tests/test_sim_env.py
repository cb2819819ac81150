"""The gymnasium faces."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from diffrl.base.errors import UserError
from diffrl.sim.env import LiberoEnv, LiberoVectorEnv, env_id
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import official_start_states
from diffrl.sim.tasks import PRO_SUITES, SUITES, get_task, suite_tasks

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
        ({"task": TASK, "cameras": "agentview"}, "give a list"),
        ({"task": TASK, "max_steps": 0}, "max_steps is 0"),
        ({"task": TASK, "max_steps": -1}, "max_steps is -1"),
        ({"task": TASK, "max_steps": 2.5}, "max_steps is 2.5"),
        ({"task": TASK, "max_steps": True}, "max_steps is True"),
        ({"task": TASK, "render_mode": "human"}, "'rgb_array'"),
        ({"task": TASK, "image_size": 0}, "image in pixels is 0"),
        ({"task": TASK, "image_size": 5000}, "5000 pixels"),
        ({"task": TASK, "detail": "exakt"}, "detail 'exakt'"),
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


COPIERS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_environment_continues_bit_for_bit_beside_its_original(scene, how):
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 7))
    environment, alone = LiberoEnv(TASK, max_steps=9), LiberoEnv(TASK, max_steps=9)
    for one in (environment, alone):
        one.reset(seed=3)
        one.step(actions[0])
    twin = COPIERS[how](environment)
    for action in actions[1:]:
        expected, *rest = alone.step(action)
        for one in (environment, twin):
            observation, *others = one.step(action)
            assert equal(observation, expected)
            assert others == rest
    assert twin.step(np.zeros(7))[3]  # the limit came along
    assert equal(twin.reset()[0], alone.reset()[0])  # and the generator


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_vector_environment_continues_bit_for_bit(scene, how):
    actions = np.random.default_rng(1).uniform(-1, 1, (4, 2, 7))
    environments = LiberoVectorEnv([TASK, "libero_goal/0"], num_envs=2, threads=2, max_steps=3)
    environments.reset(seed=5)
    environments.step(actions[0])
    twin = COPIERS[how](environments)
    for action in actions[1:]:  # over the end of the episodes
        first, second = environments.step(action), twin.step(action)
        assert equal(first[0], second[0])
        assert all(np.array_equal(a, b) for a, b in zip(first[1:4], second[1:4]))


def test_a_reset_with_a_mask_leaves_the_other_copies_alone(scene):
    actions = np.random.default_rng(2).uniform(-1, 1, (6, 3, 7)).astype(np.float32)
    environments = gymnasium.make_vec(env_id(TASK), num_envs=3, max_steps=6)
    undisturbed = gymnasium.make_vec(env_id(TASK), num_envs=3, max_steps=6)
    for one in (environments, undisturbed):
        one.reset(seed=0)
        one.step(actions[0])
    options = {"reset_mask": np.array([True, False, False])}
    before = undisturbed.step(actions[1])[0]
    environments.step(actions[1])
    observation, info = environments.reset(seed=40, options=options)
    assert list(options) == ["reset_mask"]  # wrappers read it after us
    assert info["_start_state"].tolist() == info["_instruction"].tolist() == [True, False, False]
    assert info["start_state"].tolist()[1:] == info["instruction"].tolist()[1:] == [None, None]
    assert equal(row(observation, 0), LiberoEnv(TASK).reset(seed=40)[0])
    assert all(equal(row(observation, i), row(before, i)) for i in (1, 2))
    for action in actions[2:]:
        after, *_, truncations, _ = undisturbed.step(action)
        observation, *_, cut, _ = environments.step(action)
        assert all(equal(row(observation, i), row(after, i)) for i in (1, 2))
    assert truncations.tolist() == [True] * 3
    assert cut.tolist() == [False, True, True]  # its episode began two steps later
    after, *_, info = undisturbed.step(action)
    observation, *_, info = environments.step(action)
    assert info["_start_state"].tolist() == [False, True, True]
    assert all(equal(row(observation, i), row(after, i)) for i in (1, 2))  # the same draws


def test_a_mask_does_what_gymnasiums_own_vector_environment_does(scene):
    observations = []
    for mode in ("vector_entry_point", "sync"):
        environments = gymnasium.make_vec(env_id(TASK), num_envs=2, vectorization_mode=mode)
        environments.reset(seed=0)
        environments.step(np.full((2, 7), 0.5, np.float32))
        options = {"reset_mask": np.array([False, True])}
        observations.append(environments.reset(seed=[7, 8], options=options)[0])
    assert equal(*observations)


@pytest.mark.parametrize("mask", [[True], [False, False], [1, 0], np.eye(2, dtype=bool)])
def test_a_mask_that_does_not_fit_is_refused(scene, mask):
    environments = LiberoVectorEnv(TASK, num_envs=2, threads=1)
    environments.reset(seed=0)
    with pytest.raises(UserError, match="reset_mask"):
        environments.reset(options={"reset_mask": mask})


def test_a_first_reset_is_for_all_copies(scene):
    environments = LiberoVectorEnv(TASK, num_envs=2, threads=1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        environments.reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize("make", [LiberoEnv, LiberoVectorEnv])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"init_state_id": 3}}, "no option 'init_state_id': it takes start"),
        ({"seed": 5.9}, "seed of a reset is 5.9"),
        ({"seed": True}, "seed of a reset is True"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_a_reset_guesses_nothing(scene, make, arguments, message):
    with pytest.raises(UserError, match=message):
        make(TASK).reset(**arguments)


def test_whole_seeds_of_every_kind_are_one(scene):
    environment = LiberoEnv(TASK)
    first, _ = environment.reset(seed=3)
    assert equal(environment.reset(seed=np.int64(3))[0], first)
    environments = LiberoVectorEnv(TASK, num_envs=2, threads=1)
    assert equal(row(environments.reset(seed=np.uint8(2))[0], 1), first)
    assert equal(row(environments.reset(seed=np.array([9, 3]))[0], 1), first)


def test_an_action_of_another_shape_is_refused_and_nothing_moves(scene):
    environment = LiberoEnv(TASK)
    environment.reset(seed=0)
    for shape in [(4, 7), (1, 7), (6,)]:
        with pytest.raises(UserError, match=r"expected \(7,\)"):
            environment.step(np.zeros(shape))
    assert environment._body.simulator.elapsed.tolist() == [0]
    environments = LiberoVectorEnv(TASK, num_envs=2, threads=1)
    environments.reset(seed=0)
    for shape in [(2, 3, 7), (7,), (1, 7)]:
        with pytest.raises(UserError, match=r"expected \(2, 7\)"):
            environments.step(np.zeros(shape))


def test_a_vector_environment_names_the_instruction_of_each_copy_that_begins(scene):
    tasks = [TASK, "libero_goal/0"]
    environments = LiberoVectorEnv(tasks, num_envs=2, threads=1, max_steps=1)
    begun = environments.reset(seed=0)[1]
    environments.step(np.zeros((2, 7)))
    again = environments.step(np.zeros((2, 7)))[4]
    for info in (begun, again):
        assert info["instruction"].tolist() == [get_task(task).instruction for task in tasks]
        assert info["_instruction"].all()


def test_the_spec_tells_the_step_limit(scene):
    own = get_task(TASK).max_steps
    name = env_id(TASK)
    assert gymnasium.make(name).spec.max_episode_steps == own
    assert gymnasium.make(name, max_steps=2 * own).spec.max_episode_steps == 2 * own
    assert gymnasium.make_vec(name, num_envs=2).spec.max_episode_steps == own
    assert gymnasium.make_vec(name, num_envs=2, max_steps=3).spec.max_episode_steps == 3
    again = gymnasium.make(gymnasium.make(name, max_steps=5).spec)
    assert again.spec.max_episode_steps == again.unwrapped._body.simulator.limits[0] == 5
    vector = gymnasium.make_vec(name, num_envs=2, max_episode_steps=4)
    assert gymnasium.make_vec(vector.spec).spec.max_episode_steps == 4
    flat = gymnasium.wrappers.FlattenObservation(gymnasium.make(name))
    aware = gymnasium.wrappers.TimeAwareObservation(flat)  # it asks for the limit
    assert aware.reset(seed=0)[0].shape == (flat.observation_space.shape[0] + 1,)


@pytest.mark.sim
def test_gymnasiums_own_limit_only_shortens_the_episodes_of_mixed_tasks(scene):
    tasks = [TASK, "libero_goal/7"]
    own = [get_task(task).max_steps for task in tasks]

    def limits(**settings):
        vector = LiberoVectorEnv(tasks, num_envs=2, threads=1, **settings)
        again = copy.deepcopy(vector)
        assert again._body.simulator.limits.tolist() == vector._body.simulator.limits.tolist()
        return vector._body.simulator.limits.tolist()

    assert own[0] != own[1]
    assert limits(max_episode_steps=max(own)) == own
    assert limits(max_episode_steps=10_000) == own
    assert limits(max_episode_steps=max(own) - 1) == [min(n, max(own) - 1) for n in own]
    assert limits(max_episode_steps=5, max_steps=7) == [5, 5]


@pytest.mark.sim
def test_images_come_with_the_observation_when_asked_for(scene):
    environment = LiberoEnv(TASK, cameras=("agentview",), image_size=64, render_mode="rgb_array")
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    assert observation["agentview_image"].std() > 10
    assert np.array_equal(environment.render(), observation["agentview_image"][::-1])
    environment.close()
