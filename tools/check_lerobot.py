"""Does lerobot itself read our export? Run by `make check-lerobot`, in an environment of its own.

    python tools/check_lerobot.py EXPORT SOURCE.hdf5

SOURCE is the same data set as HDF5 with images (`python -m diffrl export --format hdf5`): every
frame, state, action, task and count that lerobot yields has to be the source's.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERAS = {
    "observation.images.image": "agentview_rgb",
    "observation.images.image2": "eye_in_hand_rgb",
}
BACKEND = "pyav"  # lerobot's fallback; torchcodec wants the system's ffmpeg libraries
LOSS = 5.0  # mean absolute error of a frame of the H.264 films, of 255


def main(folder: Path, source: Path) -> None:
    """Load the export, walk through all of it, compare it with the source."""
    data = LeRobotDataset("diffrl/check", root=folder, video_backend=BACKEND)
    with h5py.File(source) as file:
        demos = sorted(file["data"].values(), key=lambda demo: int(demo.name.rsplit("_", 1)[1]))
        lengths = [len(demo["actions"]) for demo in demos]
        assert data.num_episodes == len(demos), (data.num_episodes, len(demos))
        assert len(data) == data.num_frames == sum(lengths)
        worst, index = 0.0, 0
        for number, demo in enumerate(demos):
            worst = max(worst, compare(data, index, number, demo))
            index += lengths[number]
    chunk = {"action": [step / data.fps for step in range(8)]}
    windows = LeRobotDataset(
        "diffrl/check", root=folder, delta_timestamps=chunk, video_backend=BACKEND
    )
    assert windows[0]["action"].shape == (8, 7)
    print(
        f"lerobot reads {data.num_episodes} episodes, {len(data)} frames, {len(CAMERAS)} cameras; "
        f"all actions and states equal, frames differ by at most {worst:.2f} of 255 (mean of one)."
    )


def compare(data: LeRobotDataset, first: int, number: int, demo: h5py.Group) -> float:
    """Compare one episode, whose first frame is `first`; return its worst frame's error."""
    actions, worst = demo["actions"][()].astype(np.float32), 0.0
    shifted = np.zeros(3)  # summed errors against the frame before, the frame, the frame after
    proprioception = np.hstack((demo["obs/ee_states"], demo["obs/gripper_states"]))
    images = {key: demo[f"obs/{name}"][()] for key, name in CAMERAS.items()}
    for step in range(len(actions)):
        item = data[first + step]
        assert int(item["episode_index"]) == number
        assert int(item["frame_index"]) == step
        assert isinstance(item["task"], str)
        assert np.array_equal(item["action"].numpy(), actions[step])
        assert np.array_equal(item["observation.state"], proprioception[step].astype(np.float32))
        assert bool(item["next.done"]) == (step == len(actions) - 1)
        for key, frames in images.items():
            drawn = 255 * item[key].permute(1, 2, 0).numpy()
            around = frames[np.clip(step + np.arange(-1, 2), 0, len(frames) - 1), ::-1, ::-1]
            errors = np.abs(drawn - around).mean(axis=(1, 2, 3))
            shifted += errors
            worst = max(worst, float(errors[1]))
    assert shifted.argmin() == 1, f"episode {number}: the films are shifted by a frame"
    assert worst < LOSS, f"episode {number}: a frame differs by {worst:.1f} of 255"
    return worst


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
