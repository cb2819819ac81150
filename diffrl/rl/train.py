"""Train an expert: demonstrations → clone → RL → evaluation, as a stage that can be resumed.

    python -m diffrl train --task libero_object/0 --algorithm diffusion --preset laptop --seed 0

Folder of an expert, ``runs/<preset>/experts/<suite>-<index>/<algorithm>-seed<k>/``:
``policy.*`` the expert, ``clone/policy.*`` where it came from, ``diagnostics.csv``, ``clone.csv``,
``trials.csv`` (the final evaluation), ``train.log``. While it is at work all but the log lie in
``checkpoint/``; they take the place of an older expert's when the run is finished.
"""

import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diffrl import policy as policies
from diffrl.base import checkpoint
from diffrl.base.arm import POLICY_MODES, Mode
from diffrl.base.artifacts import (
    Stage,
    config_hash,
    file_hash,
    forced,
    write_csv,
    write_json,
)
from diffrl.base.errors import UserError, whole
from diffrl.data.episode import Episode
from diffrl.demonstrator.episodes import operator_demonstrations
from diffrl.policy import ChainPolicy, Layout
from diffrl.presets import Algorithm, Preset
from diffrl.rl.bc import Clone, demonstration_rows, fit_clone
from diffrl.rl.journal import Journal
from diffrl.rl.learn import Learner, Note, improve
from diffrl.rl.records import expert_folder, expert_stage
from diffrl.rl.rollout import Rollout, rollout
from diffrl.sim.observation import observe
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.starts import fresh_start_states, official_start_states

HELD_OUT = 2_000_000  # start-state seeds of measurements during training


class Training:
    """One run: what its phases share.

    With a `note` the trials of a measurement during RL carry their episodes, and what it makes of
    them goes into the diagnostics.
    """

    def __init__(
        self,
        preset: Preset,
        task: str,
        algorithm: Algorithm,
        seed: int = 0,
        threads: int | None = None,
        folder: Path | None = None,
        journal: Journal | None = None,
        note: Note | None = None,
    ):
        policies.policy_class(algorithm)  # or a UserError, before anything is computed
        self.task, self.algorithm = task, algorithm
        self.seed = whole(seed, "The training seed", least=0)
        self.preset = preset.of(task)
        self.threads, self.note = threads, note
        self.folder = Path(folder or expert_folder(preset, task, algorithm, seed))
        self.journal = journal or Journal(self.folder, f"{task} {algorithm}", bar=False)
        self.stage = expert_stage(preset, task, algorithm, seed, self.folder)
        self.config, self.shown = self.stage.config, self.stage.inputs

    @functools.cached_property
    def key(self) -> str:
        """What its checkpoints belong to: the settings, and the people's file that was cloned."""
        files = [file_hash(path) for path in self.shown]
        return config_hash([self.config, files] if files else self.config)

    @property
    def work(self) -> Path:
        """Where the run keeps everything until it is finished."""
        return self.folder / "checkpoint"

    @functools.cached_property
    def scene(self) -> Scene:
        """The compiled task."""
        return load_scene(self.task)

    def checkpoint(self, phase: str) -> Path:
        """Where a phase, "clone" or "rl", keeps its state while it is at work."""
        return self.work / f"{phase}.safetensors"

    def new_policy(self) -> ChainPolicy:
        """A policy with fresh weights."""
        starts = official_start_states(self.scene)[:1]
        observation = observe(self.scene, starts.states, starts.fixtures)
        rl = self.preset.rl
        tail = rl.cross_fade if rl.observe_tail else 0
        layout = Layout.of(self.task, observation, tail).seen_by(self.preset.clone)
        config = policies.make_config(self.algorithm, self.preset.clone, rl)
        return policies.make_policy(config, layout, self.seed)

    def measure(
        self, count: int, policy: ChainPolicy, first: int = 0, record: bool = False
    ) -> list[Rollout]:
        """Play `count` held-out start states, from number `first` on, deterministically."""
        starts = fresh_start_states(self.scene, count, HELD_OUT + self.seed, first=first)
        return rollout(policy, self.scene, starts, threads=self.threads, record=record)

    def clone(self) -> tuple[ChainPolicy, float]:
        """The cloned policy and the seconds that it took; loaded if it is there."""
        folder = self.work / "clone"
        stage = Stage(folder, "clone", self.config, self.shown)
        if stage.done:
            return policies.load(folder), stage.records["seconds"]
        path, config = self.checkpoint("clone"), self.preset.clone
        began = time.perf_counter()
        policy = self.new_policy()
        episodes, attempts = self._demonstrations()
        rows = demonstration_rows(policy, self.scene, episodes)
        clone = Clone(policy, *rows, config, self.seed)
        clone.seconds = time.perf_counter() - began  # the scene and the demonstrations
        if path.exists():
            clone.restore(checkpoint.load(path, self.key))
        self.journal.phase("clone", config.steps, clone.steps, CLONE)
        fit_clone(
            clone,
            lambda p: self.measure(config.measure_starts, p),
            lambda: checkpoint.save(path, clone.state(), self.key),
            lambda row: self.journal.row(row, clone.steps, SHOWN_CLONE),
        )
        if self.preset.rl.half_weights:
            policies.halve(policy)
        write_csv(self.work / "clone.csv", pd.DataFrame(clone.curve))
        policies.save(folder, policy)
        records = {"seconds": clone.seconds, "steps": clone.steps, "attempts": attempts}
        stage.finish(records, outputs=[folder / policies.WEIGHTS])
        return policy.eval(), clone.seconds

    def clone_again(self) -> None:
        """Make the clone of a finished expert anew, where evidence kept the expert alone.

        It has the same bytes on the same kind of processor.
        """
        self.clone()
        shutil.copytree(self.work / "clone", self.folder / "clone", dirs_exist_ok=True)
        self.close()

    def _demonstrations(self) -> tuple[list[Episode], int]:
        config = self.preset.demonstrations
        self.journal.say(f"collecting {config.count} demonstrations")
        if config.source == "human":
            from diffrl.data.human import human_demonstrations

            episodes = human_demonstrations(self.scene, config.count)
            return episodes, len(episodes)
        return operator_demonstrations(
            self.scene, config.count, seed=self.seed, config=config, threads=self.threads
        )

    def learn(self, policy: ChainPolicy) -> Learner:
        """Improve `policy` by RL; continue from the checkpoint if there is one."""
        path, config = self.checkpoint("rl"), self.preset.rl
        learner = Learner(policy, self.scene, config, self.seed, self.threads)
        if path.exists():
            learner.restore(checkpoint.load(path, self.key))

        def report(row: dict[str, Any]) -> None:
            write_csv(self.work / "diagnostics.csv", pd.DataFrame(learner.diagnostics))
            self.journal.row(row, learner.iteration, SHOWN_RL)

        def play(policy: ChainPolicy, first: int, count: int) -> list[Rollout]:
            noted = self.note is not None and first == 0
            return self.measure(count, policy, first, record=noted)

        self.journal.phase("RL", config.iterations, learner.iteration, RL)
        improve(
            learner,
            play,
            lambda: checkpoint.save(path, learner.state(), self.key),
            report,
            self.note or (lambda trials: {}),
        )
        return learner

    def train(self) -> tuple[ChainPolicy, Learner, float]:
        """Clone and improve a policy; return it, its learner and the minutes.

        What lies in the folder stays as it is until `publish`; but the marker of this very run,
        begun anew by force, goes.

        Raises:
            UserError: the checkpoint is of other settings, and whatever a phase raises.
        """
        if any(map(forced, self.work.glob("*"))):
            self.drop_checkpoints()
        for path in filter(Path.exists, (self.checkpoint("clone"), self.checkpoint("rl"))):
            checkpoint.check(path, self.key)  # before anything is written
        self.stage.forget()  # by force: a restart must go on with this run, not find that one
        torch.set_num_threads(self.preset.rl.torch_threads)
        policy, seconds = self.clone()
        learner = self.learn(policy)
        if self.preset.rl.half_weights:
            policies.halve(policy)
        return policy, learner, (seconds + learner.seconds) / 60

    def publish(
        self, policy: ChainPolicy, learner: Learner, tables: Mapping[str, pd.DataFrame]
    ) -> None:
        """Put a finished run in the place of an older one: the policy, `tables` and its curves.

        The caller writes its marker afterwards, so a run that is killed here does this again. The
        config is written last: whoever finds it finds a complete expert.
        """
        for old in (*self.folder.glob("*.done.json"), self.folder / "config.json"):
            old.unlink(missing_ok=True)  # of other settings: what lies here is theirs no more
        policies.save(self.folder, policy)
        diagnostics = {"diagnostics.csv": pd.DataFrame(learner.diagnostics)}
        for name, table in (diagnostics | dict(tables)).items():
            write_csv(self.folder / name, table)
        shutil.copytree(self.work / "clone", self.folder / "clone", dirs_exist_ok=True)
        shutil.copy(self.work / "clone.csv", self.folder)
        write_json(self.folder / "config.json", self.config)

    def evaluate(
        self, policy: ChainPolicy, record: bool = False, modes: Sequence[Mode] = POLICY_MODES
    ) -> list[Rollout]:
        """Play the official start states in each mode, with the headline's noise."""
        return [
            trial
            for mode in modes
            for trial in self.play(policy, mode, self.preset.rl.evaluation_seeds[0], record)
        ]

    def play(
        self, policy: ChainPolicy, mode: Mode, seed: int, record: bool = False
    ) -> list[Rollout]:
        """Play the official start states once; `seed` is of the policy's noise."""
        starts = official_start_states(self.scene)[: self.preset.rl.evaluation_starts]
        return rollout(policy, self.scene, starts, mode, seed, threads=self.threads, record=record)

    def drop_foreign_checkpoints(self) -> None:
        """Forget an unfinished run if it is of other settings, or broken."""
        try:
            for path in filter(Path.exists, (self.checkpoint("clone"), self.checkpoint("rl"))):
                checkpoint.check(path, self.key)
        except UserError:
            self.drop_checkpoints()

    def close(self) -> None:
        """Drop what only an unfinished run needs."""
        self.drop_checkpoints()
        self.journal.close()

    def drop_checkpoints(self) -> None:
        """Forget an unfinished run."""
        shutil.rmtree(self.work, ignore_errors=True)


CLONE, RL = (0.0, 0.15), (0.15, 0.9)  # shares of a run, roughly; the rest is its evaluation
SHOWN_CLONE = ("steps", "loss", "success")
SHOWN_RL = ("success", "measured_success", "sps", "approx_kl", "explained_variance")
