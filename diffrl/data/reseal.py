"""python -m diffrl reseal FILE …: seal data sets again that their owner changed on purpose."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import tyro

from diffrl.base.artifacts import atomic_path
from diffrl.base.errors import UserError
from diffrl.data import demo, integrity
from diffrl.data.demo import DAMAGE
from diffrl.data.hdf5 import validate_file


def reseal(path: Path) -> list[str]:
    """Give a changed data set of ours its checksums, counts and seal anew; return what changed.

    The file is replaced as a whole, and only by one that `validate_file` finds sound. Nothing is
    invented: an episode that breaks a rule has to be repaired or removed by its owner.

    Args:
        path: a data set that diffrl wrote.

    Returns:
        A line per change; empty if the seal was right already, and then the file is untouched.

    Raises:
        UserError: it is no sealed data set, is not safe to open, or is not sound; it is untouched.
    """
    path = Path(path)
    findings = list(integrity.check_bytes(path))
    if any(finding.place == "file" for finding in findings):
        raise UserError(str(findings[0]))
    if not integrity.has_seal(path):
        raise UserError(
            f"{path} has no seal: only data sets that diffrl wrote have one, and other files need "
            "none. If another tool has rewritten it, read its episodes and write them anew "
            "(diffrl.data.hdf5.write_episodes)."
        )
    if not findings:
        _refuse(path, path)
        return []
    with atomic_path(path) as temporary:
        shutil.copyfile(path, temporary)
        changes = _account(temporary, path)
        integrity.seal(temporary)
        _refuse(temporary, path)
    return changes or ["no episode: attributes or the file's own structure"]


def _refuse(file: Path, path: Path) -> None:
    """Refuse a `file` that is not sound; it stands for `path`."""
    if findings := validate_file(file):
        first = str(findings[0]).replace(str(file), str(path))
        more = f" ({len(findings) - 1} more; `validate` lists them)" if len(findings) > 1 else ""
        raise UserError(f"It cannot be sealed, and is left as it is. {first}{more}")


def _account(file: Path, path: Path) -> list[str]:
    """Write into a copy what follows from its episodes; return what was different."""
    try:
        with h5py.File(file, "r") as opened:  # nothing is written to what is not safe
            for finding in integrity.check_structure(opened, path):
                raise UserError(f"It cannot be sealed, and is left as it is. {finding}")
        with h5py.File(file, "r+") as opened:
            return list(_correct(opened))
    except DAMAGE as error:
        raise UserError(f"{path} cannot be sealed: HDF5 cannot read it ({error}).") from error


def _correct(file: h5py.File) -> Iterator[str]:
    demos, total = file["data"], 0
    for name in sorted(demos, key=lambda name: (len(name), name)):
        group = demos[name]
        if list(demo.key_problems(group, "diffrl")):
            continue  # validation says what
        episode = demo.read_demo(group, "diffrl")
        total += episode.length
        if group.attrs["checksum"] != episode.checksum():
            group.attrs["checksum"] = episode.checksum()
            yield f"{name}: its content"
        yield from _set(group, "num_samples", episode.length)
        if not np.array_equal(group.attrs["init_state"], episode.states[0]):
            group.attrs["init_state"] = episode.states[0]
    yield from _set(demos, "num_demos", len(demos))
    yield from _set(demos, "total", total)
    for name, mask in file.get("mask", {}).items():
        listed = mask[()].tolist()
        kept = [entry for entry in listed if entry.decode(errors="replace") in demos]
        if len(kept) < len(listed):
            del file[f"mask/{name}"]
            file[f"mask/{name}"] = np.array(kept, dtype="S")
            yield f"mask/{name}: {len(kept)} episodes in place of {len(listed)}"


def _set(group: h5py.Group, name: str, value: int) -> Iterator[str]:
    before = group.attrs.get(name)
    if before != value:
        group.attrs[name] = value
        yield f"{group.name.lstrip('/')}@{name}: {value} in place of {before}"


def main(paths: tyro.conf.Positional[tuple[Path, ...]]) -> int:
    """Seal data sets that you changed on purpose, and print what has changed in them.

    All other commands refuse a file whose bytes are not those that diffrl wrote. Exports and VLAs
    that were made from the old file are stale; the commands that made them make them again.

    Args:
        paths: HDF5 data sets that diffrl wrote.
    """
    if not paths:
        raise UserError("No file given: name the HDF5 data sets that you changed.")
    refused = 0
    for path in paths:
        try:
            changes = reseal(path)
        except UserError as error:
            refused += 1
            print(f"{path}: not sealed. {error}")
            continue
        print(f"{path}: " + ("sealed again" if changes else "its seal is right, nothing is done"))
        for change in changes:
            print(f"  changed: {change}")
    return 1 if refused else 0
