"""Is a file what it says? What is checked before anything in the file is used.

Nothing here executes what a file contains: no pickle, no links, no files named by the file.
"""

import errno
import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
_MAX_UNFOLDING = 64  # bytes in memory for each byte of a file: no recording compresses so well …
_SMALL = 1 << 26  # bytes; … unless it is small
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 6: "scaleoffset", 32000: "lzf"}  # by number
_GZIP, _SCALEOFFSET = 1, 6
_COMPRESSORS = {_GZIP, 32000}  # of what shrinks streams of bytes, a chunk needs one
_HEADERS = 64  # bytes that filters add to a chunk, and some more
_MAX_NAMES, _LONGEST_NAME = 100_000, 255  # of a mask, and bytes of one
_MAX_ATTRIBUTES = 100  # of one object; ours and LIBERO's have at most ten


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
    """Yield what is unsafe in an open file: links, odd names, types or sizes beyond belief.

    Nothing of an array is read before its size in memory is known and believable.
    """
    walk = _Walk(path)
    yield from _check_group(file, walk, depth=0)
    size = path.stat().st_size
    if walk.stored > size:
        yield Finding(path, "file", f"its arrays store {walk.stored} bytes, more than it has")
    elif walk.claimed > most_bytes(path):
        claim = f"its arrays claim {walk.claimed} bytes in memory, and it has {size}"
        yield Finding(path, "file", claim, "store the arrays without compression")


def most_bytes(path: Path) -> int:
    """Return how many bytes in memory a file may unfold to."""
    return max(_SMALL, _MAX_UNFOLDING * path.stat().st_size)


def address(item: h5py.HLObject) -> int:
    """Return where in its file an object lies; two names of one object have the same address."""
    place: int = h5py.h5o.get_info(item.id).addr
    return place


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


@dataclass
class _Walk:
    """What was met on the way through a file: objects, and the bytes of its arrays."""

    path: Path
    met: set[int] = field(default_factory=set)
    claimed: int = 0
    stored: int = 0


def _check_group(group: h5py.Group, walk: _Walk, depth: int) -> Iterator[Finding]:
    path = walk.path
    yield from _check_attributes(group, path)
    for name in group:
        place = f"{group.name.rstrip('/')}/{name}".lstrip("/")
        if not _NAME.fullmatch(name):
            yield Finding(path, place, f"the name {name!r} is not a plain one")
        elif not isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield Finding(path, place, "it is a link to somewhere else, which is never followed")
        elif (at := address(item := group[name])) in walk.met:  # few names can make many paths
            yield Finding(path, place, "it is another name of something that has one already")
        elif isinstance(item, h5py.Dataset):
            walk.met.add(at)
            walk.claimed += _claim(item)
            walk.stored += item.id.get_storage_size()
            yield from _check_dataset(item, path, place)
        elif not isinstance(item, h5py.Group):
            yield Finding(path, place, "it is neither group nor array")
        elif depth >= _MAX_DEPTH:
            yield Finding(path, place, "the groups are nested too deeply (or in a circle)")
        else:
            walk.met.add(at)
            yield from _check_group(item, walk, depth + 1)


def _check_dataset(data: h5py.Dataset, path: Path, place: str) -> Iterator[Finding]:
    yield from _check_attributes(data, path)
    names = place.startswith("mask/") and h5py.check_string_dtype(data.dtype) is not None
    plain = data.dtype.kind in "iufbS" and not h5py.check_dtype(vlen=data.dtype)
    claim, stored = _claim(data), min(data.id.get_storage_size(), path.stat().st_size)
    if not plain and not names:  # a filter of h5py's own text is a list of names as well as numpy's
        yield Finding(path, place, f"its type {data.dtype} is no number (objects are not loaded)")
    elif data.external or data.is_virtual:
        yield Finding(path, place, "it takes its values from another file, which is never opened")
    elif claim > 0 == stored:
        yield Finding(path, place, f"it claims {claim} bytes, but none was ever written")
    elif claim > _believable(stored, data.chunks is not None):
        yield Finding(path, place, f"it claims {claim} bytes, which the file does not hold")
    elif data.chunks and (problem := _chunk_problem(data)):
        yield Finding(path, place, problem, "pack it again: h5repack -f SHUF -f GZIP=4")
    elif names and (problem := _names_problem(data)):
        yield Finding(path, place, problem)


def _claim(data: h5py.Dataset) -> int:
    """How many bytes an array has in memory; `nbytes` of an absurd shape would wrap around."""
    if data.shape is None:
        return 0
    return math.prod(data.shape) * data.dtype.itemsize


def _believable(stored: int, packed: bool) -> int:
    """How many bytes an array may have, by what the file stores of it."""
    if not packed:
        return stored
    return max(_HARMLESS, min(stored * _MAX_INFLATION, max(_SMALL, stored * _MAX_UNFOLDING)))


def _chunk_problem(data: h5py.Dataset) -> str:
    """Why a chunk could take more memory than the array; "" where none could."""
    size = math.prod(data.chunks) * data.dtype.itemsize
    if size > max(_HARMLESS, _claim(data)):
        return f"one of its chunks claims {size} bytes, more than the whole array"
    plist = data.id.get_create_plist()
    settings = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    filters = [number for number, *_ in settings]
    if foreign := [number for number in filters if number not in _FILTERS]:
        return f"its filter number {foreign[0]} is none of {', '.join(_FILTERS.values())}"
    if len(set(filters)) < len(filters) or len(_COMPRESSORS.intersection(filters)) > 1:
        return "it is packed more than once"
    for number, _, values, _ in settings:  # scaleoffset unfolds to so many elements of such a size
        if number == _SCALEOFFSET and values[2] * values[4] != size:
            return f"its filter unfolds chunks of {size} bytes to {values[2] * values[4]}"
    large = _large_chunks(data, size) if filters else []
    most = size + size // 500 + _HEADERS  # noise becomes longer by deflate, but hardly
    if any(stored > most for _, stored, _ in large):
        return f"a chunk of {size} bytes is packed into more than that"
    if _GZIP in filters:
        bit = 1 << filters.index(_GZIP)
        for offset, _, skipped in large:
            if not skipped & bit and _unfolds_beyond(most, data.id.read_direct_chunk(offset)[1]):
                return f"a chunk unfolds to more than its {size} bytes"
    return ""


def _large_chunks(data: h5py.Dataset, size: int) -> list[tuple[tuple[int, ...], int, int]]:
    """(offset, bytes in the file, filters left out) of chunks that deflate could make too large."""
    found: list[tuple[tuple[int, ...], int, int]] = []

    def look(chunk: Any) -> None:
        if chunk.size * _MAX_INFLATION > max(_SMALL, size):
            found.append((chunk.chunk_offset, chunk.size, chunk.filter_mask))

    data.id.chunk_iter(look)
    return found


def _unfolds_beyond(size: int, packed: bytes) -> bool:
    """Whether a deflate stream is longer than `size`; HDF5 would unfold all of it to find out."""
    try:
        unfolded = zlib.decompressobj().decompress(packed, size + 1)
    except zlib.error:
        return False  # HDF5 stops there, too, and says so
    return len(unfolded) > size


def _names_problem(data: h5py.Dataset) -> str:
    """Why a mask is no list of names; "" where it is one. Long texts are met one by one."""
    if (count := math.prod(data.shape or ())) > _MAX_NAMES:
        return f"it lists {count} names, more than {_MAX_NAMES}"
    longest = data.dtype.itemsize
    if data.dtype.kind == "O" and data.ndim == 1:  # texts of any length
        longest = 0
        for row in range(len(data)):
            if (longest := max(longest, len(data[row]))) > _LONGEST_NAME:
                break
    return f"it holds a name longer than {_LONGEST_NAME} bytes" if longest > _LONGEST_NAME else ""


def text_or_number(item: h5py.HLObject, name: str) -> bool:
    """Whether an attribute is plain, so that it can be read: numbers or one text."""
    kept = item.attrs.get_id(name)
    several = math.prod(kept.shape or ()) > 1
    if h5py.check_string_dtype(kept.dtype) is not None and kept.dtype.kind == "O":
        return not several  # many could all be the same long text
    return kept.dtype.kind in "iufbSU"


def attributes(group: h5py.Group, path: Path) -> dict[str, Any]:
    """Return the attributes of a group of an open file.

    Raises:
        UserError: one is no plain text or number, or they take more memory than the file may.
    """
    for finding in _check_attributes(group, path):
        raise UserError(str(finding))
    found, held = {}, 0
    for name in group.attrs:  # all of them could be the same long text
        found[name] = group.attrs[name]
        held += len(found[name]) if isinstance(found[name], str | bytes) else 0
        if held > most_bytes(path):
            raise UserError(f"{path}: its attributes take more memory than a file of its size may.")
    return found


def _check_attributes(item: h5py.HLObject, path: Path) -> Iterator[Finding]:
    if len(item.attrs) > _MAX_ATTRIBUTES:
        count = f"it has {len(item.attrs)} attributes, more than {_MAX_ATTRIBUTES}"
        yield Finding(path, item.name.lstrip("/") or "file", count)
        return
    for name in item.attrs:
        if not text_or_number(item, name):
            dtype, place = item.attrs.get_id(name).dtype, f"{item.name.lstrip('/')}@{name}"
            yield Finding(path, place, f"its type {dtype} is neither number nor text")
