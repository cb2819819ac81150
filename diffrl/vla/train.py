"""Train the compact VLA on any data set, or on a mixture, by flow matching.

Each source gets the same number of steps, the same seeds and the same settings. A run that was
killed continues from its checkpoint, and on a CPU ends with the same bytes as an unbroken one.
Several GPUs share each batch under `accelerate launch -m diffrl train-vla …`.
"""

import dataclasses
import hashlib
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from diffrl.base import checkpoint
from diffrl.base.artifacts import config_hash, forced, write_csv
from diffrl.base.errors import UserError
from diffrl.base.heartbeat import Heartbeat
from diffrl.presets import VLAConfig
from diffrl.vla.frames import Frames
from diffrl.vla.model import VLA, Inputs, Statistics, read_words, save, trained_state

LOGS = 20  # points of the loss curve
CURVE = ("step", "loss", "train", "held_out")
Precision = Literal["bfloat16", "float32"]
FORMAT = 4  # of a checkpoint; raise it when what it carries, or what its key covers, changes
# what `_checkpoint` leaves in its folder: whole files, and what a kill left of our writer's and of
# safetensors' temporary ones
OURS = re.compile(r"([0-9a-f]{12}|\.[0-9a-f]{12}-\w+\.tmp)\.safetensors|\.tmp[A-Za-z0-9]{6}")


@dataclasses.dataclass
class Run:
    """All that training carries from one step to the next."""

    crew: Accelerator  # the processes that train this model: one, or those of `accelerate launch`
    model: VLA
    live: dict[str, Tensor]  # the model's own trained tensors, which change with it
    ema: dict[str, Tensor]  # their moving averages
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    running: float = 0.0  # sum of the losses since the last log
    history: list[tuple[float, ...]] = dataclasses.field(default_factory=list)  # rows of CURVE
    seconds: float = 0.0  # of training, those before a kill among them


def train(
    frames: Frames,
    held_out: Frames,
    config: VLAConfig,
    seed: int,
    folder: str | Path,
    about: dict | None = None,
    device: str = "cpu",
    sign: Heartbeat | None = None,
) -> tuple[pd.DataFrame, float]:
    """Train a VLA and write `model.safetensors`, `model.json` and `losses.csv` to `folder`.

    Returns the loss curve and the minutes of training, those before a kill included. The losses are
    those of flow matching on normalised actions. `loss` is the mean over the steps since the last
    row, each with the weights of that step. `train` and `held_out` are the losses of the averaged
    weights, which are kept, on frames that training draws and on frames that it never draws.

    Raises:
        UserError: the loss became infinite, or this run's checkpoint in `folder` is broken.
    """
    folder, crew = Path(folder), Accelerator(cpu=device == "cpu", device_placement=False)
    place = crew.device if crew.num_processes > 1 else torch.device(device)
    torch.set_num_threads(1)  # the bytes of a sum depend on the number of threads
    precision = precision_of(place)
    data = [data_hash(frames), data_hash(held_out)]
    key = config_hash([config, seed, precision, *data, FORMAT])
    run = start(crew, frames, config, seed, place)
    path = folder / "checkpoint" / f"{key}.safetensors"
    if path.exists() and not forced(path):
        _resume(run, path, key)
    crew.wait_for_everyone()  # before the first one writes another checkpoint
    loss_of = crew.prepare_model(run.model)
    loss_of = torch.compile(loss_of) if place.type == "cuda" else loss_of
    every = max(1, config.steps // LOGS)
    silent = None if crew.is_main_process else True
    bar = tqdm(initial=run.step, total=config.steps, desc="VLA", disable=silent)
    if sign is not None:
        sign.tell(phase="VLA", done=run.step, total=config.steps)
    began = time.perf_counter() - run.seconds
    while run.step < config.steps:
        run.running += optimise(run, frames, loss_of, place)
        bar.update()
        if sign is not None:
            sign.tell(done=run.step)
        if run.step % every == 0 or run.step == config.steps:
            _log(run, frames, held_out, every, place)
            bar.set_postfix(loss=f"{run.history[-1][1]:.3f}", held_out=f"{run.history[-1][-1]:.3f}")
            run.seconds = time.perf_counter() - began
            if crew.is_main_process:
                _checkpoint(run, path, key)
    bar.close()
    losses = pd.DataFrame(run.history, columns=CURVE)
    losses["step"] = losses["step"].astype(int)
    run.model.load_state_dict(run.ema, strict=False)
    if crew.is_main_process:
        made = {"seed": seed, "steps": config.steps, "precision": precision}
        save(run.model, folder, made | (about or {}))
        write_csv(folder / "losses.csv", losses)
        _clear(path.parent)
    crew.wait_for_everyone()
    return losses, run.seconds / 60


def start(
    crew: Accelerator, frames: Frames, config: VLAConfig, seed: int, device: torch.device
) -> Run:
    """Return a run before its first step: weights and batches by `seed`."""
    vocabulary, length = read_words(np.unique(frames.instructions).tolist())
    statistics = Statistics.of(frames.proprio, frames.actions[frames.real])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VLA(config, vocabulary, length, statistics).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.95), fused=True
    )
    live = trained_state(model)
    ema = {k: v.clone() for k, v in live.items()}
    return Run(crew, model, live, ema, optimizer, torch.Generator().manual_seed(seed))


def learning_rate(step: int, config: VLAConfig) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to a tenth of it."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def precision_of(device: torch.device) -> Precision:
    """Return what a device's products are made in."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware, so that it makes a step faster.

    Weights, their average and the optimiser stay float32; the products are cast (torch.autocast).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def draw(shape: tuple[int, ...], horizon: int, actions: int, generator) -> tuple[Tensor, Tensor]:
    """Noise (*shape, horizon, actions) and flow times `shape` in [0, 1).

    Times lean towards the noise, 1 − t ~ Beta(1.5, 1), as in pi0: there the action is decided.
    """
    noise = torch.randn((*shape, horizon, actions), generator=generator)
    uniform = torch.rand(shape, generator=generator)
    return noise, 1 - uniform ** (1 / 1.5)  # the inverse of Beta(1.5, 1)'s distribution


def optimise(run: Run, frames: Frames, loss_of, device: torch.device) -> float:
    """Make one optimiser step and return its loss.

    All processes draw the same batch; each takes its share of the rows, weighted so that the mean
    of their gradients is the whole batch's.
    """
    crew, model, config = run.crew, run.model, run.model.config
    if not model.training:  # the call walks over every module
        model.train()
    weights = torch.from_numpy(frames.weights)
    rows = torch.multinomial(weights, config.batch, replacement=True, generator=run.generator)
    noise, time = draw((config.batch, config.flow_draws), *_sizes(frames), run.generator)
    own = slice(crew.process_index, None, crew.num_processes)
    counts = frames.real[rows].sum(1)
    share = crew.num_processes * counts[own].sum() / counts.sum()  # 1 of a single process
    noise, time = noise[own].to(device), time[own].to(device)
    batch = _to(device, frames.batch(rows[own].numpy(), model))
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, config)
    run.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        loss = loss_of(*batch, noise, time) * share
    value = float(crew.reduce(loss.detach(), "mean"))
    if not math.isfinite(value):
        raise UserError(
            f"The VLA's loss became {value} at step {run.step}: lower `learning_rate` (now "
            f"{config.learning_rate}) or check the data set's actions."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.optimizer.param_groups[0]["params"], 1.0)
    run.optimizer.step()
    run.step += 1
    _average(run)
    return value


def _sizes(frames: Frames) -> tuple[int, int]:
    return frames.actions.shape[1], frames.actions.shape[2]


def _to(device: torch.device, batch: tuple[Inputs, Tensor, Tensor]):
    inputs, actions, real = batch
    return Inputs(*(x.to(device) for x in inputs)), actions.to(device), real.to(device)


def _average(run: Run) -> None:
    """Exponential moving average of the weights; shorter while the run is young."""
    decay = min(run.model.config.ema, run.step / (run.step + 10))
    for name, value in run.live.items():
        run.ema[name].lerp_(value, 1 - decay)


@torch.no_grad()
def loss_on(model: VLA, frames: Frames, device: torch.device) -> float:
    """Flow-matching loss on at most 64 frames, evenly spread; the same noise at every call."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    rows = np.linspace(0, len(frames) - 1, min(len(frames), 64)).astype(int)
    noise, time = draw((len(rows), 4), *_sizes(frames), generator)
    batch = _to(device, frames.batch(rows, model))
    return float(model(*batch, noise.to(device), time.to(device)))


def _log(run: Run, frames: Frames, held_out: Frames, every: int, device: torch.device) -> None:
    count = (run.step - 1) % every + 1
    trained = {k: v.clone() for k, v in trained_state(run.model).items()}
    run.model.load_state_dict(run.ema, strict=False)
    averaged = [loss_on(run.model, part, device) for part in (frames, held_out)]
    run.model.load_state_dict(trained, strict=False)
    run.history.append((run.step, run.running / count, *averaged))
    run.running = 0.0


def _clear(folder: Path) -> None:
    """Remove our checkpoints, those of other settings, too, and what a kill left half written.

    Whatever else lies there is another's: the records of an evaluation, a person's own weights.
    """
    if folder.exists():
        for old in folder.iterdir():
            if OURS.fullmatch(old.name):
                old.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def _checkpoint(run: Run, path: Path, key: str) -> None:
    tree = {"model": trained_state(run.model), "ema": run.ema, "step": run.step}
    tree |= {"optimizer": run.optimizer.state_dict(), "generator": run.generator.get_state()}
    tree |= {"history": run.history, "seconds": run.seconds}
    checkpoint.save(path, tree, key)


def _resume(run: Run, path: Path, key: str) -> None:
    """Continue from a checkpoint.

    Raises:
        UserError: it is broken.
    """
    tree = checkpoint.load(path, key)
    run.model.load_state_dict(tree["model"], strict=False)
    run.ema = {k: v.to(run.ema[k].device) for k, v in tree["ema"].items()}
    run.optimizer.load_state_dict(tree["optimizer"])
    run.generator.set_state(tree["generator"])
    run.step, run.history, run.seconds = tree["step"], tree["history"], tree["seconds"]


def data_hash(frames: Frames) -> str:
    """Identify a set of frames by all that it holds."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(frames):
        array = getattr(frames, field.name)
        digest.update(repr((field.name, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def split(episodes: Sequence, held_out: int) -> tuple[list, list]:
    """Part the last `held_out` episodes from the rest; at least one stays for training."""
    count = min(held_out, max(len(episodes) - 1, 0))
    return list(episodes[: len(episodes) - count]), list(episodes[len(episodes) - count :])
