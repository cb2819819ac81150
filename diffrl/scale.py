"""Map a stage over tasks with local processes.

Results come back in the order of the items whatever the order of finishing, so a run with one
worker and a run with many give the same records. A stage that wants to survive a kill keeps its
own `artifacts.Stage`; the map itself holds no state. Another `concurrent.futures.Executor` can be
passed instead of processes: the door for a cluster's.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from diffrl.errors import UserError, refused_by_the_machine


class StageError(RuntimeError):
    """A worker failed: the message holds the item's name and the worker's own traceback."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(total: int, description: str, unit: str = "task") -> tqdm:
    """Return a progress bar on stderr with rate and remaining time; in a log a line per 10 s."""
    live = sys.stderr.isatty()
    return tqdm(total=total, desc=description, unit=unit, mininterval=0.2 if live else 10.0)


def map_tasks(
    function: Callable[..., Any],
    items: Sequence[Any],
    *,
    names: Iterable[str] | None = None,
    workers: int | None = None,
    description: str = "tasks",
    executor: Executor | None = None,
) -> list[Any]:
    """Return ``[function(item) for item in items]``, computed by spawned processes.

    Args:
        function: importable (a module's function, or a `functools.partial` of one); it gets one
            item and returns something small and picklable.
        items: what to map over.
        names: of the items, for messages; default: `str` of each.
        workers: processes at most; default: the cores. With 1 everything runs in this process.
        description: of the progress bar.
        executor: used instead of local processes when given.

    Raises:
        UserError: a worker raised one; prefixed with the item's name.
        StageError: a worker raised anything else, or died; the others are stopped.
    """
    names = [str(item) for item in items] if names is None else list(names)
    if len(names) != len(items):
        raise ValueError(f"{len(names)} names for {len(items)} items")
    workers = min(workers or cores(), len(items))
    with progress(len(items), description) as bar:
        if executor is not None:
            return _collect(executor, function, items, names, bar)
        if workers <= 1:
            return [_unwrap(_guarded(function, i), n, bar) for i, n in zip(items, names)]
        with _processes(workers) as pool:
            return _collect(pool, function, items, names, bar)


class _processes:
    """A pool of spawned processes that leaves nobody behind, whatever ends the block."""

    def __init__(self, workers: int):
        context = multiprocessing.get_context("spawn")  # fork does not go with threads, GL, CUDA
        self.pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
        )

    def __enter__(self) -> Executor:
        return self.pool

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _guarded(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """Return (True, result) or (False, (exception if the user's, traceback))."""
    try:
        return True, function(item)
    except UserError as error:
        return False, (str(error), None)
    except Exception as error:
        told = refused_by_the_machine(error) if isinstance(error, OSError) else None
        return False, (told, None) if told else (None, traceback.format_exc())


def _unwrap(outcome: tuple[bool, Any], name: str, bar: tqdm) -> Any:
    fine, value = outcome
    if fine:
        bar.update()
        return value
    message, trace = value
    if trace is None:
        raise UserError(f"{name}: {message}")
    raise StageError(f"{name} failed in its worker:\n{trace}")


def _collect(
    pool: Executor, function: Callable, items: Sequence[Any], names: list[str], bar: tqdm
) -> list[Any]:
    guarded = functools.partial(_guarded, function)
    index = {pool.submit(guarded, item): i for i, item in enumerate(items)}
    results: list[Any] = [None] * len(index)
    for future in as_completed(index):
        i = index[future]
        try:
            outcome = future.result()
        except BrokenProcessPool as error:
            raise StageError(
                f"A worker process died without a word while {', '.join(_open(index, names))} ran: "
                "most often the memory is full; try fewer workers."
            ) from error
        results[i] = _unwrap(outcome, names[i], bar)
    return results


def _open(index: dict, names: list[str]) -> list[str]:
    unfinished = [
        names[i] for future, i in index.items() if not future.done() or future.exception()
    ]
    return unfinished[:4] + (["…"] if len(unfinished) > 4 else [])
