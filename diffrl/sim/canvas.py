"""An off-screen buffer of MuJoCo's renderer, and which geoms a camera can see.

The caller makes an OpenGL context current first; several canvases may share one.
"""

import mujoco
import numpy as np

_MAX_GEOMS = 1000  # robosuite's
_PLANE, _BOX = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX


class Canvas:
    """Draws parts of `model` in square pictures of `size` pixels.

    `samples` a pixel smooth the edges; `buffer` (width, height), by default as large as the
    picture: a smaller one is cleared faster.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        size: int,
        samples: int,
        buffer: tuple[int, int] | None = None,
    ):
        self.size, self._model = size, model
        model.vis.global_.offwidth, model.vis.global_.offheight = buffer or (size, size)
        model.vis.quality.offsamples = samples
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # as the buffer has it
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [0, 1, 0, 0, 0, 0]  # what `draw` shows is put into group 1
        self._sites = self._option.sitegroup.copy()
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)

    def draw(
        self,
        data: mujoco.MjData,
        camera: int,
        shown: np.ndarray,  # (ngeom,) bool
        sites: bool = True,
        mirrors: bool = True,  # whether shiny planes and boxes reflect: everything is drawn again
        depth: np.ndarray | None = None,  # (size, size) float32, filled; 0 where there is nothing
    ) -> np.ndarray:  # (size, size, 3) uint8
        """Return the picture that a camera of the model takes of the geoms `shown`."""
        self._model.geom_group[:] = shown
        self._option.sitegroup[:] = self._sites if sites else 0
        self._camera.fixedcamid = camera
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = mirrors
        image = np.empty((self.size, self.size, 3), np.uint8)
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        # bind it: another canvas of this OpenGL context may have been drawn, or freed
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(image, depth, self._viewport, self._context)
        return image

    def free(self) -> None:
        """Give the driver's memory back."""
        self._context.free()


def in_view(model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> np.ndarray:
    """Return (ngeom,) whether a geom's bounding sphere reaches into the camera's square view.

    Planes have no bounding sphere and always count.
    """
    half = np.radians(model.cam_fovy[camera]) / 2
    rotation = data.cam_xmat[camera].reshape(3, 3)
    centre = (data.geom_xpos - data.cam_xpos[camera]) @ rotation  # the view is along -z
    across, depth = np.abs(centre[:, :2]).max(axis=1), -centre[:, 2]
    outside = across * np.cos(half) - depth * np.sin(half)  # m beyond the nearest side
    return (outside < model.geom_rbound) | (model.geom_type == _PLANE)


def mirrors(model: mujoco.MjModel) -> np.ndarray:
    """Return (ngeom,) whether a geom reflects: such a one shows what is out of view."""
    shiny = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
    return shiny & np.isin(model.geom_type, (_PLANE, _BOX))


def opacity(model: mujoco.MjModel) -> np.ndarray:
    """Return (ngeom,) alpha with which geoms are drawn, 1 for what is opaque."""
    material = np.where(model.geom_matid >= 0, model.mat_rgba[model.geom_matid, 3], 1.0)
    own = (model.geom_rgba != np.array([0.5, 0.5, 0.5, 1], np.float32)).any(
        axis=1
    )  # not MuJoCo's default
    return np.where(own | (model.geom_matid < 0), model.geom_rgba[:, 3], material)
