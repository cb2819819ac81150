"""The faults of `check_faults.py`: each breaks one stage of the small series once.

A fault is called with the `Bench`, the stage and the seconds that the stage takes unbroken. It
returns a `Broken`: how the broken calls ended, and the home as they left it.
"""

import contextlib
import dataclasses
import fcntl
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from small_series import CLOCK, NAME, SMALL, STAGES, WORKERS, call, write_notebooks

from diffrl.base.artifacts import make_folder

MOST = 900.0  # seconds that a call may take
IN_A_ROW = 10  # kills before a stage is left to end
DISK = 64 * 2**20  # bytes of the small file system
ROOM = 64 * 2**20  # bytes at most that a stage may take beyond what its imports took
INPUTS = {  # what a stage reads, by pattern below runs/small
    "data": "experts/*/*/policy.safetensors",
    "quality": "datasets/**/*.hdf5",
    "vla": "datasets/**/*.hdf5",
    "evaluation": "vla/*/model.safetensors",
}


@dataclasses.dataclass
class Bench:
    """The folders of a check: the states before each stage, and the home that is broken."""

    folder: Path
    draw: random.Random

    def before(self, stage: str) -> Path:
        """The unbroken home as it was when `stage` began."""
        return self.folder / f"before-{stage}"

    def after(self, stage: str) -> Path:
        """The unbroken home as it was when `stage` had ended."""
        number = STAGES.index(stage) + 1
        return self.before(STAGES[number] if number < len(STAGES) else "end")

    @property
    def home(self) -> Path:
        """The home that is broken."""
        return self.folder / "home"

    def restore(self, stage: str) -> Path:
        """Bring the home into the state before `stage`, and return it."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.before(stage), self.home)
        return self.home

    def moment(self, seconds: float, share: float = 1.0) -> None:
        """Wait for a random part of `share` of a stage's seconds."""
        time.sleep(self.draw.uniform(0, share * seconds))


@dataclasses.dataclass
class Broken:
    """How the broken calls ended (their exit codes, minus a signal), and what they said."""

    codes: list[int]
    said: str = ""
    where: list[str] = dataclasses.field(default_factory=list)  # what an expert was at


# -- one call --------------------------------------------------------------------------------------
class Call:
    """A process that runs a stage: a fork of this one, which has imported all of it already."""

    def __init__(self, stage: str, home: Path, do: Callable[[str], int] = call, **variables: str):
        handle, name = tempfile.mkstemp(".log")
        os.close(handle)
        self.log = Path(name)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            os.environ.update(variables, DIFFRL_HOME=str(home))
            self._run(stage, do)

    def _run(self, stage: str, do: Callable[[str], int]) -> None:
        code = 1
        try:
            os.setsid()  # so that nothing of a call that is killed stays behind
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = do(stage)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def kill(self) -> None:
        """Kill the process, if it is not over."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that ended it, or None while it runs."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def finish(self) -> Broken:
        """Wait until it ends."""
        end = time.monotonic() + MOST
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        said = self.log.read_text(errors="replace")
        self.log.unlink()
        return Broken([self.code], said)


def at_work(stage: str, home: Path) -> str:
    """What an expert's run is at; of other stages their name."""
    if stage != "expert":
        return stage
    work = next((home / "runs").glob("*/experts/*/*/checkpoint"), None)
    if work is None:
        return "demonstrations"
    if (work / "clone" / "clone.done.json").exists():
        return "rl"
    return "clone" if (work / "clone.safetensors").exists() else "demonstrations"


# -- the faults ------------------------------------------------------------------------------------
def kill(bench: Bench, stage: str, seconds: float) -> Broken:
    """SIGKILL at random moments of the stage, `IN_A_ROW` times unless it is over before."""
    home, broken = bench.restore(stage), Broken([])
    for _ in range(IN_A_ROW):
        child = Call(stage, home)
        bench.moment(seconds, bench.draw.choice((0.3, 0.9)))  # early, or wherever it has come to
        child.kill()
        broken.codes += child.finish().codes
        if broken.codes[-1] == 0:
            break
        broken.where.append(at_work(stage, home))
    return broken


def clock(bench: Bench, stage: str, seconds: float) -> Broken:
    """The wall clock jumps by days at every look."""
    variables = {CLOCK: str(bench.draw.randrange(2**31))}
    return Call(stage, bench.restore(stage), **variables).finish()


def memory(bench: Bench, stage: str, seconds: float) -> Broken:
    """The process may not take more memory than it has at a random moment, and a little."""
    child = Call(stage, bench.restore(stage))
    bench.moment(seconds, 0.8)
    with contextlib.suppress(OSError, IndexError):  # it may be over
        taken = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0])
        room = taken * resource.getpagesize() + bench.draw.randrange(0, ROOM)
        resource.prlimit(child.pid, resource.RLIMIT_AS, (room, room))
    return child.finish()


def worker(bench: Bench, stage: str, seconds: float) -> Broken:
    """A worker process is killed, as the kernel does where the memory is full."""
    child = Call(stage, bench.restore(stage), **{WORKERS: "2"})
    end, killed = time.monotonic() + 20, False
    while not killed and child.poll() is None and time.monotonic() < end:
        workers = _children(child.pid, "spawn_main")
        if workers:
            bench.moment(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(bench.draw.choice(workers), signal.SIGKILL)
                killed = True
        time.sleep(0.05)
    return child.finish()


def _children(parent: int, word: str) -> list[int]:
    """The processes below `parent` whose command holds `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            above = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if above == parent and word in (path / "cmdline").read_text():
                found.append(int(path.name))
    return found


def kernel(bench: Bench, stage: str, seconds: float) -> Broken:
    """The stage is a notebook's, and its kernel is killed."""
    home = bench.restore(stage)
    write_notebooks(home / "notebooks")
    child = Call(stage, home, _notebook)
    end = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < end:
        if kernels := _children(child.pid, "ipykernel"):
            bench.moment(seconds + 3)  # its imports take about three seconds
            with contextlib.suppress(ProcessLookupError):
                os.kill(kernels[0], signal.SIGKILL)
            break
        time.sleep(0.05)
    broken = child.finish()
    shutil.rmtree(home / "notebooks")
    return broken


def _notebook(stage: str) -> int:
    """Run a stage's notebook as ``diffrl reproduce`` does."""
    from diffrl import __main__, doctor, reproduce

    doctor.CHECKS = (doctor.check_versions,)  # the quick one

    def only(name: str) -> None:
        number = STAGES.index(name) + 1
        reproduce.series(SMALL, range(number, number + 1))

    __main__.resolve = lambda command: only
    return __main__.main(["notebook", "--name", stage])


def twice(bench: Bench, stage: str, seconds: float) -> Broken:
    """Two runs on one folder: the second finds it busy, or both write the same."""
    home = bench.restore(stage)
    first = Call(stage, home)
    bench.moment(seconds, 0.5)
    second = Call(stage, home)
    ends = [child.finish() for child in (first, second)]
    said = "\n".join(end.said for end in ends if any(end.codes))
    return Broken(ends[0].codes + ends[1].codes, said)


def corrupt(bench: Bench, stage: str, seconds: float) -> Broken:
    """What the stage reads is cut in half; it is put back, or removed as the error asks."""
    home = bench.restore(stage)
    if stage == "expert":
        return _corrupt_checkpoint(home, seconds)
    path = bench.draw.choice(sorted((home / "runs" / NAME).glob(INPUTS[stage])))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    broken = Call(stage, home).finish()
    path.write_bytes(whole)
    return broken


def _corrupt_checkpoint(home: Path, seconds: float) -> Broken:
    """An expert has no input but its own checkpoint: kill it amid RL and cut that one."""
    child, end = Call("expert", home), time.monotonic() + MOST
    while not (found := list((home / "runs").glob("*/experts/*/*/checkpoint/rl.safetensors"))):
        if time.monotonic() > end or child.poll() is not None:
            raise RuntimeError(f"the expert left no checkpoint: {child.finish()}")
        time.sleep(0.01)
    child.kill()
    child.finish()
    path = found[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    broken = Call("expert", home).finish()
    if str(path) in broken.said.replace("\n", " "):  # do what the error asks for
        path.unlink()
    return broken


def vanish(bench: Bench, stage: str, seconds: float) -> Broken:
    """The folder of results is gone from a random moment on, and comes back after the stage."""
    home, gone = bench.restore(stage), bench.folder / "gone"
    shutil.rmtree(gone, ignore_errors=True)
    child = Call(stage, home)
    bench.moment(seconds, 0.8)
    home.rename(gone)
    home.write_text("no folder")  # or it would only be made anew
    broken = child.finish()
    home.unlink()
    gone.rename(home)
    return broken


@contextlib.contextmanager
def mounted(bench: Bench, home: Path):
    """A small file system with a copy of `home`, which is brought back at the end."""
    disk = make_folder(bench.folder / "disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        shutil.copytree(home, disk / "home")
        yield disk
        shutil.rmtree(home)
        shutil.copytree(disk / "home", home)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def full(bench: Bench, stage: str, seconds: float) -> Broken:
    """The disk is full from a random moment on."""
    with mounted(bench, bench.restore(stage)) as disk:
        child = Call(stage, disk / "home")
        bench.moment(seconds, 0.8)
        with (disk / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(bytes(4096)):
                pass
        broken = child.finish()
        (disk / "filler").unlink()
    return broken


def read_only(bench: Bench, stage: str, seconds: float) -> Broken:
    """The folder becomes read-only at a random moment, as after an error of the disk."""
    with mounted(bench, bench.restore(stage)) as disk:
        child = Call(stage, disk / "home")
        bench.moment(seconds, 0.8)
        remounted = _remount(disk, "ro")
        if not remounted:
            _freeze(disk, True)
        broken = child.finish()
        if not remounted:
            _freeze(disk, False)
        elif not _remount(disk, "rw"):
            raise RuntimeError(f"{disk} stays read-only")
    return broken


def _remount(disk: Path, way: str) -> bool:
    """Remount; False if the child has a file open for writing, such as a lock, all the time."""
    for _ in range(100):
        command = ["mount", "-o", f"remount,{way}", str(disk)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return True
        time.sleep(0.01)
    return False


def _freeze(disk: Path, frozen: bool) -> None:
    """Make every folder immutable, or changeable again: nothing appears, goes, or is renamed."""
    set_flags, immutable = 0x40086602, 0x10  # FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
    for folder in (disk, *(path for path in disk.rglob("*") if path.is_dir())):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, set_flags, struct.pack("l", immutable if frozen else 0))
        finally:
            os.close(handle)


FAULTS: dict[str, Callable[[Bench, str, float], Broken]] = {
    "killed": kill,
    "disk full": full,
    "read-only": read_only,
    "folder vanishes": vanish,
    "clock jumps": clock,
    "corrupted input": corrupt,
    "two runs": twice,
    "memory full": memory,
    "worker killed": worker,
    "kernel killed": kernel,
}
STAGES_OF = {"worker killed": ("data", "vla", "evaluation")}  # those with two items for workers
