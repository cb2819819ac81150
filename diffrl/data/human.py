"""LIBERO's official human demonstrations: find or download them, complete them, replay a sample.

50 teleoperated demonstrations a task, CC-BY-4.0, on the Hugging Face hub. They are looked for in a
local folder first; the download (extra ``hub``) resumes and is compared with the hub's SHA-256.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffrl.base.artifacts import cache_dir, file_hash, user_path
from diffrl.base.errors import UserError
from diffrl.base.intervals import wilson
from diffrl.data.episode import WIDTHS, Episode
from diffrl.data.hdf5 import iterate_episodes, read_episodes
from diffrl.data.model_xml import body_poses
from diffrl.sim.observation import observe
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import StartStates
from diffrl.sim.tasks import Task, get_task

VARIABLE = "LIBERO_DATASETS"  # the environment variable that names the local folder
REPOSITORY = "yifengzhu-hf/LIBERO-datasets"  # on the hub; LIBERO's own upload


def find_human_file(task: Task, folder: Path | None = None) -> Path:
    """Return the official data set of a task: local, downloaded before, or downloaded now.

    Args:
        task: one of LIBERO's.
        folder: with ``<suite>/<task>_demo.hdf5``; default: the variable LIBERO_DATASETS.

    Raises:
        UserError: it is nowhere, and cannot be downloaded.
    """
    name, path = _name(task), human_file(task, folder)
    if path.is_file():
        return path
    if place := folder or os.environ.get(VARIABLE):
        raise UserError(
            f"{place} holds no {name}: point {VARIABLE} (or --human-demos) to the folder with "
            "LIBERO's official suites, or unset it to download them."
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"The human demonstrations of {task.id} were not found. Point {VARIABLE} (or "
            f"--human-demos) to a folder with {name}, install the download "
            "(`pip install -e '.[hub]'` in the clone), or use the scripted operator (source "
            "'operator')."
        )
    return _download(name)


def human_file(task: Task, folder: Path | None = None) -> Path:
    """Return where the official data set of a task lies, or would lie; nothing is downloaded."""
    name, place = _name(task), folder or os.environ.get(VARIABLE)
    if not place:
        return _downloads() / name
    whole, flat = user_path(place) / name, user_path(place) / Path(name).name
    return flat if flat.is_file() and not whole.is_file() else whole


def _name(task: Task) -> str:
    return f"{task.suite}/{task.name}_demo.hdf5"


def _downloads() -> Path:
    return cache_dir() / "human"


def _download(name: str) -> Path:
    """Fetch one file of the hub's data set into the cache; continue a broken download."""
    from huggingface_hub import HfApi, hf_hub_download

    target = _downloads()
    try:
        (entry,) = HfApi().get_paths_info(REPOSITORY, [name], repo_type="dataset")
        path = Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", local_dir=target))
    except Exception as error:  # network, disk and hub errors share no base class
        raise UserError(
            f"{name} could not be downloaded from {REPOSITORY} ({type(error).__name__}: {error}). "
            f"Start again to resume, or download it by hand and point {VARIABLE} to its folder."
        ) from error
    if (large := getattr(entry, "lfs", None)) and file_hash(path) != large.sha256:
        path.unlink()
        raise UserError(
            f"{path} arrived damaged (its SHA-256 is not the hub's) and was removed: start again."
        )
    return path


def human_demonstrations(
    scene: Scene, count: int | None = None, folder: Path | None = None
) -> list[Episode]:
    """Return the first `count` (default: all) human demonstrations of a scene's task, completed.

    Raises:
        UserError: they are not here, are fewer, damaged, or of another task or LIBERO version.
    """
    path = find_human_file(scene.task, folder)
    episodes = read_episodes(path)
    if count is not None and len(episodes) < count:
        raise UserError(f"{path} holds {len(episodes)} demonstrations, {count} were asked for.")
    return [
        replace(complete(episode, scene, path), start_state=f"human/{index}", attempt=index)
        for index, episode in enumerate(episodes[:count])
    ]


def complete(episode: Episode, scene: Scene, path: Path) -> Episode:
    """Return an official episode with its fixtures' poses and observations of its own states.

    The poses come from its ``model_file``; observations are recomputed, as official files store
    those of the following step.

    Raises:
        UserError: it is another task's, or its model is not the one of this LIBERO version.
    """
    width = episode.states.shape[1]
    if episode.task != scene.task.id or width != scene.state_size:
        raise UserError(
            f"{path} holds {episode.task} with {width} numbers a state, not {scene.task.id} with "
            f"{scene.state_size}: use the official file of this task."
        )
    poses = body_poses(episode.model_file) if scene.fixture_names else {}
    bodies = [scene.meta["fixtures"][name] for name in scene.fixture_names]
    if missing := [body for body in bodies if body not in poses]:
        raise UserError(
            f"{path}: the model_file of an episode names no body {missing[0]!r}, which "
            f"{scene.task.id} has: use the official file of this task."
        )
    fixtures = np.array([poses[body] for body in bodies]).reshape(-1, 7)
    seen = observe(scene, episode.states, fixtures)
    observations = {name: getattr(seen, name) for name in WIDTHS}
    return replace(episode, fixtures=fixtures, observations=observations, model_file="")


def completed(path: Path) -> Iterator[Episode]:
    """Yield a data set's episodes, those of official and raw files completed.

    Raises:
        UserError: the file is not sound, or its task is not LIBERO's.
    """
    for episode in iterate_episodes(path, images=False):
        libero_task(episode, path)
        if "object_pos" not in episode.observations:  # ours hold the objects' poses
            episode = complete(episode, load_scene(episode.task), path)
        yield episode


def libero_task(episode: Episode, path: Path) -> Task:
    """Return the LIBERO task of an episode that `path` holds.

    Raises:
        UserError: it is no task of LIBERO's, so nothing can draw or simulate its states.
    """
    try:
        return get_task(episode.task)
    except UserError as error:
        raise UserError(
            f"{path} is of no LIBERO task, so its states cannot be drawn: {error} Name data sets "
            "of diffrl's or of LIBERO's; `python -m diffrl quality` measures other files."
        ) from error


# -- replay ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Replay:
    """What recorded actions do when this simulator replays them: successes and drift."""

    successes: int
    trials: int
    drift: np.ndarray  # (trials,) m, median distance of the hand from the recorded path

    def __str__(self) -> str:
        low, high = wilson(self.successes, self.trials)
        return (
            f"{self.successes}/{self.trials} replayed episodes succeed ({low:.0%}-{high:.0%}); the "
            f"hand is {1000 * np.median(self.drift):.2g} mm off the recorded path (median)"
        )


def replay(scene: Scene, episodes: list[Episode], threads: int | None = None) -> Replay:
    """Execute recorded actions from the recorded first states, all side by side.

    Success is LIBERO's goal at any step of the recording's length, as in the evaluation.
    """
    n, longest = len(episodes), max(episode.length for episode in episodes)
    starts = StartStates(
        scene.task.id,
        tuple(str(index) for index in range(n)),
        np.stack([episode.states[0] for episode in episodes]),
        np.stack([episode.fixtures for episode in episodes]),
    )
    paths: list[list[np.ndarray]] = [[] for _ in episodes]
    lengths, success = np.array([episode.length for episode in episodes]), np.zeros(n, bool)
    with Simulator(scene, n, threads=threads, max_steps=longest) as simulator:
        simulator.reset(starts, settle=0)
        for t in range(longest):
            actions = np.zeros((n, 7))
            for row, episode in enumerate(episodes):
                if t < episode.length:
                    actions[row] = episode.actions[t]
                    if not simulator.done[row]:
                        paths[row].append(simulator.observation.eef_pos[row].copy())
            success |= simulator.step(actions).success & (t < lengths)
    recorded = [observe(scene, e.states, e.fixtures).eef_pos for e in episodes]
    drift = [
        np.median(np.linalg.norm(np.array(path) - truth[: len(path)], axis=1))
        for path, truth in zip(paths, recorded)
    ]
    return Replay(int(success.sum()), n, np.array(drift))
