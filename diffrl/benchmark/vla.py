"""The compact VLA: an optimiser step at two sizes, and the frozen encoder's pictures a second.

One core. What is learned is noise: a step takes as long.
"""

import functools
import statistics

import numpy as np
import torch
from accelerate import Accelerator

from diffrl.base.control import ACTION_SIZE
from diffrl.benchmark.common import timed
from diffrl.policy.vision import CHANNELS, STRIDE, encode
from diffrl.presets import VLAConfig, get_preset
from diffrl.sim.tasks import CAMERAS
from diffrl.vla.frames import Frames
from diffrl.vla.model import PROPRIO
from diffrl.vla.train import optimise, precision_of, start
from diffrl.vla.vision import make_encoder

SIZES = ("smoke", "laptop")  # presets: the small VLA and the large one
COUNT = 8  # decisions whose pictures are encoded at once, as in an evaluation


def measure_vla(steps: int = 10) -> dict:
    """Return seconds of a step by preset, as medians of `steps`, and pictures encoded a second."""
    config = get_preset("laptop").vla
    shape = (COUNT, len(CAMERAS), config.image_size, config.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    encoder = make_encoder("efficientnet")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encode(encoder, images)  # what is allocated once
        taken = statistics.median(timed(lambda: encode(encoder, images))[1] for _ in range(steps))
        step = {name: round(_seconds(get_preset(name).vla, steps), 4) for name in SIZES}
    finally:
        torch.set_num_threads(threads)
    rate = round(COUNT * len(CAMERAS) / taken, 1)
    precision = precision_of(torch.device("cpu"))
    return {"precision": precision, "step_s": step, "encoding": rate, "size": config.image_size}


def _seconds(config: VLAConfig, steps: int) -> float:
    crew, device = Accelerator(cpu=True, device_placement=False), torch.device("cpu")
    frames = _noise(config, 2 * config.batch)
    run = start(crew, frames, config, 0, device)
    function = functools.partial(optimise, run, frames, run.model, device)
    times = [timed(function)[1] for _ in range(steps + 2)]
    return statistics.median(times[2:])  # the first ones allocate


def _noise(config: VLAConfig, count: int) -> Frames:
    random = np.random.default_rng(0)
    side = config.image_size // STRIDE
    vision = random.standard_normal((count, len(CAMERAS), side * side, CHANNELS), np.float32)
    return Frames(
        vision.astype(np.float16),
        random.standard_normal((count, PROPRIO), np.float32),
        np.array(["pick up the alphabet soup and place it in the basket"] * count),
        random.uniform(-1, 1, (count, config.horizon, ACTION_SIZE)).astype(np.float32),
        np.ones((count, config.horizon), bool),
        np.full(count, 1 / count),
    )
