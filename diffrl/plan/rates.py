"""How long a unit of work takes: from committed records where they exist, else guessed.

A rate is the number of seconds that one core, or one GPU, takes for a unit. The records are
``results/throughput.json`` and ``results/laptop``, all of one machine with two cores.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diffrl.base.arm import Arm
from diffrl.base.artifacts import read_json, root
from diffrl.base.control import SETTLE_STEPS
from diffrl.base.errors import UserError
from diffrl.evidence import packed_table
from diffrl.policy.vision import CHANNELS, STRIDE
from diffrl.presets import ALGORITHMS, VLAConfig, get_preset
from diffrl.sim.compiler import LAYOUTS
from diffrl.sim.tasks import CAMERAS, MAX_STEPS, get_task
from diffrl.vla.train import Precision, precision_of

RECORDED = "laptop"  # the preset whose minutes are recorded
FROZEN = "frozen, 12 steps"  # training physics, in the table of its options


@dataclass(frozen=True)
class Rate:
    """A number, and what it rests on: parts that begin with "recorded: " or "guess: "."""

    value: float
    basis: str = ""


def _guess(value: float, what: str) -> Rate:
    return Rate(value, f"guess: {what}")


GUESSED = {  # seconds a unit, or bytes
    "picture on a GPU": _guess(1e-3, "a GPU draws 1000 pictures a second"),
    "ResNet on a gpu": _guess(1e-4, "a GPU trains ResNet-18 on 10 000 pictures of 128² a second"),
    "ResNet on a core": _guess(0.15, "a core trains ResNet-18 on 7 pictures of 128² a second"),
    "EfficientNet on a gpu": _guess(2e-4, "a GPU encodes 5000 pictures a second"),
    "VLA step on a GPU": _guess(0.05, "a GPU makes 20 optimiser steps of the VLA a second"),
    "stored step": _guess(1650, "a control step takes 1.65 kB in a data set"),
    "expert": _guess(3e6, "an expert over states takes 3 MB"),
    "frozen expert": _guess(3e6, "an expert over a frozen encoder's cells takes 3 MB"),
    "image expert": _guess(1e8, "an expert over pictures takes 100 MB"),
    "VLA": _guess(2e7, "a VLA takes 20 MB"),
}


@dataclass(frozen=True)
class Rates:
    """What is recorded, by suite, policy class or mode; `read` makes it.

    Attributes:
        stepping: control steps a second of one core on LIBERO's physics, by suite.
        cheaper: how much faster a step of training physics is, by suite.
        compiling: seconds that a scene takes for the first time.
        cloning: seconds that a clone takes, by policy class.
        learning: seconds that RL adds to a control step, by policy class.
        playing: seconds that rolling out an expert adds to a control step.
        lengths: mean control steps of an attempt, by suite.
        tries: attempts for each episode, by mode.
        stopping: share of the iterations after which RL reaches its target.
        second_looks: trials of all looks for each of a first look.
        precision: of a VLA's products on a core: "bfloat16" where a processor multiplies it.
        vla: seconds of a VLA's optimiser step with the recorded preset's settings, by precision.
        vla_sizes: seconds of such a step in one precision, by preset.
        encoding: pictures of 128² that a core's EfficientNet encodes a second.
        vla_shares: mean steps of a VLA's trial as a share of the limit: own suites, other suites.
        pictures: pictures of 128² that a core draws a second, by detail.
        evaluation: control steps a second of a core that evaluates a VLA, by detail.
    """

    stepping: Mapping[str, float]
    cheaper: Mapping[str, float]
    compiling: float
    cloning: Mapping[str, Rate]
    learning: Mapping[str, Rate]
    playing: Rate
    lengths: Mapping[str, float]
    tries: Mapping[str, float]
    stopping: Rate
    second_looks: Rate
    precision: Precision
    vla: Mapping[str, float]
    vla_sizes: Mapping[str, float]
    encoding: float
    vla_shares: tuple[float, float]
    pictures: Mapping[str, float]
    evaluation: Mapping[str, float]

    @classmethod
    def read(
        cls,
        results: Path | None = None,
        tasks: Collection[str] | None = None,
        precision: Precision | None = None,
    ) -> "Rates":
        """Read the records in `results`; of experts those of `tasks` alone, if they are given.

        Without a folder it is ``results/`` of ``DIFFRL_HOME``, or of this clone if nobody has
        measured anything there; without a precision it is this machine's.

        Raises:
            UserError: a record is missing, or lacks what a plan needs.
        """
        if results is None:
            places = [root() / "results", Path(__file__).parents[2] / "results"]
            results = next((p for p in places if (p / "throughput.json").is_file()), places[0])
        speed = read_json(results / "throughput.json")
        _refuse_gaps(speed, results / "throughput.json")
        place = results / RECORDED
        try:
            physics = pd.read_csv(results / "training_physics_options.csv")
            experts, runs = _experts(place, tasks), packed_table(place, "experts_diagnostics.csv")
            cloning = _cloning(packed_table(place, "documents.csv"))
            data, trials = _table(place, "generation.csv"), _table(place, "vla_trials.csv")
            vlas = _table(place, "vla.csv")
        except OSError as error:
            raise UserError(
                f"The plan needs the record {error.filename}: restore results/ from git."
            ) from error
        stepping = {suite: row["ours_1"] for suite, row in speed["suites"].items()}
        workers = speed["evaluation"]["workers"]
        return cls(
            stepping=stepping,
            cheaper=_cheaper(physics),
            compiling=speed["start_s"]["first"],
            cloning=cloning,
            learning={a: _learning(experts, a, stepping, cloning[a]) for a in ALGORITHMS},
            playing=_playing(data, stepping),
            lengths=_lengths(data),
            tries=_tries(data),
            stopping=_stopping(runs),
            second_looks=_second_looks(runs),
            precision=precision or precision_of(torch.device("cpu")),
            vla={speed["vla"]["precision"]: speed["vla"]["step_s"][RECORDED], **_vla(vlas)},
            vla_sizes=speed["vla"]["step_s"],
            encoding=speed["vla"]["encoding"],
            vla_shares=_shares(trials),
            pictures={name: speed["camera_fps"][name] for name in ("exact", "reduced")},
            evaluation={n: speed["evaluation"][n] / workers for n in ("exact", "reduced")},
        )

    def speed(self, task: str, physics: str = "exact", substeps: int = 12) -> Rate:
        """Return control steps a second of one core on a task, in exact or training physics."""
        rate, basis = self.stepping[_suite(task)], "recorded: results/throughput.json, simulator"
        if physics == "exact":
            return Rate(rate, basis)
        basis += "; recorded: results/training_physics_options.csv"
        if substeps != 12:
            basis += f"; guess: {substeps} physics steps a control step scale its time"
        return Rate(rate * self.cheaper[_suite(task)] * 12 / substeps, basis)

    def scene(self, task: str, physics: str) -> Rate:
        """Return the seconds of a task's scene, and of the layouts where things settle first."""
        simulator = self.speed(task)
        settling = LAYOUTS * SETTLE_STEPS / simulator.value if physics == "training" else 0.0
        return Rate(self.compiling + settling, simulator.basis)

    def trial_steps(self, task: str) -> float:
        """Return the control steps of an expert's or the operator's trial, on average."""
        return self.lengths[_suite(task)]

    def vla_trial_steps(self, task: str) -> float:
        """Return the control steps of a VLA's trial, on average; longer where it is not at home."""
        own, other = self.vla_shares
        return get_task(task).max_steps * (own if get_task(task).suite in MAX_STEPS else other)

    def attempts(self, arm: Arm) -> float:
        """Return how many attempts an episode of an arm takes."""
        return self.tries[arm.mode]

    def playing_seconds(self, tasks: Iterable[str]) -> Rate:
        """Return the seconds of a control step that an expert plays, a mean over tasks."""
        speeds = [self.speed(task) for task in tasks]
        stepping = sum(1 / speed.value for speed in speeds) / len(speeds)
        return Rate(stepping + self.playing.value, f"{speeds[0].basis}; {self.playing.basis}")

    def drawing(self, detail: str, size: int) -> Rate:
        """Return the seconds of a picture in software."""
        basis = "recorded: results/throughput.json, camera"
        if size != 128:
            basis += f"; guess: in software a picture of {size}² takes as long as one of 128²"
        return Rate(1 / self.pictures[detail], basis)

    def encode(self, size: int) -> Rate:
        """Return the seconds in which a core's EfficientNet encodes a picture."""
        basis, scale = "recorded: results/throughput.json, vla", (size / 128) ** 2
        if scale != 1:
            basis += "; guess: encoding scales with the pixels"
        return Rate(scale / self.encoding, basis)

    def vla_step(self, config: VLAConfig) -> Rate:
        """Return the seconds of an optimiser step on a core."""
        basis = f"recorded: results/{RECORDED}/vla.csv and results/throughput.json, vla"
        known = next(p for p in (self.precision, *self.vla) if p in self.vla)
        if known != self.precision:
            basis += f"; guess: a VLA's step in {self.precision} takes as long as in {known}"
        if (size := _size(config)) == _size(get_preset(RECORDED).vla):
            return Rate(self.vla[known], basis)
        basis += "; guess: a VLA's step takes a fixed time, and one that scales with its products"
        small, large = (_size(get_preset(name).vla) for name in ("smoke", RECORDED))
        few, many = self.vla_sizes["smoke"], self.vla_sizes[RECORDED]
        taken = few + (many - few) * (size - small) / (large - small)
        return Rate(self.vla[known] * taken / many, basis)

    def evaluating(self, config: VLAConfig, tasks: Collection[str], gpu: bool) -> Rate:
        """Return the seconds of a control step of a VLA's evaluation on a core.

        What pictures and network take is recorded on libero_object/0, with a decision every eight
        steps; with a GPU it is guessed.
        """
        alone = 1 / self.stepping["libero_object"]
        basis = "recorded: results/throughput.json, evaluation"
        decision = get_preset(RECORDED).vla.chunk * (1 / self.evaluation[config.detail] - alone)
        if gpu:
            parts = [GUESSED["picture on a GPU"], GUESSED["EfficientNet on a gpu"]]
            decision = 2 * sum(part.value for part in parts)
            basis = "; ".join(part.basis for part in parts)
        elif config.image_size != 128:
            decision *= (config.image_size / 128) ** 2
            basis += "; guess: a decision scales with the pixels"
        stepping = sum(1 / self.speed(task).value for task in tasks) / len(tasks)
        return Rate(stepping + decision / config.chunk, basis)


def _refuse_gaps(speed: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError where a benchmark left out a part, or a suite, that a plan needs."""
    parts = ("camera_fps", "vla", "evaluation")
    lacking = [part.removesuffix("_fps") for part in parts if part not in speed]
    if suites := [suite for suite in MAX_STEPS if suite not in speed.get("suites", {})]:
        lacking.insert(0, f"simulator --suites {' '.join(suites)}")
    if lacking:
        measured = ", then ".join(f"`python -m diffrl benchmark {part}`" for part in lacking)
        raise UserError(
            f"{path} lacks rates that the plan needs: measure them with {measured}, or restore "
            "the record from git."
        )


# ---- from the tables -------------------------------------------------------------------------


def _suite(task: str) -> str:
    """The official suite of a task; LIBERO-PRO's variants have those of their originals."""
    return next(s for s in MAX_STEPS if f"{get_task(task).suite}_".startswith(f"{s}_"))


def _table(place: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(place / name)


def _experts(place: Path, tasks: Collection[str] | None) -> pd.DataFrame:
    table = _table(place, "experts.csv")
    return table if tasks is None else table[table["task"].isin(tasks)]


def _cheaper(options: pd.DataFrame) -> dict[str, float]:
    kept = options[options["option"] == FROZEN]
    by_suite = kept.groupby(kept["task"].map(_suite))["ratio"].median()
    return {suite: float(by_suite.get(suite, kept["ratio"].median())) for suite in MAX_STEPS}


def _beyond(minutes: pd.Series, steps: pd.Series, speeds: pd.Series) -> float:
    """Seconds a control step that work took beyond what the simulator alone would have taken."""
    return float((60 * minutes - steps / speeds).sum() / steps.sum())


def _cloning(documents: pd.DataFrame) -> dict[str, Rate]:
    """What the clones of a preset's experts took, without their demonstrations."""
    clones = documents[documents["path"].str.match(r"experts/.*/clone\.done\.json$")]
    seconds = clones["records"].map(lambda text: json.loads(text)["seconds"])
    whose = clones["path"].str.extract(r"/(\w+)-seed\d+/", expand=False)
    basis = f"recorded: results/{RECORDED}/records.zip"
    return {name: Rate(float(taken.mean()), basis) for name, taken in seconds.groupby(whose)}


def _learning(
    experts: pd.DataFrame, algorithm: str, stepping: Mapping[str, float], cloning: Rate
) -> Rate:
    rows = experts.query("algorithm == @algorithm and mode == 'deterministic'")
    speeds = rows["task"].map(lambda task: stepping[_suite(task)])
    minutes = rows["minutes"] - cloning.value / 60
    value = _beyond(minutes, rows["control_steps"], speeds)
    return Rate(value, f"recorded: results/{RECORDED}/experts.csv")


def _playing(data: pd.DataFrame, stepping: Mapping[str, float]) -> Rate:
    speeds = data["task"].map(lambda task: stepping[_suite(task)])
    value = _beyond(data["minutes"], _steps(data), speeds)
    return Rate(value, f"recorded: results/{RECORDED}/generation.csv")


def _steps(data: pd.DataFrame) -> pd.Series:
    """Control steps of a data set's attempts: a failure has its task's whole length."""
    limits = data["task"].map(lambda task: get_task(task).max_steps)
    return data["episodes"] * data["mean_steps"] + (data["attempts"] - data["episodes"]) * limits


def _lengths(data: pd.DataFrame) -> dict[str, float]:
    """Steps of an attempt; of a suite without a record its limit times the others' mean share."""
    suites = data["task"].map(_suite)
    steps, attempts = _steps(data).groupby(suites).sum(), data["attempts"].groupby(suites).sum()
    means = steps / attempts
    share = (means / pd.Series(MAX_STEPS)).mean()
    return {suite: float(means.get(suite, share * limit)) for suite, limit in MAX_STEPS.items()}


def _tries(data: pd.DataFrame) -> dict[str, float]:
    sums = data.groupby("mode")[["attempts", "episodes"]].sum()
    return (sums["attempts"] / sums["episodes"]).to_dict()


def _planned(runs: pd.DataFrame) -> pd.Series:
    """The iterations of each recorded run's settings, by run."""
    preset = get_preset(RECORDED)
    names = pd.Series(runs["run"].unique())
    tasks = names.str.split("/").str[0].str.replace(r"-(\d+)$", r"/\1", regex=True)
    return pd.Series([preset.of(task).rl.iterations for task in tasks], index=names)


def _stopping(runs: pd.DataFrame) -> Rate:
    done = runs.groupby("run")["iteration"].max()
    share = float((done / _planned(runs)).mean())
    return Rate(share, f"recorded: results/{RECORDED}/records.zip")


def _second_looks(runs: pd.DataFrame) -> Rate:
    first = (runs["measured"] > 0).sum() * get_preset(RECORDED).rl.measure_starts
    played = runs.reindex(columns=["played"])["played"].fillna(runs["measured"])  # older records
    share = float(played.sum() / first)
    return Rate(share, f"recorded: results/{RECORDED}/records.zip")


def _shares(trials: pd.DataFrame) -> tuple[float, float]:
    share = trials["steps"] / trials["task"].map(lambda task: get_task(task).max_steps)
    own = trials["suite"].isin(MAX_STEPS)
    return float(share[own].mean()), float(share[~own].mean())


def _vla(vlas: pd.DataFrame) -> dict[str, float]:
    """Seconds of a step of the recorded preset's VLAs, by precision."""
    sums = vlas.groupby("precision")[["minutes", "steps"]].sum()
    return (60 * sums["minutes"] / sums["steps"]).to_dict()


def _size(config: VLAConfig) -> float:
    """A VLA's multiplications in a forward pass: of the cells, then tokens × layers × width²."""
    cells = len(CAMERAS) * (config.image_size // STRIDE) ** 2 * CHANNELS / config.width
    seen = config.encoder_layers * (2 * config.queries + 16)  # glimpses, words, proprioception
    acted = config.decoder_layers * config.flow_draws * config.horizon
    return config.batch * config.width**2 * (cells + 12 * (seen + acted))
