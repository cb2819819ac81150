"""The simulator against LIBERO itself: same physics, same observations, same goals."""

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from libero_reference import begin, make_env, smooth_actions

from diffrl.sim.goals import Goal
from diffrl.sim.observation import place_fixtures
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import SETTLE_ACTION, Simulator
from diffrl.sim.starts import StartStates, fresh_start_states, official_start_states
from diffrl.sim.tasks import PRO_SUITES, SUITES, suite_tasks

ONE_OF_EACH = ["libero_spatial/0", "libero_object/0", "libero_goal/0", "libero_90/3", "libero_10/2"]
ALL = [task.id for suite in SUITES for task in suite_tasks(suite)]
PRO = [task.id for suite in PRO_SUITES for task in suite_tasks(suite)]


def differences(scene: Scene, observation: dict, ours, joints: np.ndarray) -> dict[str, float]:
    """Largest absolute differences between LIBERO's observation and ours, by kind."""
    hand = [
        np.abs(observation["robot0_eef_pos"] - ours.eef_pos[0]).max(),
        np.abs(observation["robot0_eef_quat"] - ours.eef_quat[0]).max(),
        np.abs(observation["robot0_gripper_qpos"] - ours.gripper_qpos[0]).max(),
    ]
    # fixtures have no sensors in LIBERO
    movable = [(k, n) for k, n in enumerate(scene.object_names) if f"{n}_pos" in observation]
    positions = [observation[f"{n}_pos"] - ours.object_pos[0, k] for k, n in movable]
    rotations = [observation[f"{n}_quat"] - ours.object_quat[0, k] for k, n in movable]
    return {
        "arm": np.abs(joints - ours.joint_pos[0]).max(),
        "hand": max(hand),
        "positions": np.abs(positions).max(),
        "rotations": np.abs(rotations).max(),
    }


def compare_trajectories(task_id: str, steps: int, env=None, settle: int = 10) -> dict[str, float]:
    """Largest differences over `steps` smooth random actions from an official start.

    LIBERO settles it: objects that fall and slide amplify the solver's last bits to millimetres.
    """
    scene, env = load_scene(task_id), env or make_env(task_id)
    start = official_start_states(scene)[3]
    begin(env, start)
    for _ in range(settle):
        env.step(SETTLE_ACTION)
    start = StartStates(task_id, ("settled",), env.get_sim_state()[None], start.fixtures)
    begin(env, start)
    simulator = Simulator(scene, 1, threads=1, max_steps=steps + 1)
    simulator.reset(start, settle=0)
    worst = {}
    for action in smooth_actions(steps, seed=0):
        observation, *_ = env.step(action)
        simulator.step(action[None])
        joints = env.env.sim.data.qpos[scene.arm_qpos]
        now = differences(scene, observation, simulator.observation, joints)
        worst = {name: max(worst.get(name, 0.0), value) for name, value in now.items()}
    return worst


@pytest.mark.sim
@pytest.mark.parametrize("task_id", ONE_OF_EACH)
def test_two_hundred_steps_follow_libero_in_each_suite(task_id):
    worst = compare_trajectories(task_id, 200)
    assert max(worst["arm"], worst["hand"]) < 1e-5, worst
    assert worst["positions"] < 1e-4, worst
    assert worst["rotations"] < 1e-3, worst  # a bowl still rocks on libero_spatial/0's plate


@pytest.mark.sim
def test_observations_equal_liberos_while_nothing_has_diverged():
    worst = compare_trajectories("libero_object/0", 20)
    assert max(worst.values()) < 1e-6, worst


# ---- goals -----------------------------------------------------------------------------------


def _free_joint(scene: Scene, body: str) -> int:
    return int(scene.model.jnt_qposadr[scene.model.body_jntadr[scene.body_id(body)]])


def _reach(scene: Scene, data, term: dict, height: float) -> None:
    """Change `data.qpos` so that one goal term holds, or nearly (its object at `height`)."""
    if "joints" in term:
        for name in term["joints"]:
            address = scene.model.joint(name).qposadr[0]
            data.qpos[address] = term["threshold"] + 0.02 * term["sign"]
    else:
        address = _free_joint(scene, term["body"])
        if "site" in term:
            site = scene.site_id(term["site"])
            matrix = data.site_xmat[site].reshape(3, 3)
            offset = np.zeros(3) if term["predicate"] == "in" else matrix.T @ [0, 0, height]
            data.qpos[address : address + 3] = data.site_xpos[site] + offset
        else:
            support = data.xpos[scene.body_id(term["support"])]
            data.qpos[address : address + 3] = support + np.array([0, 0, height])
    mujoco.mj_kinematics(scene.model, data)


def goal_states(scene: Scene, seed: int = 0) -> np.ndarray:
    """(60, state_size) official starts, constructed successes, and states scattered about them.

    Every fifth is let fall for 0.3 s: some things touch only once they lie (a bowl on a cabinet).
    """
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(scene.model)
    states = [*scene.arrays["official"][:10]]
    terms = sorted(scene.meta["goal"], key=lambda t: ("joints" not in t, "support" in t))
    for i in range(50):
        qpos = states[i % 10][1 : 1 + scene.model.nq]
        data.qpos[:] = qpos
        mujoco.mj_kinematics(scene.model, data)
        for term in terms:
            _reach(scene, data, term, height=0.12 * i / 50)
        if i % 5 == 0:
            data.qvel[:] = 0.0
            mujoco.mj_step(scene.model, data, 150)
        elif i % 2:
            data.qpos[:] += rng.normal(0, 0.02, scene.model.nq) * (np.abs(data.qpos - qpos) > 0)
        states.append(np.concatenate([[0.0], data.qpos, np.zeros(scene.model.nv)]))
    return np.array(states)


def compare_goals(task_id: str, env=None) -> tuple[int, int]:
    """Number of states in which LIBERO sees success; asserts that we see the same in every one."""
    scene, env = load_scene(task_id), env or make_env(task_id)
    start = official_start_states(scene)[0]
    begin(env, start)
    place_fixtures(scene, scene.model, start.fixtures[0])
    data, goal = mujoco.MjData(scene.model), Goal(scene.model, scene.meta["goal"])
    states, successes = goal_states(scene), 0
    for i, state in enumerate(states):
        env.set_state(state)
        env.env.sim.forward()
        theirs = bool(env.check_success())
        data.qpos[:] = state[1 : 1 + scene.model.nq]
        mujoco.mj_forward(scene.model, data)
        assert goal(data) == theirs, f"{task_id}: state {i}: LIBERO says {theirs}"
        successes += theirs
    return successes, len(states)


@pytest.mark.sim
@pytest.mark.parametrize(
    "task_id", ["libero_goal/0", "libero_goal/8", "libero_10/2", "libero_10/3"]
)
def test_goals_hold_in_the_same_states_as_liberos(task_id):
    successes, states = compare_goals(task_id)
    assert 0 < successes < states


@pytest.mark.slow
@pytest.mark.parametrize("task_id", ALL)
def test_every_task_follows_libero_and_shares_its_goal(task_id):
    env = make_env(task_id)
    worst = compare_trajectories(task_id, 20, env, settle=40)  # all things lie still
    assert worst["arm"] < 1e-5, worst
    assert worst["positions"] < 1e-4, worst
    successes, states = compare_goals(task_id, env)
    assert 0 < successes < states


@pytest.mark.slow
@pytest.mark.parametrize("task_id", PRO)
def test_every_libero_pro_entry_compiles_and_starts_unsolved(task_id):
    scene = load_scene(task_id)
    with Simulator(scene, 3, threads=1) as simulator:
        simulator.reset(official_start_states(scene)[:3])
        step = simulator.step(np.tile(SETTLE_ACTION, (3, 1)))
    assert not step.success.any()
    assert not step.error.any()


# ---- physics face ----------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.parametrize("task_id", ONE_OF_EACH)
def test_the_physics_face_moves_like_the_full_model_bit_for_bit(task_id):
    scene = load_scene(task_id)
    full = mujoco.MjModel.from_xml_string(scene.picture_xml())
    start = fresh_start_states(scene, 1, seed=7)
    rng, trajectories, contacts = np.random.default_rng(0), [], 0
    controls = np.cumsum(rng.normal(0, 2, (50, full.nu)), axis=0)
    for model in (full, scene.model):
        place_fixtures(scene, model, start.fixtures[0])
        data = mujoco.MjData(model)
        data.qpos[:] = start.states[0, 1 : 1 + model.nq]
        rows = []
        for step in range(500):
            data.ctrl[:] = controls[step // 10]
            mujoco.mj_step(model, data)
            rows.append(np.concatenate([data.qpos, data.qvel]))
            contacts += data.ncon
        trajectories.append(np.array(rows))
    assert contacts > 500
    np.testing.assert_array_equal(*trajectories)


# ---- a goal's rules, written out plainly ---------------------------------------------------------


SIZE = np.array([0.08, 0.05, 0.03])


def rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def contains(matrix, site, x):
    extent = np.abs(matrix @ SIZE)
    lower, upper = site - extent - [0, 0, 0.01], site + extent
    return bool((x > lower).all() and (x < upper).all())


def above(matrix, site, x):
    a, b, c = matrix @ (x - site)
    return bool(SIZE[2] - 0.005 < c < SIZE[2] + 0.10 and abs(a) < SIZE[0] and abs(b) < SIZE[1])


@pytest.mark.parametrize(("predicate", "rule"), [("in", contains), ("on", above)])
def test_a_region_holds_what_its_rule_says_near_and_far(predicate, rule):
    rng = np.random.default_rng(0)
    named = SimpleNamespace(id=0)
    model = SimpleNamespace(site=lambda name: named, body=lambda name: named)
    term = {"predicate": predicate, "site": "region", "body": "soup", "size": SIZE.tolist()}
    goal, held = Goal(model, [term]), 0
    for reach in np.linspace(0.02, 0.4, 2000):
        matrix, site = rotation(rng), rng.normal(size=3)
        x = site + rng.uniform(-reach, reach, 3)
        data = SimpleNamespace(site_xmat=matrix.reshape(1, 9), site_xpos=site[None], xpos=x[None])
        assert goal(data) == rule(matrix, site, x)
        held += goal(data)
    assert 100 < held < 1900
