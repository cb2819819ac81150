"""A small VLA and frames for its tests."""

import numpy as np
import torch

from diffrl.data.episode import Episode
from diffrl.presets import VLAConfig
from diffrl.vla import model as vla
from diffrl.vla.frames import Frames

TINY = VLAConfig(
    image_size=64,
    width=32, heads=2, queries=2, encoder_layers=1, decoder_layers=1, horizon=4, chunk=4,
    steps=40, batch=16, warmup=5, learning_rate=3e-3,
)  # fmt: skip


LEFT, RIGHT = "push the plate left", "push the plate right"


def toy_frames(n=64, seed=0, config=TINY) -> Frames:
    """Frames whose action is decided by the words (sign) and by the proprioception (size)."""
    rng = np.random.default_rng(seed)
    cells = (config.image_size // 16) ** 2
    vision = rng.standard_normal((n, 2, cells, 272)).astype(np.float16)
    proprio = rng.uniform(0, 1, (n, 8)).astype(np.float32)
    left = rng.random(n) < 0.5
    size = np.where(left, -1, 1) * (0.2 + 0.8 * proprio[:, 0])
    actions = np.repeat(size[:, None, None], config.horizon, 1).repeat(7, 2).astype(np.float32)
    real = np.ones((n, config.horizon), bool)
    return Frames(vision, proprio, np.where(left, LEFT, RIGHT), actions, real, np.full(n, 1 / n))


def make_model(config=TINY, frames=None) -> vla.VLA:
    frames = frames or toy_frames(config=config)
    statistics = vla.Statistics.of(frames.proprio, frames.actions[frames.real])
    torch.manual_seed(0)
    return vla.VLA(config, *vla.read_words([LEFT, RIGHT]), statistics)


def standing_episode(steps=9, actions=7, state_size=110, task="libero_object/0") -> Episode:
    """An episode in which nothing happens."""
    states = np.zeros((steps + 1, state_size))
    states[:, 0] = np.arange(steps + 1) / 20
    rewards = np.zeros(steps)
    rewards[-1] = 1
    return Episode(
        task=task,
        instruction="stand still",
        start_state="fresh/0/0",
        seed=0,
        source="operator",
        mode="recorded",
        success=True,
        states=states,
        actions=np.zeros((steps, actions)),
        rewards=rewards,
        fixtures=np.zeros((0, 7)),
        observations={
            "object_pos": np.zeros((steps + 1, 1, 3)),
            "object_quat": np.tile([0.0, 0.0, 0.0, 1.0], (steps + 1, 1, 1)),
        },
    )
