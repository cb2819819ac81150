"""Export to LeRobotDataset v3: parquet tables, MP4 films, statistics, a data-set card.

Written with pyarrow and ffmpeg alone, after the layout that lerobot 0.4.4 reads; `lerobot` itself
is no dependency. Feature names are those of its LIBERO environment. One data file and one film per
camera and source file; look-ups are positional, so indices run without gaps.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from diffrl.base.artifacts import make_folder, write_json
from diffrl.base.control import CONTROL_HZ
from diffrl.base.errors import UserError
from diffrl.data.card import source_of, write_card
from diffrl.data.demo import axis_angle
from diffrl.data.episode import Episode
from diffrl.data.human import completed
from diffrl.data.media import CAMERAS, mp4_writer, with_frames
from diffrl.sim.pictures import Pictures

VERSION = "v3.0"
VIDEO_KEYS = dict(zip(CAMERAS, ("observation.images.image", "observation.images.image2")))
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_PER_CHUNK = 1000  # files in one folder (lerobot's default)
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_AXES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3")
_VECTORS = {  # feature: names of its numbers; float32
    "observation.state": [*_AXES, "gripper1", "gripper2"],
    "action": ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
}
_SCALARS = {
    "next.reward": "float32",
    "next.done": "bool",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


@dataclass
class _Export:
    """What has been written so far."""

    folder: Path
    size: int
    tasks: dict[str, int] = field(default_factory=dict)  # instruction -> task_index
    episodes: list[dict] = field(default_factory=list)  # rows of meta/episodes
    columns: list[dict] = field(default_factory=list)  # of each episode, for the statistics
    counts: dict = field(default_factory=dict)  # film -> (3, 256) pixels of each level

    @property
    def frames(self) -> int:
        """Frames so far, over all episodes."""
        return self.episodes[-1]["dataset_to_index"] if self.episodes else 0


def export_lerobot(
    files: Sequence[Path],
    folder: Path,
    pictures: Pictures,
    workers: int = 1,
) -> dict:
    """Write the data sets `files` as one LeRobotDataset; return its ``meta/info.json``.

    Images are drawn from the states and turned by 180°, as openpi, OpenVLA-OFT and lerobot feed
    LIBERO's to their models. The folder appears when it is whole.

    Raises:
        UserError: the folder exists, a file is not sound, does not say its origin as diffrl's do,
            or no renderer works.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists: remove it, or choose another folder for the export.")
    sources = [source_of(file) for file in files]  # before hours of drawing
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        export = _Export(make_folder(partial), pictures.size)
        for number, file in enumerate(files):
            _write_file(export, number, with_frames(completed(file), pictures, workers))
        info = _write_meta(export)
        write_card(partial / "README.md", sources, info, pictures.detail)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return info


def _write_file(
    export: _Export, number: int, pairs: Iterator[tuple[Episode, dict[str, np.ndarray]]]
) -> None:
    """Write the episodes of one source file: a parquet table and a film per camera."""
    place = {"chunk_index": number // _PER_CHUNK, "file_index": number % _PER_CHUNK}
    first, tables = export.frames, []
    with contextlib.ExitStack() as stack:
        films = {
            camera: stack.enter_context(
                mp4_writer(export.folder / _VIDEO.format(video_key=key, **place))
            )
            for camera, key in VIDEO_KEYS.items()
        }
        for episode, images in pairs:
            upright = {
                camera: frames[: episode.length, ::-1, ::-1] for camera, frames in images.items()
            }
            for camera, frames in upright.items():
                for frame in frames:
                    films[camera](frame)
            tables.append(_add(export, episode, upright, place, export.frames - first))
    path = export.folder / _DATA.format(**place)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), path, compression="snappy")


def _add(
    export: _Export, episode: Episode, images: dict, place: Mapping[str, int], offset: int
) -> pa.Table:
    """Enter one episode into the export; return its rows of the data table."""
    columns = _columns(export, episode)
    counts = {VIDEO_KEYS[camera]: _levels(frames) for camera, frames in images.items()}
    stats = {name: _statistics(values) for name, values in columns.items()}
    stats |= {key: _image_statistics(c, episode.length) for key, c in counts.items()}
    start, end = export.frames, export.frames + episode.length
    row = {
        "episode_index": len(export.episodes),
        "tasks": [episode.instruction],
        "length": episode.length,
        **{f"data/{name}": value for name, value in place.items()},
        "dataset_from_index": start,
        "dataset_to_index": end,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    for key in VIDEO_KEYS.values():
        row |= {f"videos/{key}/{name}": value for name, value in place.items()}
        row[f"videos/{key}/from_timestamp"] = offset / CONTROL_HZ
        row[f"videos/{key}/to_timestamp"] = (offset + episode.length) / CONTROL_HZ
    row |= {key: getattr(episode, key) for key in ("task", "source", "mode", "policy")}
    row |= {"start_state": episode.start_state, "seed": episode.seed}
    row |= {f"stats/{name}/{k}": v.tolist() for name, s in stats.items() for k, v in s.items()}
    export.episodes.append(row)
    export.columns.append(columns)
    export.counts = {key: export.counts.get(key, 0) + c for key, c in counts.items()}
    return pa.table(columns | {name: _fixed(columns[name]) for name in _VECTORS})


def _columns(export: _Export, episode: Episode) -> dict[str, np.ndarray]:
    length, obs = episode.length, episode.observations
    steps = np.arange(length)
    state = (obs["eef_pos"], axis_angle(obs["eef_quat"]), obs["gripper_qpos"])
    columns = {
        "observation.state": np.hstack(state)[:length],
        "action": episode.actions,
        "next.reward": episode.rewards,
        "next.done": steps == length - 1,
        "timestamp": steps / CONTROL_HZ,
        "frame_index": steps,
        "episode_index": np.full(length, len(export.episodes)),
        "index": export.frames + steps,
        "task_index": np.full(
            length, export.tasks.setdefault(episode.instruction, len(export.tasks))
        ),
    }
    types = dict.fromkeys(_VECTORS, "float32") | _SCALARS
    return {name: values.astype(types[name]) for name, values in columns.items()}


def _fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


# -- statistics ------------------------------------------------------------------------------------
def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Minimum, maximum, mean, std, count and quantiles over the rows."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    found = {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        "count": np.array([len(rows)]),
    }
    quantiles = np.quantile(rows, QUANTILES, axis=0)
    return found | {f"q{round(100 * q):02d}": row for q, row in zip(QUANTILES, quantiles)}


def _levels(frames: np.ndarray) -> np.ndarray:
    """Count the pixels of each level: (n, H, W, 3) → (3, 256)."""
    return np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])


def _image_statistics(counts: np.ndarray, images: int) -> dict[str, np.ndarray]:
    """The same per colour channel, (3, 1, 1), pixels scaled to [0, 1]; exact, from the counts."""
    levels, share = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean, below = share @ levels, np.cumsum(share, axis=1)
    found = {
        "min": levels[(counts > 0).argmax(axis=1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
    }
    for q in QUANTILES:
        found[f"q{round(100 * q):02d}"] = levels[(below >= q - 1e-12).argmax(axis=1)]
    shaped = {name: values.reshape(3, 1, 1) for name, values in found.items()}
    return shaped | {"count": np.array([images])}


# -- meta ------------------------------------------------------------------------------------------
def _write_meta(export: _Export) -> dict:
    """Write ``meta/``: info, statistics, tasks, episodes; return the info."""
    meta = export.folder / "meta"
    everything = {
        name: np.concatenate([columns[name] for columns in export.columns])
        for name in export.columns[0]
    }
    stats = {name: _statistics(values) for name, values in everything.items()}
    stats |= {key: _image_statistics(c, export.frames) for key, c in export.counts.items()}
    write_json(meta / "stats.json", stats)
    tasks = pd.DataFrame({"task_index": list(export.tasks.values())}, index=list(export.tasks))
    tasks.to_parquet(meta / "tasks.parquet")
    path = meta / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(export.episodes), path, compression="snappy")
    info = {
        "codebase_version": VERSION,
        "robot_type": "panda",
        "total_episodes": len(export.episodes),
        "total_frames": export.frames,
        "total_tasks": len(export.tasks),
        "chunks_size": _PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{len(export.episodes)}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": _features(export.size),
    }
    write_json(meta / "info.json", info)
    return info


def _features(size: int) -> dict[str, dict]:
    video = {
        "video.height": size,
        "video.width": size,
        "video.channels": 3,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.fps": CONTROL_HZ,
        "video.is_depth_map": False,
        "has_audio": False,
    }
    image = {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "channels"]}
    return (
        {key: image | {"info": video} for key in VIDEO_KEYS.values()}
        | {
            name: {"dtype": "float32", "shape": [len(names)], "names": names}
            for name, names in _VECTORS.items()
        }
        | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _SCALARS.items()}
    )
