"""Zip files of texts: a few files in git instead of many, the same texts as the same bytes."""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from diffrl.base.artifacts import atomic_path

NUMBERS = "numbers.zip"  # of figures/<preset>/: the table behind each figure
LARGEST = 64 * 2**20  # bytes of one text; the largest of ours has 5 MiB
UNREADABLE = (  # what a zip raises that is not whole, or a stranger's
    *(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile),
    *(zlib.error, struct.error, RuntimeError),  # the last: it wants a password
)


def write(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts, name → text, atomically; each carries zip's first date, 1980-01-01."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
        for name in sorted(texts):
            member = zipfile.ZipInfo(name)
            bundle.writestr(member, texts[name], zipfile.ZIP_DEFLATED, compresslevel=9)


def read(path: Path) -> dict[str, str]:
    """Read every text, name → text. Raises one of UNREADABLE."""
    with zipfile.ZipFile(path) as bundle:
        return {name: member(bundle, name) for name in bundle.namelist()}


def member(bundle: zipfile.ZipFile, name: str) -> str:
    """Read one text. Raises one of UNREADABLE."""
    with bundle.open(name) as stream:
        return text(stream, name)


def text(stream: IO[bytes], name: str) -> str:
    """Read a text that may be a stranger's: its size is bounded before it takes memory.

    Raises:
        ValueError: it has more than LARGEST bytes, or is no UTF-8.
    """
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{name} holds more than {LARGEST} bytes")
    return data.decode()
