"""From HDF5 files of demonstrations – anybody's – to trajectories.

A data set of ours is read by its own strict reader (seal, checksums). Of every other file only
what is measured is read (`diffrl.quality.recording`); its other contents stay unread.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from diffrl.base.errors import UserError
from diffrl.data import integrity
from diffrl.data.demo import DAMAGE
from diffrl.data.episode import Episode
from diffrl.data.hdf5 import inspect_file
from diffrl.data.integrity import Finding, own_group
from diffrl.quality.description import agreed_rate, successes
from diffrl.quality.recording import Recording, commands, read_recording
from diffrl.quality.trajectory import Trajectory

_DEMO = re.compile(r"demo[_-]?[0-9].*")


def tell_user(line: str) -> None:
    """Print one line beside the results."""
    print(f"Note: {line}", file=sys.stderr)


# -- files -----------------------------------------------------------------------------------------
def read_files(
    paths: list[Path], *, tell: Callable[[str], object] = tell_user, **options: Any
) -> list[Trajectory]:
    """Read several files; `options` are those of `read_trajectories`.

    Files of one name from different folders are different arms and start states, never pooled. The
    same file is read once. With ``skip_bad`` a file without one good episode is left out, with a
    note.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.resolve() in files:
            tell(f"{path} is {files[path.resolve()]}, which is measured already.")
        files.setdefault(path.resolve(), path)
    names = _distinct_names(list(files))
    found: dict[Path, list[Trajectory]] = {}
    refused = None
    for real, path in files.items():
        try:
            found[real] = read_trajectories(path, name=names[real], tell=tell, **options)
        except UserError as error:
            if not options.get("skip_bad"):
                raise
            tell(f"left out: {error}")
            refused = error
    if refused and not found:
        raise refused
    return [t for part in _separate_arms(found, names, tell).values() for t in part]


def _distinct_names(files: list[Path]) -> dict[Path, str]:
    """Folder and stem of each file, with as many folders as it takes to be the only one."""
    names = {}
    for file in files:
        for depth in range(2, len(file.parts) + 1):
            tail = file.parts[-depth:]
            if sum(other.parts[-depth:] == tail for other in files) == 1:
                break
        names[file] = Path(*tail).with_suffix("").as_posix()
    return names


def _separate_arms(
    found: dict[Path, list[Trajectory]], names: dict[Path, str], tell: Callable[[str], object]
) -> dict[Path, list[Trajectory]]:
    """Name the folder in the source wherever another file of the same name has the same arm."""
    arms = {file: {(t.arm, t.task) for t in part} for file, part in found.items()}
    separate = dict(found)
    for file, part in found.items():
        others = [f for f in found if f != file and f.name == file.name and arms[f] & arms[file]]
        if others:
            folder = names[file].rpartition("/")[0]
            separate[file] = [replace(t, source=f"{t.source} ({folder})") for t in part]
            tell(f"{file.name} is in several folders: that of {folder} is an arm of its own.")
    return separate


def read_trajectories(
    path: str | os.PathLike[str],
    *,
    rate: float | None = None,
    source: str | None = None,
    skip_bad: bool = False,
    name: str | None = None,
    tell: Callable[[str], object] = tell_user,
) -> list[Trajectory]:
    """Read every demonstration of an HDF5 file: ours, LIBERO's, its raw collector's, or arrays.

    "Arrays" are groups ``demo*``, at the top or under ``data``, with an end-effector position or a
    Panda's joints, named as in robomimic, LIBERO or plainly.

    Args:
        path: the file.
        rate: control rate [Hz] of a file that does not say its own; it must not contradict it.
        source: replaces what the file says.
        skip_bad: leave out, and tell, episodes that cannot be measured.
        name: of a file that names no source; default: its folder and its stem.
        tell: gets a line for everything that is measured otherwise than a reader would expect.

    Raises:
        UserError: with the file's name, for anything that cannot be measured.
    """
    path = Path(path)
    name = name or Path(*path.resolve().parts[-2:]).with_suffix("").as_posix()
    try:
        ours = _is_ours(path)
        found = _ours(path, name, rate, skip_bad, tell) if ours else None
        found = found or _anybodys(path, name, rate, skip_bad, tell)
    except DAMAGE as error:
        raise UserError(
            f"{path}: cannot be read as HDF5 of demonstrations ({error}). Is the path right, the "
            "file complete?"
        ) from error
    _tell_success(found, path, tell)
    found = _one_rate(found)
    return [replace(t, source=source) for t in found] if source else found


def _is_ours(path: Path) -> bool:
    """Whether it is a data set of ours. Raises UserError when it is no HDF5 file at all."""
    foreign = not path.is_file() or not h5py.is_hdf5(path)
    for finding in integrity.check_bytes(path) if foreign else ():
        raise UserError(str(finding))
    with integrity.open_hdf5(path) as file:
        data = own_group(file, "data", path) if "data" in file else file
        return "diffrl_format" in data.attrs


def _ours(
    path: Path, name: str, rate: float | None, skip_bad: bool, tell: Callable[[str], object]
) -> list[Trajectory]:
    """Read a data set of ours: whole and sound, or with `skip_bad` its sound episodes."""
    found: list[Trajectory] = []
    first_problem: UserError | None = None
    for item in inspect_file(path):
        try:
            if isinstance(item, Finding):
                raise UserError(str(item))
            found.append(_from_ours(item, path, name, len(found), rate))
        except UserError as error:
            if not skip_bad:
                raise
            of_episode = not isinstance(item, Finding) or item.place.startswith("data/")
            tell(f"left out: {error}" if of_episode else str(error))
            first_problem = first_problem or error
    if not found:
        raise first_problem or UserError(f"{path}: holds no demonstrations (data/demo_0, …).")
    return found


def _from_ours(
    episode: Episode, path: Path, name: str, index: int, rate: float | None
) -> Trajectory:
    label = f"{path}, episode {index}"
    found = Trajectory.from_episode(episode, label)
    start = episode.start_state or f"{name}/episode_{index}"
    return replace(found, start_state=start, rate=agreed_rate([], found.rate, rate, label))


def _one_rate(found: list[Trajectory]) -> list[Trajectory]:
    """One rate for a file whose clocks differ by a hair, as those of real time and float32 do."""
    found = [replace(t, rate=_plain(t.rate)) for t in found]
    rates = np.array([t.rate for t in found])
    middle = float(np.median(rates))
    if len(set(rates)) == 1 or np.abs(rates / middle - 1).max() > 0.02:
        return found
    return [replace(t, rate=float(f"{middle:.3g}")) for t in found]


def _plain(rate: float) -> float:
    """20.00004 Hz, of time stamps in float32, is 20 Hz: other files' 20 Hz compare with it."""
    near = float(f"{rate:.4g}")
    return near if abs(rate / near - 1) < 2e-4 else rate


def _tell_success(found: list[Trajectory], path: Path, tell: Callable[[str], object]) -> None:
    count = len(found)
    if failed := sum(t.success is False for t in found):
        tell(f"{path}: {failed} of {count} episodes failed; quality is defined on successes.")
    if unknown := sum(t.success is None for t in found):
        tell(
            f"{path}: it does not tell whether {unknown} of {count} episodes succeeded (no "
            "attribute `success`, no sparse rewards, no telling `dones`); they are measured."
        )


# -- one file that is not ours ---------------------------------------------------------------------
def _anybodys(
    path: Path, name: str, rate: float | None, skip_bad: bool, tell: Callable[[str], object]
) -> list[Trajectory]:
    demos: list[Recording] = []
    first_problem: UserError | None = None
    once = _once(path, tell)
    held = 0  # bytes of them
    with integrity.open_hdf5(path) as file:
        data = own_group(file, "data", path) if "data" in file else file
        keys = sorted(filter(_DEMO.fullmatch, data), key=lambda k: (len(k), k))
        if not keys:
            names = ", ".join(sorted(data)[:5]) or "nothing"
            raise UserError(f"{path}: holds no demonstrations (data/demo_0, …) but {names}.")
        for key in keys:
            try:
                demos.append(read_recording(data, key, path, name, rate, once))
                held += demos[-1].nbytes
            except (*DAMAGE, UserError) as error:
                problem = _named(error, path, key)
                if not skip_bad:
                    raise problem from error
                tell(f"left out: {problem}")
                first_problem = first_problem or problem
            if held > integrity.most_bytes(path):  # packed, or many names of one demonstration
                raise UserError(
                    f"{path}: its demonstrations unfold to more than {held >> 20} MiB, which no "
                    "recording of the file's size does. Store them without compression."
                )
    if not demos and first_problem:
        raise first_problem
    actions, grips = commands([d.actions for d in demos], demos[0].description, path, tell)
    success = successes(
        [d.description.success() for d in demos],
        [d.rewards for d in demos],
        [d.dones for d in demos],
    )
    return [
        replace(demo.trajectory, actions=command, grips=grips, success=succeeded)
        for demo, command, succeeded in zip(demos, actions, success)
    ]


def _once(path: Path, tell: Callable[[str], object]) -> Callable[[str], object]:
    """A `tell` that names the file and says the same of many episodes only once."""
    said = set()

    def speak(line: str) -> None:
        if line not in said:
            said.add(line)
            tell(f"{path}: {line}")

    return speak


def _named(error: Exception, path: Path, key: str) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{path}: {key}: it cannot be read ({error}). --skip-bad leaves it out.")
