"""The exceptions that are meant for the person at the keyboard, and what raises them everywhere."""

import errno
import operator
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any


class UserError(Exception):
    """Something the user can fix: the message names the file or setting and the remedy.

    The command line prints the message as one paragraph, without a traceback, and exits with 1.
    """


class TrainingError(UserError):
    """Learning itself went wrong with these settings, and would again: a result, too."""


def bounded(settings: Mapping[str, Any], limits: Mapping[str, tuple[int, int]]) -> None:
    """Check the sizes in a description that may be a stranger's, before anything of them is made.

    Args:
        settings: by name; names without a limit are left alone, and those that are missing, too.
        limits: the least and the largest number of each name.

    Raises:
        ValueError: one is no whole number within its limits.
    """
    for name, (least, most) in limits.items():
        value = settings.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            told = repr(value)[:40]
            raise ValueError(f"{name} is {told}, where {least} to {most} is possible")


def whole(value: Any, name: str, least: int = 1) -> int:
    """Return `value`, a whole number that is at least `least`, as an int.

    Raises:
        UserError: it is smaller, or no whole number (5.0 and True are none); the message begins
            with `name`.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UserError(f"{name} is {value!r}: give a whole number that is at least {least}.")
    return number


def refuse_options(given: Mapping[str, Any], why: str) -> None:
    """Refuse options of a command that would be ignored.

    Args:
        given: what each option was set to, by its name ("--seed"); None, False, "" and () are what
            an option is that nobody gave.
        why: the rest of the message, after "--seed ".

    Raises:
        UserError: one was given; the message begins with its name.
    """
    for name, value in given.items():
        if value is not None and value is not False and value not in ("", ()):
            raise UserError(f"{name} {why}")


# what a machine refuses to any program: rights, room, devices and folders that are gone
_MACHINE = tuple(
    getattr(errno, name)
    for name in [
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "ESTALE",
        "ENOLCK",
        "ENOTDIR",
    ]
)
# how libraries say that they got no memory, where they raise no MemoryError
_MEMORY = re.compile(r"out of memory|(can't|could not|unable to|failed to) allocate", re.IGNORECASE)
_NUMBER = re.compile(r"\b(?:os error|errno =) (\d+)")  # how Rust and HDF5 name the machine's error


def refused_by_the_machine(error: BaseException) -> str | None:
    """Return the paragraph for an error that no program can help; None for any other."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return _MEMORY_FULL
    if isinstance(error, Exception) and _MEMORY.search(str(error)):  # torch, MuJoCo, CUDA
        return _MEMORY_FULL
    if not isinstance(error, OSError) or error.errno not in _MACHINE:
        return None
    place = f"The file or folder {error.filename}" if error.filename else "A file or folder"
    return (
        f"{place} cannot be used ({error.strerror}): check its rights and the free space there, or "
        "set DIFFRL_HOME (results), DIFFRL_CACHE (cache) or TMPDIR to another folder."
    )


_MEMORY_FULL = (
    "The memory is full: close other programs, use fewer --workers or a smaller preset. The same "
    "command continues where it can."
)


def file_error(error: Exception, path: str | os.PathLike[str]) -> OSError | None:
    """Return what a library says of the machine in words of its own as the OSError of `path`.

    None where it names no error of the machine's, or is an OSError with a number already.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return None
    found = _NUMBER.search(str(error))
    number = int(found[1]) if found else 0
    return OSError(number, os.strerror(number), os.fspath(path)) if number else None


def refuse_missing(missing: Sequence[str], what: str) -> None:
    """Tell of what was left out, once all else is done.

    Raises:
        UserError: there is something.
    """
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{len(missing)} {what} were left out, all others are done. {missing[0]}{others}"
        )
