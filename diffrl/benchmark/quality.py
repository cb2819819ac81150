"""All measures of a single trajectory, for a thousand trajectories; one process."""

import numpy as np
from scipy.spatial.transform import Rotation

from diffrl.base.control import CONTROL_HZ
from diffrl.benchmark.common import smooth_actions, timed
from diffrl.quality.smoothness import trajectory_measures
from diffrl.quality.trajectory import Trajectory

STEPS = 160  # control steps, about what a libero_object task takes


def measure_quality(count: int = 1000) -> dict:
    """Return how many trajectories were measured, their steps, and trajectories a second."""
    trajectories = [random_trajectory(STEPS, seed) for seed in range(count)]
    trajectory_measures(trajectories[0])
    _, seconds = timed(lambda: [trajectory_measures(t) for t in trajectories])
    return {"trajectories": count, "steps": STEPS, "rate": round(count / seconds, 1)}


def random_trajectory(steps: int, seed: int) -> Trajectory:
    """A smooth random trajectory of `steps` control steps."""
    actions = smooth_actions(steps, seed)
    turns = Rotation.from_rotvec(0.05 * np.cumsum(actions[:, 3:6], axis=0))
    return Trajectory(
        position=0.05 * np.cumsum(actions[:, :3], axis=0),
        actions=actions,
        rate=CONTROL_HZ,
        quaternion=turns.as_quat(),
        opening=np.full(steps, 0.08),
    )
