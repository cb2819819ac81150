"""Training frames from episodes: images rendered once from the states, and cached.

An episode stores states, not pictures. Here every `frame_stride`-th state of it is rendered for
both cameras; with a frozen encoder only the encoder's cells are kept (70 kB a frame). The cache
goes by the content of an episode, so data sets, their subsets and mixtures share it. Pictures are
not augmented, for no source: cached cells cannot be, and evaluation has the same renderer.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from diffrl.base.artifacts import atomic_path, cache_dir
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.base.progress import report
from diffrl.base.scale import map_tasks
from diffrl.policy.vision import encode, pixels
from diffrl.presets import VLAConfig
from diffrl.vla.model import CAMERAS, VLA, Inputs, proprioception
from diffrl.vla.vision import make_encoder

FORMAT = 4  # of a cached file; a new number leaves the old files unread
GROUP = 10  # episodes that one worker renders with one open renderer


@dataclass
class Frames:
    """F decision points with what the policy saw and what was done next."""

    vision: np.ndarray  # (F, cameras, cells, C) float16, or (F, cameras, H, W, 3) uint8
    proprio: np.ndarray  # (F, 8) float32
    instructions: np.ndarray  # (F,) str
    actions: np.ndarray  # (F, horizon, 7) float32, simulator units
    real: np.ndarray  # (F, horizon) bool; false past the episode's end
    weights: np.ndarray  # (F,) float64, how often a frame is drawn; sums to one

    def __len__(self) -> int:
        return len(self.proprio)

    def batch(self, rows: np.ndarray, model: VLA) -> tuple[Inputs, Tensor, Tensor]:
        """Return `model`'s inputs at `rows` (n,), actions (n, horizon, 7), mask of real steps."""
        picked = self.vision[rows]
        vision = pixels(picked) if picked.dtype == np.uint8 else torch.from_numpy(picked).float()
        read = {text: model.read(text) for text in np.unique(self.instructions[rows])}
        words = np.stack([read[text] for text in self.instructions[rows]])
        inputs = Inputs(vision, torch.from_numpy(self.proprio[rows]), torch.from_numpy(words))
        return inputs, torch.from_numpy(self.actions[rows]), torch.from_numpy(self.real[rows])


def chunks(actions: np.ndarray, starts: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the chunks that begin at `starts` (F,) out of an episode's actions (T, 7).

    Returns (F, horizon, 7) float32 and the mask (F, horizon); past the end the last action repeats
    but does not count.
    """
    index = starts[:, None] + np.arange(horizon)
    inside = index < len(actions)
    return actions[np.minimum(index, len(actions) - 1)].astype(np.float32), inside


def make_frames(episodes: Sequence, config: VLAConfig, workers: int | None = None) -> Frames:
    """Return the frames of one data set's episodes; as `mix_frames`."""
    return mix_frames([episodes], [1.0], config, workers)


def mix_frames(
    parts: Sequence[Sequence],
    weights: Sequence[float],
    config: VLAConfig,
    workers: int | None = None,
) -> Frames:
    """Return the frames of several data sets, rendering what is missing.

    Part i is drawn with probability weights[i] / sum(weights). The pictures are gigabytes: memory
    is taken once, for all of them, and filled an episode at a time.

    Args:
        parts: the episodes (`diffrl.data.episode.Episode`) of each data set.
        weights: one for each, positive.
        config: what is rendered, and how.
        workers: rendering processes; default: one per core.

    Raises:
        UserError: not one positive weight for each part, a part without episodes, actions of
            another size, or a task that cannot be rendered.
    """
    if len(parts) != len(weights) or not all(0 < weight < math.inf for weight in weights):
        raise UserError(
            f"{len(weights)} weights {tuple(weights)} were given for {len(parts)} data sets: "
            "give one positive weight for each."
        )
    if not parts or not all(parts):
        raise UserError("A VLA cannot be trained on no episodes: the data set is empty.")
    episodes = [episode for part in parts for episode in part]
    for episode in episodes:
        _check(episode)
    at = [moments(episode, config) for episode in episodes]
    counts = [len(rows) for rows in at]
    arrays = {"instructions": np.repeat([episode.instruction for episode in episodes], counts)}
    end = 0
    for episode, rows, path in zip(episodes, at, render(episodes, config, workers)):
        begin, end = end, end + len(rows)
        columns = dict(zip(("vision", "proprio"), _read(path)))
        columns |= zip(("actions", "real"), chunks(episode.actions, rows, config.horizon))
        for name, column in columns.items():
            if name not in arrays:
                arrays[name] = np.empty((sum(counts), *column.shape[1:]), column.dtype)
            arrays[name][begin:end] = column
    shares = np.asarray(weights, float) / sum(weights)
    each = iter(counts)
    sizes = [sum(islice(each, len(part))) for part in parts]
    drawn = [np.full(size, 1 / size) * share for size, share in zip(sizes, shares)]
    return Frames(**arrays, weights=np.concatenate(drawn))


def moments(episode, config: VLAConfig) -> np.ndarray:
    """Return the steps of an episode that are training frames, (F,)."""
    return np.arange(0, len(episode.actions), config.frame_stride)


def _check(episode) -> None:
    if episode.actions.ndim != 2 or episode.actions.shape[1] != ACTION_SIZE:
        raise UserError(
            f"The episode from {episode.start_state!r} of {episode.task} has actions of shape "
            f"{episode.actions.shape}; the VLA learns (dx, dy, dz, drx, dry, drz, gripper), so "
            f"(T, {ACTION_SIZE}): convert the data set first."
        )


def _key(episode, config: VLAConfig) -> str:
    """Name of an episode's cached pictures: a hash of all that decides them."""
    digest = hashlib.sha256()
    settings = (FORMAT, episode.task, config.image_size, config.detail, config.vision, CAMERAS)
    digest.update(repr(settings).encode())
    digest.update(np.ascontiguousarray(episode.states[moments(episode, config)]).tobytes())
    digest.update(np.ascontiguousarray(episode.fixtures).tobytes())
    return digest.hexdigest()[:24]


def render(episodes: Sequence, config: VLAConfig, workers: int | None = None) -> list[Path]:
    """Render what the cache lacks; return each episode's file of cells (or images)."""
    folder = cache_dir() / "frames"
    paths = [folder / f"{_key(episode, config)}.safetensors" for episode in episodes]
    with PartialState().main_process_first():  # the others find what it made
        _make(episodes, paths, config, workers)
    return paths


def _make(episodes: Sequence, paths: list[Path], config: VLAConfig, workers: int | None) -> None:
    """Render the episodes whose file is missing."""
    missing: dict[str, list] = defaultdict(list)
    for episode, path in zip(episodes, paths):
        if not path.exists():
            states = episode.states[moments(episode, config)]
            missing[episode.task].append((path, states, episode.fixtures))
    groups = [
        (task, jobs[i : i + GROUP], config)
        for task, jobs in missing.items()
        for i in range(0, len(jobs), GROUP)
    ]
    if groups:
        names = [f"pictures of {task}" for task, _, _ in groups]
        map_tasks(_render, groups, names=names, workers=workers, description="rendering")


def _render(group: tuple[str, list, VLAConfig]) -> int:
    """Render one group of episodes and write a file for each; runs in a worker process."""
    from diffrl.sim.camera import Renderer
    from diffrl.sim.observation import observe
    from diffrl.sim.scene import load_scene

    task, jobs, config = group
    torch.set_num_threads(1)
    encoder = make_encoder(config.vision)
    frozen = not any(p.requires_grad for p in encoder.parameters())
    scene = load_scene(task)
    renderer = Renderer(scene, size=config.image_size, detail=config.detail)
    for done, (path, states, fixtures) in enumerate(jobs):
        report(done / len(jobs))
        images = np.stack(
            [[renderer.render(s, fixtures, camera=c) for c in CAMERAS] for s in states]
        )  # (n, cameras, H, W, 3)
        # of the state in the picture, for all sources alike; LIBERO's observation, which evaluation
        # gives, is that of the last physics step but one, 2 ms before
        felt = observe(scene, states, fixtures)
        proprio = proprioception(felt.eef_pos, felt.eef_quat, felt.gripper_qpos)
        seen = encode(encoder, images) if frozen else images
        with atomic_path(path) as temporary:
            save_file({"vision": seen, "proprio": proprio}, temporary)
    return len(jobs)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        arrays = load_file(path)
        return arrays["vision"], arrays["proprio"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"The cached pictures {path} cannot be read ({error}): delete the file; it is "
            "rendered again."
        ) from error
