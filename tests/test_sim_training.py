"""Training physics: cheaper, the same arm and the same goal, and never a record."""

import copy
import pickle

import mujoco
import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.sim.scene import load_scene
from diffrl.sim.simulator import Simulator, settle_layouts
from diffrl.sim.starts import StartStates, fresh_start_states, official_start_states
from diffrl.sim.training import needed_bodies, scene_bytes, training_face

pytestmark = pytest.mark.sim
TASK = "libero_object/0"


@pytest.fixture(scope="module")
def scene():
    return load_scene(TASK)


@pytest.fixture(scope="module")
def face(scene):
    return training_face(scene, settle_layouts)


def waves(n, steps, seed=0):
    """Smooth actions (steps, n, 7) that keep the hand above the things."""
    rng = np.random.default_rng(seed)
    moves = np.cumsum(rng.uniform(-0.2, 0.2, (steps, n, 7)), axis=0).clip(-1, 1)
    moves[..., 2] = 0.3
    return moves


def bodies(scene, which):
    return {scene.model.body(int(body)).name for body in which}


def test_what_the_goal_names_keeps_its_joints_and_all_else_stands(scene, face):
    kept = set(scene.meta["objects"].values()) - bodies(scene, face.placed)
    assert kept == {scene.meta["objects"][name] for name in ("alphabet_soup_1", "basket_1")}
    assert len(face.placed) == 5
    assert (scene.model.nv - face.model.nv, face.model.nv) == (30, 21)


@pytest.mark.parametrize(
    ("task", "joint"),
    [
        ("libero_goal/0", "wooden_cabinet_1_middle_level"),  # open the middle drawer
        ("libero_goal/7", "flat_stove_1_button"),  # turn on the stove
        ("libero_90/1", "wooden_cabinet_1_top_level"),  # close it and put the bowl on top
    ],
)
def test_of_joints_those_of_the_goal_stay(task, joint):
    scene = load_scene(task)
    needed = needed_bodies(scene, np.full((1, scene.model.nq), np.nan))
    joints = scene.meta["fixture_joints"]
    kept = [name for name in joints if int(scene.model.joint(name).bodyid[0]) in needed]
    assert kept == [joint]
    assert len(joints) > 1


def test_what_rests_on_a_thing_of_the_goal_keeps_its_joint(scene):
    """The milk is laid upon the basket, which the goal names."""
    qpos = scene.arrays["layout_qpos"][:1].copy()
    milk = int(scene.model.joint(scene.model.body_jntadr[scene.body_id("milk_1")]).qposadr[0])
    soup_joint = scene.model.body_jntadr[scene.body_id("alphabet_soup_1")]
    soup = int(scene.model.joint(soup_joint).qposadr[0])
    qpos[0, milk : milk + 3] = qpos[0, soup : soup + 3] + [0, 0, 0.06]
    before = needed_bodies(scene, scene.arrays["layout_qpos"][:1])
    assert needed_bodies(scene, qpos) - before == {scene.body_id("milk_1")}


@pytest.mark.parametrize("task", [TASK, "libero_spatial/0", "libero_goal/0", "libero_10/0"])
def test_the_arm_moves_as_in_exact_physics_until_it_touches_something(task):
    scene, starts = load_scene(task), fresh_start_states(load_scene(task), 2, 7)
    played = []
    for options in ({}, {"physics": "training", "substeps": 25}):
        with Simulator(scene, 2, threads=1, **options) as simulator:
            simulator.reset(starts)
            for actions in waves(2, 20):
                simulator.step(actions)
            played.append(simulator.observation)
    exact, cheap = played
    assert np.abs(exact.eef_pos - fresh_eef(scene, starts)).max() > 0.02  # it did move
    np.testing.assert_allclose(cheap.eef_pos, exact.eef_pos, atol=1e-6)
    np.testing.assert_allclose(cheap.joint_pos, exact.joint_pos, atol=1e-5)
    np.testing.assert_allclose(cheap.object_pos, exact.object_pos, atol=1e-4)
    np.testing.assert_allclose(cheap.goal_pos, exact.goal_pos, atol=1e-4)
    np.testing.assert_allclose(cheap.fixture_qpos, exact.fixture_qpos, atol=1e-4)


def fresh_eef(scene, starts):
    with Simulator(scene, len(starts), threads=1) as simulator:
        return simulator.reset(starts).eef_pos.copy()


@pytest.mark.parametrize(
    ("task", "laid"),
    [
        ("libero_spatial/5", {"akita_black_bowl_1_main"}),  # it falls upon a ramekin
        ("libero_spatial/1", set()),  # and here beside it
    ],
)
def test_what_lies_on_a_thing_that_stands_begins_where_it_settled(task, laid):
    scene, start = load_scene(task), fresh_start_states(load_scene(task), 1, 5)
    poses = []
    for physics in ("exact", "training"):
        with Simulator(scene, 1, threads=1, physics=physics) as simulator:
            simulator.reset(start)
            poses.append(simulator.states()[0, 1 : 1 + scene.model.nq])
            face = simulator._copies[0].face
    bowl = scene.model.joint(scene.model.body_jntadr[scene.body_id("akita_black_bowl_1")])
    here, there = (pose[bowl.qposadr[0] :][:7] for pose in poses)
    assert np.abs(here - there).max() < 2e-3  # of 2 mm and some tenths of a degree
    begins = {int(address) for address in face.laid[1][::7]}
    roots = scene.model.jnt_bodyid[scene.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    named = {int(b): int(scene.model.jnt_qposadr[scene.model.body_jntadr[b]]) for b in roots}
    assert bodies(scene, [b for b, address in named.items() if address in begins]) == laid


def test_states_are_those_of_the_exact_scene(scene, face):
    starts = fresh_start_states(scene, 2, 7)
    with Simulator(scene, 2, physics="training") as cheap, Simulator(scene, 2) as exact:
        cheap.reset(starts)
        exact.reset(starts)
        for actions in waves(2, 5):
            cheap.step(actions)
            exact.step(actions)
        assert cheap.states().shape == exact.states().shape
        nq = scene.model.nq
        np.testing.assert_allclose(
            cheap.states()[:, 1 : 1 + nq], exact.states()[:, 1 : 1 + nq], atol=0.01
        )
        standing = np.setdiff1d(np.arange(nq), face.qpos)
        rows = [face.settled_at(state)[standing] for state in starts.states]
        np.testing.assert_array_equal(cheap.states()[:, 1 + standing], rows)
        assert not cheap.states()[
            :, 1 + nq + np.setdiff1d(np.arange(scene.model.nv), face.qvel)
        ].any()


def test_a_start_state_of_no_known_layout_is_settled_in_exact_physics(scene, face):
    official = official_start_states(scene)[[3]]
    assert face.settled_at(official.states[0]) is None
    cheap = Simulator(scene, 1, physics="training", substeps=25)
    with cheap, Simulator(scene, 1) as exact:
        cheap.reset(official)
        exact.reset(official)
        np.testing.assert_allclose(
            cheap.observation.object_pos, exact.observation.object_pos, atol=1e-4
        )


def test_the_goal_is_reached_in_either_physics():
    """A stove's knob turned by hand-made torque would prove little: the state itself is set."""
    scene = load_scene("libero_goal/7")
    start = fresh_start_states(scene, 1, 0)
    qpos = 1 + scene.fixture_qpos[scene.meta["fixture_joints"].index("flat_stove_1_button")]
    turned = StartStates(start.task, ("turned",), start.states.copy(), start.fixtures)
    turned.states[0, qpos] = 1.0
    for physics in ("exact", "training"):
        with Simulator(scene, 2, physics=physics) as simulator:
            simulator.reset(StartStates.concatenate([start, turned]))
            result = simulator.step(np.zeros((2, 7)))
        assert result.success.tolist() == [False, True]


def test_what_is_played_in_training_physics_is_not_recorded(scene):
    with Simulator(scene, 1, physics="training") as simulator:
        simulator.reset(fresh_start_states(scene, 1, 0))
        with pytest.raises(UserError, match="not recorded"):
            simulator.step(np.zeros((1, 7)), record=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"physics": "cheap"}, "choose exact or training"),
        ({"substeps": 12}, "exact physics takes LIBERO's 25"),
        ({"physics": "training", "substeps": 0}, "substeps"),
    ],
)
def test_other_physics_is_refused(scene, options, told):
    with pytest.raises(UserError, match=told):
        Simulator(scene, 1, **options)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_of_the_simulator_goes_on_bit_for_bit(scene, duplicate):
    actions = waves(3, 8)
    with Simulator(scene, 3, threads=1, physics="training", substeps=10) as simulator:
        simulator.reset(fresh_start_states(scene, 3, 1))
        for action in actions[:4]:
            simulator.step(action)
        other = duplicate(simulator)
        assert (other.physics, other.substeps) == ("training", 10)
        for action in actions[4:]:
            simulator.step(action)
            other.step(action)
        np.testing.assert_array_equal(simulator.states(), other.states())


def test_threads_and_company_change_no_byte(scene):
    starts, actions = fresh_start_states(scene, 5, 2), waves(5, 6)
    seen = []
    for threads, rows in ((1, [0, 1, 2, 3, 4]), (2, [4, 2])):
        with Simulator(scene, len(rows), threads=threads, physics="training") as simulator:
            simulator.reset(starts[rows])
            for action in actions:
                simulator.step(action[rows])
            seen.append(simulator.states())
    np.testing.assert_array_equal(seen[0][[4, 2]], seen[1])


def test_a_damaged_face_is_refused_and_another_scene_has_another(scene, tmp_path, monkeypatch):
    other = load_scene("libero_object/1")
    assert scene_bytes(scene) != scene_bytes(other)
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path))
    training_face.cache_clear()
    training_face(scene, few_layouts)
    training_face.cache_clear()
    (path,) = (tmp_path / "scenes").glob("*.training")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"\.training is damaged"):
        training_face(scene, few_layouts)
    training_face.cache_clear()


def few_layouts(scene):
    settled = np.full(scene.arrays["layout_qpos"].shape, np.nan)
    settled[:2] = scene.arrays["layout_qpos"][:2]
    return settled


def test_both_faces_have_the_same_bodies_geoms_and_masses(scene, face):
    for name in ("body_mass", "body_inertia", "geom_size", "geom_friction", "geom_bodyid"):
        np.testing.assert_array_equal(getattr(face.model, name), getattr(scene.model, name))
    names = [scene.model.body(i).name for i in range(scene.model.nbody)]
    assert names == [face.model.body(i).name for i in range(face.model.nbody)]
    assert face.model.opt.timestep == scene.model.opt.timestep == 0.002
    assert mujoco.mj_sizeModel(face.model) < mujoco.mj_sizeModel(scene.model)
