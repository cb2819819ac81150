"""Break a small series in every way that is known to us, and compare its final records.

    python tools/check_faults.py --kills 100        # again: it continues

Every stage of `small_series.py` is run once unbroken. Then, from the state before the stage, it is
broken by one of `faults.py`, run again until it ends, and its records are compared with the
unbroken run's. A fault is met when every broken call was killed, finished, or ended with one
paragraph that begins with "Error:"; when no file lies half-written under its final name; and when
the final records are the same byte by byte, clocks left out. A row per try is kept in build/faults.
When all are done the counts go to results/faults.csv.
"""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, for all that is forked

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import tyro
from faults import FAULTS, STAGES_OF, Bench, Broken, Call
from safetensors import SafetensorError, safe_open
from small_series import NAME, SMALL, STAGES

from diffrl.base import artifacts
from diffrl.data.integrity import check_bytes

CLOCKS = ["minutes", "seconds", "seconds_collect", "seconds_update", "sps", "time"]  # may differ
COLUMNS = ["fault", "stage", "number", "faults", "killed", "finished", "told", "unclear"]
COLUMNS += ["half_written", "same", "where"]
COUNTED = COLUMNS[3:-1]  # in the final table, beside the number of tries
BYTES = (".safetensors", ".hdf5")
DOCUMENTS = ("policy.json", "model.json", "config.json")


# -- what is compared ------------------------------------------------------------------------------
def records(home: Path) -> dict[str, str | bytes]:
    """What must not depend on when or how often a run happened, by its place."""
    found, runs = {}, home / "runs" / NAME
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        if path.name.startswith(".") or ".parts" in str(path) or "/checkpoint/" in str(path):
            continue
        place = str(path.relative_to(runs))
        if path.suffix == ".csv":
            found[place] = pd.read_csv(path).drop(columns=CLOCKS, errors="ignore").to_csv()
        elif path.suffix in BYTES or path.name in DOCUMENTS:
            found[place] = path.read_bytes()
    return found


def half_written(home: Path) -> list[str]:
    """Files that lie under a final name and are not whole; temporary ones are nobody's yet."""
    paths = [path for path in sorted(home.rglob("*")) if path.is_file()]
    return [str(p) for p in paths if not p.name.startswith(".") and not _whole(p)]


def _whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            return path.read_text().endswith("\n")
        elif path.suffix == ".safetensors":
            safe_open(path, framework="np").keys()
        elif path.suffix == ".hdf5":
            return not any(check_bytes(path))
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def one_paragraph(said: str) -> bool:
    """Whether a call ended with a paragraph for its user, and without a traceback."""
    return "Traceback" not in said and re.search(r"(?m)^Error:\s", said) is not None


# -- tries -----------------------------------------------------------------------------------------
def unbroken(bench: Bench) -> dict[str, float]:
    """Run every stage once, keep the state before each, and return their seconds."""
    listed = bench.folder / "seconds.csv"
    if listed.exists():
        return dict(pd.read_csv(listed).itertuples(index=False))
    shutil.rmtree(bench.folder, ignore_errors=True)
    home, seconds = artifacts.make_folder(bench.folder / "unbroken"), {}
    for stage in ("warm", *STAGES):
        if stage == "warm":  # the caches of scenes and of compiled functions
            stage, place = STAGES[0], artifacts.make_folder(bench.folder / "warm")
        else:
            place = home
            shutil.copytree(home, bench.before(stage))
        began = time.monotonic()
        ended = Call(stage, place).finish()
        if ended.codes != [0]:
            raise SystemExit(f"The unbroken {stage} failed:\n{ended.said[-3000:]}")
        seconds[stage] = time.monotonic() - began
    shutil.copytree(home, bench.before("end"))
    artifacts.write_csv(listed, pd.DataFrame(seconds.items(), columns=["stage", "seconds"]))
    return seconds


def try_fault(fault: str, stage: str, number: int, bench: Bench, seconds: float) -> dict:
    """Break a stage once, run it to its end, and compare; return the row of the try."""
    bench.draw = random.Random(f"{fault} {stage} {number}")
    broken: Broken = FAULTS[fault](bench, stage, seconds)
    killed = broken.codes.count(-signal.SIGKILL)
    finished = broken.codes.count(0)
    rest = len(broken.codes) - killed - finished
    told = rest if one_paragraph(broken.said) else 0
    half = half_written(bench.home)
    ended = Call(stage, bench.home).finish()
    made, wanted = records(bench.home), records(bench.after(stage))
    same = ended.codes == [0] and made == wanted
    if not same or told < rest or half:
        differ = sorted(k for k in made.keys() | wanted.keys() if made.get(k) != wanted.get(k))
        print(f"{fault} in {stage}, number {number}: {broken.said[-2500:]}\nhalf-written: {half}")
        print(f"different: {differ}, the last call said: {ended.said[-1500:]}", flush=True)
    faulted = killed if fault == "killed" else 1
    where = " ".join(f"{name}:{count}" for name, count in sorted(Counter(broken.where).items()))
    values = (fault, stage, number, faulted, killed, finished, told, rest - told, len(half), same)
    return dict(zip(COLUMNS, (*values, where), strict=True))


def planned(kills: int, each: int) -> list[tuple[str, str, int]]:
    """Every (fault, stage, number) but the kills, which are counted while they come."""
    return [
        (fault, stage, number)
        for fault in FAULTS
        if fault != "killed"
        for number in range(each)
        for stage in STAGES_OF.get(fault, STAGES)
    ]


def table_of(rows: list[dict]) -> pd.DataFrame:
    """Count the tries of every fault and stage."""
    table = pd.DataFrame(rows, columns=COLUMNS).assign(tries=1)
    table["same"] = table["same"].astype(int)
    counts = table.groupby(["fault", "stage"], sort=False)[["tries", *COUNTED]].sum().reset_index()
    orders = {name: i for i, name in enumerate((*FAULTS, *STAGES))}
    return counts.sort_values(["fault", "stage"], key=lambda c: c.map(orders), ignore_index=True)


def main(
    kills: int = 100,
    each: int = 1,
    minutes: float = 600,
    only: tuple[str, ...] = tuple(FAULTS),
    stages: tuple[str, ...] = STAGES,
    folder: Path | None = None,
) -> int:
    """Break the small series; a second call continues.

    Args:
        kills: that must have happened, spread over the stages.
        each: tries of every other fault in every stage.
        minutes: after which no other try is begun.
        only: these faults.
        stages: only these.
        folder: of the work and its list; default: build/faults.
    """
    folder = artifacts.make_folder(folder or artifacts.root() / "build" / "faults")
    artifacts.provenance(SMALL)  # once, for all calls
    bench, listed = Bench(folder / "work", random.Random(0)), folder / "tries.csv"
    durations, end = unbroken(bench), time.monotonic() + 60 * minutes
    rows = pd.read_csv(listed, keep_default_na=False).to_dict("records") if listed.exists() else []

    def attempt(fault: str, stage: str, number: int) -> None:
        rows.append(try_fault(fault, stage, number, bench, durations[stage]))
        artifacts.write_csv(listed, pd.DataFrame(rows, columns=COLUMNS))
        print(*rows[-1].values(), sep="  ", flush=True)

    def left(fault: str, stage: str) -> int:
        mine = [row for row in rows if (row["fault"], row["stage"]) == (fault, stage)]
        if fault == "killed":
            missing = -(-kills // len(STAGES)) - sum(row["faults"] for row in mine)
            return missing if len(mine) < kills else 0  # a stage may be over before a kill
        return each - len(mine)

    asked = [(f, s) for f in only for s in STAGES_OF.get(f, STAGES) if s in stages]
    while todo := [pair for pair in asked if left(*pair) > 0]:
        for fault, stage in todo:
            if time.monotonic() > end:
                break
            done = sum((row["fault"], row["stage"]) == (fault, stage) for row in rows)
            attempt(fault, stage, done)
        if time.monotonic() > end:
            break
    counts = table_of(rows)
    print(counts.to_string())
    whole = [(f, s) for f in FAULTS for s in STAGES_OF.get(f, STAGES)]
    if not any(left(*pair) > 0 for pair in whole):
        artifacts.write_csv(artifacts.root() / "results" / "faults.csv", counts)
    return int(
        (counts["same"] < counts["tries"]).any()
        or counts[["unclear", "half_written"]].any(axis=None)
    )


def with_rights() -> None:
    """Mounts need rights: a user without them becomes root of a name space of its own."""
    wanted = ["unshare", "--user", "--map-root-user", "--mount"]
    if os.geteuid() == 0 or "DIFFRL_CHECK_UNSHARED" in os.environ:
        return
    if (
        shutil.which("unshare")
        and subprocess.run([*wanted, "true"], capture_output=True).returncode == 0
    ):
        os.environ["DIFFRL_CHECK_UNSHARED"] = "1"
        os.execvp(wanted[0], [*wanted, sys.executable, *sys.argv])
    print("Without root's rights and user name spaces, leave out `disk full` and `read-only`.")


if __name__ == "__main__":
    with_rights()
    sys.exit(tyro.cli(main))
