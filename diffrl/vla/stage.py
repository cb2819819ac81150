"""One VLA per source: the same steps, seeds and settings, each on one source's data alone.

python -m diffrl train-vla --preset smoke
python -m diffrl train-vla --data a_demo.hdf5 b_demo.hdf5 --weights 3 1 --out my-vla
accelerate launch --num_processes 4 -m diffrl train-vla --preset gpu --device cuda
"""

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from diffrl.base.arm import Arm
from diffrl.base.artifacts import Stage, alone, forced, run_folder, runs_dir, write_csv
from diffrl.base.control import CONTROL_HZ
from diffrl.base.errors import UserError, refuse_missing, refuse_options, whole
from diffrl.base.heartbeat import Heartbeat, heartbeat
from diffrl.base.scale import Resources, map_tasks, shares
from diffrl.data.episode import Episode
from diffrl.data.hdf5 import count_episodes, read_attributes
from diffrl.data.human import completed
from diffrl.generation.stage import dataset_path
from diffrl.presets import Preset, VLAConfig, get_preset
from diffrl.vla import model
from diffrl.vla.frames import Frames, make_frames, mix_frames, moments, render
from diffrl.vla.train import precision_of, split, train

# Raise it when the same settings and data sets come to train another VLA: another loss, network,
# order of the batches or way to render.
FORMAT = 1
MODEL, LOSSES, PREDICTIONS = "model.safetensors", "losses.csv", "predictions.csv"
SAMPLES, MOMENTS = 6, 3  # chunks that a VLA draws at a moment of an episode, and such moments
MORE = (  # what helps where an arm has too few successes
    "Train that expert longer, raise generation.max_attempts, or leave its task out of vla.tasks"
)
PATIENCE = timedelta(hours=12)  # of the processes of `accelerate launch`, while the first renders


class Part(NamedTuple):
    """A share of a VLA's data: one source's data set, or its first `count` episodes per task.

    Of a whole data set the last `VLAConfig.held_out` episodes are not learned from.
    """

    arm: Arm
    count: int | None = None  # type: ignore[assignment]  # a tuple has a method of that name


def parts_of(data: str) -> list[Part]:
    """Read a name of training data: ``<source>-<mode>[:<count>]``, several joined by ``+``.

    ``operator-recorded+diffusion-deterministic:10`` is drawn half from each.

    Raises:
        UserError: the name is not of this form.
    """
    found = [re.fullmatch(r"(\w+)-(\w+)(?::([1-9]\d*))?", part) for part in data.split("+")]
    matches = [match for match in found if match is not None]
    if len(matches) < len(found):
        raise UserError(
            f"{data!r} names no training data: write <source>-<mode>, such as diffusion-"
            "deterministic, with :<episodes> for a part of it, and + between several."
        )
    return [Part(Arm(f[1], f[2]), int(f[3]) if f[3] else None) for f in matches]


def arm_of(data: str) -> Arm:
    """Return the arm as the records name it; of a mixture, those of its parts."""
    parts = parts_of(data)
    names = [part.arm.source + (f":{part.count}" if part.count else "") for part in parts]
    modes = [part.arm.mode for part in parts]
    return Arm("+".join(names), "+".join(modes if len(set(modes)) > 1 else modes[:1]))


def model_folder(preset: Preset, data: str, seed: int) -> Path:
    """Return where a VLA lies, e.g. that of ``diffusion-deterministic`` and seed 0.

    A VLA of a part of the preset's tasks has a folder of its own.
    """
    place = run_folder(preset.name) / (preset.tables_of or "vla")
    return place / f"{data.replace(':', '-first')}-seed{seed}"


def files_of(data: str, preset: Preset) -> list[Path]:
    """Return the files that a VLA learns from, one per part and task.

    Raises:
        UserError: the name is not understood, or a file is missing, cannot be opened, or holds
            fewer episodes than two (one to learn from, one to be validated on) or than the name
            asks for.
    """
    paths, what = [], f"The data {data!r} of preset {preset.name}"
    for part in parts_of(data):
        least = episodes_of(part, preset.vla) if part.count else 2
        for path in _files(part, preset):
            if not path.exists():
                raise UserError(f"{what} lack {path}: {_why_missing(path, preset)}")
            if (count := count_episodes(path)) < least:
                fewer = f", or ask for fewer than {part.count}" if part.count else ""
                raise UserError(
                    f"{what} need {least} episodes of a task, {part.count or 1} to learn from and "
                    f"the rest to be validated on, and {path} holds {count}. {MORE}{fewer}."
                )
            paths.append(path)
    return paths


def _why_missing(path: Path, preset: Preset) -> str:
    tried = path.with_suffix(".attempts.csv")
    if tried.exists() and not path.with_name(path.name + ".parts").exists():
        return f"no attempt succeeded ({tried}). {MORE}."
    return f"run notebook 02, or `python -m diffrl generate --preset {preset.name}`."


def _files(part: Part, preset: Preset) -> list[Path]:
    return [dataset_path(preset, task, part.arm) for task in preset.vla_tasks]


def episodes_of(part: Part, config: VLAConfig) -> int:
    """Return how many episodes of each file are read, those that only validate among them."""
    return part.count + config.held_out if part.count else config.demonstrations


def load(paths: Sequence[Path], count: int | None = None) -> list[Episode]:
    """Read the first `count` episodes of each file; None: all of them.

    Cameras need not agree: all images are rendered anew from the states, with one renderer.

    Raises:
        UserError: a file is empty, has fewer than two episodes, or another control rate.
    """
    episodes = []
    for path in paths:
        if (rate := _rate_of(path)) != CONTROL_HZ:
            raise UserError(
                f"{path} was recorded at {rate} Hz, the simulator is controlled at {CONTROL_HZ} "
                "Hz: data sets of different rates cannot be mixed; resample it first."
            )
        found = list(itertools.islice(completed(path), count))  # LIBERO's own lack the fixtures
        if len(found) < 2:
            raise UserError(
                f"{path} holds {len(found)} episodes; a VLA needs at least two of a task, one to "
                "learn from and one to be validated on."
            )
        episodes.append(found)
    return [episode for found in episodes for episode in found]


def _rate_of(path: Path) -> Any:
    """Return the control rate that a file states [Hz], or LIBERO's if it states none."""
    try:
        about = json.loads(read_attributes(path).get("env_args", "{}"))
        return about.get("env_kwargs", {}).get("control_freq", CONTROL_HZ)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: its attribute data@env_args is no JSON object with env_kwargs ({error}): "
            "write it as LIBERO does."
        ) from error


def prepare(
    parts: Sequence[tuple[Sequence[Path], int | None]],
    weights: Sequence[float],
    config: VLAConfig,
    workers: int | None = None,
) -> tuple[Frames, Frames, int]:
    """Return the frames to learn from, those to validate on, and how many episodes teach.

    What the cache lacks is rendered.

    Args:
        parts: the files of each data set, and how many episodes of each are read; None: all. Of
            these the last `config.held_out` are held out.
        weights: how often each data set is drawn from, relative to the others.
        config: of the VLA.
        workers: rendering processes; default: one per core.
    """
    learn: list[list[Episode]] = []
    check: list[list[Episode]] = []
    for paths, count in parts:
        pairs = [split(load([path], count), config.held_out) for path in paths]
        learn.append([episode for kept, _ in pairs for episode in kept])
        check.append([episode for _, held in pairs for episode in held])
    frames, held_out = (mix_frames(found, weights, config, workers) for found in (learn, check))
    return frames, held_out, sum(map(len, learn))


def _stage(data: str, seed: int, preset: Preset) -> Stage:
    inputs = () if is_kept(preset, data, seed) else files_of(data, preset)
    return _stage_on(inputs, data, seed, preset)


def _stage_on(inputs: Sequence[Path], data: str, seed: int, preset: Preset) -> Stage:
    folder = model_folder(preset, data, seed)
    return Stage(folder, "vla", settings_of(data, seed, preset), inputs, FORMAT)


def is_kept(preset: Preset, data: str, seed: int) -> bool:
    """Whether evidence stands for that VLA: its records and trials are here, not its weights.

    Nothing asks for its data sets any more, which git does not keep either.
    """
    stage = _stage_on((), data, seed, preset)
    return stage.unpacked and not forced(stage.marker)


def settings_of(data: str, seed: int, preset: Preset) -> VLAConfig:
    """Return what decides a VLA, beside its data; the preset's other models do not."""
    return replace(preset.vla, data=(data,), further=(), seeds=(seed,), fewer=())


def fit(item: tuple[str, int], preset: Preset, device: str = "cpu", force: bool = False) -> dict:
    """Train (or find) the VLA of one (data, seed); return its row of ``vla.csv``."""
    data, seed = item
    stage, folder = _stage(data, seed, preset), model_folder(preset, data, seed)
    if not stage.due(force):
        return stage.records
    torch.set_num_threads(1)
    frames, held_out, episodes = mix(data, preset)
    source, mode = arm_of(data)
    about = {"source": source, "mode": mode, "preset": preset.name, "episodes": episodes}
    config = settings_of(data, seed, preset)
    with _at_work(folder) as sign:
        losses, minutes = train(frames, held_out, config, seed, folder, about, device, sign)
    row = {**about, "training_seed": seed}
    row |= {"frames": len(frames), "steps": preset.vla.steps, "loss": losses["loss"].iloc[-1]}
    row |= {"held_out": losses["held_out"].iloc[-1], "minutes": minutes}
    row |= {"precision": precision_of(torch.device(device))}
    crew = PartialState()
    if crew.is_main_process:
        write_csv(folder / PREDICTIONS, _predict(preset, data, folder))
        stage.finish(
            row, outputs=[folder / name for name in (MODEL, LOSSES, PREDICTIONS)], seed=seed
        )
    crew.wait_for_everyone()
    return row


@contextlib.contextmanager
def _at_work(folder: Path) -> Iterator[Heartbeat | None]:
    """Keep others out and give signs of life: the first of the processes that share a model."""
    if PartialState().is_main_process:
        with alone(folder), heartbeat(folder, "vla") as sign:
            yield sign
    else:
        yield None


def mix(data: str, preset: Preset, workers: int | None = 1) -> tuple[Frames, Frames, int]:
    """Return what a VLA learns from and what it is validated on; parts weigh the same.

    A part of `count` episodes is learned from whole, and the episodes after it are held out. The
    number is that of the episodes that teach, of all parts and tasks.
    """
    parts, config = [], preset.vla
    for part in parts_of(data):
        if (count := episodes_of(part, config)) > config.demonstrations:
            raise UserError(
                f"{data!r} asks for {part.count} episodes and {config.held_out} to validate on, "
                f"but vla.demonstrations is {config.demonstrations}: ask for "
                f"{config.demonstrations - config.held_out} at most."
            )
        parts.append((_files(part, preset), count))
    return prepare(parts, [1.0] * len(parts), config, workers)


def render_all(preset: Preset, workers: int | None = None) -> int:
    """Render what the VLAs of a preset will look at, in parallel; return the number of frames.

    Those for which evidence stands look at nothing any more.
    """
    _refuse_no_data(preset, further=False)
    chosen = _data_of(model for model in models_of(preset) if not is_kept(preset, *model))
    lacking = lacking_data(preset, chosen)
    if chosen and len(lacking) == len(chosen):
        raise UserError(next(iter(lacking.values())))
    return _render(preset, [data for data in chosen if data not in lacking], workers)


def _data_of(models: Iterable[tuple[str, int]]) -> list[str]:
    return list(dict.fromkeys(data for data, _ in models))


def _render(preset: Preset, chosen: Sequence[str], workers: int | None) -> int:
    paths = dict.fromkeys(path for data in chosen for path in files_of(data, preset))
    episodes = load(list(paths), preset.vla.demonstrations)
    render(episodes, preset.vla, workers)
    return sum(len(moments(episode, preset.vla)) for episode in episodes)


def _refuse_no_data(preset: Preset, further: bool) -> None:
    """Raise a UserError where a preset names no data of VLAs, or no task of them."""
    refuse_no_tasks(preset)
    if not (preset.vla.further if further else preset.vla.data):
        setting = "further" if further else "data"
        raise UserError(
            f"Preset {preset.name} has no {'further ' if further else ''}VLAs, its setting vla."
            f"{setting} is empty: choose another preset."
        )


def lacking_data(preset: Preset, chosen: Sequence[str]) -> dict[str, str]:
    """Return those of some data that are not there, or too few, each with what is missing."""
    lacking = {}
    for data in chosen:
        try:
            files_of(data, preset)
        except UserError as error:
            lacking[data] = str(error)
    return lacking


def finished(preset: Preset, data: str, seed: int) -> bool:
    """Whether that VLA is trained, with the preset's settings and the data that are there."""
    try:
        stage = _stage(data, seed, preset)
        return stage.marker.exists() and stage.done  # no data are hashed where nothing was trained
    except UserError:  # there are no such data
        return False


def refuse_no_tasks(preset: Preset) -> None:
    """Raise a UserError where no VLA learns from a part of a preset."""
    if not preset.vla_tasks:
        raise UserError(
            f"No VLA of preset {preset.name} learns from {', '.join(preset.suites)}: give --suite "
            "some that its setting vla.tasks names."
        )


def models_of(preset: Preset, further: bool = False) -> list[tuple[str, int]]:
    """Return (data, training seed) of a preset's VLAs: one per source, or the further ones.

    First those of the data that have all seeds, a whole seed first; then those with fewer. A part
    none of whose tasks a VLA learns has none.
    """
    if not preset.vla_tasks:
        return []
    chosen, seeds = preset.vla.further if further else preset.vla.data, preset.vla.seeds
    models = [(d, seed) for seed in seeds for d in chosen if seed in preset.vla.seeds_of(d)]
    return sorted(models, key=lambda model: len(preset.vla.seeds_of(model[0])) < len(seeds))


def fit_all(
    preset: Preset,
    workers: int | None = None,
    device: str = "cpu",
    force: bool = False,
    further: bool = False,
) -> pd.DataFrame:
    """Train every VLA of a preset in parallel processes; return ``runs/<preset>/vla.csv``.

    With `further` these are its VLAs of fewer and of mixed demonstrations, in ``vla_further.csv``.
    Data that are not there, or too few to teach one, stop no VLA of others; one for which evidence
    stands (`is_kept`) is not trained again. ``episodes`` is the number that a VLA learned from, of
    all tasks; those of before it was noted have none.

    Raises:
        UserError: the preset names no such data; or some are missing or too few, when all other
            VLAs are trained.
    """
    _refuse_no_data(preset, further)
    models = models_of(preset, further)
    kept = [] if force else [model for model in models if is_kept(preset, *model)]
    asked = [model for model in models if model not in kept]
    lacking = lacking_data(preset, _data_of(asked))
    if not kept and all(data in lacking for data, _ in models):
        raise UserError(next(iter(lacking.values())))
    for why in lacking.values():
        print(f"Left out: {why}")
    missing = [lacking[data] for data, _ in asked if data in lacking]
    models = [model for model in models if model in kept or model[0] not in lacking]
    items = [item for item in models if force or not _stage(*item, preset).done]
    if items:
        _render(preset, _data_of(items), workers)
    names = [f"{data}, seed {seed}" for data, seed in items]
    function = functools.partial(fit, preset=preset, device=device, force=force)
    shared = PartialState().num_processes > 1  # by `accelerate launch`: one model after the other
    alone_there = shared or (workers is None and device != "cpu")
    workers, _ = shares(len(items), 1 if alone_there else workers)
    if items:
        map_tasks(
            function,
            items,
            names=names,
            workers=workers,
            description="VLAs",
            resources=Resources(gpus=float(device == "cuda")),
        )
    rows = [_stage(*item, preset).records for item in models]
    table = pd.DataFrame(rows)
    if "episodes" in table:
        table["episodes"] = table.pop("episodes")  # the youngest column is the last
    name = "vla_further.csv" if further else "vla.csv"
    write_csv(runs_dir(preset.name) / preset.tables_of / name, table)
    refuse_missing(missing, "VLAs")
    return table


def losses_of(preset: Preset) -> pd.DataFrame:
    """Return the loss curves of a preset's VLAs: source, mode, training_seed, step, loss, …"""
    parts = []
    for data in preset.vla.data:
        source, mode = arm_of(data)
        for seed in preset.vla.seeds_of(data):
            curve = pd.read_csv(model_folder(preset, data, seed) / LOSSES)
            parts.append(curve.assign(source=source, mode=mode, training_seed=seed))
    return pd.concat(parts, ignore_index=True)


def predictions_of(preset: Preset) -> pd.DataFrame:
    """Return what the VLAs of the first seed would do at a few moments of a held-out episode.

    Beside it stands what the episode did: rows (source, mode, moment, sample, step, dimension,
    value); sample −1 is the episode.
    """
    parts = []
    for data in preset.vla.data:
        folder = model_folder(preset, data, preset.vla.seeds[0])
        if not (path := folder / PREDICTIONS).is_file():  # trained before they were written
            write_csv(path, _predict(preset, data, folder))
        parts.append(pd.read_csv(path))
    return pd.concat(parts, ignore_index=True)


def _predict(preset: Preset, data: str, folder: Path) -> pd.DataFrame:
    """The part of `predictions_of` that the VLA in `folder` makes."""
    source, mode = arm_of(data)
    vla = model.load(folder)
    kept = load(files_of(data, preset)[:1], preset.vla.demonstrations)
    frames = make_frames(kept[-1:], preset.vla, workers=1)
    rows = np.linspace(0, len(frames) - 1, MOMENTS + 2).astype(int)[1:-1]
    inputs, actions, _ = frames.batch(rows, vla)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, *actions.shape, generator=generator)
    chunks = torch.stack([actions, *(vla.sample(inputs, one) for one in noise)])
    index = np.indices(chunks.shape).reshape(4, -1)
    seconds = rows[index[1]] * preset.vla.frame_stride / CONTROL_HZ
    table = {"source": source, "mode": mode, "moment": [f"{s:.1f} s" for s in seconds]}
    table |= {"sample": index[0] - 1, "step": index[2], "dimension": index[3]}
    return pd.DataFrame({**table, "value": chunks.flatten().numpy()})


def main(
    preset: str = "laptop",
    suite: tuple[str, ...] = (),
    data: tuple[Path, ...] = (),
    weights: tuple[float, ...] = (),
    out: Path | None = None,
    seed: int | None = None,
    steps: int | None = None,
    workers: int | None = None,
    device: str = "cpu",
    force: bool = False,
    further: bool = False,
) -> None:
    """Train the VLAs of a preset, or one VLA on any data sets.

    Args:
        preset: smoke, laptop, libero, pixels, gpu or paper. It sets everything that no
            other option does.
        suite: only these of the preset's suites, e.g. libero_object; such a VLA has a folder of
            its own.
        data: HDF5 files (ours, or LIBERO's own) to train one VLA on, mixed: all episodes of each,
            but for the last ones (the preset's vla.held_out), which only validate.
        weights: how often each file is drawn from, relative to the others; default: all alike.
        out: folder of the VLA that is trained on --data.
        seed: training seed of that VLA; default: 0.
        steps: optimiser steps; default: the preset's.
        workers: processes; default: one per core.
        device: cpu, or cuda for a compiled step; bfloat16 is used on both, where the hardware
            multiplies it. `accelerate launch` lets several GPUs share each batch.
        force: train the preset's VLAs again even if they exist; one on --data always is.
        further: train the preset's VLAs on fewer and on mixed demonstrations instead.
    """
    if bool(data) != (out is not None):
        raise UserError(
            "A VLA on data of your own needs files and a folder: give --data and --out together."
        )
    if data:
        of_presets = {"--suite": suite, "--force": force, "--further": further}
        refuse_options(of_presets, "is for a preset's VLAs: leave it out beside --data.")
    else:
        of_own = {"--weights": weights, "--seed": seed, "--steps": steps}
        refuse_options(of_own, "is for a VLA on data of your own: give --data and --out with it.")
    if weights and len(weights) != len(data):
        raise UserError(f"{len(weights)} --weights were given for {len(data)} files of --data.")
    _refuse_absent(device)
    PartialState(cpu=device == "cpu", timeout=PATIENCE)  # where those processes meet
    settings = get_preset(preset, suite)
    if not data:
        table = fit_all(settings, workers, device, force, further)
        print(table.drop(columns=["preset"]).to_string(index=False))
        return
    assert out is not None  # it is given with --data
    config = settings.vla
    if steps is not None:
        config = replace(config, steps=whole(steps, "--steps"))
    seed = whole(seed or 0, "--seed", least=0)
    parts = [([path], None) for path in data]
    learn, check, episodes = prepare(parts, weights or [1.0] * len(data), config, workers)
    about = {"data": list(data), "episodes": episodes}
    losses, _ = train(learn, check, config, seed, out, about, device)
    end = losses.iloc[-1]
    print(f"{episodes} episodes, loss {end['loss']:.3f}, held out {end['held_out']:.3f}: {out}")


def _refuse_absent(device: str) -> None:
    """Refuse a device that torch does not know or see, before anything is loaded."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"--device is {device!r}: give cpu or cuda.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device is {device}, but torch sees no GPU here: leave it out.")
