"""Random legal files of demonstrations in four layouts, and what measuring them must give.

Every choice that a writer of LIBERO's, its collector's, robomimic's or our files may take is drawn
here: order, gaps, types, compression, chunks, keys that may be missing, keys that nobody reads.
`expected` says what is right from those choices and the arrays as they were stored, without the
code under test.
"""

import json
from dataclasses import dataclass, field

import h5py
import numpy as np
from data_samples import ATTRS, sample_episode

from diffrl.data.hdf5 import write_episodes

LAYOUTS = ("libero", "collector", "robomimic", "diffrl")
OSC_POSE = {"type": "OSC_POSE", "input_min": -1, "input_max": 1, "control_delta": True}


@dataclass
class Demo:
    """One demonstration as stored, and why it cannot be measured (any of the reasons)."""

    position: np.ndarray | None  # (N, 3) m
    steps: int
    actions: np.ndarray  # (T, any), as stored
    said: bool | None = None  # attribute success
    rewards: np.ndarray | None = None
    dones: np.ndarray | None = None
    refusals: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """One file: the demonstrations in the reader's order, the options to read it with."""

    demos: list[Demo]
    rate: float  # Hz, the true one
    clips: bool | None  # whether the named controller is OSC_POSE; None: none is named
    options: dict


# -- what is right, by hand ------------------------------------------------------------------------
def jerk_rms(x, rate):
    third = (x[3:] - 3 * x[2:-1] + 3 * x[1:-2] - x[:-3]) * rate**3
    return np.sqrt(np.mean((third**2).sum(axis=1)))


def path_length(x):
    return np.sqrt(((x[1:] - x[:-1]) ** 2).sum(axis=1)).sum()


def measured_actions(demos, clips):
    """The actions of each demonstration as commands in [-1, 1], or None for all."""
    if {d.actions.shape[1] for d in demos} != {7} or clips is False:
        return [None] * len(demos)
    if clips is None and any(np.abs(d.actions).max() > 1 for d in demos):
        return [None] * len(demos)
    return [np.maximum(-1, np.minimum(1, d.actions)) for d in demos]


def known_success(demos):
    lacking = any(d.dones is not None and d.dones[-1] == 0 for d in demos)
    return [_success(d, lacking) for d in demos]


def _success(demo, lacking):
    if demo.said is not None:
        return demo.said
    if demo.rewards is not None and set(demo.rewards) <= {0.0, 1.0}:
        return 1.0 in demo.rewards
    if demo.rewards is not None and set(demo.rewards) <= {-1.0, 0.0}:
        return 0.0 in demo.rewards
    if demo.dones is None or not lacking:
        return None
    return 1 in demo.dones


def hand_of_panda(joints):
    """Grip site (N, 3) m by homogeneous matrices; the tool is 0.2035 m along the flange's axis."""
    a, d = (0, 0, 0, 0.0825, -0.0825, 0, 0.088), (0.333, 0, 0.316, 0, 0.384, 0, 0)
    quarter = (0, -1, 1, 1, -1, 1, 1)
    pose = np.tile(np.eye(4), (len(joints), 1, 1))
    zero, one = np.zeros(len(joints)), np.ones(len(joints))
    for i, angle in enumerate(np.asarray(joints).T):
        c, s, ca, sa = np.cos(angle), np.sin(angle), int(quarter[i] == 0), quarter[i]
        link = [
            [c, -s, zero, a[i] * one],
            [s * ca, c * ca, -sa * one, -d[i] * sa * one],
            [s * sa, c * sa, ca * one, d[i] * ca * one],
            [zero, zero, zero, one],
        ]
        pose = pose @ np.moveaxis(np.array(link, float), 2, 0)
    return (pose @ [0, 0, 0.2035, 1])[:, :3] + [-0.6, 0, 0]


# -- random arrays and ways to store them ----------------------------------------------------------
def wander(rng, rows, width, size=0.1):
    """A smooth random walk with some tremor, (rows, width)."""
    t = np.linspace(0, 1, rows)[:, None]
    waves = sum(rng.normal(size=width) * np.sin(k * np.pi * t) for k in (1, 2, 3))
    return size * waves + rng.normal(0, 1e-4, (rows, width))


def random_length(rng):
    """Steps, 1 to 5000, as many short as long ones."""
    return int(np.exp(rng.uniform(0, np.log(5001))))


def store(rng, group, name, values, types=("f8", "f4", ">f8", ">f4")):
    """Write an array in a random legal way; return what is stored, as float64."""
    values = np.asarray(values).astype(rng.choice(types))
    options = {}
    if rng.random() < 0.6 and values.size:
        options["chunks"] = tuple(int(rng.integers(1, n + 1)) for n in values.shape)
        few = np.prod([-(-n // c) for n, c in zip(values.shape, options["chunks"])])
        options["chunks"] = options["chunks"] if few < 300 else True
        options |= rng.choice([{}, {"compression": "gzip"}, {"compression": "lzf"}])
        options |= rng.choice([{}, {"shuffle": True}, {"fletcher32": True}])
        if values.dtype.kind in "iu" and rng.random() < 0.5:
            options = {"chunks": True, "scaleoffset": 0}
        if rng.random() < 0.3:
            options["maxshape"] = (None, *values.shape[1:])
    group.create_dataset(name, data=values, **options)
    return values.astype(float)


def names_with_gaps(rng, count, first=0):
    numbers = np.sort(rng.choice(np.arange(first, first + 9 * count), count, replace=False))
    return [f"demo_{n}" for n in numbers]


def add_strangers(rng, file, demo, steps):
    """Keys that other tools write and the measures do not need."""
    extras = {
        "obs/agentview_depth": lambda: np.ones((steps, 2, 2, 1), np.float32),
        "obs/agentview_rgb": lambda: np.zeros((steps, 2, 2, 3), np.uint8),
        "next_obs/robot0_eef_pos": lambda: np.full((steps, 3), 9.0),
        "obs/object": lambda: rng.normal(size=(steps, 14)),
        "processed_actions": lambda: rng.normal(0, 5, (steps, 7)),
        "note": lambda: "recorded on a Tuesday",
        "initial_state/articulation/robot/joint_position": lambda: np.zeros((1, 9)),
    }
    for name in rng.permutation(sorted(extras))[: rng.integers(0, 4)]:
        if name not in demo:
            demo[name] = extras[name]()
    if rng.random() < 0.3 and "mask" not in file:
        file["mask/train"] = np.array([b"demo_0"])
    if rng.random() < 0.3:
        demo.attrs["num_samples"], demo.attrs["goal"] = steps, rng.normal(size=3)


def add_attributes(rng, data, attrs, keep=0.7):
    """Write each attribute or not; return those that are written."""
    kept = {name: value for name, value in attrs.items() if rng.random() < keep}
    for name in rng.permutation(sorted(kept)):
        data.attrs[name] = kept[name]
    return kept


def random_rewards(rng, steps, success):
    """Sparse, negative, dense or no rewards (T,)."""
    last = np.arange(steps) == steps - 1
    return {
        "sparse": last * float(success),
        "minus": np.where(last & success, 0.0, -1.0),
        "dense": np.linspace(0.01, 0.7 + 0.2 * success, steps),
        "none": None,
    }


def flat_states(rng, steps, rate, joints):
    """robosuite's: time, arm, fingers, the rest."""
    time = rng.uniform(0, 5) + np.arange(steps) / rate
    fingers = np.tile([0.04, -0.04], (steps, 1))
    return np.c_[time, joints, fingers, rng.normal(size=(steps, rng.integers(5, 30)))]


def poses_of_joints(rng, steps):
    return np.array([0, -0.16, 0, -2.44, 0, 2.23, 0.78]) + wander(rng, steps, 7, 0.2)


# -- the four layouts ------------------------------------------------------------------------------
def write(layout, rng, path) -> Sample:
    """Write a random legal file of `layout`; return what is true of it."""
    count = int(rng.integers(1, 4))
    if layout == "diffrl":
        sample = write_diffrl(rng, path, count)
    else:
        how = {"track_order": bool(rng.random() < 0.3), "libver": rng.choice(["earliest", "v110"])}
        with h5py.File(path, "w", **how) as file:
            writer = {"libero": libero, "collector": collector, "robomimic": robomimic}[layout]
            sample = writer(rng, file, file.create_group("data"), count)
    for demo in sample.demos:
        if demo.position is not None and len(demo.position) < 4:
            demo.refusals.append("needs at least 4")
    if rng.random() < 0.4:
        sample.options["skip_bad"] = True
    return sample


def choose_rate(rng, sample, known):
    """Perhaps give a rate: the right one, a wrong one, none. `known`: whether the file says it."""
    given = rng.choice(["none", "right", "wrong"], p=[0.6, 0.3, 0.1])
    if given == "right":
        sample.options["rate"] = float(sample.rate)
    if given == "wrong" and known:
        sample.options["rate"] = float(sample.rate * rng.choice([0.5, 1.3, 2.5]))
        for demo in sample.demos:
            demo.refusals.append("contradicts the file")
    if given != "right" and not known:
        for demo in sample.demos:
            demo.refusals.append("does not say its control rate")


def libero(rng, file, data, count):
    """LIBERO's official layout, and what people have made of it."""
    how = rng.choice(["full", "ee_pos", "ee_states", "robot_states", "joint_states", "none"])
    has_states = rng.random() < 0.6
    settled = has_states and how not in ("joint_states", "none") and rng.random() < 0.3
    env_kwargs = {"robots": ["Panda"], "controller_configs": OSC_POSE}
    env_kwargs |= {"control_freq": 20} if rng.random() < 0.5 else {}
    described = {
        "env_args": json.dumps({"type": 1, "env_name": "Libero_X", "env_kwargs": env_kwargs}),
        "problem_info": ATTRS["problem_info"],
        "bddl_file_name": ATTRS["bddl_file_name"],
        "num_demos": count,
        "tag": "libero-v1",
    }
    kept = add_attributes(rng, data, described, keep=rng.choice([0.0, 0.6, 1.0]))
    is_libero = how == "full" or "problem_info" in kept  # one name alone may be chance
    robosuite = is_libero or "env_args" in kept
    demos = {}
    for name in rng.permutation(names := names_with_gaps(rng, count)):
        steps = random_length(rng)
        demo, joints = data.create_group(str(name)), poses_of_joints(rng, steps)
        position = None
        actions = store(rng, demo, "actions", rng.uniform(-0.9, 0.9, (steps, 7)))
        if has_states:
            states = flat_states(rng, steps, 20, joints)
            if settled and steps > 1:
                states[0, 0] -= 0.5
            states = store(rng, demo, "states", states, ("f8", ">f8"))
            position = hand_of_panda(states[:, 1:8]) if robosuite else None
        if how == "joint_states":
            position = hand_of_panda(store(rng, demo, "obs/joint_states", joints))
        elif how != "none":
            position = libero_proprioception(rng, demo, how, steps)
        last = (np.arange(steps) == steps - 1).astype(float)
        dones = store(rng, demo, "dones", last, ("u1", "i8", "?"))
        rewards = store(rng, demo, "rewards", last, ("u1", "f4")) if rng.random() < 0.8 else None
        add_strangers(rng, file, demo, steps)
        demos[str(name)] = Demo(position, steps, actions, rewards=rewards, dones=dones)
        if position is None:
            demos[str(name)].refusals.append("no end-effector position")
    clips = True if is_libero or "env_args" in kept else None
    sample = Sample([demos[name] for name in names], 20, clips, {})
    known = (has_states and robosuite) or ("env_args" in kept and "control_freq" in env_kwargs)
    choose_rate(rng, sample, known)
    return sample


def libero_proprioception(rng, demo, how, steps):
    """Write LIBERO's arrays of the hand, all or one; return the position that is stored."""
    pose = wander(rng, steps, 6)
    quaternion = np.c_[np.zeros((steps, 3)), np.ones(steps)]
    arrays = {
        "obs/ee_pos": pose[:, :3],
        "obs/ee_states": pose,
        "robot_states": np.c_[np.full((steps, 2), 0.04), pose[:, :3], quaternion],
        "obs/ee_ori": pose[:, 3:],
        "obs/gripper_states": np.full((steps, 2), 0.04),
    }
    one = {"ee_pos": "obs/ee_pos", "ee_states": "obs/ee_states", "robot_states": "robot_states"}
    chosen = [one[how]] if how in one else list(arrays)
    stored = {name: store(rng, demo, name, arrays[name]) for name in rng.permutation(chosen)}
    columns = {"obs/ee_pos": slice(3), "obs/ee_states": slice(3), "robot_states": slice(2, 5)}
    first = next(name for name in columns if name in stored)
    return stored[first][:, columns[first]]


def collector(rng, file, data, count):
    """LIBERO's raw collector, and robosuite's."""
    robot = str(rng.choice(["Panda", "Panda", "Sawyer"]))
    described = {
        "env_info": json.dumps({"robots": [robot], "controller_configs": OSC_POSE}),
        "problem_info": ATTRS["problem_info"],
        "bddl_file_name": ATTRS["bddl_file_name"],
        "repository_version": "1.4.0",
        "num_demos": count,
    }
    kept = add_attributes(rng, data, described)
    demos, said = {}, rng.choice(["text", "bool", "none"])
    robosuite = {"env_info", "problem_info"} & kept.keys()
    panda = robosuite and (robot == "Panda" or "env_info" not in kept)
    for name in rng.permutation(names := names_with_gaps(rng, count, first=1)):
        steps, demo, success = random_length(rng), data.create_group(str(name)), rng.random() < 0.7
        states = flat_states(rng, steps, 20, poses_of_joints(rng, steps))
        states = store(rng, demo, "states", states, ("f8", ">f8"))
        far = 1.8 if rng.random() < 0.5 else 1.0
        actions = store(rng, demo, "actions", rng.uniform(-far, far, (steps, 7)))
        demo.attrs["model_file"] = "<mujoco/>"
        if said != "none":
            demo.attrs["success"] = str(success) if said == "text" else bool(success)
        position = hand_of_panda(states[:, 1:8]) if panda else None
        demos[str(name)] = Demo(position, steps, actions, None if said == "none" else success)
        if not panda:
            demos[str(name)].refusals.append("no end-effector position")
    sample = Sample([demos[name] for name in names], 20, True, {})
    choose_rate(rng, sample, known=bool(robosuite))
    return sample


def robomimic(rng, file, data, count):
    """robomimic's, of any robot, controller and task."""
    rate = int(rng.choice([10, 20, 50]))
    width = int(rng.choice([7, 7, 7, 4, 14, 1, 26]))
    far = rng.choice([1.0, 1.0, 30.0])
    controller = rng.choice(["none", "osc", "absolute", "joints", "v1.5"])
    configs = {
        "osc": OSC_POSE,
        "absolute": OSC_POSE | {"control_delta": False},
        "joints": {"type": "JOINT_VELOCITY"},
        "v1.5": {"type": "BASIC", "body_parts": {"right": OSC_POSE | {"input_type": "delta"}}},
    }
    kwargs = {} if controller == "none" else {"controller_configs": configs[controller]}
    kwargs |= {"robots": "Sawyer"} if rng.random() < 0.3 else {}
    kwargs |= {"control_freq": rate} if rng.random() < 0.6 else {}
    kind = int(rng.choice([1, 2]))
    described = {"env_args": json.dumps({"type": kind, "env_name": "Can", "env_kwargs": kwargs})}
    described |= {"total": 1, "control_freq_hz": str(rate)} if rng.random() < 0.2 else {}
    kept = add_attributes(rng, data, described, keep=0.8)
    clock = rng.choice(["none", "none", "timestamp", "states", "group"])
    rewards_as = rng.choice(["sparse", "minus", "dense", "none"])
    dones_as = rng.choice(["ends", "success", "none"])
    demos = {}
    for name in rng.permutation(names := names_with_gaps(rng, count)):
        steps, demo, success = random_length(rng), data.create_group(str(name)), rng.random() < 0.6
        types = ("f8", "f4", "f2") if far == 1 else ("f8", "f4")
        actions = store(rng, demo, "actions", rng.uniform(-far, far, (steps, width)), types)
        where = rng.choice(["obs/robot0_eef_pos", "obs/eef_pos", "eef_pos"])
        position = store(rng, demo, where, wander(rng, steps, 3))
        if rng.random() < 0.5:
            store(rng, demo, "obs/joint_pos", wander(rng, steps, int(rng.choice([6, 7, 9]))))
        if rng.random() < 0.5:
            store(rng, demo, "obs/robot0_gripper_qpos", wander(rng, steps, rng.choice([1, 2, 6])))
        time = rng.uniform(0, 9) + np.arange(steps) / rate
        if clock == "timestamp":
            store(rng, demo, "timestamp", time[:, None] if rng.random() < 0.3 else time, ("f8",))
        if clock == "states":
            store(rng, demo, "states", np.c_[time, rng.normal(size=(steps, 30))], ("f8",))
        if clock == "group":
            demo["states/articulation/robot/joint_position"] = np.zeros((steps, 9))
        rewards = random_rewards(rng, steps, success)[rewards_as]
        last = (np.arange(steps) == steps - 1).astype(float)
        dones = {"ends": last, "success": last * success, "none": None}[dones_as]
        if rewards is not None:
            rewards = store(rng, demo, "rewards", rewards)
        if dones is not None:
            dones = store(rng, demo, "dones", dones, ("i8", "f4", "?"))
        add_strangers(rng, file, demo, steps)
        demos[str(name)] = Demo(position, steps, actions, None, rewards, dones)
    named = {"none": None, "osc": True, "absolute": False, "joints": False, "v1.5": True}
    clips = named[controller] if "env_args" in kept else None
    sample = Sample([demos[name] for name in names], rate, clips, {})
    by_states = clock == "states" and "env_args" in kept and kind == 1
    stated = "control_freq_hz" in kept or ("env_args" in kept and "control_freq" in kwargs)
    choose_rate(rng, sample, known=stated or by_states or clock == "timestamp")
    return sample


def write_diffrl(rng, path, count):
    """Our own export: sealed, with the final state."""
    episodes, demos = [], []
    hand, objects = ("eef_pos", "eef_quat", "gripper_qpos"), ("object_pos", "object_quat")
    left_out = [part for part in (hand, objects, ("joint_pos",)) if rng.random() < 0.4]
    images = int(rng.choice([0, 0, 2]))
    for number in range(count):
        steps = random_length(rng)
        episode = sample_episode(int(rng.integers(1 << 30)), steps, images if steps < 500 else 0)
        episode.states[:, 1:8] = poses_of_joints(rng, steps + 1)
        episode.observations["eef_pos"] = wander(rng, steps + 1, 3)
        for name in [name for part in left_out for name in part]:
            del episode.observations[name]
        episode.attempt, episode.success = number, bool(rng.random() < 0.7)
        episode.rewards *= episode.success
        position = episode.observations.get("eef_pos")
        if position is None:
            position = hand_of_panda(episode.states[:, 1:8])
        episodes.append(episode)
        demos.append(Demo(position, steps, episode.actions, episode.success))
    write_episodes(path, episodes, ATTRS)
    sample = Sample(demos, 20, True, {})
    choose_rate(rng, sample, known=True)
    return sample
