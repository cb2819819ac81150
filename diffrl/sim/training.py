"""The training face of a scene: cheaper physics for a policy that learns, and for nothing else.

Most contacts of a LIBERO scene belong to things that nobody is asked to touch. In the training face
they stand, as fixtures already do, where exact physics settled them from the episode's own start
state, and joints that the goal does not need are locked. What moves and lies on such a thing begins
where it settled, too: on a ramekin that stands it would come to lie otherwise than on one that
falls with it. A control step may take fewer, longer physics steps. Bodies, geoms and sites keep
their ids, so goals and observations are evaluated as ever, and `Simulator.states` gives the states
of the exact scene that a copy stands for. Only the curve of training itself shows success in this
physics, and says so. What is measured, chosen by or stored is played in exact physics:
`Simulator.step` records nothing here. (Our choice; LIBERO has nothing of the kind.)
"""

import copy
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import mujoco
import numpy as np

from diffrl.base.artifacts import cache_dir
from diffrl.sim.cache import made_once, read_cached, write_cached
from diffrl.sim.observation import place_fixtures
from diffrl.sim.scene import Scene

MAGIC = b"diffrl training face 1\n"
PROBED = 16  # layouts that are looked at for things that rest on what the goal names
UPRIGHT = 0.5  # a push that points down more steeply than this cosine comes from a thing below


@dataclass(frozen=True, eq=False)
class TrainingFace:
    """A scene without the joints that its goal does not need.

    Attributes:
        scene: the exact one.
        model: its model without these joints (MjModel).
        settled: (P, nq) positions of the scene's fresh layouts as exact physics settled them, in
            the order of ``layout_qpos``; NaN for layouts that no fresh start state is drawn from.
    """

    scene: Scene
    model: mujoco.MjModel = field(repr=False)
    settled: np.ndarray = field(repr=False)

    @cached_property
    def placed(self) -> np.ndarray:
        """(m,) ids of the bodies that lost their joints, parents first."""
        lost = self.scene.model.body_jntnum > self.model.body_jntnum
        return np.flatnonzero(lost)

    @cached_property
    def qpos(self) -> np.ndarray:
        """(nq of the face,) where its positions stand among the exact ones."""
        return _addresses(self.model, self.scene.model, "qposadr", self.model.nq)

    @cached_property
    def qvel(self) -> np.ndarray:
        """(nv of the face,) where its velocities stand among the exact ones."""
        return _addresses(self.model, self.scene.model, "dofadr", self.model.nv)

    @cached_property
    def laid(self) -> tuple[np.ndarray, np.ndarray]:
        """(7 k,) positions of the things that begin settled: in the face's, in the exact ones."""
        bodies = _lying_on(self.scene, set(self.placed.tolist()), self.settled)
        models = (self.model, self.scene.model)
        starts = [m.jnt_qposadr[m.body_jntadr[bodies]] for m in models]
        here, there = ((start[:, None] + np.arange(7)).ravel() for start in starts)
        return here, there

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        layouts = self.scene.arrays["layout_qpos"]
        return {self._things(qpos): row for row, qpos in enumerate(layouts)}

    def _things(self, qpos: np.ndarray) -> bytes:
        """What of the positions (nq,) decides where things settle: all but the arm."""
        return np.delete(qpos, self.scene.arm_qpos).tobytes()

    def settled_at(self, state: np.ndarray) -> np.ndarray | None:
        """Return the settled positions (nq,) of a fresh start state, None of any other state."""
        row = self._rows.get(self._things(state[1 : 1 + self.scene.model.nq]))
        settled = None if row is None else self.settled[row]
        return None if settled is None or np.isnan(settled).any() else settled

    def poses(self, exact: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray) -> np.ndarray:
        """Return where the placed bodies stand in their parents' frames: (m, 7) pos + wxyz.

        `exact` has the fixtures in place; `data` is scratch space; `qpos` (nq,).
        """
        data.qpos[:] = qpos
        mujoco.mj_kinematics(exact, data)
        out, back = np.empty((len(self.placed), 7)), (np.empty(3), np.empty(4))
        for row, body in zip(out, self.placed):
            parent = exact.body_parentid[body]
            mujoco.mju_negPose(*back, data.xpos[parent], data.xquat[parent])
            position, turn = row[:3], row[3:]
            mujoco.mju_mulPose(position, turn, *back, data.xpos[body], data.xquat[body])
        return out


def _addresses(face: mujoco.MjModel, exact: mujoco.MjModel, kind: str, size: int) -> np.ndarray:
    out = np.empty(size, int)
    for joint in range(face.njnt):
        here = np.atleast_1d(getattr(face.joint(joint), kind))[0]
        there = np.atleast_1d(getattr(exact.joint(face.joint(joint).name), kind))[0]
        width = _WIDTH[kind][face.jnt_type[joint]]
        out[here : here + width] = np.arange(there, there + width)
    return out


_FREE, _BALL = mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL
_SLIDE, _HINGE = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
_WIDTH = {
    "qposadr": {_FREE: 7, _BALL: 4, _SLIDE: 1, _HINGE: 1},
    "dofadr": {_FREE: 6, _BALL: 3, _SLIDE: 1, _HINGE: 1},
}


# ---- what the goal needs ---------------------------------------------------------------------


def needed_bodies(scene: Scene, settled: np.ndarray) -> set[int]:
    """Return the bodies whose joints stay: what the goal names, and what rests on that.

    A goal's joints stay, and all joints of a fixture that something goes into, for its door may be
    in the way; under a region that something goes onto only those that carry it.

    Args:
        scene: the exact one.
        settled: (P, nq) settled layouts, NaN where there is none.
    """
    model, needed = scene.model, set()
    for term in scene.meta["goal"]:
        if "joints" in term:
            needed |= {int(model.joint(name).bodyid[0]) for name in term["joints"]}
            continue
        needed.add(scene.body_id(term["body"]))
        if "support" in term:
            needed.add(scene.body_id(term["support"]))
        if "site" in term:
            holder = int(model.site_bodyid[scene.site_id(term["site"])])
            needed |= _ancestors(model, holder)
            if term["predicate"] == "in":
                root = model.body_rootid[holder]
                needed |= set(np.flatnonzero(model.body_rootid == root).tolist())
    return needed | _resting_on(scene, needed, settled)


def _ancestors(model: mujoco.MjModel, body: int) -> set[int]:
    chain = set()
    while body:
        chain.add(body)
        body = int(model.body_parentid[body])
    return chain


def _resting_on(scene: Scene, needed: set[int], settled: np.ndarray) -> set[int]:
    """Free bodies that lie on, or lean at, what moves, directly or not, in some of the layouts.

    What only lies under such a thing stands still.
    """
    model = scene.model
    free = {int(body) for body in model.jnt_bodyid[model.jnt_type == _FREE]}
    touching = list(_contacts(scene, settled))
    found: set[int] = set()
    while True:
        moving = np.isin(model.body_rootid, [*(needed | found)]) | np.isin(
            np.arange(model.nbody), [*needed]
        )
        more = {
            int(model.body_rootid[thing])
            for low, high, push in touching
            for thing, other, lift in ((high, low, push), (low, high, -push))
            if moving[other] and not moving[thing] and lift > -UPRIGHT
        }
        more = (more & free) - needed - found
        if not more:
            return found
        found |= more


def _lying_on(scene: Scene, placed: set[int], settled: np.ndarray) -> list[int]:
    """Free bodies that touch one of `placed` that was free, directly or not, in some layouts."""
    model = scene.model
    free = {int(body) for body in model.jnt_bodyid[model.jnt_type == _FREE]}
    pairs = {
        (int(model.body_rootid[one]), int(model.body_rootid[other]))
        for low, high, _ in _contacts(scene, settled)
        for one, other in ((low, high), (high, low))
    }
    found: set[int] = set()
    while more := {
        one
        for one, other in pairs
        if one in free - placed - found and other in (free & placed) | found
    }:
        found |= more
    return sorted(found)


def _contacts(scene: Scene, settled: np.ndarray):
    """Yield (body, other body, upward part of the push on the other) of some settled layouts."""
    model, data = copy.copy(scene.model), mujoco.MjData(scene.model)
    rows = np.flatnonzero(~np.isnan(settled).any(axis=1))[:PROBED]
    for row in rows:
        place_fixtures(scene, model, scene.arrays["layout_fixtures"][row])
        data.qpos[:] = settled[row]
        mujoco.mj_fwdPosition(model, data)
        pairs = model.geom_bodyid[data.contact.geom].reshape(-1, 2)
        for (low, high), frame in zip(pairs, data.contact.frame.reshape(-1, 9)):
            yield int(low), int(high), float(frame[2])


# ---- making and keeping it -------------------------------------------------------------------


@lru_cache(maxsize=16)
def training_face(scene: Scene, settle: Callable[[Scene], np.ndarray]) -> TrainingFace:
    """Return the training face of a scene, from the cache or made now (some 20 s, all cores).

    `settle` returns the settled layouts of the scene, (P, nq); `Simulator` knows how.

    Raises:
        UserError: the cache file is damaged or not what its name says.
    """
    key = hashlib.sha256(scene_bytes(scene)).hexdigest()
    task = scene.task
    path = cache_dir() / "scenes" / f"{task.suite}-{task.index}-{key[:12]}.training"
    with made_once(path) as missing:
        if missing:
            write_cached(path, MAGIC, key.encode(), _made(scene, settle(scene)))
    data = read_cached(path, MAGIC, key.encode())
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        binary, settled = file["model"], file["settled"]
    name = "training.mjb"
    model = mujoco.MjModel.from_binary_path(name, {name: binary.tobytes()})
    return TrainingFace(scene, model, settled)


def _made(scene: Scene, settled: np.ndarray) -> bytes:
    """What the cache keeps of a face."""
    model = _without(scene, needed_bodies(scene, settled))
    mujoco.mj_saveModel(model, None, binary := np.empty(mujoco.mj_sizeModel(model), np.uint8))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, model=binary, settled=settled)
    return buffer.getvalue()


def scene_bytes(scene: Scene) -> bytes:
    """What decides the face: the compiled physics, the goal and the layouts."""
    mujoco.mj_saveModel(
        scene.model, None, model := np.empty(mujoco.mj_sizeModel(scene.model), np.uint8)
    )
    layouts = [scene.arrays[f"layout_{name}"] for name in ("qpos", "fixtures", "usable")]
    parts = [model.tobytes(), repr(scene.meta["goal"]).encode(), *(a.tobytes() for a in layouts)]
    return b"".join(hashlib.sha256(part).digest() for part in parts)


def _without(scene: Scene, needed: set[int]) -> mujoco.MjModel:
    """The physics face without the joints of things and fixtures that are not needed."""
    from diffrl.sim.compiler import physics_spec, without_places

    exact = scene.model
    robot = {
        int(exact.joint(n).id) for n in scene.meta["arm_joints"] + scene.meta["gripper_joints"]
    }
    idle = [
        exact.joint(joint).name
        for joint in range(exact.njnt)
        if joint not in robot and int(exact.jnt_bodyid[joint]) not in needed
    ]
    spec = without_places(physics_spec(scene.picture_xml(), exact))
    for joint in list(spec.joints):
        if joint.name in idle:
            joint.delete()
    model = spec.compile()
    if model.nbody != exact.nbody or model.ngeom != exact.ngeom or model.nsite != exact.nsite:
        raise RuntimeError(f"{scene.task.id}: the training face has other bodies than the scene")
    return model
