"""What a policy may know of a state besides pictures: poses and joints as preallocated arrays."""

import copy
from dataclasses import dataclass, fields

import mujoco
import numpy as np

from diffrl.sim.scene import Scene


@dataclass(eq=False)
class Observation:
    """State observations of n copies (or T moments); units m, rad; quaternions xyzw as LIBERO's.

    `object_*` follow `Scene.object_names` (K), `goal_pos` follows `Scene.goal_names` (G),
    `fixture_qpos` the joints of drawers, doors and knobs (J). Copies of scenes with fewer entries
    are padded with zeros.
    """

    eef_pos: np.ndarray  # (n, 3) grip site
    eef_quat: np.ndarray  # (n, 4) hand body
    gripper_qpos: np.ndarray  # (n, 2)
    joint_pos: np.ndarray  # (n, 7)
    object_pos: np.ndarray  # (n, K, 3)
    object_quat: np.ndarray  # (n, K, 4)
    goal_pos: np.ndarray  # (n, G, 3)
    fixture_qpos: np.ndarray  # (n, J)

    @staticmethod
    def empty(scenes: list[Scene], n: int) -> "Observation":
        """Zeros for n rows, wide enough for every scene."""
        k = max(len(s.object_bodies) for s in scenes)
        g = max(len(s.goal_names) for s in scenes)
        j = max(len(s.fixture_qpos) for s in scenes)
        shapes = [(3,), (4,), (2,), (7,), (k, 3), (k, 4), (g, 3), (j,)]
        return Observation(*[np.zeros((n, *shape)) for shape in shapes])

    def rows(self, index) -> "Observation":
        """Some rows, copied."""
        return Observation(*[np.array(getattr(self, f.name)[index]) for f in fields(self)])

    def arrays(self) -> dict[str, np.ndarray]:
        """Name -> array, in field order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Sensor:
    """Reads one scene's observation out of MjData into a row of an Observation."""

    def __init__(self, scene: Scene):
        model = scene.model
        self._scene = scene
        self.site = model.site(scene.meta["eef_site"]).id
        self._hand = model.body(scene.meta["eef_body"]).id
        self._sites, self._bodies = [], []
        for row, name in enumerate(scene.goal_names):
            if name in scene.meta["objects"]:
                self._bodies.append((row, scene.body_id(name)))
            else:
                self._sites.append((row, model.site(name).id))

    def read(
        self, data: mujoco.MjData, out: Observation, row: int, qpos: np.ndarray | None = None
    ) -> None:
        """Write what `data` holds now into row `row`; `qpos` are the exact scene's positions.

        A training face has positions of its own, but the exact scene's bodies and sites.
        """
        scene, qpos = self._scene, data.qpos if qpos is None else qpos
        out.eef_pos[row] = data.site_xpos[self.site]
        out.eef_quat[row] = data.xquat[self._hand][[1, 2, 3, 0]]
        out.gripper_qpos[row] = qpos[scene.gripper_qpos]
        out.joint_pos[row] = qpos[scene.arm_qpos]
        bodies = scene.object_bodies
        out.object_pos[row, : len(bodies)] = data.xpos[bodies]
        out.object_quat[row, : len(bodies)] = data.xquat[bodies][:, [1, 2, 3, 0]]
        for goal_row, body in self._bodies:
            out.goal_pos[row, goal_row] = data.xpos[body]
        for goal_row, site in self._sites:
            out.goal_pos[row, goal_row] = data.site_xpos[site]
        out.fixture_qpos[row, : len(scene.fixture_qpos)] = qpos[scene.fixture_qpos]


def place_fixtures(scene: Scene, model: mujoco.MjModel, fixtures: np.ndarray) -> None:
    """Put the fixtures of `model` where a start state has them: fixtures (k, 7) pos + wxyz."""
    model.body_pos[scene.fixture_bodies] = fixtures[:, :3]
    model.body_quat[scene.fixture_bodies] = fixtures[:, 3:]


def observe(scene: Scene, states: np.ndarray, fixtures: np.ndarray) -> Observation:
    """Observations of stored states (T, state_size), by kinematics alone.

    fixtures is (k, 7), or (T, k, 7) when they differ. Unlike the simulator's (and LIBERO's)
    observations, which are computed before the last physics step, these belong to the state itself.
    """
    model, sensor = copy.copy(scene.model), Sensor(scene)
    data = mujoco.MjData(model)
    out = Observation.empty([scene], len(states))
    fixtures = np.broadcast_to(fixtures, (len(states), *np.shape(fixtures)[-2:]))
    for row, state in enumerate(states):
        place_fixtures(scene, model, fixtures[row])
        data.qpos[:] = state[1 : 1 + model.nq]
        mujoco.mj_kinematics(model, data)
        sensor.read(data, out, row)
    return out
