"""The picture face of a scene: LIBERO's full model, or a lighter one for software OpenGL.

"exact" is what LIBERO draws. "reduced" draws what the cameras cannot tell from it: meshes
simplified within a millimetre, textures of at most 512 pixels, nothing that is never shown. It
takes some ten seconds to make and is kept in the cache folder, a few MB a task.
"""

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import mujoco
import numpy as np
from PIL import Image

from diffrl.artifacts import cache_dir
from diffrl.errors import UserError
from diffrl.scale import cores
from diffrl.sim.cache import read_cached, write_cached
from diffrl.sim.scene import Scene

Detail = Literal["exact", "reduced"]

# Tolerance (m) and triangle budget of a mesh, our choice. What the wrist camera comes near to:
NEAR = (0.001, 16_000)  # a third of a pixel of agentview at 256²; weave is held by the budget
FAR = (0.003, 5_000)  # the robot's pedestal and the room, always a metre or more away
TEXTURE_SIZE = 512  # pixels a side: twice the largest usual image (our choice)
MAGIC = b"diffrl picture 2\n"  # raise the number when a reduced model changes
_VISIBLE = (1, 2)  # geom groups that LIBERO's renderer shows; 0 is what collides
_MESH = mujoco.mjtGeom.mjGEOM_MESH


def picture_model(scene: Scene, detail: Detail = "exact") -> mujoco.MjModel:
    """Return a model to draw `scene` with: same bodies and joints, never to be stepped.

    Raises:
        UserError: `detail` is unknown, or a cached file does not match its hash.
    """
    if detail not in get_args(Detail):
        raise UserError(f"There is no detail {detail!r}: choose one of {get_args(Detail)}.")
    model = _full_model(scene) if detail == "exact" else _cached(scene)
    same = [getattr(model, n) == getattr(scene.model, n) for n in ("nq", "nv", "nbody")]
    if not all(same):
        raise UserError(
            f"The pictures of {scene.task.id} do not fit its cached scene: delete "
            f"{cache_dir() / 'scenes'} and {cache_dir() / 'pictures'}."
        )
    # `env.visualize` hides the sites of robot and objects by turning the sign of their alpha
    model.site_rgba[:, 3] *= -1
    return model


def _full_model(scene: Scene) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(scene.picture_xml())


# ---- cache -----------------------------------------------------------------------------------


def _cached(scene: Scene) -> mujoco.MjModel:
    from diffrl.sim.compiler import installed_key

    task = scene.task
    settings = f"{installed_key()} {task.id} {NEAR} {FAR} {TEXTURE_SIZE}".encode()
    key = hashlib.sha256(MAGIC + settings).digest()
    path = cache_dir() / "pictures" / f"{task.suite}-{task.index}-{key.hex()[:12]}.picture"
    if not path.exists():
        model = reduced_model(scene)
        buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, buffer)
        write_cached(path, MAGIC, key, zlib.compress(buffer.tobytes(), 6))
    name, data = "picture.mjb", zlib.decompress(read_cached(path, MAGIC, key))
    return mujoco.MjModel.from_binary_path(name, {name: data})


# ---- reduction -------------------------------------------------------------------------------


def reduced_model(scene: Scene) -> mujoco.MjModel:
    """Compile the picture model of detail "reduced" (10 s)."""
    full = _full_model(scene)
    spec = mujoco.MjSpec.from_string(scene.picture_xml())
    for body in spec.bodies[1:]:  # nothing will move by itself: any inertia does
        body.mass, body.inertia, body.ipos = 1.0, np.ones(3), np.zeros(3)
        body.iquat, body.fullinertia = [1, 0, 0, 0], [np.nan] * 6
        body.explicitinertial = True
    for geom in list(spec.geoms):
        if geom.group not in _VISIBLE:
            geom.delete()
    drawn = {geom.meshname for geom in spec.geoms}
    for mesh in [mesh for mesh in spec.meshes if mesh.name not in drawn]:
        mesh.delete()
    _simplify_meshes(spec, full, _far_meshes(scene, full))
    _shrink_textures(spec, full)
    return spec.compile()


def _far_meshes(scene: Scene, full: mujoco.MjModel) -> set[int]:
    """Return the meshes of what stands still and is no fixture of the task."""
    still = (full.body_weldid == 0) & ~np.isin(full.body_rootid, scene.fixture_bodies)
    meshes = full.geom_type == _MESH
    far = still[full.geom_bodyid]
    return set(full.geom_dataid[meshes & far]) - set(full.geom_dataid[meshes & ~far])


def _simplify_meshes(spec: mujoco.MjSpec, full: mujoco.MjModel, far: set[int]) -> None:
    meshes = list(spec.meshes)
    textured = _textured_meshes(full)
    numbers = [full.mesh(mesh.name).id for mesh in meshes]
    corners = [_corners(full, i, textured) for i in numbers]
    with ThreadPoolExecutor(cores()) as pool:
        kept = list(pool.map(_simplified, corners, [FAR if i in far else NEAR for i in numbers]))
    for mesh, i, (positions, normals, texture), faces in zip(meshes, numbers, corners, kept):
        corner, face = np.unique(faces, return_inverse=True)
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, full.mesh_quat[i])
        turned = rotation.reshape(3, 3).T  # MuJoCo holds a mesh in its inertial frame
        mesh.uservert = (positions.reshape(-1, 3)[corner] @ turned + full.mesh_pos[i]).ravel()
        mesh.usernormal = (normals.reshape(-1, 3)[corner] @ turned).ravel()
        mesh.userface = face.ravel()
        if i in textured:
            mesh.usertexcoord = texture.reshape(-1, 2)[corner].ravel()
            mesh.userfacetexcoord = face.ravel()
        mesh.file, mesh.scale = "", np.ones(3)
        mesh.refpos, mesh.refquat = np.zeros(3), [1, 0, 0, 0]
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # flat meshes have no volume


def _textured_meshes(model: mujoco.MjModel) -> set[int]:
    """Return the meshes with texture coordinates that some visible geom's texture needs."""
    shown = np.isin(model.geom_group, _VISIBLE) & (model.geom_type == _MESH)
    textured = shown & (model.geom_matid >= 0)
    textured[textured] = (model.mat_texid[model.geom_matid[textured]] >= 0).any(axis=1)
    return {int(i) for i in model.geom_dataid[textured] if model.mesh_texcoordadr[i] >= 0}


def _corners(model: mujoco.MjModel, i: int, textured: set[int]) -> tuple[np.ndarray, ...]:
    """Return positions (F, 3, 3), normals (F, 3, 3) and texture (F, 3, 2) of mesh i's triangles."""
    start = model.mesh_faceadr[i]
    face = slice(start, start + model.mesh_facenum[i])
    positions = model.mesh_vert[model.mesh_vertadr[i] + model.mesh_face[face]]
    normals = model.mesh_normal[model.mesh_normaladr[i] + model.mesh_facenormal[face]]
    texture = np.zeros((*positions.shape[:2], 2))
    if i in textured:
        texture = model.mesh_texcoord[model.mesh_texcoordadr[i] + model.mesh_facetexcoord[face]]
    return positions, normals, texture


def _simplified(corners: tuple[np.ndarray, ...], limits: tuple[float, int]) -> np.ndarray:
    from diffrl.sim.simplify import simplify

    faces = simplify(*corners, *limits)
    if len(np.unique(faces)) < 4:  # MuJoCo wants four vertices; a mesh that small stays whole
        return np.arange(corners[0].size // 3).reshape(-1, 3)
    return faces


def _shrink_textures(spec: mujoco.MjSpec, full: mujoco.MjModel) -> None:
    for i, texture in enumerate(spec.textures):
        width, height = int(full.tex_width[i]), int(full.tex_height[i])
        channels, start = int(full.tex_nchannel[i]), full.tex_adr[i]
        factor = -(-width // TEXTURE_SIZE)
        if factor == 1:
            continue
        pixels = full.tex_data[start : start + width * height * channels]
        sides = np.split(pixels.reshape(height, width, channels), max(1, height // width))
        small = np.concatenate([_shrink(side, factor) for side in sides])  # a cube has six sides
        texture.file, texture.cubefiles, texture.gridsize = "", [""] * 6, [1, 1]
        texture.height, texture.width = small.shape[:2]
        texture.nchannel, texture.data = channels, small.tobytes()


def _shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = (max(1, width // factor), max(1, height // factor))
    small = Image.fromarray(pixels.squeeze()).resize(size, Image.Resampling.BOX)
    return np.asarray(small).reshape(size[1], size[0], -1)
