"""Signs of life of a run, in files: who runs where, how far it is, and how it failed.

A run keeps ``<folder>/<name>.running.json`` while it is at work. An exception leaves
``<name>.failed.json`` with its message. Neither file decides anything: no result depends on them,
and a folder that cannot be written costs nothing but the sign.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffrl.base.progress import report

EVERY = 15.0  # seconds between two signs
SILENT = 300.0  # seconds without a sign after which a run counts as lost
RUNNING, FAILED = ".running.json", ".failed.json"


class Heartbeat:
    """What a run says of itself; a thread of its own writes it every `EVERY` seconds."""

    def __init__(self, folder: str | os.PathLike[str], name: str):
        self.running = Path(folder) / f"{name}{RUNNING}"
        self.failed = Path(folder) / f"{name}{FAILED}"
        self._told: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
        }
        self._stop = threading.Event()

    def tell(self, **values: Any) -> None:
        """Remember values for the next sign: phase, done, total, success, rate (steps a second).

        The moment and the count at which a phase begins are kept, for its remaining time. With a
        phase may come its `span`: where in the whole run it lies, from 0 to 1. A map's bar gets to
        know how far the run is (`progress.report`).
        """
        if "phase" in values:
            values |= {"phase_began": time.time(), "phase_first": values.get("done")}
            values.setdefault("span", (0.0, 1.0))
        # a new dictionary, as the thread may read the old one
        self._told = told = self._told | values
        if told.get("total") and told.get("done") is not None:
            low, high = told["span"]
            report(low + (high - low) * told["done"] / told["total"])

    def write(self) -> None:
        """Write a sign now, if the folder allows it."""
        _write(self.running, self._told | {"updated": time.time()})

    def beat(self) -> None:
        """Write a sign every `EVERY` seconds until the run ends."""
        while not self._stop.wait(EVERY):
            self.write()

    def end(self) -> None:
        """Stop the thread's signs."""
        self._stop.set()


@contextlib.contextmanager
def heartbeat(folder: str | os.PathLike[str], name: str) -> Iterator[Heartbeat]:
    """Yield the heartbeat of a run in an existing or new `folder`.

    At the end its sign is removed. An exception leaves its message behind; an interruption by the
    user is none.
    """
    sign = Heartbeat(folder, name)
    with contextlib.suppress(OSError):
        sign.running.parent.mkdir(parents=True, exist_ok=True)
    _remove(sign.failed)
    sign.write()
    thread = threading.Thread(target=sign.beat, daemon=True)
    thread.start()
    try:
        yield sign
    except Exception as error:
        told = {"error": type(error).__name__, "message": str(error), "ended": time.time()}
        _write(sign.failed, sign._told | told)
        raise
    finally:
        sign.end()
        thread.join()
        _remove(sign.running)


def read(folder: str | os.PathLike[str], name: str) -> Mapping[str, Any] | None:
    """Return the last sign of a run with its ``state``: running, failed or lost; None without one.

    A run is lost if its process is gone (known on this host only) or it was silent for `SILENT`
    seconds. A sign from the future comes from another clock and counts as fresh.
    """
    for path, state in (
        (_path(folder, name, RUNNING), "running"),
        (_path(folder, name, FAILED), "failed"),
    ):
        try:
            sign = json.loads(path.read_text(encoding="utf-8"))
            silent = time.time() - path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if not isinstance(sign, dict):
            continue
        if state == "running" and (silent > SILENT or _gone(sign)):
            state = "lost"
        return {**sign, "state": state}
    return None


def _path(folder: str | os.PathLike[str], name: str, suffix: str) -> Path:
    return Path(folder) / f"{name}{suffix}"


def _gone(sign: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a sign has ended; only its own host can know."""
    if sign.get("host") != socket.gethostname() or not isinstance(sign.get("pid"), int):
        return False
    try:
        os.kill(sign["pid"], 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return True
    except OSError:
        return False
    return False


def _write(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.json")
    try:
        temporary.write_text(json.dumps(values, default=str), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        _remove(temporary)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
