"""Map a stage over tasks: on local processes, or on a Ray cluster.

Results come back in the order of the items whatever the order of finishing, so a run with one
worker and a run with many give the same records. A stage that wants to survive a kill keeps its
own `artifacts.Stage`; the map itself holds no state. An item that fails does not stop the others,
and an item whose worker died is tried again.

`python -m diffrl COMMAND --ray [ADDRESS]` sends the items of every map to a Ray cluster, whose
nodes see the same folder of results (`DIFFRL_HOME`).
"""

import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from diffrl.base.errors import UserError, refused_by_the_machine, whole
from diffrl.base.progress import POLL, Shares, advance, progress, report, use_slot

RETRIES = 2  # of an item whose worker died; an item that raised an error is not tried again
RAY = "DIFFRL_RAY"  # environment: the cluster's address, "local" for one of this machine
PATIENCE = 10.0  # seconds for a cluster's address to answer
SHOWN = 8  # failures that an error lists


class StageError(RuntimeError):
    """A worker failed: the message holds the item's name and the worker's own traceback."""


class WorkerDied(RuntimeError):
    """A worker ended without a result; the message says how."""


@dataclass(frozen=True)
class Resources:
    """What one item takes of a cluster; local processes do not ask for it.

    Attributes:
        cores: processor cores.
        gpus: accelerators, or a share of one; a cluster that has none is asked for none.
        memory: GiB of main memory; None leaves it to the cluster.
    """

    cores: int = 1
    gpus: float = 0.0
    memory: float | None = None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(workers: int | None) -> int:
    """Return how many processes are asked for; None: one per core.

    Raises:
        UserError: it is no positive whole number.
    """
    return cores() if workers is None else whole(workers, "workers")


def shares(count: int, workers: int | None = None) -> tuple[int, int]:
    """Return how many of `count` items run at once, and the cores that each of them gets.

    Local processes share this machine's cores, one process a core by default. Where few items all
    run at once, they begin with more threads than there are cores, so that the cores of one that
    has ended are not idle. On a cluster every item may run at once, with one core each.
    """
    if RAY in os.environ:
        return max(count, 1), 1
    if workers is None and cores() < count < 2 * cores():
        return count, 1  # in two rounds a core would have nothing to do in the second
    workers = max(1, min(processes(workers), count))
    share = cores() // workers
    return workers, max(1, min(cores(), 2 * share) if count == workers > 1 else share)


def map_tasks(
    function: Callable[..., Any],
    items: Sequence[Any],
    *,
    names: Iterable[str] | None = None,
    workers: int | None = None,
    description: str = "tasks",
    executor: Executor | None = None,
    resources: Resources = Resources(),
) -> list[Any]:
    """Return ``[function(item) for item in items]``, computed by other processes.

    Args:
        function: importable (a module's function, or a `functools.partial` of one); it gets one
            item and returns something small and picklable.
        items: what to map over.
        names: of the items, for messages; default: `str` of each.
        workers: local processes at most; default: the cores. With 1 everything runs in this
            process.
        description: of the progress bar.
        executor: used instead of local processes or of the cluster in ``$DIFFRL_RAY``.
        resources: that one item takes of a cluster.

    Raises:
        UserError: items raised one; it names each. All others are finished first.
        StageError: an item raised anything else, or its worker died more than `RETRIES` times.
    """
    names = [str(item) for item in items] if names is None else list(names)
    if len(names) != len(items):
        raise ValueError(f"{len(names)} names for {len(items)} items")
    workers = min(processes(workers), len(items))
    with progress(len(items), description) as bar:
        if executor is not None:
            outcomes = _collect(executor, function, items, names, bar)
        elif items and RAY in os.environ:
            outcomes = _collect(_Ray(resources), function, items, names, bar)
        elif workers <= 1:
            outcomes = []
            for item in items:
                outcomes.append(_guarded(function, item))
                advance(bar, len(outcomes))
        else:
            with _Processes(workers) as pool:
                outcomes = _collect(pool, function, items, names, bar)
    _raise_failures(outcomes, names)
    return [value for _, value in outcomes]


# ---- outcomes --------------------------------------------------------------------------------

Outcome = tuple[bool, Any]  # (True, result) or (False, (message of a user's error, traceback))


def _guarded(function: Callable[[Any], Any], item: Any) -> Outcome:
    try:
        return True, function(item)
    except UserError as error:
        return False, (str(error), None)
    except Exception as error:
        told = refused_by_the_machine(error)
        return False, (told, None) if told else (None, traceback.format_exc())
    finally:
        report(0.0)  # the item counts as a whole now


def _collect(
    pool: Executor, function: Callable[..., Any], items: Sequence[Any], names: list[str], bar: tqdm
) -> list[Outcome]:
    """Run every item, again if its worker dies; return the outcomes in the items' order.

    The bar counts the items that have ended, and what a pool with `shares` knows of the others.
    """
    guarded = functools.partial(_guarded, function)
    outcomes: list[Outcome] = [(False, (None, "never run"))] * len(items)
    deaths, shares = [0] * len(items), getattr(pool, "shares", None)
    running = {pool.submit(guarded, item): i for i, item in enumerate(items)}
    while running:
        ended, _ = wait(running, POLL if shares else None, return_when=FIRST_COMPLETED)
        for future in ended:
            i = running.pop(future)
            try:
                outcomes[i] = _result(future)
            except WorkerDied as error:
                deaths[i] += 1
                again = deaths[i] <= RETRIES
                told = "it is tried again" if again else "it is given up"
                bar.write(f"{names[i]}: {error}; {told}.", file=sys.stderr)
                if again:
                    running[pool.submit(guarded, items[i])] = i
                else:
                    outcomes[i] = False, (None, _death(error, deaths[i]))
        begun = shares.total() if shares else 0.0
        advance(bar, len(items) - len(running) + begun)
    return outcomes


def _result(future: Future[Any]) -> Outcome:
    try:
        outcome: Outcome = future.result()
        return outcome
    except BrokenProcessPool as error:
        raise WorkerDied("its worker process died without a word") from error


def _death(error: WorkerDied, times: int) -> str:
    return (
        f"{error}, {times} times in a row: most often the memory is full. Try fewer workers, or "
        "give each item more memory."
    )


def _raise_failures(outcomes: list[Outcome], names: list[str]) -> None:
    failed = [(name, *value) for name, (fine, value) in zip(names, outcomes) if not fine]
    if not failed:
        return
    lines = [f"{name}: {message or trace}" for name, message, trace in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"… and {len(failed) - SHOWN} more.")
    if len(outcomes) > 1:
        lines.append(f"{len(failed)} of {len(outcomes)} failed; the others are finished.")
    if all(trace is None for _, _, trace in failed):
        raise UserError(" ".join(lines))
    raise StageError("\n".join(lines))


# ---- local processes -------------------------------------------------------------------------


class _Processes(Executor):
    """Spawned processes, each in a pool of its own: a death concerns the item that it ran."""

    def __init__(self, workers: int):
        self._context = multiprocessing.get_context("spawn")  # fork: not with threads, GL, CUDA
        self.shares = Shares(workers, self._context)
        self._numbers = iter(range(workers))
        self._threads = ThreadPoolExecutor(workers)
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._stopped = False

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Future[Any]:
        return self._threads.submit(self._run, functools.partial(function, **options), *arguments)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if not hasattr(self._own, "number"):
            self._own.number = next(self._numbers)
        if not hasattr(self._own, "pool"):
            self._own.pool = self._new_pool(self._own.number)
        try:
            return self._own.pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            del self._own.pool
            raise

    def _new_pool(self, number: int) -> ProcessPoolExecutor:
        if self._stopped:
            raise BrokenProcessPool("stopped")
        about = os.getpid(), self.shares, number
        pool = ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_start_worker, initargs=about
        )
        self._pools.append(pool)
        return pool

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Leave nobody behind, whatever ends the block."""
        self._stopped = True
        for pool in self._pools if kind is not None else ():
            for process in list((pool._processes or {}).values()):
                process.terminate()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int, shares: Shares, number: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, even if it was killed; report as `number`."""
    use_slot(shares, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- a Ray cluster ---------------------------------------------------------------------------

# What a worker must know to read and write the same places in the same way.
PASSED_ON = ("DIFFRL_HOME", "DIFFRL_CACHE", "DIFFRL_FORCE_BEFORE", "MUJOCO_GL", "LIBERO_DATASETS")


class _Ray(Executor):
    """Items as Ray tasks, with `resources` each; the nodes share the folder of results."""

    def __init__(self, resources: Resources):
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--ray needs the package ray: `pip install -e '.[cluster]'` in the clone."
            ) from error
        self._ray: Any = ray
        if not ray.is_initialized():
            _connect(ray, os.environ[RAY])
        memory = None if resources.memory is None else int(resources.memory * 2**30)
        there = self._ray.cluster_resources().get("GPU")  # without one a task would wait for ever
        gpus = resources.gpus if there else 0
        self._task = ray.remote(_call).options(
            num_cpus=resources.cores, num_gpus=gpus, memory=memory, max_retries=0
        )

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Future[Any]:
        future: Future[Any] = Future()
        done = self._task.remote(functools.partial(function, **options), *arguments).future()
        done.add_done_callback(functools.partial(self._pass_on, future))
        return future

    def _pass_on(self, future: Future[Any], done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error)
        elif isinstance(error, self._ray.exceptions.RayError):  # a worker or its node is gone
            future.set_exception(WorkerDied(f"its worker was lost ({type(error).__name__})"))
        else:
            future.set_exception(error)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _connect(ray: Any, address: str) -> None:
    from diffrl.base.artifacts import root

    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables.setdefault("DIFFRL_HOME", str(root()))
    try:
        _knock(address)
        ray.init(
            address=None if address == "local" else address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"No Ray cluster answers at {address!r} ({error}): start one with `ray start --head` "
            "or `ray up`, or give its address after --ray."
        ) from error


def _knock(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.port is not None:
        socket.create_connection((place.hostname, place.port), timeout=PATIENCE).close()
