"""Trajectories and files that the tests of quality share."""

import json

import file_variations as variations
import h5py
import numpy as np

from diffrl import quality
from diffrl.data.episode import Episode
from diffrl.data.hdf5 import write_episodes
from diffrl.presets import QualityConfig
from diffrl.quality.trajectory import Trajectory

CONFIG = QualityConfig(phases=40, neighbours=5, resamples=200)


def minimum_jerk(duration=2.0, rate=20.0, distance=0.3, direction=(1, 2, 2)):
    """Positions (N, 3) m of Flash & Hogan's point-to-point movement along a straight line."""
    t = np.linspace(0, 1, round(duration * rate) + 1)
    unit = np.array(direction) / np.linalg.norm(direction)
    return distance * (10 * t**3 - 15 * t**4 + 6 * t**5)[:, None] * unit


def trajectory(position, actions=None, **changes):
    if actions is None:
        actions = np.zeros((len(position) - 1, 7))
    return Trajectory(position=position, actions=actions, rate=changes.pop("rate", 20.0), **changes)


def arms(effect=1.0, n=12, seed=0):
    """Two arms on the same start states; `effect` scales the tremor of the Gaussian one."""
    rng = np.random.default_rng(seed)
    for index in range(n):
        start = rng.normal(0, 0.01, 3)
        for source, tremor in (("diffusion", 1e-4), ("gaussian", effect * 1e-4)):
            position = minimum_jerk() + start + rng.normal(0, tremor, (41, 3))
            actions = np.c_[20 * np.diff(position, axis=0), np.zeros((40, 3)), np.ones(40)]
            actions[:20, 6] = -1
            state = f"fresh/0/{index}"
            kind = {"source": source, "mode": "deterministic", "start_state": state}
            kind |= {"task": "libero_object/0"}
            yield trajectory(position, actions, **kind)


def write_data_set(path, found):
    episodes = []
    for t in found:
        states = np.zeros((len(t.position), 20))
        states[:, 0] = np.arange(len(t.position)) / 20
        seen = {"eef_pos": t.position, "eef_quat": np.tile([1.0, 0, 0, 0], (len(states), 1))}
        episodes.append(
            Episode(
                task=t.task,
                instruction="pick up the soup",
                start_state=t.start_state,
                seed=0,
                source=t.source,
                mode=t.mode,
                success=True,
                states=states,
                actions=t.actions,
                rewards=np.eye(len(t.actions))[-1],
                fixtures=np.zeros((0, 7)),
                observations=seen | {"gripper_qpos": np.full((len(states), 2), 0.04)},
            )
        )
    attrs = {"env_args": "{}", "problem_info": "{}", "bddl_file_name": "a.bddl"}
    write_episodes(path, episodes, attrs | {"diffrl_format": 1})


def arrays_file(path, positions=None, joints=None, demos=3, **attrs):
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        for index in range(demos):
            demo = file.create_group(f"demo_{index}")
            demo["actions"] = np.random.default_rng(index).uniform(-1, 1, (40, 7))
            if positions is not None:
                demo["eef_pos"] = positions[:40] * (1 + index / 10)
            if joints is not None:
                demo["joint_pos"] = joints + index / 100
    return path


# ---- files of trajectories for the tests ---------------------------------------------------------


def robomimic_file(path, demos=3, steps=40, rate=20, **change):
    """robomimic's low-dimensional layout; `change` maps a key to a function of (index, steps)."""
    kwargs = {"control_freq": rate} | change.pop("env_kwargs", {})
    env = {"type": 1, "env_name": "Lift", "env_kwargs": kwargs} | change.pop("env_args", {})
    keys = {
        "actions": lambda i, n: np.random.default_rng(i).uniform(-1, 1, (n, 7)),
        "obs/robot0_eef_pos": lambda i, n: wander(i, n),
        "rewards": lambda i, n: (np.arange(n) == n - 1).astype(float),
        "dones": lambda i, n: (np.arange(n) == n - 1).astype(int),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(env)
        for index in range(demos):
            demo = file["data"].create_group(f"demo_{index}")
            for key, function in (keys | change).items():
                if function is not None:
                    demo[key] = function(index, steps)
    return path


def wander(seed, steps):
    return variations.wander(np.random.default_rng(seed), steps, 3)


def read(path, **options):
    """The trajectories and the notes."""
    lines = []
    return quality.read_trajectories(path, tell=lines.append, **options), "\n".join(lines)
