"""Cache files of compiled models: read back only as they were written.

A file is a magic line, the SHA-256 of what follows, the key of what it was made from, and the data.
A cached model is physics or a picture that nobody checks again, so a file with one changed byte is
refused by name; it is never trusted, and never silently replaced.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from diffrl.base.artifacts import atomic_path, lock, make_folder
from diffrl.base.errors import UserError

_DIGEST = 32  # bytes of a SHA-256


@contextlib.contextmanager
def made_once(path: Path) -> Iterator[bool]:
    """Yield whether a cache file is still to be made; a second process waits for the first."""
    if path.exists():
        yield False
        return
    handle = lock(make_folder(path.parent) / f".{path.name}.lock", busy=None)
    try:
        yield not path.exists()
    finally:
        os.close(handle)


def write_cached(path: Path, magic: bytes, key: bytes, data: bytes) -> None:
    """Write `data`, made from what `key` stands for; whole, or not at all."""
    content = key + data
    with atomic_path(path) as partial:
        partial.write_bytes(magic + hashlib.sha256(content).digest() + content)


def read_cached(path: Path, magic: bytes, key: bytes) -> bytes:
    """Return the data of a file that `write_cached` wrote with the same magic and key.

    Raises:
        UserError: it is damaged, or of another key.
    """
    raw = path.read_bytes()
    start = len(magic) + _DIGEST
    digest, content = raw[len(magic) : start], raw[start:]
    intact = raw.startswith(magic) and hashlib.sha256(content).digest() == digest
    if not intact or not content.startswith(key):
        raise UserError(
            f"The cache file {path} is damaged or not what its name says: delete it, and it is "
            "made again when it is needed."
        )
    return content[len(key) :]
