"""numba's compiler with a cache that every user can write: `njit` for the whole package.

numba keeps compiled functions beside their source, else in the home folder. A read-only clone used
from a container without a home has neither, and numba then refuses to compile at all. So they are
kept in our cache folder, in a part of it that belongs to this user alone, as numba reads them back
by pickle. A folder that the user gave by ``NUMBA_CACHE_DIR`` comes first.

robosuite compiles with numba too: import this module before it.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types

from diffrl.base.artifacts import cache_dir
from diffrl.base.errors import UserError

__all__ = ["njit", "types"]

Function = TypeVar("Function", bound=Callable[..., Any])

VARIABLE = "NUMBA_CACHE_DIR"  # numba's own: what is started from here finds the same folder


def _folders() -> Iterator[Path]:
    """Where compiled code may be kept, best first."""
    own = f"numba-{os.getuid()}"
    with contextlib.suppress(UserError):  # no home, or one that cannot be written
        yield cache_dir() / own
    yield Path(tempfile.gettempdir()) / f"diffrl-{own}"


def _writable(folder: Path) -> bool:
    """Whether files can be written to `folder`, which is made if need be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _choose() -> bool:
    """Set numba's cache folder; return False where none can be written."""
    if (given := os.environ.get(VARIABLE)) and _writable(Path(given)):
        return True
    for folder in _folders():
        if _writable(folder) and folder.stat().st_uid == os.getuid():
            os.environ[VARIABLE] = str(folder.absolute())
            numba.config.reload_config()
            return True
    return False


_KEPT = _choose()


def njit(**options: Any) -> Callable[[Function], Function]:
    """`numba.njit(cache=True, **options)`; without the cache where nothing can be written."""
    compiler: Callable[[Function], Function] = numba.njit(cache=_KEPT, **options)
    return compiler
