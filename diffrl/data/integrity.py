"""Is a file what it says? Checks that come before anything in it is believed.

Nothing here executes what a file contains: no pickle, no links, no files named by the file.
"""

import errno
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py

from diffrl.base.errors import UserError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SEAL_SIZE = 512  # bytes of the HDF5 user block that holds the seal
CHANGED = (
    "generate or download the file again, or, if you changed it yourself, run `python -m diffrl "
    "reseal` on it"
)
_FOREIGN = {
    b"\x80": "a Python pickle, which could run code and is never loaded",
    b"PK\x03\x04": "a zip archive (perhaps .npz or a torch checkpoint)",
    b"\x93NUMPY": "a numpy array",
}
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # what flock then says
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_MAX_DEPTH = 4  # data/demo_0/final/obs
_MAX_INFLATION = 1100  # deflate cannot compress better than 1 : 1032 …
_HARMLESS = 1 << 22  # bytes; … but chunks that nobody wrote are legal, and all fill value


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong in a file: where, what, and what to do."""

    file: Path
    place: str
    problem: str
    remedy: str = "generate or download the file again"

    def __str__(self) -> str:
        return f"{self.file}: {self.place}: {self.problem}. Remedy: {self.remedy}."


def open_hdf5(path: Path) -> h5py.File:
    """Open a file to read it; on a file system that offers no locks (some NFS), without one."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return h5py.File(path, "r", locking=False)


def seal(path: Path) -> None:
    """Write the seal into `path`'s user block: the SHA-256 of every byte that follows it."""
    with open(path, "r+b") as stream:
        stream.write(_seal_of(path))


def has_seal(path: Path) -> bool:
    """Whether `path` begins with something else than HDF5's own signature (a user block)."""
    with open(path, "rb") as stream:
        return stream.read(len(SIGNATURE)) != SIGNATURE


def check_bytes(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the file before HDF5 opens it: missing, foreign, cut, changed."""
    if not path.is_file():
        remedy = "check the path; `python -m diffrl generate` writes data sets"
        if path.with_name(path.name + ".parts").is_dir():
            remedy = "its generation was interrupted: start `python -m diffrl generate` again"
        yield Finding(path, "file", "there is no such file", remedy)
        return
    with open(path, "rb") as stream:
        head = stream.read(SEAL_SIZE + len(SIGNATURE))
    if head.startswith(SIGNATURE):
        return
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            yield Finding(path, "file", f"it is {what}, no HDF5", "use the HDF5 file")
            return
    if head[SEAL_SIZE:] != SIGNATURE:
        yield Finding(path, "file", "it is cut off, overwritten, or no HDF5 at all")
    elif head[:SEAL_SIZE] != _seal_of(path):
        problem = "its bytes are not those that were written (SHA-256 differs)"
        yield Finding(path, "seal", problem, CHANGED)


def check_structure(file: h5py.File, path: Path) -> Iterator[Finding]:
    """Yield what is unsafe in an open file: links, odd names, types or sizes beyond belief."""
    yield from _check_group(file, path, depth=0)


def own_group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Return the group `name` of an open file.

    Raises:
        UserError: it is a link, or no group.
    """
    place = f"{parent.name.rstrip('/')}/{name}".lstrip("/")
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise UserError(str(Finding(path, place, "it is a link, which is never followed")))
    if not isinstance(parent[name], h5py.Group):
        raise UserError(str(Finding(path, place, "it is an array, not a group")))
    return parent[name]


def find_array(group: h5py.Group, name: str, path: Path) -> h5py.Dataset | None:
    """Return the array `name` ("obs/eef_pos") of an open file, unread; None if it is not there.

    Raises:
        UserError: it is a link, no array of numbers, or claims more than the file holds.
    """
    item = group
    for part in name.split("/"):
        if not isinstance(item, h5py.Group) or part not in item.keys():  # noqa: SIM118 (links, too)
            return None
        place = f"{item.name.rstrip('/')}/{part}".lstrip("/")
        findings = []
        if not isinstance(item.get(part, getlink=True), h5py.HardLink):
            findings = [Finding(path, place, "it is a link, which is never followed")]
        elif isinstance(item := item[part], h5py.Dataset):
            findings = list(_check_dataset(item, path, place))
        for finding in findings:
            raise UserError(str(finding))
    if not isinstance(item, h5py.Dataset):
        raise UserError(str(Finding(path, item.name.lstrip("/"), "it is a group, not an array")))
    if item.dtype.kind not in "iufb":
        raise UserError(str(Finding(path, item.name.lstrip("/"), "it holds text, no numbers")))
    return item


def _seal_of(path: Path) -> bytes:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        stream.seek(SEAL_SIZE)
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    text = f"diffrl data set, format 1, {size} bytes, sha256 {digest.hexdigest()}\n"
    return text.encode().ljust(SEAL_SIZE, b"\n")


def _check_group(group: h5py.Group, path: Path, depth: int) -> Iterator[Finding]:
    yield from _check_attributes(group, path)
    for name in group:
        place = f"{group.name.rstrip('/')}/{name}".lstrip("/")
        if not _NAME.fullmatch(name):
            yield Finding(path, place, f"the name {name!r} is not a plain one")
        elif not isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield Finding(path, place, "it is a link to somewhere else, which is never followed")
        elif isinstance(item := group[name], h5py.Dataset):
            yield from _check_dataset(item, path, place)
        elif not isinstance(item, h5py.Group):
            yield Finding(path, place, "it is neither group nor array")
        elif depth >= _MAX_DEPTH:
            yield Finding(path, place, "the groups are nested too deeply (or in a circle)")
        else:
            yield from _check_group(item, path, depth + 1)


def _check_dataset(data: h5py.Dataset, path: Path, place: str) -> Iterator[Finding]:
    yield from _check_attributes(data, path)
    names = place.startswith("mask/") and h5py.check_string_dtype(data.dtype) is not None
    if names:  # a filter of h5py's own text is a list of names as well as numpy's
        return
    if data.dtype.kind not in "iufbS" or h5py.check_dtype(vlen=data.dtype):
        yield Finding(path, place, f"its type {data.dtype} is no number (objects are not loaded)")
    elif data.external or data.is_virtual:
        yield Finding(path, place, "it takes its values from another file, which is never opened")
    elif data.nbytes > 0 == data.id.get_storage_size():
        yield Finding(path, place, f"it claims {data.nbytes} bytes, but none was ever written")
    elif data.nbytes > _believable(data):
        yield Finding(path, place, f"it claims {data.nbytes} bytes, which the file does not hold")


def _believable(data: h5py.Dataset) -> int:
    """How many bytes an array may have, by what the file stores of it."""
    stored = data.id.get_storage_size()
    return max(stored * _MAX_INFLATION, _HARMLESS) if data.chunks else stored


def _check_attributes(item: h5py.HLObject, path: Path) -> Iterator[Finding]:
    for name in item.attrs:
        dtype = item.attrs.get_id(name).dtype
        if dtype.kind not in "iufbSU" and h5py.check_string_dtype(dtype) is None:
            place = f"{item.name.lstrip('/')}@{name}"
            yield Finding(path, place, f"its type {dtype} is neither number nor text")
