"""Who acts in a data set: experts in turn, the scripted operator, or recorded humans."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffrl.artifacts import plain, read_json
from diffrl.data.episode import Episode
from diffrl.errors import UserError
from diffrl.presets import Preset
from diffrl.sim.scene import Scene
from diffrl.sim.starts import StartStates, fresh_start_states

Source = Literal["operator", "human", "diffusion", "gaussian"]
Mode = Literal["recorded", "deterministic", "stochastic"]
ATTEMPT = ["attempt", "start_state", "policy", "outcome", "steps"]  # columns of the list


@dataclass
class Attempt:
    """One trial of the plan."""

    number: int
    start_state: str
    policy: str
    outcome: Literal["success", "failure", "error"]  # error: the physics diverged
    episode: Episode | None

    @property
    def row(self) -> dict:
        """Its line in the list of attempts."""
        steps = self.episode.length if self.episode else 0
        return dict(zip(ATTEMPT, (self.number, self.start_state, self.policy, self.outcome, steps)))


Play = Callable[[int, int], Iterable[Attempt]]  # (first, count) -> attempts first, first + 1, …


def expert_folders(task: str, source: str, preset: Preset) -> list[Path]:
    """Return the folders of the experts that take turns; none for demonstrations.

    Raises:
        UserError: an expert is missing, or was trained with other settings than the preset's.
    """
    if source in ("operator", "human"):
        return []
    from diffrl.rl.records import config_of, expert_folder  # torch: only where a policy acts

    folders = []
    for seed in preset.rl.seeds:
        folder = expert_folder(task, source, preset.name, seed)
        try:
            trained = read_json(folder / "config.json")
            known = (folder / "policy.safetensors").is_file()
        except UserError:
            known = False
        if not known or trained != plain(config_of(task, source, preset, seed)):
            raise UserError(
                f"There is no {source} expert for {task} in {folder}"
                f"{' of the settings of preset ' + preset.name if known else ''}: run notebook 01, "
                f"or `python -m diffrl train --task {task} --algorithm {source} "
                f"--preset {preset.name} --seed {seed}`."
            )
        folders.append(folder)
    return folders


@dataclass(frozen=True)
class Player:
    """Plays the attempts of one data set's plan; the same numbers give the same episodes.

    Args:
        scene: of the task.
        source, mode: who acts, and how.
        preset: its seeds and the operator's settings.
        folders: of the experts; attempt k belongs to expert k mod len(folders).
        threads: of the simulator; they change nothing but the time.
    """

    scene: Scene
    source: Source
    mode: Mode
    preset: Preset
    folders: Sequence[Path] = ()
    threads: int | None = None

    def __call__(self, first: int, count: int) -> list[Attempt]:
        """Play attempts `first` … `first + count - 1`; fewer where humans recorded no more."""
        if self.source == "human":
            return self._human(first, count)
        starts = fresh_start_states(self.scene, count, self.preset.generation.seed, first)
        if self.source == "operator":
            return self._operator(first, starts)
        turns = range(len(self.folders))
        attempts = [a for which in turns for a in self._expert(which, first, starts)]
        return sorted(attempts, key=lambda attempt: attempt.number)

    def _human(self, first: int, count: int) -> list[Attempt]:
        from diffrl.data.human import human_demonstrations

        return [
            Attempt(number, episode.start_state, "human", "success", episode)
            for number, episode in enumerate(human_demonstrations(self.scene))
            if first <= number < first + count
        ]

    def _operator(self, first: int, starts: StartStates) -> list[Attempt]:
        from diffrl.data.operator import operator_episodes

        seed, config = self.preset.generation.seed, self.preset.demonstrations
        episodes = operator_episodes(self.scene, starts, seed, config, self.threads)
        return [
            _attempt(
                first + k, "operator", name, episode, bool(episode and episode.success), not episode
            )
            for k, (name, (episode, _)) in enumerate(zip(starts.ids, episodes))
        ]

    def _expert(self, which: int, first: int, starts: StartStates) -> list[Attempt]:
        import torch

        from diffrl import policy as policies
        from diffrl.rl.rollout import rollout

        rows = [r for r in range(len(starts)) if (first + r) % len(self.folders) == which]
        if not rows:
            return []
        torch.set_num_threads(self.preset.rl.torch_threads)  # sums in one order everywhere
        folder, seed = self.folders[which], self.preset.generation.seed
        trials = rollout(
            policies.load(folder),
            self.scene,
            starts[rows],
            self.mode,
            seed,
            threads=self.threads,
            record=True,
        )
        return [
            _attempt(first + row, folder.name, t.start_state, t.episode, t.success, t.error)
            for row, t in zip(rows, trials)
        ]


def _attempt(
    number: int,
    policy: str,
    start_state: str,
    episode: Episode | None,
    success: bool,
    error: bool = False,
) -> Attempt:
    outcome = "error" if error else "success" if success else "failure"
    if episode is not None:
        episode = replace(episode, policy=policy, attempt=number)
    return Attempt(number, start_state, policy, outcome, episode)
