"""The camera: LIBERO's own pixels, the reduced picture, clear errors."""

import copy
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.base.opengl import find_opengl
from diffrl.sim import layers, pictures
from diffrl.sim.camera import CAMERAS, Renderer, render_states
from diffrl.sim.scene import load_scene
from diffrl.sim.simplify import simplify
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states

DRAWER = "libero_goal/7"  # a stove that glows, a mirror, fixtures that move


def moved_states(scene, n, seed=0):
    """States (n, state_size) and fixtures (n, k, 7) a few random steps after fresh starts."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (n, 12, 7))
    with Simulator(scene, n, threads=1) as simulator:
        simulator.reset(fresh_start_states(scene, n, seed=seed), settle=2)
        simulator.step(actions)
        return simulator.states(), simulator.fixtures()


def psnr(first, second):
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


# ---- simplification, without OpenGL ----------------------------------------------------------


def sphere(rows=40, columns=60):
    """Corners of a textured unit sphere: positions, normals (F, 3, 3), texture (F, 3, 2)."""
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    polar, azimuth = np.pi * v, 2 * np.pi * u
    ring = np.sin(polar)
    ring[[0, -1]] = 0  # the poles, exactly
    points = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), np.cos(polar)], axis=-1)
    points[:, -1] = points[:, 0]  # one seam: the same places with other texture coordinates
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangles = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    flat = points.reshape(-1, 3)
    return flat[triangles], flat[triangles], np.stack([u, v], axis=-1).reshape(-1, 2)[triangles]


def test_a_simplified_sphere_has_fewer_triangles_and_stays_a_sphere():
    positions, normals, texture = sphere()
    kept = simplify(positions, normals, texture, tolerance=0.01, budget=10**6)
    assert len(kept) < 0.4 * len(positions)
    corners = positions.reshape(-1, 3)[kept]
    centres = corners.mean(axis=1)
    assert np.abs(np.linalg.norm(centres, axis=1) - 1).max() < 0.06
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((outward * centres).sum(axis=1) > 0).all()


def test_simplification_does_not_tear_the_texture_at_its_seam():
    positions, normals, texture = sphere()
    kept = simplify(positions, normals, texture, tolerance=0.01, budget=10**6)
    width = np.ptp(texture.reshape(-1, 2)[kept][:, :, 0], axis=1)
    corners = positions.reshape(-1, 3)[kept]
    below_the_poles = np.abs(corners[:, :, 2]).max(axis=1) < 0.9
    assert width[below_the_poles].max() < 0.5  # a triangle across the seam would have nearly 1


def test_a_flat_sheet_becomes_a_few_triangles_with_the_same_border():
    grid = np.linspace(0, 1, 21)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    points = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    index = np.arange(441).reshape(21, 21)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangles = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    up = np.broadcast_to([0.0, 0.0, 1.0], (len(triangles), 3, 3))
    kept = simplify(points[triangles], up, points[triangles][..., :2], 1e-6, 10**6)
    corners = points[triangles].reshape(-1, 3)[kept]
    assert len(kept) < 20
    sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.linalg.norm(sides, axis=1).sum() / 2 == pytest.approx(1.0)


def test_a_budget_goes_beyond_the_tolerance():
    positions, normals, texture = sphere()
    kept = simplify(positions, normals, texture, tolerance=1e-9, budget=500)
    assert 400 < len(kept) <= 500


# ---- exact pictures --------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.parametrize(
    ("task", "size"),
    [
        ("libero_object/0", 128),
        (DRAWER, 256),
        pytest.param("libero_spatial/5", 256, marks=pytest.mark.slow),
        pytest.param("libero_10/2", 128, marks=pytest.mark.slow),
        pytest.param("libero_90/3", 128, marks=pytest.mark.slow),
        pytest.param("libero_90/60", 256, marks=pytest.mark.slow),
        pytest.param("libero_10/9", 256, marks=pytest.mark.slow),
    ],
)
def test_exact_images_are_liberos_bit_for_bit(task, size, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", find_opengl().backend)
    from libero_reference import begin, make_env

    scene = load_scene(task)
    env = make_env(
        task,
        use_camera_obs=True,
        has_offscreen_renderer=True,
        camera_heights=size,
        camera_widths=size,
    )
    starts = fresh_start_states(scene, 2, seed=0)
    states, fixtures = moved_states(scene, 2)
    for stove in scene.meta["burners"]:  # let the second picture's burners glow
        knobs = [int(scene.model.joint(name).qposadr[0]) for name in stove["joints"]]
        states[1, 1 + np.array(knobs)] = 1.0
    with Renderer(scene, size) as renderer:
        for i in range(2):
            env.sim._render_context_offscreen.gl_ctx.make_current()  # robosuite forgets to
            begin(env, starts[i])
            observation = env.regenerate_obs_from_state(states[i])
            for camera in CAMERAS:
                ours = renderer.render(states[i], fixtures[i], camera)
                assert ours.std() > 10
                assert np.array_equal(ours, observation[f"{camera}_image"]), (camera, i)
    env.close()


@pytest.fixture(scope="module")
def scene():
    return load_scene(DRAWER)


@pytest.fixture(scope="module")
def renderer(scene):
    with Renderer(scene, 64) as renderer:
        yield renderer


@pytest.mark.sim
def test_the_fixtures_pose_moves_the_picture_and_moves_it_back(scene, renderer):
    start = fresh_start_states(scene, 1, seed=3)
    state, fixtures = start.states[0], start.fixtures[0]
    moved = fixtures + np.array([0.05, 0, 0, 0, 0, 0, 0])
    before = renderer.render(state, fixtures)
    assert not np.array_equal(renderer.render(state, moved), before)
    assert np.array_equal(renderer.render(state, fixtures), before)


@pytest.mark.sim
def test_a_simulation_is_drawn_like_its_state(scene, renderer):
    import mujoco

    start = fresh_start_states(scene, 1, seed=4)
    data = mujoco.MjData(scene.model)
    data.qpos[:] = start.states[0, 1 : 1 + scene.model.nq]
    from_data = renderer.render(data, start.fixtures[0])
    assert np.array_equal(from_data, renderer.render(start.states[0], start.fixtures[0]))


@pytest.mark.sim
def test_two_renderers_of_one_process_do_not_disturb_each_other(scene, renderer):
    start = fresh_start_states(scene, 1, seed=5)
    alone = renderer.render(start.states[0], start.fixtures[0])
    with Renderer(scene, 32, "reduced") as other:
        assert other.detail == "reduced"
        small = other.render(start.states[0], start.fixtures[0])
    assert small.shape == (32, 32, 3)
    assert np.array_equal(renderer.render(start.states[0], start.fixtures[0]), alone)


# ---- reduced pictures ------------------------------------------------------------------------


@pytest.mark.sim
def test_a_reduced_picture_is_close_to_the_exact_one_with_a_quarter_of_its_triangles(scene):
    states, fixtures = moved_states(scene, 3)
    with Renderer(scene, 128) as exact, Renderer(scene, 128, "reduced") as reduced:
        pairs = [
            (exact.render(s, f, camera), reduced.render(s, f, camera))
            for s, f in zip(states, fixtures)
            for camera in CAMERAS
        ]
        assert np.mean([psnr(a, b) for a, b in pairs]) >= 30
        assert reduced._model.nmeshface < 0.25 * exact._model.nmeshface


def glowing_and_open(scene, states):
    """The states with every knob turned on and every drawer and door ajar."""
    states = states.copy()
    states[:, 1 + scene.fixture_qpos] = scene.model.jnt_range[
        [scene.model.joint(name).id for name in scene.meta["fixture_joints"]]
    ].mean(axis=1)
    for stove in scene.meta["burners"]:
        knobs = [int(scene.model.joint(name).qposadr[0]) for name in stove["joints"]]
        states[:, 1 + np.array(knobs)] = 1.0
    return states


def closeness(task):
    """PSNR (cameras, 4) of reduced pictures: moved, and the same with all open and glowing."""
    scene = load_scene(task)
    states, fixtures = moved_states(scene, 2)
    states = np.concatenate([states, glowing_and_open(scene, states)])
    with Renderer(scene, 128) as exact, Renderer(scene, 128, "reduced") as reduced:
        return np.array(
            [
                [
                    psnr(*(r.render(s, f, camera) for r in (exact, reduced)))
                    for s, f in zip(states, [*fixtures, *fixtures])
                ]
                for camera in CAMERAS
            ]
        )


@pytest.mark.sim
def test_opened_drawers_and_glowing_burners_are_drawn_where_they_are():
    found = closeness(DRAWER)
    assert found.mean() >= 30
    assert (found.mean(axis=1) >= 27).all()


@pytest.mark.sim
@pytest.mark.slow
def test_reduced_pictures_of_all_suites_are_close_to_the_exact_ones():
    tasks = ["libero_object/0", "libero_spatial/0", DRAWER, "libero_90/3", "libero_10/9"]
    found = np.array([closeness(task) for task in tasks])  # the last has a door of glass
    assert found.mean() >= 30
    assert (found.mean(axis=2) >= 27).all()


@pytest.mark.sim
def test_a_reduced_picture_does_not_depend_on_the_pictures_before_it(scene):
    states, fixtures = moved_states(scene, 2)
    states = np.concatenate([states, glowing_and_open(scene, states)])
    fixtures = np.concatenate([fixtures, fixtures + [0.05, 0, 0, 0, 0, 0, 0]])
    jobs = [(i, camera) for i in range(len(states)) for camera in CAMERAS]

    def drawn(order):
        with Renderer(scene, 48, "reduced") as renderer:
            return {job: renderer.render(states[job[0]], fixtures[job[0]], job[1]) for job in order}

    first, backwards = drawn(jobs), drawn(jobs[::-1])
    assert all(np.array_equal(first[job], backwards[job]) for job in jobs)
    assert len({image.tobytes() for image in first.values()}) == len(jobs)


@pytest.mark.sim
def test_the_background_holds_nothing_that_a_state_can_move(scene):
    states, fixtures = moved_states(scene, 1)
    moved = glowing_and_open(scene, states)[0]
    with Renderer(scene, 48, "reduced") as one, Renderer(scene, 48, "reduced") as other:
        one.render(states[0], fixtures[0])
        other.render(moved, fixtures[0] + [0.1, 0.1, 0, 0, 0, 0, 0])
        ((camera, background),) = one._canvas._backgrounds.items()
        same = other._canvas._backgrounds[camera]
        assert all(np.array_equal(a, b) for a, b in zip(background, same))
        assert background[0].std() > 10


@pytest.mark.sim
def test_a_reduced_agentview_takes_a_fifth_of_the_exact_ones_time_in_software(scene):
    states, fixtures = moved_states(scene, 3)
    spent = {"exact": [], "reduced": []}
    with Renderer(scene, 128) as exact, Renderer(scene, 128, "reduced") as reduced:
        for _ in range(3):
            for state, poses in zip(states, fixtures):
                for renderer in (exact, reduced):
                    start = time.process_time()
                    renderer.render(state, poses)
                    spent[renderer.detail].append(time.process_time() - start)
    if find_opengl().software:  # a GPU draws both in less than a millisecond
        assert min(spent["reduced"]) < 0.2 * min(spent["exact"])


def test_layers_are_composed_by_depth_and_glass_is_blended_over_them():
    front = np.full((4, 4, 3), 200, np.uint8)
    back, smooth = np.full((4, 4, 3), 100, np.uint8), np.full((2, 2, 3), 7, np.uint8)
    depth, back_depth = np.zeros((4, 4), np.float32), np.full((4, 4), 0.5, np.float32)
    depth[:2, 0] = 0.6  # two of the four pixels under the first one are in front
    depth[:2, 2:] = 0.4  # these lie behind the background
    covered = np.empty((4, 4), np.bool_)
    layers._compose(front, depth, covered, back, back_depth)
    pane, pane_depth = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32)
    pane_depth[2:, 2:] = 0.7
    layers._glaze(front, depth, covered, pane, pane_depth, 0.25)
    out = np.empty((2, 2, 3), np.uint8)
    layers._shrink(front, out)
    layers._uncover(out, covered, smooth)
    assert out[..., 0].tolist() == [[150, 7], [7, 75]]


@pytest.mark.sim
def test_a_damaged_cache_file_is_refused_with_its_name(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(pictures, "reduced_model", lambda scene: scene.model)  # seconds saved
    pictures.picture_model(scene, "reduced")
    (path,) = (tmp_path / "pictures").glob("[!.]*")  # beside it may lie its lock
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        pictures.picture_model(scene, "reduced")
    path.write_bytes(bytes(content[:100]))
    with pytest.raises(UserError, match="delete it"):
        pictures.picture_model(scene, "reduced")


# ---- many states -----------------------------------------------------------------------------


@pytest.mark.sim
def test_the_number_of_workers_does_not_change_the_images(scene):
    states, fixtures = moved_states(scene, 3)
    alone = render_states(DRAWER, states, fixtures, size=32, detail="reduced")
    shared = render_states(DRAWER, states, fixtures, size=32, detail="reduced", workers=2)
    assert set(alone) == set(CAMERAS)
    assert all(alone[c].shape == (3, 32, 32, 3) for c in CAMERAS)
    assert all(np.array_equal(alone[c], shared[c]) for c in CAMERAS)
    still = render_states(DRAWER, states[:1], fixtures[0], ["agentview"], 32, "reduced")
    assert np.array_equal(still["agentview"][0], alone["agentview"][0])


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.sim
def test_what_cannot_be_drawn_is_refused(scene, renderer):
    start = fresh_start_states(scene, 1, seed=0)
    state, fixtures = start.states[0], start.fixtures[0]
    with pytest.raises(UserError, match="finite"):
        renderer.render(state * np.nan, fixtures)
    with pytest.raises(UserError, match=str(scene.state_size)):
        renderer.render(state[:-1], fixtures)
    with pytest.raises(UserError, match="fixtures"):
        renderer.render(state, fixtures[:1])
    with pytest.raises(UserError, match="robot0_eye_in_hand"):
        renderer.render(state, fixtures, "selfie")
    with pytest.raises(UserError, match="do not fit 1 states"):
        render_states(DRAWER, state[None], np.zeros((2, 3, 7)))


@pytest.mark.sim
def test_an_unknown_detail_or_size_is_refused(scene):
    with pytest.raises(UserError, match="exact"):
        Renderer(scene, 64, "cartoon")
    with pytest.raises(UserError, match="pixels"):
        Renderer(scene, 0)


@pytest.mark.sim
def test_without_opengl_the_error_names_the_remedy():
    code = (
        "from diffrl.sim.camera import render_states\n"
        "import numpy as np\n"
        "from diffrl.sim.scene import load_scene\n"
        "scene = load_scene('libero_object/0')\n"
        "render_states('libero_object/0', np.zeros((1, scene.state_size)), np.zeros((0, 7)))\n"
    )
    environment = {**os.environ, "MUJOCO_GL": "glfw", "DISPLAY": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "UserError" in result.stderr
    assert "apt-get install" in result.stderr
    assert "libosmesa6" in result.stderr


def errors_of(code):
    """What a process of its own that runs `code`, and must end well, writes to stderr."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@pytest.mark.sim
def test_what_could_not_be_made_whole_is_closed_without_a_word():
    code = (
        "from diffrl.sim import camera\n"
        "from diffrl.sim.scene import load_scene\n"
        "camera.Layers = lambda *arguments: 1 / 0\n"
        "try:\n"
        "    camera.Renderer(load_scene('libero_object/0'), 32, 'reduced')\n"
        "except ZeroDivisionError as error:\n"
        "    kept = error  # and with it the renderer, to the end of the process\n"
    )
    assert errors_of(code) == ""


@pytest.mark.sim
def test_a_renderer_that_outlives_egl_ends_without_a_word():
    if find_opengl().backend != "egl":
        pytest.skip("another backend draws here, which nobody ends")
    code = (
        "import atexit\n"
        "from diffrl.sim.camera import Renderer\n"
        "from diffrl.sim.scene import load_scene\n"
        "kept = Renderer(load_scene('libero_object/0'), 32, 'reduced')\n"
        "from mujoco.egl import EGL, EGL_DISPLAY\n"
        "atexit.register(EGL.eglTerminate, EGL_DISPLAY)\n"  # as LIBERO's own environment does
    )
    assert errors_of(code) == ""


def test_physics_needs_no_opengl():
    code = (
        "import sys, diffrl.sim.simulator, diffrl.sim.camera\n"
        "assert 'OpenGL' not in sys.modules, 'OpenGL was imported'\n"
    )
    # a test beside this one may have chosen a renderer, which mujoco then loads at once
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# ---- threads ---------------------------------------------------------------------------------


def in_a_thread(function):
    """What a function returned or raised in a thread of its own, which has ended."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        return future.exception() or future.result()


@pytest.mark.sim
def test_a_renderer_refuses_another_thread_and_goes_on_in_its_own(scene):
    [state], [fixtures] = moved_states(scene, 1)
    with Renderer(scene, 32, "reduced") as mine:
        image = mine.render(state, fixtures)
        told = in_a_thread(lambda: mine.render(state, fixtures))
        assert isinstance(told, UserError)
        assert "made by another thread" in str(told)
        assert np.array_equal(mine.render(state, fixtures), image)


@pytest.mark.sim
def test_threads_with_a_renderer_each_draw_the_same_and_anybody_may_close_them(scene, capfd):
    [state], [fixtures] = moved_states(scene, 1)
    kept = []

    def draw():
        kept.append(Renderer(scene, 32, "reduced"))
        return kept[-1].render(state, fixtures)

    images = [draw(), in_a_thread(draw), in_a_thread(draw)]
    assert all(np.array_equal(image, images[0]) for image in images)
    for renderer in kept[1:]:
        renderer.close()
    assert np.array_equal(kept[0].render(state, fixtures), images[0])
    kept[0].close()
    assert "rror" not in capfd.readouterr().err


@pytest.mark.sim
def test_many_states_can_be_drawn_from_any_thread(scene):
    states, fixtures = moved_states(scene, 2)

    def draw():
        return render_states(DRAWER, states, fixtures, ["agentview"], 32, "reduced")["agentview"]

    assert np.array_equal(draw(), in_a_thread(draw))


@pytest.mark.sim
@pytest.mark.parametrize("through", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copied_renderer_draws_the_same(scene, through):
    [state], [fixtures] = moved_states(scene, 1)
    with Renderer(scene, 32, "reduced") as first, through(first) as second:
        assert np.array_equal(first.render(state, fixtures), second.render(state, fixtures))
