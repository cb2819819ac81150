"""Break a small series in every way that is known to us, and compare its final records.

    python tools/check_faults.py --kills 100 --minutes 120     # again: it continues

Every stage of `small_series.py` is run once unbroken. Then, from the state before the stage, it is
broken, run again until it ends, and its records are compared with the unbroken run's, clocks left
out. A fault counts as met when the broken call ended with one paragraph that begins with "Error:",
or, where nothing can be said (a kill) or need be (a clock), when the records are the same. A row
per try is kept in build/faults; when all are done the counts go to results/faults.csv.
"""

import dataclasses
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import tyro
from small_series import CLOCK, NAME, STAGES

from diffrl.base.artifacts import make_folder, root, write_csv

SERIES = Path(__file__).with_name("small_series.py")
CLOCKS = ["minutes", "seconds", "seconds_collect", "seconds_update", "sps", "time"]  # may differ
COLUMNS = ["fault", "stage", "number", "phase", "ended", "times", "told", "litter", "same"]
IN_A_ROW = 4  # kills before a stage is left to end
MOST = 900.0  # seconds that a stage may take
DISK = 64 * 2**20  # bytes of the small file system
MEMORY = 700 * 2**20  # bytes beyond what the imports take, which no stage makes do with
INPUTS = {  # what a stage reads, by pattern below runs/small
    "data": "experts/**/policy.safetensors",
    "quality": "datasets/**/*.hdf5",
    "vla": "datasets/**/*.hdf5",
    "evaluation": "vla/**/model.safetensors",
}


@dataclasses.dataclass
class Bench:
    """The folders of a check: states before each stage, and the one that is broken."""

    folder: Path
    draw: random.Random

    def before(self, stage: str) -> Path:
        """The home as it was when `stage` began."""
        return self.folder / f"before-{stage}"

    @property
    def home(self) -> Path:
        """The home that is broken."""
        return self.folder / "home"

    def restore(self, stage: str) -> Path:
        """Bring the home into the state before `stage`."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.before(stage), self.home)
        return self.home

    def after(self, stage: str) -> Path:
        """The unbroken home when `stage` had ended."""
        number = STAGES.index(stage) + 1
        return self.before(STAGES[number] if number < len(STAGES) else "end")


# -- one call --------------------------------------------------------------------------------------
def start(stage: str, home: Path, clock: str = "", limit: Callable | None = None):
    """Start a stage; it has begun when this returns."""
    environment = {**os.environ, "DIFFRL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {CLOCK: clock} if clock else {}
    words = [sys.executable, str(SERIES), stage]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(words, env=environment, preexec_fn=limit, **pipes)
    child.stdout.readline()
    child.lines = []
    child.reader = threading.Thread(target=lambda: child.lines.extend(child.stderr), daemon=True)
    child.reader.start()  # a full pipe must not stop it
    return child


def finish(child) -> tuple[int, str]:
    """Wait for a call; return its exit code and what it told last."""
    code = child.wait(timeout=MOST)
    child.reader.join(5)
    return code, "".join(child.lines)


def complete(stage: str, home: Path) -> bool:
    """Run a stage to its end; return whether it got there."""
    code, told = finish(start(stage, home))
    if code:
        print(told[-2000:], file=sys.stderr)
    return code == 0


def one_paragraph(told: str) -> bool:
    """Whether a call ended with a paragraph for its user, and without a traceback."""
    return "Traceback" not in told and re.search(r"(?m)^Error: ", told) is not None


def records(home: Path) -> dict[str, object]:
    """What must not depend on when or how often a run happened, by its place."""
    found, runs = {}, home / "runs" / NAME
    for path in sorted(runs.rglob("*")):
        if ".parts" in str(path) or "/checkpoint/" in str(path) or path.name.startswith("."):
            continue
        if path.suffix == ".csv":
            kept = pd.read_csv(path).drop(columns=CLOCKS, errors="ignore")
            found[str(path.relative_to(runs))] = kept.to_csv()
        elif path.suffix in (".safetensors", ".hdf5"):
            found[str(path.relative_to(runs))] = path.read_bytes()
    return found


def litter(home: Path) -> int:
    """How many half-written files lie under a final name: temporary ones are nobody's."""
    return sum(
        1
        for path in home.rglob("*")
        if path.is_file()
        and path.stat().st_size == 0
        and not path.name.startswith(".")
        and path.suffix in (".csv", ".json", ".hdf5")
    )


# -- the unbroken run ------------------------------------------------------------------------------
def unbroken(bench: Bench) -> dict[str, float]:
    """Run every stage once, keep the state before each, and return their seconds."""
    listed = bench.folder / "seconds.csv"
    if listed.exists():
        return dict(pd.read_csv(listed).itertuples(index=False))
    shutil.rmtree(bench.folder, ignore_errors=True)
    home, seconds = make_folder(bench.folder / "unbroken"), {}
    for stage in STAGES:
        shutil.copytree(home, bench.before(stage))
        child, began = start(stage, home), time.monotonic()
        code, told = finish(child)
        if code:
            raise SystemExit(f"The unbroken {stage} failed:\n{told[-3000:]}")
        seconds[stage] = time.monotonic() - began
    shutil.copytree(home, bench.before("end"))
    write_csv(listed, pd.DataFrame(seconds.items(), columns=["stage", "seconds"]))
    return seconds


# -- the faults ------------------------------------------------------------------------------------
def phase_of(stage: str, home: Path) -> str:
    """What an expert's run was at when it was broken; of other stages their name."""
    if stage != "expert":
        return stage
    work = next((home / "runs").rglob("checkpoint"), None)
    if work is None:
        return "demonstrations"
    if (work / "rl.safetensors").exists() or (work / "clone" / "clone.done.json").exists():
        return "rl"
    return "clone" if (work / "clone.safetensors").exists() else "demonstrations"


def kill(bench: Bench, stage: str, seconds: float) -> dict:
    """SIGKILL at random moments of the stage, `IN_A_ROW` times unless it is over before."""
    home, killed = bench.restore(stage), 0
    for _ in range(IN_A_ROW):
        child = start(stage, home)
        time.sleep(bench.draw.uniform(0, seconds / 2))
        child.send_signal(signal.SIGKILL)
        code, _ = finish(child)
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    return {"ended": "killed", "times": killed, "told": True, "home": home}


def clock(bench: Bench, stage: str, seconds: float) -> dict:
    """The wall clock jumps by days at every look."""
    home = bench.restore(stage)
    code, told = finish(start(stage, home, clock=str(bench.draw.randrange(2**31))))
    return {"ended": f"exit {code}", "told": code == 0 or one_paragraph(told), "home": home}


def memory(bench: Bench, stage: str, seconds: float) -> dict:
    """The process may not take more memory than its imports and a little."""
    home = bench.restore(stage)
    child = start(stage, home)
    taken = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    room = taken + bench.draw.randrange(0, 16 * 2**20)
    resource.prlimit(child.pid, resource.RLIMIT_AS, (room, room))
    code, told = finish(child)
    return {
        "ended": f"exit {code}",
        "told": code == 0 or one_paragraph(told),
        "home": home,
        "text": told,
    }


def twice(bench: Bench, stage: str, seconds: float) -> dict:
    """Two runs on one folder: the second finds it busy, or both write the same."""
    home = bench.restore(stage)
    children = [start(stage, home), start(stage, home)]
    ends = [finish(child) for child in children]
    told = all(code == 0 or one_paragraph(text) for code, text in ends)
    codes = " and ".join(str(code) for code, _ in ends)
    return {"ended": f"exit {codes}", "told": told, "home": home, "text": ends[0][1] + ends[1][1]}


def corrupt(bench: Bench, stage: str, seconds: float) -> dict:
    """An artifact of an earlier stage is cut in half; it is put back before the next call."""
    home = bench.restore(stage)
    files = sorted((home / "runs" / NAME).glob(INPUTS[stage]))
    path = bench.draw.choice(files)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    code, told = finish(start(stage, home))
    path.write_bytes(whole)
    return {
        "ended": f"exit {code}",
        "told": code == 0 or one_paragraph(told),
        "home": home,
        "text": told,
    }


def vanish(bench: Bench, stage: str, seconds: float) -> dict:
    """The folder of results is moved away amid the stage, and comes back after it."""
    home = bench.restore(stage)
    child, gone = start(stage, home), bench.folder / "gone"
    shutil.rmtree(gone, ignore_errors=True)
    time.sleep(bench.draw.uniform(0, seconds / 2))
    home.rename(gone)
    home.write_text("no folder")  # or it would only be made anew
    code, told = finish(child)
    home.unlink()
    gone.rename(home)
    return {
        "ended": f"exit {code}",
        "told": code == 0 or one_paragraph(told),
        "home": home,
        "text": told,
    }


def mounted(bench: Bench, stage: str, broken: Callable[[Path], None], mended: Callable) -> dict:
    """Run a stage on a small file system that `broken` spoils, then mend it and bring it home."""
    home = bench.restore(stage)
    disk = make_folder(bench.folder / "disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        shutil.copytree(home, disk / "home")
        child = start(stage, disk / "home")
        broken(disk)
        code, told = finish(child)
        mended(disk)
        shutil.rmtree(home)
        shutil.copytree(disk / "home", home)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return {
        "ended": f"exit {code}",
        "told": code == 0 or one_paragraph(told),
        "home": home,
        "text": told,
    }


def full(bench: Bench, stage: str, seconds: float) -> dict:
    """The disk is full from a random moment on."""

    def fill(disk: Path) -> None:
        time.sleep(bench.draw.uniform(0, seconds / 2))
        with (disk / "filler").open("wb", buffering=0) as stream:
            try:
                while stream.write(bytes(4096)):
                    pass
            except OSError:
                return

    return mounted(bench, stage, fill, lambda disk: (disk / "filler").unlink())


def read_only(bench: Bench, stage: str, seconds: float) -> dict:
    """The file system becomes read-only at a random moment, as after a disk's error."""

    def turn(disk: Path, way: str) -> None:
        command = ["mount", "-o", f"remount,{way}", str(disk)]
        for _ in range(200):  # busy while somebody writes
            if subprocess.run(command, capture_output=True).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError(f"{disk} could not be remounted")

    def shut(disk: Path) -> None:
        time.sleep(bench.draw.uniform(0, seconds / 2))
        turn(disk, "ro")

    return mounted(bench, stage, shut, lambda disk: turn(disk, "rw"))


FAULTS = {
    "kill": kill, "clock jumps": clock, "memory full": memory, "two runs": twice,
    "corrupted input": corrupt, "folder vanishes": vanish, "disk full": full,
    "read-only": read_only,
}  # fmt: skip


# -- all of them -----------------------------------------------------------------------------------
def try_fault(fault: str, stage: str, number: int, bench: Bench, seconds: float) -> dict:
    """Break a stage once, run it to its end, and compare."""
    bench.draw = random.Random(f"{fault} {stage} {number}")
    tried = FAULTS[fault](bench, stage, seconds)
    home, row = tried["home"], {"fault": fault, "stage": stage, "number": number}
    row |= {"phase": phase_of(stage, home), "ended": tried["ended"], "told": tried["told"]}
    row["times"] = tried.get("times", 1)
    row["litter"] = litter(home)
    same = complete(stage, home) and records(home) == records(bench.after(stage))
    if not (same and tried["told"]):
        print(f"{fault} in {stage}, number {number}: {tried.get('text', '')[-1500:]}")
    return row | {"same": same}


def planned(kills: int, each: int) -> list[tuple[str, str, int]]:
    """Every (fault, stage, number): kills spread over the stages, then the other faults."""
    rows = range(-(-kills // IN_A_ROW))
    tries = [("kill", STAGES[k % len(STAGES)], k // len(STAGES)) for k in rows]
    for fault in list(FAULTS)[1:]:
        stages = STAGES if fault != "corrupted input" else tuple(INPUTS)
        tries += [(fault, stage, number) for number in range(each) for stage in stages]
    return tries


def main(
    kills: int = 100,
    each: int = 1,
    minutes: float = 600,
    faults: tuple[str, ...] = tuple(FAULTS),
    stages: tuple[str, ...] = STAGES,
) -> int:
    """Break the small series; a second call continues.

    Args:
        kills: random moments, spread over the stages.
        each: tries of every other fault in every stage.
        minutes: after which no other try is begun.
        faults: only these.
        stages: only these.
    """
    bench = Bench(make_folder(root() / "build" / "faults") / "work", random.Random(0))
    listed, end = bench.folder.parent / "tries.csv", time.monotonic() + 60 * minutes
    durations = unbroken(bench)
    rows = pd.read_csv(listed).to_dict("records") if listed.exists() else []
    known = {(row["fault"], row["stage"], row["number"]) for row in rows}
    tries = planned(kills, each)
    for fault, stage, number in tries:
        chosen = fault in faults and stage in stages
        if (fault, stage, number) in known or not chosen or time.monotonic() > end:
            continue
        rows.append(try_fault(fault, stage, number, bench, durations[stage]))
        write_csv(listed, pd.DataFrame(rows, columns=COLUMNS))
        print(*rows[-1].values(), sep="  ", flush=True)
    table = pd.DataFrame(rows, columns=COLUMNS)
    groups = table.groupby(["fault", "phase"], sort=False)
    counts = groups.agg(
        tries=("times", "sum"), ends=("same", "size"), told=("told", "sum"), same=("same", "sum")
    )
    print(counts.to_string())
    if len(table) >= len(tries):
        write_csv(root() / "results" / "faults.csv", counts.reset_index())
    return int(not (table["same"] & table["told"]).all())


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
