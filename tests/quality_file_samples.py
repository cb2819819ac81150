"""Files of trajectories for the tests."""

import json

import file_variations as variations
import h5py
import numpy as np

from diffrl import quality


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
