"""Reduced pictures: what stands still is drawn once for each camera that stands still.

Software OpenGL spends its time on triangles, so a picture costs least when it has few. A camera
that hangs on the room's wall always sees the room, the table and the robot's pedestal in the same
pixels: they are drawn once, with their depth, and a picture draws only what moves (robot, objects,
fixtures and their drawers) and puts it in front by depth. A camera on the robot's hand draws
everything that it sees.

Edges are smoothed by drawing four pixels for one: for a software renderer this costs half of
multisampling. Pixels that show nothing but the background come from a multisampled background.

A picture is a function of its state alone: the background holds nothing that a state can move, not
even a fixture. Left out are reflections of moving things and in moving things.
"""

from collections import OrderedDict

import mujoco
import numpy as np

from diffrl.base.jit import njit
from diffrl.sim.canvas import Canvas, in_view, mirrors, opacity
from diffrl.sim.pictures import ALWAYS, CLOSE, DISTANT, still_bodies
from diffrl.sim.scene import Scene

SCALE = 2  # pixels a side that are drawn for one pixel of the picture (our choice)
SAMPLES = 4  # a pixel of the background, as the exact picture has
POSES = 1024  # of mirrors whose reflections are kept, some 20 kB each (our choice)
DISTANT_UP_TO = 192  # pixels a side up to which fixed cameras use the coarser meshes (our choice)


class Layers:
    """Draws the reduced model of a scene in square pictures of `size` pixels."""

    def __init__(self, scene: Scene, model: mujoco.MjModel, size: int):
        self._model, self._size = model, size
        group = model.geom_group.copy()
        self._close = np.isin(group, (ALWAYS, CLOSE))
        self._distant = np.isin(group, (ALWAYS, DISTANT)) if size <= DISTANT_UP_TO else self._close
        still = still_bodies(scene, model)
        self._still = still[model.geom_bodyid]
        self._fixed = still[model.cam_bodyid] & (
            model.cam_mode == mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        )
        alpha = np.where(self._still, 1.0, opacity(model))
        self._solid = alpha == 1
        self._panes = [(float(a), alpha == a) for a in np.unique(alpha) if 0 < a < 1]
        self._mirrors = mirrors(model) & ~self._still
        self._reflections: OrderedDict[tuple, tuple[np.ndarray, ...]] = OrderedDict()
        self._backgrounds: dict[int, tuple[np.ndarray, ...]] = {}
        self._canvas = Canvas(model, SCALE * size, samples=0)
        self._depth = np.empty((SCALE * size, SCALE * size), np.float32)

    def draw(self, data: mujoco.MjData, camera: int) -> np.ndarray:
        """Return the (size, size, 3) uint8 picture of `data`, whose kinematics are up to date."""
        seen = in_view(self._model, data, camera)
        image = np.empty((self._size, self._size, 3), np.uint8)
        if not self._fixed[camera]:
            _shrink(self._canvas.draw(data, camera, seen & self._close), image)
            return image
        if camera not in self._backgrounds:
            self._backgrounds[camera] = self._background(data, camera, seen & self._still)
        self._draw_layers(data, camera, seen & self._distant & ~self._still, image)
        return image

    def _draw_layers(
        self, data: mujoco.MjData, camera: int, shown: np.ndarray, out: np.ndarray
    ) -> None:
        back, back_depth, smooth = self._backgrounds[camera]
        solid = shown & self._solid
        front = self._canvas.draw(data, camera, solid, mirrors=False, depth=self._depth)
        if (self._mirrors & shown).any():
            _reflect(front, self._depth, *self._reflection(data, camera, self._mirrors & shown))
        covered = np.empty(self._depth.shape, np.bool_)
        _compose(front, self._depth, covered, back, back_depth)
        for alpha, panes in self._panes:
            if (panes & shown).any():
                depth = np.empty_like(self._depth)
                pane = self._draw_opaque(data, camera, panes & shown, depth)
                _glaze(front, self._depth, covered, pane, depth, alpha)
        _shrink(front, out)
        _uncover(out, covered, smooth)

    def _reflection(
        self, data: mujoco.MjData, camera: int, shiny: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the pixels (P,) of the mirrors, their depth (P,) and colours (P, 3)."""
        pose = (data.geom_xpos[shiny].tobytes(), data.geom_xmat[shiny].tobytes())
        key = (camera, shiny.tobytes(), *pose)
        if key not in self._reflections:
            depth = np.empty_like(self._depth)
            shown = shiny | (self._still & in_view(self._model, data, camera))
            image = self._canvas.draw(data, camera, shown, sites=False, depth=depth)
            pixels = np.flatnonzero(depth != self._backgrounds[camera][1])
            found = (pixels, depth.ravel()[pixels], image.reshape(-1, 3)[pixels])
            self._reflections[key] = found
            if len(self._reflections) > POSES:
                self._reflections.popitem(last=False)
        return self._reflections[key]

    def _draw_opaque(
        self, data: mujoco.MjData, camera: int, panes: np.ndarray, depth: np.ndarray
    ) -> np.ndarray:
        model = self._model
        geoms, materials = model.geom_rgba[:, 3].copy(), model.mat_rgba[:, 3].copy()
        model.geom_rgba[panes, 3] = 1
        model.mat_rgba[model.geom_matid[panes & (model.geom_matid >= 0)], 3] = 1
        pane = self._canvas.draw(data, camera, panes, sites=False, mirrors=False, depth=depth)
        model.geom_rgba[:, 3], model.mat_rgba[:, 3] = geoms, materials
        return pane

    def free(self) -> None:
        """Give the driver's memory back."""
        self._canvas.free()

    def _background(
        self, data: mujoco.MjData, camera: int, shown: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the background at SCALE × size, its depth, and the smoothed one at size."""
        depth = np.empty_like(self._depth)
        large = self._canvas.draw(data, camera, shown, sites=False, depth=depth)
        canvas = Canvas(self._model, self._size, SAMPLES)
        smooth = canvas.draw(data, camera, shown, sites=False)
        canvas.free()
        return large, depth, smooth


@njit(nogil=True)
def _shrink(large, out):
    """Average the SCALE × SCALE pixels of `large` under each pixel of `out`."""
    count = SCALE * SCALE
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for k in range(3):
                total = count // 2
                for dy in range(SCALE):
                    for dx in range(SCALE):
                        total += large[SCALE * y + dy, SCALE * x + dx, k]
                out[y, x, k] = total // count


@njit(nogil=True)
def _compose(front, depth, covered, back, back_depth):
    """Put the background into `front` and `depth` where it is nearer (a larger depth)."""
    for i in range(depth.shape[0]):
        for j in range(depth.shape[1]):
            covered[i, j] = depth[i, j] > 0 and depth[i, j] >= back_depth[i, j]
            if not covered[i, j]:
                depth[i, j] = back_depth[i, j]
                for k in range(3):
                    front[i, j, k] = back[i, j, k]


@njit(nogil=True)
def _reflect(front, depth, pixels, mirror_depth, colours):
    """Give the mirrors' pixels, where nothing stands before them, what they reflect."""
    width = depth.shape[1]
    for p in range(len(pixels)):
        i, j = pixels[p] // width, pixels[p] % width
        if depth[i, j] == mirror_depth[p]:
            for k in range(3):
                front[i, j, k] = colours[p, k]


@njit(nogil=True)
def _glaze(front, depth, covered, pane, pane_depth, alpha):
    """Blend a pane of glass over what lies behind it."""
    for i in range(depth.shape[0]):
        for j in range(depth.shape[1]):
            if pane_depth[i, j] > 0 and pane_depth[i, j] >= depth[i, j]:
                covered[i, j] = True
                for k in range(3):
                    mixed = alpha * pane[i, j, k] + (1 - alpha) * front[i, j, k]
                    front[i, j, k] = np.uint8(mixed + 0.5)


@njit(nogil=True)
def _uncover(out, covered, smooth):
    """Take the multisampled background for pixels that show nothing else."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            empty = True
            for dy in range(SCALE):
                for dx in range(SCALE):
                    if covered[SCALE * y + dy, SCALE * x + dx]:
                        empty = False
            if empty:
                for k in range(3):
                    out[y, x, k] = smooth[y, x, k]
