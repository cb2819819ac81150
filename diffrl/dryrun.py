"""A dry run: every kind of work of a preset once on each of its tasks, as small as it can be.

    python -m diffrl dry-run --preset paper

For each task a scene, a placement, ten control steps, one iteration of PPO with small networks, a
picture, a data file, a step of a VLA and a trial. So a fault that would stop a long run on a
cluster shows here first. A step that fails stops nothing but the steps that need it.
"""

import functools
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffrl import policy as policies
from diffrl.base.artifacts import Stage, root, run_folder, runs_dir, write_csv
from diffrl.base.errors import UserError
from diffrl.base.scale import StageError, map_tasks
from diffrl.data.attributes import libero_attributes
from diffrl.data.episode import Episode
from diffrl.data.hdf5 import read_episodes, validate_file, write_episodes
from diffrl.evaluation.play import play, renderer_of
from diffrl.evaluation.policies import open_policy
from diffrl.evaluation.stage import plan
from diffrl.policy import ChainPolicy, Layout
from diffrl.presets import Preset, get_preset
from diffrl.rl.learn import Learner
from diffrl.rl.rollout import rollout
from diffrl.sim.observation import observe
from diffrl.sim.pictures import Pictures
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.starts import StartStates, fresh_start_states, official_start_states
from diffrl.sim.tasks import get_task
from diffrl.vla.frames import make_frames
from diffrl.vla.train import train

COLUMNS = ["task", "step", "seconds", "cpu_seconds", "ok", "error"]
STEPS = 10  # control steps of the rollout, and of the data file
STATES = {"clone.encoder": "state", "clone.network": "mlp"}  # a policy that needs no pictures
START = 3_000_000  # seed of the fresh start state: one that no other stage draws
SMALL = {  # settings that make the work small and leave its kind as it is
    **STATES,
    "clone.width": 32,
    "rl.copies": 2,
    "rl.decisions": 2,
    "rl.iterations": 1,
    "rl.epochs": 1,
    "rl.critic_warmup": 0,
    "rl.staggered": False,
    "vla.width": 32,
    "vla.heads": 2,
    "vla.queries": 2,
    "vla.encoder_layers": 1,
    "vla.decoder_layers": 1,
    "vla.frame_stride": STEPS,  # one frame of the episode
    "vla.horizon": 128,  # few decisions, so few pictures in a trial
    "vla.chunk": 128,
    "vla.batch": 2,
    "vla.flow_draws": 1,
    "vla.flow_steps": 1,
    "vla.steps": 1,
}


class Rehearsal:
    """One task's dry run: what a step makes is made once, when it is first asked for."""

    def __init__(self, task: str, preset: Preset, folder: Path, images: bool = False):
        self.task, self.folder = get_task(task), folder
        preset = preset.of(task)
        self.preset = preset.with_settings(SMALL)
        seen = {key: getattr(preset.clone, key.split(".")[1]) for key in STATES}
        self.learning = self.preset.with_settings(seen) if images else self.preset

    @cached_property
    def scene(self) -> Scene:
        """The compiled task."""
        return load_scene(self.task.id)

    @cached_property
    def placement(self) -> StartStates:
        """One fresh start state; the official ones must be there, too."""
        official_start_states(self.scene)
        return fresh_start_states(self.scene, 1, START)

    @cached_property
    def control(self) -> Episode:
        """Ten control steps by an untrained diffusion policy over states."""
        policy = self._policy(self.preset)
        [trial] = rollout(
            policy, self.scene, self.placement, threads=1, record=True, max_steps=STEPS
        )
        if trial.error or trial.episode is None or trial.episode.length != STEPS:
            raise UserError(
                f"{trial.steps} of {STEPS} control steps were played: physics diverged."
            )
        return trial.episode

    def _policy(self, preset: Preset) -> ChainPolicy:
        observation = observe(self.scene, self.placement.states, self.placement.fixtures)
        tail = preset.rl.cross_fade if preset.rl.observe_tail else 0
        layout = Layout.of(self.task.id, observation, tail).seen_by(preset.clone)
        return policies.make_policy(
            policies.make_config("diffusion", preset.clone, preset.rl), layout
        )

    @cached_property
    def ppo(self) -> dict:
        """One iteration of PPO; its diagnostics."""
        learner = Learner(self._policy(self.learning), self.scene, self.learning.rl, threads=1)
        row = learner.iterate()
        learner.collector.close()
        if not np.isfinite([row["actor_loss"], row["critic_loss"]]).all():
            raise UserError(f"PPO's losses are not finite: {row}.")
        return row

    @cached_property
    def picture(self) -> np.ndarray:
        """What the first camera sees of the start state, (size, size, 3) uint8."""
        config = self.preset.vla
        renderer = renderer_of(
            self.task.id, Pictures(config.image_size, config.detail)
        )  # the trial's, too
        image = renderer.render(self.placement.states[0], self.placement.fixtures[0])
        if image.std() < 1:
            raise UserError("The picture has one colour: `python -m diffrl doctor` tries OpenGL.")
        return image

    @cached_property
    def data(self) -> Path:
        """A data file with the episode, read back and validated."""
        path = self.folder / f"{self.task.name}_demo.hdf5"
        write_episodes(path, [self.control], libero_attributes(self.task))
        if findings := validate_file(path):
            raise UserError(f"The data file is not valid: {findings[0]}.")
        if read_episodes(path)[0].checksum() != self.control.checksum():
            raise UserError("The episode that was read back differs from the one written.")
        return path

    @cached_property
    def vla(self) -> Path:
        """A VLA after one step on the data file; its folder."""
        frames = make_frames(read_episodes(self.data), self.preset.vla, workers=1)
        train(frames, frames, self.preset.vla, 0, self.folder / "vla")
        return self.folder / "vla"

    @cached_property
    def trial(self) -> str:
        """One planned trial of that VLA, by the protocol; how it ended."""
        [outcome] = play(open_policy(f"compact:{self.vla}"), plan([self.task.id], 1), copies=1)
        if outcome.status == "error":
            raise UserError(f"The trial ended in an error: {outcome.message}.")
        return outcome.status


NEEDS = {  # the steps of a rehearsal in order, and which others each cannot do without
    "scene": (),
    "placement": ("scene",),
    "control": ("placement",),
    "ppo": ("placement",),
    "picture": ("placement",),
    "data": ("control",),
    "vla": ("data",),
    "trial": ("vla",),
}


def rehearse(rehearsal: Rehearsal) -> list[list]:
    """Do every step of one task's dry run; return a row of `COLUMNS` for each."""
    torch.set_num_threads(1)
    failed, rows = set(), []
    for step, needs in NEEDS.items():
        began, used, error = time.perf_counter(), time.process_time(), ""
        if missing := [need for need in needs if need in failed]:
            error = f"not tried, as {missing[0]} failed"
        else:
            try:
                getattr(rehearsal, step)
            except Exception as caught:  # whatever it is, it belongs into the table
                error = f"{type(caught).__name__}: {' '.join(str(caught).split())}"
        if error:
            failed.add(step)
        seconds = [time.perf_counter() - began, time.process_time() - used]
        rows.append([rehearsal.task.id, step, *(round(s, 2) for s in seconds), not error, error])
    load_scene.cache_clear()  # a scene of each of 130 tasks would fill the memory, as would
    renderer_of.cache_clear()  # the exact pictures' gigabyte beside the next task's
    return rows


def dry_run(
    preset: Preset,
    tasks: Sequence[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    images: bool = False,
) -> pd.DataFrame:
    """Rehearse the tasks of a preset; return the table, also in ``runs/<preset>/dry_run.csv``.

    A task that went well is found again; one with a failed step is tried again.
    """
    tasks = list(tasks or preset.tasks)
    function = functools.partial(_rehearsed, preset=preset, force=force, images=images)
    try:
        map_tasks(function, tasks, workers=workers, description="dry run")
    except (StageError, UserError) as error:  # the table says on which task
        print(error)
    stages = [_stage(task, preset, images) for task in tasks]
    rows = [row for stage in stages if stage.found for row in stage.records["rows"]]
    known = {row[0] for row in rows}
    rows += [
        [t, "all", None, None, False, "it ended early; what the command printed says why"]
        for t in tasks
        if t not in known
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_csv(runs_dir(preset.name) / "dry_run.csv", table)
    return table


def _stage(task: str, preset: Preset, images: bool) -> Stage:
    folder = run_folder(preset.name) / "dry_run"
    config = {"preset": preset.of(task), "small": SMALL, "images": images}
    return Stage(folder, task.replace("/", "-"), config)


def _rehearsed(task: str, preset: Preset, force: bool, images: bool) -> None:
    stage = _stage(task, preset, images)
    if not stage.due(force) and all(fine for *_, fine, _ in stage.records["rows"]):
        return
    with tempfile.TemporaryDirectory(prefix="dry-run-") as folder:
        rows = rehearse(Rehearsal(task, preset, Path(folder), images))
    stage.finish({"rows": rows})


def main(
    preset: str = "paper",
    tasks: tuple[str, ...] = (),
    workers: int | None = None,
    force: bool = False,
    images: bool = False,
    record: bool = False,
) -> int:
    """Do every kind of work of a preset once on each of its tasks, as small as it can be.

    Args:
        preset: its tasks and settings are tried; networks and counts are made small.
        tasks: try these alone, e.g. libero_goal/0.
        workers: processes; default: one per core.
        force: try tasks again that went well before.
        images: let PPO use the preset's own encoder and network instead of states and an MLP.
            Where that sees pictures, each task's are first simplified, which takes tens of seconds.
        record: also write the table to results/dry_run.csv, which git keeps.
    """
    settings = get_preset(preset)
    table = dry_run(settings, [get_task(task).id for task in tasks], workers, force, images)
    if record:
        write_csv(root() / "results" / "dry_run.csv", table)
    fine = table.groupby("task", sort=False)["ok"].all()
    for row in table[~table["ok"]].to_dict("records"):
        print("{task} {step}: {error}".format(**row))
    minutes, used = (table[name].sum() / 60 for name in ("seconds", "cpu_seconds"))
    print(
        f"{fine.sum()} of {len(fine)} tasks went well in every step, in {minutes:.0f} minutes of "
        f"all processes and {used:.0f} of processor time: {runs_dir(settings.name) / 'dry_run.csv'}"
    )
    return int(not fine.all())
