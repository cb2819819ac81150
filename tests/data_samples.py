"""Episodes for the data tests: small, random, valid – and files in LIBERO's own layouts."""

import json

import h5py
import numpy as np

from diffrl.data.demo import axis_angle
from diffrl.data.episode import Episode

TASK = "libero_object/0"
ATTRS = {
    "bddl_file_name": "libero_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket.bddl",
    "env_args": json.dumps({"type": 1, "env_name": "Libero_Floor_Manipulation", "env_kwargs": {}}),
    "problem_info": json.dumps({"language_instruction": "pick up the alphabet soup"}),
}


def sample_episode(seed: int = 0, length: int = 12, images: int = 0) -> Episode:
    """Return a valid random episode of `length` steps, with `images`² frames if not 0."""
    rng = np.random.default_rng(seed)
    rows = length + 1
    states = rng.normal(size=(rows, 30))
    states[:, 0] = 0.5 + 0.05 * np.arange(rows)
    observations = {
        "eef_pos": rng.normal(size=(rows, 3)),
        "eef_quat": unit(rng.normal(size=(rows, 4))),
        "gripper_qpos": rng.normal(size=(rows, 2)),
        "joint_pos": rng.normal(size=(rows, 7)),
        "object_pos": rng.normal(size=(rows, 3, 3)),
        "object_quat": unit(rng.normal(size=(rows, 3, 4))),
    }
    if images:
        for name in ("agentview_rgb", "eye_in_hand_rgb"):
            observations[name] = rng.integers(0, 256, (rows, images, images, 3), dtype=np.uint8)
    fixtures = np.hstack((rng.normal(size=(2, 3)), unit(rng.normal(size=(2, 4)))))
    return Episode(
        task=TASK,
        instruction="pick up the alphabet soup and place it in the basket",
        start_state=f"fresh/1/{seed}",
        seed=seed,
        source="diffusion",
        mode="deterministic",
        success=True,
        states=states,
        actions=rng.uniform(-1, 1, (length, 7)),
        rewards=(np.arange(length) == length - 1).astype(np.float64),
        fixtures=fixtures,
        observations=observations,
        policy="diffusion-seed0",
        attempt=seed,
    )


def unit(quaternions: np.ndarray) -> np.ndarray:
    """Return the quaternions at length 1."""
    return quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)


MODEL_XML = """<mujoco model="base">
  <asset><mesh name="m" file="m.stl"/></asset>
  <worldbody>
    <body name="table" pos="0 0 0.875"><body name="leg" pos="9 9 9"/></body>
    <body name="wooden_cabinet_1_main" pos="0.1 -0.2 0.9" quat="0 0 0 2"/>
    <body name="plate_1_main"><joint type="free"/></body>
  </worldbody>
</mujoco>"""


def write_official(path, episodes, model_file=MODEL_XML, bddl=ATTRS["bddl_file_name"]):
    """Write `episodes` as LIBERO's create_dataset.py does: no final state, every attribute."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for index, episode in enumerate(episodes):
            group, obs = data.create_group(f"demo_{index}"), episode.observations
            length = episode.length
            orientation = axis_angle(obs["eef_quat"])
            stored = {
                "agentview_rgb": obs["agentview_rgb"],
                "eye_in_hand_rgb": obs["eye_in_hand_rgb"],
                "ee_states": np.hstack((obs["eef_pos"], orientation)),
                "ee_pos": obs["eef_pos"],
                "ee_ori": orientation,
                "joint_states": obs["joint_pos"],
                "gripper_states": obs["gripper_qpos"],
            }
            for name, values in stored.items():
                group[f"obs/{name}"] = values[:length]
            robot = (obs["gripper_qpos"], obs["eef_pos"], obs["eef_quat"])
            group["robot_states"] = np.hstack(robot)[:length]
            group["states"], group["actions"] = episode.states[:length], episode.actions
            last = (np.arange(length) == length - 1).astype(np.uint8)
            group["rewards"], group["dones"] = last, last
            group.attrs["num_samples"], group.attrs["model_file"] = length, model_file
            group.attrs["init_state"] = episode.states[0]
        official = {
            **ATTRS,
            "bddl_file_name": bddl,
            "env_name": "Libero_Floor_Manipulation",
            "bddl_file_content": "(define (problem LIBERO_Floor_Manipulation))",
            "macros_image_convention": "opengl",
            "tag": "libero-v1",
            "num_demos": len(episodes),
            "total": sum(episode.length for episode in episodes),
        }
        for key, value in official.items():
            data.attrs[key] = value


def write_collected(path, episodes, model_file=MODEL_XML):
    """Write `episodes` as LIBERO's raw collector does: states, actions, the model's XML."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for index, episode in enumerate(episodes, start=1):
            group = data.create_group(f"demo_{index}")
            group["states"], group["actions"] = episode.states[:-1], episode.actions
            group.attrs["model_file"] = model_file
        data.attrs["num_demos"] = len(episodes)
        data.attrs["env_info"] = json.dumps({"robots": ["Panda"]})
        for key in ("bddl_file_name", "problem_info"):
            data.attrs[key] = ATTRS[key]
