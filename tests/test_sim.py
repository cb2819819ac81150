"""Tasks, scenes, start states and the simulator's promises."""

import copy
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from diffrl.base.artifacts import cache_dir
from diffrl.base.errors import UserError
from diffrl.demonstrator.workspace import Workspace
from diffrl.sim import compiler, training
from diffrl.sim.cache import made_once, read_cached, write_cached
from diffrl.sim.observation import observe
from diffrl.sim.pictures import reduced_model
from diffrl.sim.scene import load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import StartStates, fresh_start_states, official_start_states
from diffrl.sim.tasks import PRO_SUITES, SUITES, get_task, suite_tasks


@pytest.fixture(scope="module")
def scene():
    return load_scene("libero_object/0")


@pytest.fixture(scope="module")
def drawer():
    return load_scene("libero_goal/0")


def play(scene, n, threads, chunks=3, chunk=4, seed=0):
    """States, rewards and observations of a short random run."""
    rng = np.random.default_rng(seed)
    with Simulator(scene, n, threads=threads) as simulator:
        simulator.reset(fresh_start_states(scene, n, seed=seed), settle=2)
        steps = [
            simulator.step(rng.uniform(-1, 1, (n, chunk, 7)), record=True) for _ in range(chunks)
        ]
        observation = simulator.observation.arrays()
        return [step.states for step in steps] + list(observation.values())


# ---- tasks -----------------------------------------------------------------------------------


def test_there_are_130_official_tasks_and_160_libero_pro_entries():
    assert sum(len(suite_tasks(suite)) for suite in SUITES) == 130
    assert sum(len(suite_tasks(suite)) for suite in PRO_SUITES) == 160


def test_the_task_table_is_the_installed_benchmarks():
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    for suite in SUITES + PRO_SUITES:
        assert [task.name for task in suite_tasks(suite)] == libero_task_map[suite]


def test_an_instruction_is_the_sentence_that_vlas_are_given():
    assert get_task("libero_object/0").instruction == (
        "pick up the alphabet soup and place it in the basket"
    )
    assert get_task("libero_90/3").instruction[0].islower()
    assert get_task("libero_spatial_lan/0").instruction.startswith("lift the black bowl")
    for suite in PRO_SUITES:  # only `lan` and `task` change the words
        base, _, variant = suite.rpartition("_")
        official = {task.name: task.instruction for task in suite_tasks(base)}
        same = [official[task.name] == task.instruction for task in suite_tasks(suite)]
        assert all(same) if variant in ("object", "swap") else not any(same)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("libero_objet/0", "libero_object"),
        ("libero_object/10", "0 to 9"),
        ("libero_10", "<index>"),
        ("libero_object/00", "without zeros in front"),
        ("libero_object/\N{ARABIC-INDIC DIGIT ONE}", "0 to 9"),
    ],
)
def test_an_unknown_task_is_refused_with_the_remedy(name, remedy):
    with pytest.raises(UserError, match=remedy):
        get_task(name)


# ---- scenes ----------------------------------------------------------------------------------


@pytest.mark.sim
def test_a_cached_scene_needs_neither_libero_nor_robosuite(scene):
    code = (
        "import sys; from diffrl.sim.scene import load_scene; load_scene('libero_object/0');"
        "print([m for m in ('libero', 'robosuite', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_damaged_cache_file_is_refused_by_name(tmp_path):
    magic, key, data = b"diffrl test 1\n", b"k" * 32, b"physics" * 20
    path = tmp_path / "whole.scene"
    write_cached(path, magic, key, data)
    assert read_cached(path, magic, key) == data
    raw = path.read_bytes()
    for position in range(len(raw)):
        damaged = tmp_path / f"flipped-{position}.scene"
        damaged.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(UserError, match=damaged.name):
            read_cached(damaged, magic, key)
    (tmp_path / "short.scene").write_bytes(raw[:-1])
    with pytest.raises(UserError, match="delete it"):
        read_cached(tmp_path / "short.scene", magic, key)
    with pytest.raises(UserError, match="not what its name says"):
        read_cached(path, magic, b"f" * 32)


@pytest.mark.sim
def test_a_damaged_scene_is_refused_and_a_cached_one_is_small(scene, monkeypatch, tmp_path):
    cached = [*(cache_dir() / "scenes").glob("libero_object-0-*.scene")]  # older ones, too
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path))
    (tmp_path / "scenes").mkdir()
    for path in cached:
        raw = bytearray(path.read_bytes())
        assert len(raw) < 10 * 2**20
        raw[-1] ^= 1
        (tmp_path / "scenes" / path.name).write_bytes(raw)
    with pytest.raises(UserError, match=r"libero_object-0-\w+\.scene is damaged"):
        load_scene.__wrapped__("libero_object/0")  # behind the cache in memory


@pytest.fixture
def another_installation(tmp_path, monkeypatch):
    """The packages' files at another place, as in a second clone or after a move."""
    for number, (mark, place) in enumerate((roots := compiler.asset_roots()).items()):
        (tmp_path / str(number)).symlink_to(place)
        roots[mark] = str(tmp_path / str(number))
    return lambda: monkeypatch.setattr(compiler, "asset_roots", lambda: roots)


@pytest.mark.sim
def test_what_is_compiled_names_no_place_and_is_the_same_in_another_installation(
    scene, another_installation
):
    def made():
        faces = (reduced_model(scene), training._without(scene, set()))
        return [model.paths for model in faces]

    arrays = compiler.compile_task(scene.task)[1]
    compiled = [arrays["physics"].tobytes(), arrays["picture_xml"].tobytes()]
    named = made()
    for place in compiler.asset_roots().values():
        assert not any(place.encode() in content for content in compiled + named)
    assert all(b"{robosuite}" in paths for paths in compiled + named[1:])
    another_installation()
    assert str(scene.picture_xml()).count(str(compiler.asset_roots()["{robosuite}"])) > 5
    assert made() == named  # its files are read from there, and named alike


@pytest.mark.sim
def test_a_scene_names_what_its_goal_names(drawer):
    assert drawer.goal == (("open", "wooden_cabinet_1_middle_region"),)
    assert drawer.goal_names == ("wooden_cabinet_1_middle_region",)
    assert set(drawer.fixture_names) == {"wooden_cabinet_1", "flat_stove_1", "wine_rack_1"}
    assert drawer.state_size == 1 + drawer.model.nq + drawer.model.nv


# ---- start states ----------------------------------------------------------------------------


@pytest.mark.sim
def test_official_start_states_carry_fixtures_that_depend_on_the_seed(drawer):
    first, again = official_start_states(drawer), official_start_states(drawer)
    other = official_start_states(drawer, seed=1)
    assert len(first) == 50
    assert first.ids[17] == "official/17"
    np.testing.assert_array_equal(first.fixtures, again.fixtures)
    np.testing.assert_array_equal(first.states, other.states)
    spread = np.ptp(first.fixtures[:, :, :2], axis=0).max()
    assert 0.003 < spread < 0.05  # metres; LIBERO's resets differ by up to 1.8 cm
    assert not np.array_equal(first.fixtures, other.fixtures)
    assert other.ids[17] != first.ids[17]


@pytest.mark.sim
def test_fresh_start_states_are_a_seeded_sequence_apart_from_the_official_ones(drawer):
    whole = fresh_start_states(drawer, 20, seed=5)
    part = fresh_start_states(drawer, 5, seed=5, first=10)
    assert part.ids == whole.ids[10:15]
    np.testing.assert_array_equal(part.states, whole.states[10:15])
    np.testing.assert_array_equal(part.fixtures, whole[10:15].fixtures)
    official = official_start_states(drawer).states
    distance = np.abs(whole.states[:, None] - official[None]).max(axis=-1)
    assert distance.min() > 1e-3
    assert len(np.unique(whole.states, axis=0)) == 20


@pytest.mark.sim
def test_fresh_start_states_do_not_begin_with_an_explosion():
    scene = load_scene("libero_spatial/0")  # its bowl stands beside a plate: a fifth overlaps
    assert 0.6 < len(scene.arrays["layout_usable"]) / len(scene.arrays["layout_qpos"]) < 0.95
    starts = fresh_start_states(scene, 100, seed=0)
    with Simulator(scene, 100) as simulator:
        simulator.reset(starts, settle=0)
        before = simulator.observation.object_pos.copy()
        simulator.reset(starts)
        moved = np.linalg.norm((simulator.observation.object_pos - before)[..., :2], axis=-1)
    assert (moved.max(axis=1) > 0.05).mean() < 0.05  # of all layouts it is 14 %
    calm = load_scene("libero_object/0").arrays["layout_usable"]
    np.testing.assert_array_equal(calm, np.arange(1024))


@pytest.mark.sim
def test_start_states_of_another_task_are_refused(scene, drawer):
    simulator = Simulator(scene, 1, threads=1)
    with pytest.raises(UserError, match="libero_goal/0"):
        simulator.reset(official_start_states(drawer)[0])
    with pytest.raises(UserError, match="2 start states for 1"):
        simulator.reset(official_start_states(scene)[:2])
    with pytest.raises(UserError, match="different tasks"):
        StartStates.concatenate([official_start_states(scene), official_start_states(drawer)])
    broken = official_start_states(scene)[0]
    broken.states[0, 5] = np.nan
    with pytest.raises(UserError, match="not finite"):
        simulator.reset(broken)


# ---- stepping --------------------------------------------------------------------------------


@pytest.mark.sim
def test_the_number_of_threads_changes_no_bit(drawer):
    runs = [play(drawer, 5, threads) for threads in (1, 2, 4)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.sim
def test_a_copy_does_not_feel_its_neighbours(drawer):
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 3, 7))
    starts = fresh_start_states(drawer, 3, seed=1)
    together, alone = Simulator(drawer, 3, threads=1), Simulator(drawer, 1, threads=1)
    together.reset(starts)
    for a in actions:
        together.step(a)
    for i in range(3):
        alone.reset(starts[i])
        for a in actions:
            alone.step(a[i : i + 1])
        np.testing.assert_array_equal(alone.states()[0], together.states()[i])


@pytest.mark.sim
def test_a_chunk_equals_its_actions_one_by_one(scene):
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7))
    a, b = Simulator(scene, 2, threads=1), Simulator(scene, 2, threads=1)
    a.reset(official_start_states(scene)[:2])
    b.reset(official_start_states(scene)[:2])
    chunk = a.step(actions, record=True)
    singles = [b.step(actions[:, t], record=True) for t in range(5)]
    np.testing.assert_array_equal(chunk.states, np.concatenate([s.states for s in singles], 1))
    assert chunk.steps.tolist() == [5, 5]
    assert a.elapsed.tolist() == [5, 5]
    np.testing.assert_array_equal(chunk.states[:, -1], a.states())


@pytest.mark.sim
def test_a_snapshot_continues_bit_for_bit(drawer):
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, 7))
    simulator = Simulator(drawer, 2, threads=1)
    simulator.reset(fresh_start_states(drawer, 2, seed=3))
    for a in actions[:3]:
        simulator.step(a)
    snapshot = simulator.snapshot()
    for a in actions[3:]:
        simulator.step(a)
    resumed = Simulator(drawer, 2, threads=1)
    resumed.restore(snapshot)
    for a in actions[3:]:
        resumed.step(a)
    np.testing.assert_array_equal(simulator.states(), resumed.states())
    for name, array in simulator.observation.arrays().items():
        np.testing.assert_array_equal(array, getattr(resumed.observation, name))


@pytest.mark.sim
@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_a_copied_simulator_continues_bit_for_bit_and_shares_nothing_that_moves(scene, drawer, how):
    copiers = {"copy": copy.copy, "deepcopy": copy.deepcopy}
    through = copiers.get(how, lambda thing: pickle.loads(pickle.dumps(thing)))
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, 7))
    original, alone = (Simulator([scene, drawer], 2, threads=2, max_steps=5) for _ in range(2))
    for simulator in (original, alone):
        simulator.reset(fresh_start_states(scene, 1, seed=3), copies=[0])
        simulator.reset(fresh_start_states(drawer, 1, seed=3), copies=[1])
        simulator.step(actions[0])
    twin = through(original)
    for action in actions[1:]:
        alone.step(action)
    for simulator in (original, twin):  # one after the other: neither moves the other's
        for action in actions[1:]:
            simulator.step(action)
        np.testing.assert_array_equal(simulator.states(), alone.states())
        assert simulator.done.tolist() == [True, True]
        assert simulator.elapsed.tolist() == [5, 5]
        for name, array in alone.observation.arrays().items():
            np.testing.assert_array_equal(array, getattr(simulator.observation, name))


@pytest.mark.sim
def test_one_moving_scene_of_a_simulator_cannot_be_copied(scene):
    with pytest.raises(TypeError, match="copy the whole Simulator"):
        copy.deepcopy(Simulator(scene, 1)._copies[0])


@pytest.mark.sim
def test_a_copied_workspace_looks_by_itself(drawer):
    first, second = official_start_states(drawer)[0], official_start_states(drawer)[7]
    workspace = Workspace(drawer)
    workspace.look(first.states[0], first.fixtures[0])
    name = drawer.object_names[0]
    before, twin = workspace.position(name), copy.deepcopy(workspace)
    twin.look(second.states[0], second.fixtures[0])
    assert np.abs(twin.position(name) - before).max() > 1e-3
    np.testing.assert_array_equal(workspace.position(name), before)


@pytest.mark.sim
def test_a_snapshot_takes_back_a_branch_that_diverged(scene):
    simulator = Simulator(scene, 1, threads=1)
    simulator.reset(official_start_states(scene)[0])
    snapshot = simulator.snapshot()
    thrown = official_start_states(scene)[0]
    thrown.states[0, 1 + scene.model.nq :] = 1e9
    simulator.reset(thrown, settle=1)
    assert simulator.error.all()
    simulator.restore(snapshot)
    step = simulator.step(np.zeros((1, 4, 7)))
    assert (step.error.tolist(), step.steps.tolist()) == ([False], [4])


@pytest.mark.sim
def test_episodes_end_by_time_out_and_are_then_frozen(scene):
    simulator = Simulator(scene, 2, threads=1, max_steps=3)
    simulator.reset(official_start_states(scene)[:2])
    step = simulator.step(np.zeros((2, 5, 7)))
    assert step.timeout.all()
    assert step.steps.tolist() == [3, 3]
    assert not step.success.any()
    before = simulator.states()
    assert simulator.step(np.ones((2, 7))).steps.tolist() == [0, 0]
    np.testing.assert_array_equal(before, simulator.states())
    simulator.reset(official_start_states(scene)[5], copies=[1])
    assert simulator.done.tolist() == [True, False]


@pytest.mark.sim
def test_reaching_the_goal_pays_once(drawer):
    starts = official_start_states(drawer)[:2]
    name = drawer.meta["goal"][0]["joints"][0]
    starts.states[0, 1 + drawer.model.joint(name).qposadr[0]] = -0.155  # the drawer, open
    simulator = Simulator(drawer, 2, threads=1)
    simulator.reset(starts)
    step = simulator.step(np.zeros((2, 4, 7)))
    assert step.reward.tolist() == [1.0, 0.0]
    assert step.steps.tolist() == [1, 4]
    assert step.success.tolist() == [True, False]
    assert simulator.done.tolist() == [True, False]
    assert simulator.step(np.zeros((2, 4, 7))).reward.tolist() == [0.0, 0.0]


@pytest.mark.sim
def test_a_diverged_copy_ends_as_error_and_the_others_go_on(scene):
    starts = official_start_states(scene)[:3]
    starts.states[1, -3] = 1e9  # an object at an absurd speed
    simulator = Simulator(scene, 3, threads=2)
    simulator.reset(starts, settle=0)
    step = simulator.step(np.zeros((3, 4, 7)))
    assert step.error.tolist() == [False, True, False]
    assert simulator.done.tolist() == [False, True, False]
    assert step.steps.tolist() == [4, 0, 4]
    assert all(np.isfinite(a).all() for a in simulator.observation.arrays().values())


@pytest.mark.sim
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((1, 6)), "expected \\(2, 7\\)"),
        (np.full((2, 7), np.nan), "copy 0, step 0, dimension 0"),
        (np.array([[0.0] * 7, [0, 0, 0, 1.5, 0, 0, 0]]), "1.5 of copy 1, step 0, dimension 3"),
    ],
)
def test_a_bad_action_is_refused_with_its_place(scene, actions, message):
    simulator = Simulator(scene, 2, threads=1)
    simulator.reset(official_start_states(scene)[:2])
    with pytest.raises(UserError, match=message):
        simulator.step(actions)


@pytest.mark.sim
def test_scenes_of_different_tasks_run_side_by_side(scene, drawer):
    both = Simulator([scene, drawer], 2, threads=2)
    both.reset(official_start_states(scene)[0], copies=[0])
    both.reset(official_start_states(drawer)[0], copies=[1])
    alone = Simulator(drawer, 1, threads=1)
    alone.reset(official_start_states(drawer)[0])
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4, 7))
    both.step(actions)
    alone.step(actions[1:])
    np.testing.assert_array_equal(both.states()[1, : drawer.state_size], alone.states()[0])


@pytest.mark.sim
def test_observations_can_be_recomputed_from_stored_states(drawer):
    simulator = Simulator(drawer, 1, threads=1)
    simulator.reset(fresh_start_states(drawer, 1, seed=2))
    step = simulator.step(np.zeros((1, 6, 7)), record=True)
    again = observe(drawer, step.states[0], simulator.fixtures()[0])
    for name, array in simulator.observation.arrays().items():
        last = getattr(again, name)[-1]  # the arm is nearly still: one physics step is invisible
        np.testing.assert_allclose(last, array[0], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_ten_thousand_episodes_leave_memory_flat(scene):
    memory = psutil.Process().memory_info
    simulator = Simulator(scene, 8, threads=2, max_steps=1)
    starts = official_start_states(scene)

    def episodes(n):
        for i in range(n // 8):
            simulator.reset(starts[np.arange(i, i + 8) % 50], settle=0)
            simulator.step(np.zeros((8, 7)))
        return memory().rss  # what is held now: the peak may be another test's

    before = episodes(1000)
    assert episodes(10_000) <= 1.05 * before


def test_a_cache_file_is_made_by_one_process_while_another_waits(tmp_path):
    path, made = tmp_path / "new folder" / "task.scene", []

    def make(number):
        with made_once(path) as missing:  # a lock of its own, as another process has
            if missing:
                time.sleep(0.3)
                write_cached(path, b"diffrl test 1\n", b"k" * 32, b"data")
                made.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    assert len(made) == 1
    assert read_cached(path, b"diffrl test 1\n", b"k" * 32) == b"data"


def test_a_cache_file_that_could_not_be_made_is_made_by_the_next_process(tmp_path):
    path = tmp_path / "scenes.scene"
    with pytest.raises(ZeroDivisionError), made_once(path):
        raise ZeroDivisionError
    with made_once(path) as missing:
        assert missing
