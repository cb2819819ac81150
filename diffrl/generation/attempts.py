"""Who acts in a data set: experts in turn, the scripted operator, or recorded humans."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from diffrl.base.arm import DEMONSTRATORS, Arm, Mode
from diffrl.base.errors import UserError
from diffrl.data.episode import Episode
from diffrl.presets import OperatorConfig, Preset
from diffrl.sim.scene import Scene
from diffrl.sim.starts import StartStates, fresh_start_states

CLONE, ZERO = "_clone", "_zero"  # ends of the names of sources that an expert's folder holds
Outcome = Literal["success", "failure", "error"]  # error: the physics diverged
ATTEMPT = ["attempt", "start_state", "policy", "outcome", "steps"]  # columns of the list


@dataclass
class Attempt:
    """One trial of the plan."""

    number: int
    start_state: str
    policy: str
    outcome: Outcome
    episode: Episode | None

    @property
    def row(self) -> dict:
        """Its line in the list of attempts."""
        steps = self.episode.length if self.episode else 0
        return dict(zip(ATTEMPT, (self.number, self.start_state, self.policy, self.outcome, steps)))


Play = Callable[[int, int], Iterable[Attempt]]  # (first, count) -> attempts first, first + 1, …


def experts_behind(preset: Preset, task: str, source: str) -> list[tuple[str, int]]:
    """Return class and training seed of the experts that a source needs; none for demonstrations.

    ``gaussian_clone`` is what RL started from and lies in the folder of its expert;
    ``diffusion_zero`` is the diffusion expert whose first latent is zero.
    """
    if source in DEMONSTRATORS:
        return []
    algorithm = source.removesuffix(CLONE).removesuffix(ZERO)
    return [(algorithm, seed) for seed in preset.data_seeds(task)]


def expert_folders(preset: Preset, task: str, source: str) -> list[Path]:
    """Return the folders of the policies that take turns; none for demonstrations.

    Raises:
        UserError: an expert is missing, or was trained with other settings than the preset's.
    """
    from diffrl.rl.records import expert_folder, expert_stage  # torch: only for policies

    folders = []
    for algorithm, seed in experts_behind(preset, task, source):
        folder = expert_folder(preset, task, algorithm, seed)
        known = (folder / "policy.safetensors").is_file()
        found = expert_stage(preset, task, algorithm, seed).found
        command = (
            f"python -m diffrl train --task {task} --algorithm {algorithm} "
            f"--preset {preset.name} --seed {seed}"
        )
        if found and not known:
            raise UserError(
                f"Of the {algorithm} expert for {task} in {folder} the records are there, its "
                f"weights are not: `{command} --force` trains it again."
            )
        if not found:
            raise UserError(
                f"There is no {algorithm} expert for {task} in {folder}"
                f"{' of the settings of preset ' + preset.name if known else ''}: run notebook 01, "
                f"or `{command}`."
            )
        folders.append(folder / "clone" if source.endswith(CLONE) else folder)
    return folders


@dataclass(frozen=True)
class Player:
    """Plays the attempts of one data set's plan; the same numbers give the same episodes.

    Args:
        scene: of the task.
        arm: who acts, and how.
        preset: its seeds and the operator's settings.
        folders: of the experts; start state k belongs to expert k mod len(folders).
        threads: of the simulator; they change nothing but the time.
        repeats: attempts from each start state, with other noise each time. Attempt k is number
            k mod repeats of start state k // repeats.
    """

    scene: Scene
    arm: Arm
    preset: Preset
    folders: Sequence[Path] = ()
    threads: int | None = None
    repeats: int = 1

    def __call__(self, first: int, count: int) -> list[Attempt]:
        """Play attempts `first` … `first + count - 1`; fewer where humans recorded no more."""
        if self.arm.source == "human":
            return self._human(first, count)
        attempts = []
        for turn in range(self.repeats):
            numbers = [n for n in range(first, first + count) if n % self.repeats == turn]
            attempts += self._turn(turn, numbers) if numbers else []
        return sorted(attempts, key=lambda attempt: attempt.number)

    def _turn(self, turn: int, numbers: list[int]) -> list[Attempt]:
        """Play attempts, each from another start state, with the noise of one turn."""
        seed, first = self.preset.generation.seed, numbers[0] // self.repeats
        starts = fresh_start_states(self.scene, len(numbers), seed, first)
        if self.arm.source in DEMONSTRATORS:
            return self._operator(numbers, starts, seed + turn)
        owners = [(first + row) % len(self.folders) for row in range(len(numbers))]
        attempts = []
        for which, folder in enumerate(self.folders):
            rows = [row for row, owner in enumerate(owners) if owner == which]
            own = [numbers[row] for row in rows]
            attempts += self._expert(folder, own, starts[rows], seed + turn) if rows else []
        return attempts

    def _human(self, first: int, count: int) -> list[Attempt]:
        from diffrl.data.human import human_demonstrations

        return [
            Attempt(number, episode.start_state, "human", "success", episode)
            for number, episode in enumerate(human_demonstrations(self.scene))
            if first <= number < first + count
        ]

    def _operator(self, numbers: list[int], starts: StartStates, seed: int) -> list[Attempt]:
        from diffrl.demonstrator.episodes import operator_episodes

        config = demonstrations_of(self.preset, self.arm.source)
        episodes = operator_episodes(self.scene, starts, seed, config, self.threads)
        return [
            self._attempt(number, self.arm.source, name, episode, not episode)
            for number, name, (episode, _) in zip(numbers, starts.ids, episodes)
        ]

    def _expert(
        self, folder: Path, numbers: list[int], starts: StartStates, seed: int
    ) -> list[Attempt]:
        import torch

        from diffrl import policy as policies
        from diffrl.rl.rollout import rollout

        torch.set_num_threads(self.preset.rl.torch_threads)  # sums in one order everywhere
        policy = policies.load(folder)
        if self.arm.source.endswith(ZERO):
            policy.latent_scale = 0.0
        trials = rollout(
            policy,
            self.scene,
            starts,
            cast(Mode, self.arm.mode),
            seed,
            threads=self.threads,
            record=True,
        )
        return [
            self._attempt(number, _name(folder), t.start_state, t.episode, t.error)
            for number, t in zip(numbers, trials)
        ]

    def _attempt(
        self, number: int, policy: str, start: str, episode: Episode | None, error: bool
    ) -> Attempt:
        success = episode is not None and episode.success
        outcome: Outcome = "error" if error else "success" if success else "failure"
        if episode is not None:
            episode = replace(episode, source=self.arm.source, policy=policy, attempt=number)
        return Attempt(number, start, policy, outcome, episode)


def demonstrations_of(preset: Preset, source: str) -> OperatorConfig:
    """Return how a preset's operator moves; as "steady" it does so without any tremor."""
    config = preset.demonstrations
    return replace(config, tremor=0.0) if source == "steady" else config


def _name(folder: Path) -> str:
    """ "diffusion-seed0", or "diffusion-seed0-clone"."""
    return f"{folder.parent.name}-clone" if folder.name == "clone" else folder.name
