"""Images on demand: LIBERO's two cameras, drawn from MjData or from stored states.

Exact images equal LIBERO's ``agentview_image`` and ``robot0_eye_in_hand_image`` bit for bit on the
same renderer, in LIBERO's orientation (OpenGL's: upside down). The options are those of robosuite
1.4's MjRenderContext. Reduced images (`diffrl.sim.pictures`, `diffrl.sim.layers`) are for OpenGL in
software: several times as fast, and close to the exact ones (`diffrl benchmark camera`).

OpenGL is found when the first image is wanted (`diffrl.base.opengl`); physics never asks for it,
and ``MUJOCO_GL`` need not be set.

EGL and CUDA in one process may abort on some GPUs: `render_states` with `workers` draws in
processes that never touch CUDA.
"""

import atexit
import importlib
import os
import threading
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

import mujoco
import numpy as np

from diffrl.base.errors import UserError, whole
from diffrl.base.opengl import find_opengl
from diffrl.base.scale import map_tasks
from diffrl.sim.canvas import Canvas, in_view, mirrors
from diffrl.sim.layers import Layers
from diffrl.sim.observation import place_fixtures
from diffrl.sim.pictures import VISIBLE, Detail, picture_model
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.tasks import CAMERAS

_WIDTH, _HEIGHT = 640, 480  # robosuite's off-screen buffer; larger images enlarge it
_BURNER_ON = 2.0  # alpha: LIBERO's `1 - alpha` toggle applied to the hidden site's -1

_open: weakref.WeakSet["Renderer"] = weakref.WeakSet()


def check_picture(size: int, detail: Detail) -> None:
    """Raise UserError for images that no `Renderer` draws; opens no OpenGL."""
    if whole(size, "The size of an image in pixels") > 4096:
        raise UserError(f"An image of {size} pixels a side is not possible: use 1 to 4096.")
    if detail not in get_args(Detail):
        raise UserError(f"There is no detail {detail!r}: choose one of {get_args(Detail)}.")


class Renderer:
    """Draws one scene in square images of `size` pixels; belongs to the thread that made it.

    Drawn in software, exact pictures take 1 GB of memory, reduced ones 0.1 GB.

    Attributes:
        scene, size, detail: as given; `detail` belongs into every record made from its images.

    Raises:
        UserError: no OpenGL renderer works, or `size` or `detail` is not possible.
    """

    def __init__(self, scene: Scene, size: int = 128, detail: Detail = "exact"):
        check_picture(size, detail)
        self.scene, self.size, self.detail = scene, size, detail
        self._model = picture_model(scene, detail)
        self._data = mujoco.MjData(self._model)
        width, height = (max(_WIDTH, size), max(_HEIGHT, size)) if detail == "exact" else (16, 16)
        self._owner = _here()
        self._gl = _gl_context(width, height)
        _open.add(self)  # also what cannot be finished must be closed at the end of the process
        self._gl.make_current()
        if detail == "exact":
            samples = self._model.vis.quality.offsamples
            self._canvas: Canvas | Layers = Canvas(self._model, size, samples, (width, height))
            self._shown = np.isin(self._model.geom_group, VISIBLE)
            self._mirrors = (mirrors(self._model) & self._shown).any()
        else:
            self._canvas = Layers(scene, self._model, size)
        self._burners = _burners(scene, self._model)

    def render(
        self,
        state: np.ndarray | mujoco.MjData,  # (state_size,) [time, qpos, qvel], or a simulation
        fixtures: np.ndarray,  # (k, 7) pos + quat wxyz, as in `StartStates`
        camera: str = "agentview",
    ) -> np.ndarray:  # (size, size, 3) uint8, upside down as LIBERO's
        """Draw a state from one camera.

        Raises:
            UserError: the state or the fixtures have another scene's shape or are not finite, the
                camera does not exist, or another thread or process made the renderer.
        """
        if self._owner != _here():
            raise UserError(
                f"The renderer of {self.scene.task.id} was made by another thread or process, to "
                "which its OpenGL context belongs: make one (or an environment) in each."
            )
        self._place(state, fixtures)
        number = self._camera_id(camera)
        self._gl.make_current()
        if isinstance(self._canvas, Layers):
            return self._canvas.draw(self._data, number)
        shown = self._shown
        if not self._mirrors:  # one would show what is out of view
            shown = shown & in_view(self._model, self._data, number)
        return self._canvas.draw(self._data, number, shown)

    def close(self) -> None:
        """Free the OpenGL context; also done at the end of the process, and by any thread."""
        if getattr(self, "_gl", None) is None:
            return
        if self._owner == _here():
            self._gl.make_current()
            if hasattr(self, "_canvas"):
                self._canvas.free()
        if self._owner[0] == os.getpid():  # not in a fork: the context is its parent's
            self._gl.free()
        self._gl = None
        _open.discard(self)

    def __reduce__(self):
        """How it is copied and pickled: made anew, as it keeps nothing from image to image."""
        return Renderer, (self.scene, self.size, self.detail)

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _place(self, state: np.ndarray | mujoco.MjData, fixtures: np.ndarray) -> None:
        model, data, scene = self._model, self._data, self.scene
        qpos = state.qpos if isinstance(state, mujoco.MjData) else _checked_qpos(state, scene)
        place_fixtures(scene, model, _checked_fixtures(fixtures, scene))
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        for site, joints, threshold in self._burners:
            on = (data.qpos[joints] >= threshold).any()
            model.site_rgba[site, 3] = _BURNER_ON if on else -1.0

    def _camera_id(self, camera: str) -> int:
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if number < 0:
            names = ", ".join(self._model.camera(i).name for i in range(self._model.ncam))
            raise UserError(f"{self.scene.task.id} has no camera {camera!r}; it has {names}.")
        return number


def _here() -> tuple[int, threading.Thread]:
    return os.getpid(), threading.current_thread()


def _checked_qpos(state: np.ndarray, scene: Scene) -> np.ndarray:
    state = np.asarray(state, np.float64)
    if state.shape != (scene.state_size,) or not np.isfinite(state).all():
        raise UserError(
            f"A state to draw has shape {state.shape}; {scene.task.id} has {scene.state_size} "
            "finite numbers [time, qpos, qvel]: take the states of this task."
        )
    return state[1 : 1 + scene.model.nq]


def _checked_fixtures(fixtures: np.ndarray, scene: Scene) -> np.ndarray:
    fixtures = np.asarray(fixtures, np.float64)
    if fixtures.shape != (len(scene.fixture_names), 7) or not np.isfinite(fixtures).all():
        raise UserError(
            f"The fixtures to draw have shape {fixtures.shape}; {scene.task.id} has "
            f"{len(scene.fixture_names)} fixtures of 7 finite numbers [position, quaternion]."
        )
    return fixtures


def _burners(scene: Scene, model: mujoco.MjModel) -> list[tuple[int, list[int], float]]:
    """Return (site, addresses of its knob in qpos, angle from which it glows in rad)."""
    return [
        (
            model.site(site).id,
            [int(model.joint(j).qposadr[0]) for j in stove["joints"]],
            stove["on"],
        )
        for stove in scene.meta["burners"]
        for site in stove["sites"]
    ]


def _gl_context(width: int, height: int):
    """Return a new off-screen OpenGL context of the backend that works here."""
    backend = find_opengl().backend
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    try:
        kind = importlib.import_module(f"mujoco.{backend}").GLContext
        kind._context = None  # or one that cannot be made prints a traceback when it is freed
        context = kind(width, height)
    except Exception as error:  # PyOpenGL's errors share no base class
        raise UserError(
            f"{backend} works in a fresh process but not in this one ({error}): something here has "
            "chosen another OpenGL; unset PYOPENGL_PLATFORM, or set MUJOCO_GL to that one."
        ) from error
    _close_at_exit()
    return context


def _close_all() -> None:
    refused = importlib.import_module("OpenGL.error").Error
    for renderer in list(_open):
        try:
            renderer.close()
        except refused:  # a foreign handler ended EGL before, and every context with it
            renderer._gl._context = None  # nothing is left to free
            renderer._gl = None


@lru_cache(maxsize=1)
def _close_at_exit() -> None:
    """Free the contexts before MuJoCo ends EGL, whose handler was registered just before.

    LIBERO's own environment, drawn in the same process, ends EGL with a handler of its own.
    """
    atexit.register(_close_all)


# ---- many states -----------------------------------------------------------------------------


def render_states(
    task_id: str,
    states: np.ndarray,  # (T, state_size)
    fixtures: np.ndarray,  # (k, 7), or (T, k, 7)
    cameras: Sequence[str] = CAMERAS,
    size: int = 128,
    detail: Detail = "exact",
    workers: int = 1,
) -> dict[str, np.ndarray]:  # camera -> (T, size, size, 3) uint8
    """Draw stored states of one task with `workers` spawned processes (1: in this process).

    The images are the same for any number of workers. A worker starts in 2-6 s, so hand over many
    states at once.

    Raises:
        UserError: see `Renderer`.
    """
    scene = load_scene(task_id)
    fixtures = np.asarray(fixtures, np.float64)
    each = (len(states), len(scene.fixture_names), 7)
    if fixtures.shape not in (each, each[1:]):
        raise UserError(
            f"render_states: fixtures of shape {fixtures.shape} do not fit {len(states)} states of "
            f"{task_id}: give {each} or {each[1:]}."
        )
    fixtures = np.broadcast_to(fixtures, each)
    find_opengl()  # fail here, once, rather than in every worker
    if detail == "reduced" and workers > 1:
        picture_model(scene, detail)  # make it once, if it is not cached
    parts = [part for part in np.array_split(np.arange(len(states)), workers) if len(part)]
    jobs = [(task_id, states[p], fixtures[p], tuple(cameras), size, detail) for p in parts]
    names = [f"{task_id}, states {p[0]}-{p[-1]}" for p in parts]
    drawn = map_tasks(draw_states, jobs, names=names, workers=workers, description="images")
    empty = np.empty((0, size, size, 3), np.uint8)
    return {c: np.concatenate([empty, *(part[c] for part in drawn)]) for c in cameras}


def draw_states(job: tuple) -> dict[str, np.ndarray]:
    """Draw (task, states, fixtures, cameras, size, detail) with this thread's renderer, kept."""
    task_id, states, fixtures, cameras, size, detail = job
    renderer = _renderer(task_id, size, detail, _here())
    images = {camera: np.empty((len(states), size, size, 3), np.uint8) for camera in cameras}
    for row, state in enumerate(states):
        for camera in cameras:
            images[camera][row] = renderer.render(state, fixtures[row], camera)
    return images


@lru_cache(maxsize=1)  # in software an exact renderer takes 1 GB, a reduced one 0.1 GB
def _renderer(task_id: str, size: int, detail: Detail, owner: tuple) -> Renderer:
    return Renderer(load_scene(task_id), size, detail)
