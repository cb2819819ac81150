"""The work of a preset, counted from its settings, and the hours that it takes.

    python -m diffrl plan --preset paper --nodes 8 --cores 64 --gpus 8

Rates come from committed records (`diffrl.plan.rates`); where none exists there is a guess, and
the plan says which.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import write_csv
from diffrl.base.errors import whole
from diffrl.base.scale import cores as cores_here
from diffrl.evaluation.stage import plan_of
from diffrl.generation.stage import arms_of
from diffrl.plan.rates import GUESSED, Rate, Rates
from diffrl.policy import policy_class
from diffrl.presets import ALGORITHMS, Preset, VLAConfig, get_preset
from diffrl.sim.tasks import CAMERAS
from diffrl.vla.stage import episodes_of, models_of, parts_of

GIB = 2**30
COLUMNS = ["stage", "what", "jobs", "amount", "unit", "core_hours", "gpu_hours", "disk_gib"]
COLUMNS += ["memory_gib", "wall_hours", "basis"]
NOTHING = Rate(0.0)
STAGES = ("experts", "data", "pictures", "VLAs", "evaluation")  # one after the other


@dataclass(frozen=True)
class Work:
    """Work of one kind: independent jobs that share an amount evenly.

    Attributes:
        stage: one of `STAGES`.
        what: the work, in words.
        jobs: how many can run side by side, one core or GPU each.
        amount: of all jobs together.
        unit: what the amount counts.
        seconds: of one core, or of one GPU, per unit.
        on: "core" or "gpu".
        disk: bytes that stay.
        memory: bytes of one job's data, beside what every process takes.
    """

    stage: str
    what: str
    jobs: int
    amount: float
    unit: str
    seconds: Rate
    on: str = "core"
    disk: Rate = NOTHING
    memory: float = 0.0


def plan(preset: Preset, nodes: int, cores: int, gpus: int, rates: Rates) -> pd.DataFrame:
    """Return a row of `COLUMNS` per kind of work, for nodes with so many cores and GPUs each.

    ``wall_hours`` of a row is the time that its work takes alone on all of them; `wall_hours` adds
    what cannot overlap. ``basis`` names the records, or says "guess" with what is guessed.
    """
    for name, value, least in (("nodes", nodes, 1), ("cores", cores, 1), ("gpus", gpus, 0)):
        whole(value, f"--{name}", least)
    rows = []
    for work in works(preset, bool(gpus), rates):
        hours = work.amount * work.seconds.value / 3600
        lanes = nodes * (gpus if work.on == "gpu" else cores)
        row = {"stage": work.stage, "what": work.what, "jobs": work.jobs}
        row |= {"amount": work.amount, "unit": work.unit, "disk_gib": work.disk.value / GIB}
        row["memory_gib"] = work.memory / GIB
        row |= {"core_hours": 0.0, "gpu_hours": 0.0} | {f"{work.on}_hours": hours}
        row["wall_hours"] = _wall(hours, work.jobs, lanes, nodes == 1 and work.on == "core")
        known = [rate.basis for rate in (work.seconds, work.disk) if rate.basis]
        row["basis"] = "; ".join(dict.fromkeys(known))
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _wall(hours: float, jobs: int, lanes: int, shared: bool) -> float:
    """Hours on so many lanes; a job has one, or where few jobs are shared out on a machine more."""
    if not jobs:
        return 0.0
    each = max(1, lanes // jobs) if shared else 1
    return max(hours / lanes, hours / jobs / each)


def wall_hours(table: pd.DataFrame) -> float:
    """Return the wall time of a plan: stages follow each other, cores and GPUs work side by side.

    A stage lasts as long as its cores or its GPUs are busy, whichever is longer.
    """
    on_gpu = table["gpu_hours"] > 0
    sides = table.assign(side=on_gpu).groupby(["stage", "side"])["wall_hours"].sum()
    return float(sides.groupby("stage").max().sum())


# ---- the work of each stage ------------------------------------------------------------------


def works(preset: Preset, gpu: bool, rates: Rates) -> Iterator[Work]:
    """Yield all work of a preset; with `gpu` networks and pictures are the GPUs'.

    A part none of whose tasks a VLA learns has no VLA.
    """
    yield from _experts(preset, gpu, rates)
    yield from _data(preset, gpu, rates)
    if preset.vla_tasks:
        yield from _pictures(preset, gpu, rates)
        yield from _vlas(preset, gpu, rates)
        yield from _evaluations(preset, gpu, rates)


def _experts(preset: Preset, gpu: bool, rates: Rates) -> Iterator[Work]:
    scenes = [rates.scene(task, preset.of(task).rl.physics) for task in preset.tasks]
    each = Rate(sum(scene.value for scene in scenes) / len(scenes), scenes[0].basis)
    yield Work("experts", "scenes, settled", len(scenes), len(scenes), "scenes", each)
    for algorithm in ALGORITHMS:
        jobs, steps, seconds, played, decisions = 0, 0.0, 0.0, 0.0, 0.0
        encoder = preset.clone.encoder
        overhead = rates.playing if encoder == "image" else rates.learning[algorithm]
        for task in preset.tasks:
            own = preset.of(task)
            seeds = len(own.rl.seeds)
            jobs += seeds
            learned, measured = (seeds * n for n in control_steps(own, task, rates))
            decisions += learned / own.clone.chunk
            exact, speed = rates.speed(task), rates.speed(task, own.rl.physics, own.rl.substeps)
            measured += own.rl.exact_last * learned
            learned -= own.rl.exact_last * learned
            steps += learned + measured
            seconds += learned / speed.value + measured / exact.value
            seconds += (learned + measured) * overhead.value
            played += seeds * _judged(own, algorithm) * rates.trial_steps(task)
        basis = f"{speed.basis}; {overhead.basis}"
        disk = GUESSED["expert" if encoder == "state" else f"{encoder} expert"]
        cloning = rates.cloning[algorithm]
        yield Work("experts", f"{algorithm}: cloning", jobs, jobs, "clones", cloning)
        yield Work(
            *("experts", f"{algorithm}: RL on the simulator", jobs, steps, "control steps"),
            Rate(seconds / steps, basis),
            disk=Rate(disk.value * jobs, disk.basis),
        )
        if encoder != "state":
            yield from _looks(preset, ("experts", algorithm, jobs), steps + played, gpu, rates)
        if encoder == "image":
            yield _network(preset, algorithm, jobs, decisions, gpu)
        yield Work(
            *("experts", f"{algorithm}: final trials", jobs, played, "control steps"),
            rates.playing_seconds(preset.tasks),
        )


def control_steps(own: Preset, task: str, rates: Rates) -> tuple[float, float]:
    """Return the control steps of one expert's RL and of its measurements, on average."""
    rl, trial = own.rl, rates.trial_steps(task)
    iterations = rl.iterations * (rates.stopping.value if rl.target_success else 1)
    collected = rl.copies * rl.decisions * own.clone.chunk
    looks = rl.measure_starts / rl.measure_every
    if rl.confirm_starts:
        looks *= rates.second_looks.value
    return iterations * collected, iterations * looks * trial


def _judged(own: Preset, algorithm: str) -> int:
    """Trials on official start states: clone and expert in both modes, then other noise."""
    noisy = 2 if policy_class(algorithm).random_start else 1
    return own.rl.evaluation_starts * (4 + noisy * (len(own.rl.evaluation_seeds) - 1))


def _network(preset: Preset, algorithm: str, jobs: int, decisions: float, gpu: bool) -> Work:
    """What a network that learns to see is trained on: in cloning, and `decisions` in PPO."""
    rl, clone, side = preset.rl, preset.clone, "gpu" if gpu else "core"
    steps = (rl.finetuned_steps or rl.sampling_steps) if algorithm == "diffusion" else 1
    seen = decisions * steps * rl.epochs + jobs * clone.steps * clone.batch
    train = GUESSED[f"ResNet on a {side}"]
    return Work("experts", f"{algorithm}: networks", jobs, seen, "pictures seen", train, side)


def _looks(
    preset: Preset, names: tuple[str, str, int], steps: float, gpu: bool, rates: Rates
) -> Iterator[Work]:
    """What playing by sight costs: each decision's pictures are drawn and encoded, once each.

    names: stage, who looks, jobs; steps: control steps, in which a decision begins every `chunk`.
    """
    (stage, who, jobs), clone, side = names, preset.clone, "gpu" if gpu else "core"
    pictures = (1 + clone.wrist) * steps / clone.chunk
    draw, encode = rates.drawing(clone.detail, clone.image_size), rates.encode(clone.image_size)
    if gpu:
        draw, encode = GUESSED["picture on a GPU"], GUESSED["EfficientNet on a gpu"]
    if clone.encoder == "image":
        encode = GUESSED[f"ResNet on a {side}"]
    yield Work(stage, f"{who}: pictures", jobs, pictures, "pictures", draw, side)
    yield Work(stage, f"{who}: encoding", jobs, pictures, "pictures", encode, side)


def _data(preset: Preset, gpu: bool, rates: Rates) -> Iterator[Work]:
    settings, arms = preset.generation, arms_of(preset)
    for repeated in (False, True):
        jobs, steps, stored, looks = 0, 0.0, 0.0, (0, 0.0)  # jobs and steps of those that see
        for arm in arms:
            if arm.source == "human":  # converted, not played
                continue
            for task in preset.tasks:
                trials = settings.episodes * rates.attempts(arm)
                if repeated:
                    trials = settings.repeats * settings.repeated_starts
                played = trials * rates.trial_steps(task)
                jobs, steps = jobs + 1, steps + played
                stored += played / rates.attempts(arm)
                if arm.mode in POLICY_MODES and preset.clone.encoder != "state":
                    looks = looks[0] + 1, looks[1] + played
        name = "repeated start states" if repeated else "data sets"
        disk = GUESSED["stored step"]
        yield Work(
            *("data", name, jobs, steps, "control steps", rates.playing_seconds(preset.tasks)),
            disk=Rate(disk.value * stored, disk.basis),
        )
        if looks[0]:
            yield from _looks(preset, ("data", name, looks[0]), looks[1], gpu, rates)


def _pictures(preset: Preset, gpu: bool, rates: Rates) -> Iterator[Work]:
    config = preset.vla
    arms = {part.arm for data in config.data for part in parts_of(data)}
    steps = sum(rates.trial_steps(task) for task in preset.vla_tasks) * len(arms)
    pictures = len(CAMERAS) * config.demonstrations * steps / config.frame_stride
    jobs = math.ceil(len(arms) * len(preset.vla_tasks) * config.demonstrations / 10)
    draw, side = rates.drawing(config.detail, config.image_size), "core"
    if gpu:
        draw, side = GUESSED["picture on a GPU"], "gpu"
    size = Rate(pictures * _cells(config), "")
    yield Work("pictures", "drawing", jobs, pictures, "pictures", draw, side, size)
    if config.vision == "efficientnet":
        encode = GUESSED["EfficientNet on a gpu"] if gpu else rates.encode(config.image_size)
        yield Work("pictures", "encoding", jobs, pictures, "pictures", encode, side)


def _cells(config: VLAConfig) -> int:
    """Bytes of a picture in the cache: 272 float16 a cell of 16 × 16 pixels, or its pixels."""
    if config.vision == "efficientnet":
        return (config.image_size // 16) ** 2 * 272 * 2
    return config.image_size**2 * 3


def _vlas(preset: Preset, gpu: bool, rates: Rates) -> Iterator[Work]:
    jobs, config = len(models_of(preset)), preset.vla
    held = max(sum(episodes_of(part, config) for part in parts_of(data)) for data in config.data)
    pictures = len(CAMERAS) * held * _frames_of_each(preset, rates)
    seconds = GUESSED["VLA step on a GPU"] if gpu else rates.vla_step(config)
    disk = GUESSED["VLA"]
    yield Work(
        *("VLAs", "training", jobs, jobs * config.steps, "optimiser steps", seconds),
        *("gpu" if gpu else "core", Rate(jobs * disk.value, disk.basis)),
        memory=pictures * _cells(config),  # held at once, those that only validate among them
    )


def frames_of(preset: Preset, rates: Rates) -> float:
    """Return the frames that a VLA of one arm learns from, on average."""
    learned = preset.vla.demonstrations - preset.vla.held_out
    return learned * _frames_of_each(preset, rates)


def _frames_of_each(preset: Preset, rates: Rates) -> float:
    """Frames of one episode of each task together."""
    return sum(map(rates.trial_steps, preset.vla_tasks)) / preset.vla.frame_stride


def _evaluations(preset: Preset, gpu: bool, rates: Rates) -> Iterator[Work]:
    models = models_of(preset)
    trials = Counter(trial.task for data, _ in models for trial in plan_of(preset, data))
    steps = sum(count * rates.vla_trial_steps(task) for task, count in trials.items())
    yield Work(
        *("evaluation", "trials", len(models) * len(trials), steps, "control steps"),
        rates.evaluating(preset.vla, list(trials), gpu),
    )


# ---- the command -----------------------------------------------------------------------------


def text(table: pd.DataFrame, where: str) -> str:
    """Return a plan as text: the work, the sums, the guesses."""
    shown = table.drop(columns=["basis", "jobs"]).copy()
    shown["amount"] = shown["amount"].map("{:,.0f}".format)
    lines = [shown.to_string(index=False, float_format=_number), ""]
    cores, gpus, disk = (_number(table[n].sum()) for n in ("core_hours", "gpu_hours", "disk_gib"))
    lines.append(
        f"Together {cores} core-hours, {gpus} GPU-hours and {disk} GiB; on {where} about "
        f"{_number(wall_hours(table))} hours."
    )
    if (memory := table["memory_gib"].max()) >= 1:
        lines.append(
            f"A VLA holds {_number(memory)} GiB of pictures in main memory; one of two sources' "
            "whole data sets twice that."
        )
    parts = [part for basis in table["basis"] for part in basis.split("; ")]
    for kind in ("guess", "recorded"):
        found = [part for part in dict.fromkeys(parts) if part.startswith(kind)]
        lines += [f"{kind.capitalize()}: {part.partition(': ')[2]}" for part in found]
    lines.append("Not counted: notebooks and figures, further VLAs, experiments.")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Two digits at least, and every digit before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main(
    preset: str = "paper",
    nodes: int = 1,
    cores: int | None = None,
    gpus: int | None = None,
    csv: Path | None = None,
) -> None:
    """Say what a preset will take: core-hours, GPU-hours, disk and wall time.

    Args:
        preset: smoke, laptop, libero, pixels, gpu or paper.
        nodes: machines, all alike.
        cores: of each; default: this machine's.
        gpus: of each; default: one where the preset's policies learn to see, from pictures; a
            frozen encoder's cells are computed on cores, so then it is none.
        csv: also write the table to this file.
    """
    settings = get_preset(preset)
    cores = cores_here() if cores is None else cores
    gpus = int(settings.clone.encoder == "image") if gpus is None else gpus
    table = plan(settings, nodes, cores, gpus, Rates.read())
    if csv is not None:
        write_csv(csv, table)
    print(text(table, f"{nodes} × ({cores} cores, {gpus} GPUs)"))
