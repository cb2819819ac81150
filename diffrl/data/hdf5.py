"""Data sets in LIBERO's and robomimic's HDF5: written safely, read suspiciously.

A data set of ours is what LIBERO's own scripts write plus robomimic's ``mask``, a checksum per
episode and a seal over the whole file (see `diffrl.data.demo`, `diffrl.data.integrity`). The same
reader opens official files and those of LIBERO's raw collector.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from diffrl.base.artifacts import atomic_path, lock, make_folder
from diffrl.base.errors import UserError
from diffrl.data import demo, integrity
from diffrl.data.demo import DAMAGE
from diffrl.data.episode import IMAGES, Episode
from diffrl.data.integrity import Finding

FORMAT = 1  # of our additions to the layout
VALID_EVERY = 10  # one demonstration in ten is kept for validation (robomimic's share)
_LIBVER = ("earliest", "v110")  # old objects carry no time stamps: the same data are the same bytes
_DEMO = re.compile(r"demo_(0|[1-9][0-9]*)")
_TASK_PLACES = ("data@problem_info", "data@bddl_file_name")
_AS_IS = "write it as LIBERO does; `python -m diffrl quality` measures files without it"
_COUNTED = ("num_demos", "total", "diffrl_format")  # attributes that writing sets by itself


# -- writing ---------------------------------------------------------------------------------------
def write_episodes(path: Path, episodes: Iterable[Episode], attrs: Mapping[str, Any]) -> None:
    """Write one data set atomically: it appears whole and sealed, or not at all.

    Args:
        path: the HDF5 file.
        episodes: in order; each is validated. They may come one by one.
        attrs: attributes of the ``data`` group (`diffrl.data.libero_attributes`).

    Raises:
        UserError: an episode breaks a rule.
    """
    with atomic_path(path) as temporary:
        private = {"locking": False}  # nobody else knows its name, and some NFS has no locks
        size = integrity.SEAL_SIZE
        with h5py.File(temporary, "w", libver=_LIBVER, userblock_size=size, **private) as file:
            data, successes, total = file.create_group("data"), [], 0
            for index, episode in enumerate(episodes):
                demo.write_demo(data.create_group(f"demo_{index}"), episode.validate())
                successes.append(episode.success)
                total += episode.length
            counted = dict(zip(_COUNTED, (len(successes), total, FORMAT), strict=True))
            for key, value in sorted({**attrs, **counted}.items()):
                data.attrs[key] = value
            for key, chosen in _masks(np.array(successes, bool)).items():
                names = [f"demo_{index}" for index in np.flatnonzero(chosen)]
                file[f"mask/{key}"] = np.array(names, dtype="S")
        integrity.seal(temporary)


def _masks(success: np.ndarray) -> dict[str, np.ndarray]:
    """robomimic's filters: every tenth episode validates (the last one of fewer than ten)."""
    valid = np.arange(1, len(success) + 1) % VALID_EVERY == 0
    if 1 < len(success) < VALID_EVERY:
        valid[-1] = True
    return {"train": ~valid, "valid": valid, "success": success}


class EpisodeWriter:
    """Appends episodes to one data set; each append is a transaction.

    An appended episode is a small sealed data set in ``<file>.parts/``, written aside, flushed to
    disk and renamed. `close` assembles the parts, in order, into the file – again aside and
    renamed – and removes them. So a kill at any moment leaves whole episodes only, the next writer
    counts them and goes on, and the file's bytes depend on its episodes alone.

    Args:
        path: the HDF5 file.
        task: id of the only task that its episodes may have.
        attrs: attributes of the ``data`` group; those of a file that is continued must be the same.
        clear: removes what is not to be continued. It is called when no other process can write.

    Raises:
        UserError: another process writes it, it was begun with other settings, or is damaged.
    """

    def __init__(
        self,
        path: Path,
        task: str,
        attrs: Mapping[str, Any],
        clear: Callable[[], object] = lambda: None,
    ):
        self.path, self.task, self.attrs = Path(path), task, dict(attrs)
        self._folder = self.path.with_name(self.path.name + ".parts")
        busy = f"{self.path} is being written by another process: wait for it, or stop it."
        beside = make_folder(self.path.parent) / f".{self.path.name}.lock"  # it is never removed
        self._lock = lock(beside, busy)  # a kill releases it
        try:
            clear()
            assembled = iterate_episodes(self.path) if self.path.exists() else ()
            self._known = dict(enumerate(assembled))  # index -> episode, as far as it was seen here
            self._count = self._recover(len(self._known))
        except BaseException:
            os.close(self._lock)
            raise

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "EpisodeWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        os.close(self._lock)

    def append(self, episode: Episode) -> None:
        """Commit one episode.

        Raises:
            UserError: it breaks a rule, or belongs to another task.
        """
        if episode.task != self.task:
            raise UserError(
                f"An episode of {episode.task} cannot be stored in {self.path}, which holds "
                f"{self.task}: write one file per task."
            )
        write_episodes(self._part(self._count), [episode], self.attrs)
        self._known[self._count] = episode
        self._count += 1

    def close(self) -> None:
        """Assemble the file from what was committed; without new episodes it stays as it is."""
        if self._parts():
            write_episodes(self.path, map(self._episode, range(self._count)), self.attrs)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _episode(self, index: int) -> Episode:
        if index not in self._known:
            self._known[index] = read_episodes(self._part(index), images=True)[0]
        return self._known[index]

    def _part(self, index: int) -> Path:
        return self._folder / f"{index:06d}.hdf5"

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.hdf5"))

    def _recover(self, assembled: int) -> int:
        """Remove what a kill left half done; return the number of committed episodes."""
        for stray in (*self._folder.glob(".*.tmp.hdf5"), *self._strays()):
            stray.unlink()
        for part in self._parts():
            if int(part.stem) < assembled:  # killed after assembly, before the removal
                part.unlink()
        parts = self._parts()
        if parts != [self._part(assembled + i) for i in range(len(parts))]:
            raise UserError(
                f"{self._folder}: an episode is missing between {parts[0].name} and "
                f"{parts[-1].name}. Delete the folder and generate again."
            )
        for begun in [self.path][:assembled] + parts:
            self._compare(begun)
        return assembled + len(parts)

    def _strays(self) -> Iterator[Path]:
        return self.path.parent.glob(f".{self.path.stem}-*.tmp{self.path.suffix}")

    def _compare(self, begun: Path) -> None:
        before = read_attributes(begun)
        for key in sorted(before.keys() | self.attrs.keys()):
            if before.get(key) != self.attrs.get(key):
                raise UserError(
                    f"{begun} was begun with other settings (the attribute {key} differs): delete "
                    "it, or choose another folder, and generate again."
                )


# -- reading ---------------------------------------------------------------------------------------
def read_episodes(path: Path, images: bool = False) -> list[Episode]:
    """Return all episodes of a data set: ours, LIBERO's official layout, or its raw collector's.

    Official files hold no final state (L = T) and observe one step late: row t of their ``obs``
    was taken *after* action t. Where that matters, recompute observations from ``states``.
    Collectors recorded actions before the controller clipped them; they are clipped here.

    Args:
        path: the HDF5 file.
        images: whether to keep stored frames; they take 50 kB a step and camera at 128².

    Raises:
        UserError: the file is not whole, not safe or not consistent: file, place and remedy.
    """
    return list(iterate_episodes(path, images))


def iterate_episodes(path: Path, images: bool = True) -> Iterator[Episode]:
    """Yield the episodes of a data set one by one; otherwise like `read_episodes`."""
    for item in inspect_file(Path(path)):
        if isinstance(item, Finding):
            raise UserError(str(item))
        if not images:
            for name in IMAGES:
                item.observations.pop(name, None)
        yield item


def read_attributes(path: Path) -> dict[str, Any]:
    """Return what a data set says of its task and origin: the attributes of its ``data`` group.

    Raises:
        UserError: the file is not safe to open.
    """
    for finding in integrity.check_bytes(Path(path)):
        raise UserError(str(finding))
    try:
        with integrity.open_hdf5(path) as file:
            attrs = integrity.attributes(integrity.own_group(file, "data", path), path)
    except DAMAGE as error:
        raise UserError(f"{path}: the attributes of data cannot be read ({error}).") from error
    return {key: value for key, value in attrs.items() if key not in _COUNTED}


def count_episodes(path: Path) -> int:
    """Return how many episodes a data set holds; only their names are looked at, and no checksum.

    Raises:
        UserError: the file cannot be opened, or has no group ``data``.
    """
    try:
        with integrity.open_hdf5(path) as file:
            return len(integrity.own_group(file, "data", path))
    except DAMAGE as error:
        raise UserError(f"{path}: its episodes cannot be counted ({error}).") from error


def validate_file(path: Path) -> list[Finding]:
    """Return everything that is wrong with a data set; an empty list means that it is sound."""
    return [item for item in inspect_file(Path(path)) if isinstance(item, Finding)]


def inspect_file(path: Path) -> Iterator[Finding | Episode]:
    """Yield what is wrong as findings, and what is right as episodes."""
    findings = list(integrity.check_bytes(path))
    yield from findings
    if any(finding.place == "file" for finding in findings):
        return
    try:
        with integrity.open_hdf5(path) as file:
            if unsafe := list(integrity.check_structure(file, path)):
                yield from unsafe
            else:
                yield from _inspect_data(file, path)
    except DAMAGE as error:
        yield Finding(path, "file", f"HDF5 cannot read it ({error})")


def _inspect_data(file: h5py.File, path: Path) -> Iterator[Finding | Episode]:
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        yield Finding(path, "data", "the group is missing", "use a LIBERO or diffrl data set")
        return
    kind = _kind(path, data)
    findings = list(_check_top(file, path, kind))
    yield from findings
    names = sorted(data, key=lambda name: (len(name), name))
    if kind == "diffrl" and names != [f"demo_{index}" for index in range(len(names))]:
        yield Finding(path, "data", "it does not hold demo_0, demo_1, … gapless")
    elif odd := [name for name in names if not _DEMO.fullmatch(name)]:  # others leave demos out
        yield Finding(path, f"data/{odd[0]}", "it is not named demo_<number>")
    elif not names:
        yield Finding(path, "data", "it holds no episodes demo_0, demo_1, …")
    if any(finding.place in _TASK_PLACES for finding in findings):
        return  # without them no episode has a task
    total = models = 0
    for name in names:
        for item in _inspect_demo(path, data[name], kind):
            total += item.length if isinstance(item, Episode) else 0
            models += len(item.model_file) if isinstance(item, Episode) else 0
            yield item
        if models > integrity.most_bytes(path):  # many episodes could name one long text
            yield Finding(path, f"data/{name}@model_file", "the models take too much memory")
            return
    if data.attrs.get("total", total) != total:
        said = data.attrs["total"]
        yield Finding(path, "data@total", f"it says {said} steps, the sound episodes have {total}")


def _kind(path: Path, data: h5py.Group) -> str:
    if integrity.has_seal(path) or "diffrl_format" in data.attrs:
        return "diffrl"
    observed = any("obs" in demo for demo in data.values() if isinstance(demo, h5py.Group))
    return "libero" if observed or "env_args" in data.attrs else "collector"


def _check_top(file: h5py.File, path: Path, kind: str) -> Iterator[Finding]:
    """Yield what is wrong outside the episodes: top-level keys, masks, attributes of ``data``."""
    attrs, masks = file["data"].attrs, file.get("mask", {})
    if kind == "diffrl" and (not integrity.has_seal(path) or attrs.get("diffrl_format") != FORMAT):
        yield Finding(path, "seal", f"it is no sealed data set of format {FORMAT}")
    expected = {"diffrl": ["data", "mask"], "libero": ["data"], "collector": ["data"]}[kind]
    if sorted(set(file) - ({"mask"} if kind == "libero" else set())) != expected:
        yield Finding(path, "file", f"it holds {sorted(file)} instead of {expected}")
    if kind == "diffrl" and set(masks) != {"train", "valid", "success"}:
        yield Finding(path, "mask", f"it holds {sorted(masks)}, not success, train and valid")
    for name in masks:
        mask = masks[name]
        array = isinstance(mask, h5py.Dataset)
        if not array or h5py.check_string_dtype(mask.dtype) is None or mask.ndim != 1:
            yield Finding(path, f"mask/{name}", "it is no list of names of episodes")
            continue
        listed = {entry.decode(errors="replace") for entry in mask[()].tolist()}
        if unknown := sorted(listed - set(file["data"])):
            yield Finding(path, f"mask/{name}", f"it names {unknown[0]!r}, which does not exist")
    found = len(file["data"])
    if "num_demos" not in attrs:
        yield Finding(path, "data@num_demos", f"it is missing; there are {found} episodes", _AS_IS)
    elif attrs["num_demos"] != found:
        said = attrs["num_demos"]
        yield Finding(path, "data@num_demos", f"it says {said} episodes, there are {found}")
    for name in ("problem_info", "env_info" if kind == "collector" else "env_args"):
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(json.loads(attrs.get(name)), dict):
                continue
        yield Finding(path, f"data@{name}", "it is missing, or no JSON object", _AS_IS)
    bddl = attrs.get("bddl_file_name")
    if not isinstance(bddl, str) or ".." in PurePosixPath(bddl).parts:
        what = "it is missing" if bddl is None else f"{bddl!r} is no plain name of a task file"
        yield Finding(path, "data@bddl_file_name", what, _AS_IS)


def _inspect_demo(path: Path, group: h5py.Group, kind: str) -> Iterator[Finding | Episode]:
    place = group.name.lstrip("/")
    try:
        problems = list(demo.key_problems(group, kind))
        if not problems:
            episode = demo.read_demo(group, kind)
            problems = list(episode.problems()) or [
                *episode.value_problems(),
                *demo.value_problems(group, episode, kind),
            ]
    except (*DAMAGE, UserError) as error:
        problems = [("", f"it cannot be read ({error})")]
    yield from (Finding(path, f"{place}/{key}".rstrip("/"), what) for key, what in problems)
    if not problems:
        yield episode
