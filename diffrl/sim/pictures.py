"""The picture face of a scene: LIBERO's full model, or a lighter one for software OpenGL.

"exact" is what LIBERO draws. "reduced" draws what the cameras cannot tell from it: meshes
simplified within a millimetre, textures of at most 512 pixels, nothing that is never shown. It
takes some ten seconds to make and is kept in the cache folder, a few MB a task.
"""

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, get_args

import mujoco
import numpy as np
from PIL import Image

from diffrl.base.artifacts import cache_dir
from diffrl.base.errors import UserError
from diffrl.base.scale import cores
from diffrl.sim.cache import made_once, read_cached, write_cached
from diffrl.sim.choices import Detail
from diffrl.sim.scene import Scene


class Pictures(NamedTuple):
    """How frames are drawn: LIBERO's own pictures, or meshes reduced for software renderers."""

    size: int = 128  # pixels, square
    detail: Detail = "exact"


# Tolerance (m) and triangle budget of a mesh, our choice. What the wrist camera comes near to:
NEAR = (0.001, 16_000)  # a third of a pixel of agentview at 256²; weave is held by the budget
FAR = (0.003, 5_000)  # the robot's pedestal and the room, always a metre or more away
AFAR = (0.002, 6_000)  # what moves, in small pictures of cameras that stand still
TEXTURE_SIZE = 512  # pixels a side: twice the largest usual image (our choice)
MAGIC = b"diffrl picture 4\n"  # raise the number when a reduced model changes
VISIBLE = (1, 2)  # geom groups that LIBERO's renderer shows; 0 is what collides
ALWAYS, CLOSE, DISTANT = 1, 2, 3  # geom groups of a reduced model; a close one has a distant twin
WORTH = 0.8  # share of the triangles that a distant twin may have (our choice)
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
    settings = f"{installed_key()} {task.id} {NEAR} {FAR} {AFAR} {TEXTURE_SIZE}".encode()
    key = hashlib.sha256(MAGIC + settings).digest()
    path = cache_dir() / "pictures" / f"{task.suite}-{task.index}-{key.hex()[:12]}.picture"
    with made_once(path) as missing:
        if missing:
            model = reduced_model(scene)
            buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
            mujoco.mj_saveModel(model, None, buffer)
            write_cached(path, MAGIC, key, zlib.compress(buffer.tobytes(), 6))
    name, data = "picture.mjb", zlib.decompress(read_cached(path, MAGIC, key))
    return mujoco.MjModel.from_binary_path(name, {name: data})


# ---- reduction -------------------------------------------------------------------------------


def reduced_model(scene: Scene) -> mujoco.MjModel:
    """Compile the picture model of detail "reduced" (10 s)."""
    from diffrl.sim.compiler import without_places

    full = _full_model(scene)
    spec = mujoco.MjSpec.from_string(scene.picture_xml())
    for body in spec.bodies[1:]:  # nothing will move by itself: any inertia does
        body.mass, body.inertia, body.ipos = 1.0, np.ones(3), np.zeros(3)
        body.iquat, body.fullinertia = [1, 0, 0, 0], [np.nan] * 6
        body.explicitinertial = True
    for geom in list(spec.geoms):
        if geom.group not in VISIBLE:
            geom.delete()
        else:
            geom.group = ALWAYS
    drawn = {geom.meshname for geom in spec.geoms}
    for mesh in [mesh for mesh in spec.meshes if mesh.name not in drawn]:
        mesh.delete()
    _simplify_meshes(spec, full, _far_meshes(scene, full))
    _shrink_textures(spec, full)
    return without_places(spec).compile()


def still_bodies(scene: Scene, model: mujoco.MjModel) -> np.ndarray:
    """Return (nbody,) whether a body has one place in every state: a fixture has many."""
    return (model.body_weldid == 0) & ~np.isin(model.body_rootid, scene.fixture_bodies)


def _far_meshes(scene: Scene, full: mujoco.MjModel) -> set[int]:
    """Return the meshes of what stands still and is no fixture of the task."""
    far = still_bodies(scene, full)[full.geom_bodyid]
    meshes = full.geom_type == _MESH
    return set(full.geom_dataid[meshes & far]) - set(full.geom_dataid[meshes & ~far])


def _simplify_meshes(spec: mujoco.MjSpec, full: mujoco.MjModel, far: set[int]) -> None:
    meshes = list(spec.meshes)
    textured = _textured_meshes(full)
    numbers = [full.mesh(mesh.name).id for mesh in meshes]
    corners = [_corners(full, i, textured) for i in numbers]
    limits = [(FAR,) if i in far else (NEAR, AFAR) for i in numbers]
    with ThreadPoolExecutor(cores()) as pool:
        kept = list(pool.map(_simplified, corners, limits))
    for mesh, i, parts, levels in zip(meshes, numbers, corners, kept):
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, full.mesh_quat[i])
        turned = rotation.reshape(3, 3).T  # MuJoCo holds a mesh in its inertial frame
        positions = parts[0].reshape(-1, 3) @ turned + full.mesh_pos[i]
        normals = parts[1].reshape(-1, 3) @ turned
        texture = parts[2].reshape(-1, 2) if i in textured else None
        _shape(mesh, positions, normals, texture, levels[0])
        if len(levels) > 1 and len(levels[1]) < WORTH * len(levels[0]):
            twin = spec.add_mesh(name=f"{mesh.name} {DISTANT}")
            _shape(twin, positions, normals, texture, levels[1])
            _add_twins(spec, mesh.name, twin.name)


def _shape(
    mesh: mujoco.MjsMesh,
    positions: np.ndarray,  # (C, 3)
    normals: np.ndarray,  # (C, 3)
    texture: np.ndarray | None,  # (C, 2)
    faces: np.ndarray,  # (F, 3) indices of those corners
) -> None:
    corner, face = np.unique(faces, return_inverse=True)
    mesh.uservert = positions[corner].ravel()
    mesh.usernormal = normals[corner].ravel()
    mesh.userface = face.ravel()
    if texture is not None:
        mesh.usertexcoord = texture[corner].ravel()
        mesh.userfacetexcoord = face.ravel()
    mesh.file, mesh.scale = "", np.ones(3)
    mesh.refpos, mesh.refquat = np.zeros(3), [1, 0, 0, 0]
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # flat meshes have no volume


def _add_twins(spec: mujoco.MjSpec, mesh: str, twin: str) -> None:
    """Put a distant geom with mesh `twin` beside each geom that has `mesh`."""
    for geom in [geom for geom in spec.geoms if geom.meshname == mesh]:
        geom.group = CLOSE
        geom.parent.add_geom(
            type=_MESH,
            meshname=twin,
            pos=geom.pos,
            quat=geom.quat,
            material=geom.material,
            rgba=geom.rgba,
            contype=0,
            conaffinity=0,
            group=DISTANT,
        )


def _textured_meshes(model: mujoco.MjModel) -> set[int]:
    """Return the meshes with texture coordinates that some visible geom's texture needs."""
    shown = np.isin(model.geom_group, VISIBLE) & (model.geom_type == _MESH)
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


def _simplified(
    corners: tuple[np.ndarray, ...], limits: tuple[tuple[float, int], ...]
) -> list[np.ndarray]:
    """Return triangles (F, 3) for each of the limits, each simplified from those before."""
    from diffrl.sim.simplify import simplify

    faces, levels = np.arange(corners[0].size // 3).reshape(-1, 3), []
    for tolerance, budget in limits:
        positions, normals, texture = (part.reshape(-1, part.shape[-1])[faces] for part in corners)
        kept = faces.ravel()[simplify(positions, normals, texture, tolerance, budget)]
        if len(np.unique(kept)) >= 4:  # MuJoCo wants four vertices; one that small stays whole
            faces = kept
        levels.append(faces)
    return levels


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
