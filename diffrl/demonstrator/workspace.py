"""What the scripted operator sees: a scene's bodies, shapes and joints at one simulator state.

Kinematics only (no dynamics, no images): MuJoCo's own forward kinematics on a copy of the scene's
model, so that fixtures of this episode do not disturb anybody else's.
"""

import copy
from functools import cached_property

import numpy as np

from diffrl.sim import mujoco
from diffrl.sim.goals import Goal
from diffrl.sim.observation import place_fixtures

SAMPLES = 6  # grid points along each edge of a collision geom's box; our choice


class Workspace:
    """One scene, looked at state by state; `look` sets the state that all else refers to.

    Positions are in metres, in the world frame (x away from the robot, y to its left, z up);
    rotations are 3×3 matrices. The hand's columns: x across the fingers, y the direction in which
    they open, z the direction in which they point.
    """

    def __init__(self, scene):
        self.scene = scene
        self.model = copy.copy(scene.model)
        self.data = mujoco.MjData(self.model)
        self._grip = self.model.site("gripper0_grip_site").id
        self._hand = self.model.body("robot0_right_hand").id
        self._terms = [Goal(self.model, [term]) for term in scene.meta["goal"]]
        self._outlines: dict[int, np.ndarray] = {}

    def look(self, state: np.ndarray, fixtures: np.ndarray) -> None:
        """See `state` (1 + nq + nv,) with the fixtures at `fixtures` (k, 7), quaternions wxyz."""
        place_fixtures(self.scene, self.model, fixtures)
        self.data.qpos[:] = state[1 : 1 + self.model.nq]
        mujoco.mj_kinematics(self.model, self.data)

    def holds(self, term: int) -> bool:
        """Whether the goal's term number `term` holds in this state, contacts included."""
        mujoco.mj_fwdPosition(self.model, self.data)
        return self._terms[term](self.data)

    @property
    def eef_pos(self) -> np.ndarray:
        """Point between the finger tips, (3,)."""
        return self.data.site_xpos[self._grip].copy()

    @property
    def base(self) -> np.ndarray:
        """The robot's foot, (3,)."""
        return self.data.xpos[self.model.body("robot0_base").id].copy()

    @property
    def hand(self) -> np.ndarray:
        """Rotation of the hand, (3, 3)."""
        return self.data.xmat[self._hand].reshape(3, 3).copy()

    def position(self, name: str) -> np.ndarray:
        """Origin of an object or fixture, (3,)."""
        return self.data.xpos[self.scene.body_id(name)].copy()

    def region(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Centre (3,) and world-aligned half sizes (3,) of a region (a site)."""
        site = self.scene.site_id(name)
        rotation = self.data.site_xmat[site].reshape(3, 3)
        return self.data.site_xpos[site].copy(), np.abs(rotation @ self.model.site_size[site])

    def is_region(self, name: str) -> bool:
        """Whether the goal's argument `name` is a region rather than an object or fixture."""
        return name not in self.things

    @cached_property
    def things(self) -> tuple[str, ...]:
        """Names of all movable objects and fixtures."""
        return tuple(dict.fromkeys((*self.scene.object_names, *self.scene.fixture_names)))

    def owner(self, region: str) -> str | None:
        """The object or fixture that a region belongs to; None for a piece of the table."""
        names = [name for name in self.things if region.startswith(name + "_")]
        return max(names, key=len, default=None)

    def joint_of(self, name: str) -> int:
        """Joint id that opens `name`: a region's own drawer, or a fixture's only joint.

        Raises:
            LookupError: nothing moves there.
        """
        if self.is_region(name):
            body = int(self.model.site_bodyid[self.scene.site_id(name)])
        else:
            root = self.scene.body_id(name)
            jointed = [b for b in self.subtree(root) if self._hinged(b)]
            if not jointed:
                raise LookupError(f"{name} has no joint")
            body = jointed[0]
        if not self._hinged(body):
            raise LookupError(f"{name} has no joint")
        return int(self.model.body_jntadr[body])

    def has_joint(self, name: str) -> bool:
        """Whether `name` is a drawer, door or knob."""
        try:
            self.joint_of(name)
        except LookupError:
            return False
        return True

    def _hinged(self, body: int) -> bool:
        if self.model.body_jntnum[body] != 1:
            return False
        kind = self.model.jnt_type[self.model.body_jntadr[body]]
        return kind in (mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE)

    def slides(self, joint: int) -> bool:
        """Whether a joint is a slide (a drawer), not a hinge (a door, a knob)."""
        return bool(self.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE)

    def joint(self, joint: int) -> float:
        """Value of a slide [m] or hinge [rad]."""
        return float(self.data.qpos[self.model.jnt_qposadr[joint]])

    def joint_frame(self, joint: int) -> tuple[np.ndarray, np.ndarray]:
        """Axis (3,) and anchor (3,) of a joint in the world."""
        body = self.model.jnt_bodyid[joint]
        rotation = self.data.xmat[body].reshape(3, 3)
        anchor = self.data.xpos[body] + rotation @ self.model.jnt_pos[joint]
        return rotation @ self.model.jnt_axis[joint], anchor

    def subtree(self, body: int) -> list[int]:
        """Ids of `body` and of everything that hangs on it."""
        found = [body]
        for child in range(body + 1, self.model.nbody):
            if self.model.body_parentid[child] in found:
                found.append(child)
        return found

    def points(self, name: str) -> np.ndarray:
        """Sample of the collision shape of an object or fixture, (p, 3) in the world."""
        bodies = self.subtree(self.scene.body_id(name))
        return np.concatenate([self.body_points(body) for body in bodies])

    def body_points(self, body: int) -> np.ndarray:
        """Sample of one body's collision shape, (p, 3) in the world."""
        if body not in self._outlines:
            self._outlines[body] = self._outline(body)
        rotation = self.data.xmat[body].reshape(3, 3)
        return self._outlines[body] @ rotation.T + self.data.xpos[body]

    def _outline(self, body: int) -> np.ndarray:
        m = self.model
        parts = [np.zeros((0, 3))]
        for geom in np.flatnonzero(m.geom_bodyid == body):
            if m.geom_contype[geom] or m.geom_conaffinity[geom]:
                rotation = np.zeros(9)
                mujoco.mju_quat2Mat(rotation, m.geom_quat[geom])
                parts.append(self._sample(int(geom)) @ rotation.reshape(3, 3).T + m.geom_pos[geom])
        return np.concatenate(parts)

    def _sample(self, geom: int) -> np.ndarray:
        """Points of one geom in its own frame: vertices of a mesh, else a grid through its box."""
        m = self.model
        if m.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = m.geom_dataid[geom]
            first, count = m.mesh_vertadr[mesh], m.mesh_vertnum[mesh]
            vertices = m.mesh_vert[first : first + count][:: 1 + count // 200].astype(float)
            middle = vertices.mean(axis=0)
            return np.concatenate([middle + (vertices - middle) * s for s in (0.4, 0.7, 1.0)])
        line = np.linspace(-1, 1, SAMPLES)
        grid = np.stack(np.meshgrid(line, line, line), axis=-1).reshape(-1, 3)
        return m.geom_aabb[geom, :3] + grid * m.geom_aabb[geom, 3:]
