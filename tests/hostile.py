"""What a stranger may hand over: mutations of valid bytes, and a child process that reads them.

A reader runs in a fork with a limit of memory, under Python's audit hook. So a crash of a C
library, a bomb that no exception announces, a program that is started and a file that is written
elsewhere are all seen, and none of them ends the test.
"""

import copy
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import pandas as pd
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from diffrl.base.artifacts import write_csv
from diffrl.base.errors import UserError

seen: Counter = Counter()  # of one reader: "read", "refused", "harmed", and the most "MiB" taken
MEMORY = 256 * 2**20  # bytes that a reader may take beyond its input
PATIENCE = 60  # seconds until a reader counts as hung
EXAMPLES = 8  # inputs of a round; DIFFRL_FUZZ_SECONDS asks for rounds until so much has passed
CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "exec")
CODE += ("import", "socket.connect", "ctypes.dlopen")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "shutil.move")


# -- inputs ----------------------------------------------------------------------------------------
@st.composite
def mutated(draw, valid: bytes) -> bytes:
    """Arbitrary bytes, or `valid` with a few of its bytes changed, cut, repeated or put in."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=2000))
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["set", "set", "insert", "delete", "repeat", "cut"]))
        length = draw(st.integers(1, 16))
        if kind == "set":
            new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)]))
            data[place : place + len(new)] = new
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "delete":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * draw(st.integers(1, 4))
        elif draw(st.integers(0, 3)) == 0:
            del data[place:]
    return bytes(data)


HOSTILE = st.sampled_from(
    [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf"), "", "\0"]
    + ["../../outside", "/etc/passwd", "a" * 5000, [], [[]], {}, {"": {}}, [1] * 5000, ["x", 3]]
)


@st.composite
def changed_document(draw, valid) -> bytes:
    """`valid`, a JSON document, with up to three of its places replaced, removed or added."""
    document = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        node = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 9)):
                node = node[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del node[key]
            else:
                node[key] = copy.deepcopy(draw(HOSTILE))  # what is in it may be changed next
            break
    return json.dumps(document).encode()


# -- a reader in a child ---------------------------------------------------------------------------
def read_in_child(read, folder: Path) -> str:
    """Call ``read()`` in a fork; return "read", "refused", or what went wrong.

    `folder` is the only one that it may write in.
    """
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        _child(read, folder, start)
    os.close(start)
    limit = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > limit:
            break
        time.sleep(0.002)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status = None
    with os.fdopen(end, "rb") as stream:
        taken, _, told = stream.read().decode(errors="replace").partition(" ")
    if status is None:
        told = f"hung for {PATIENCE} s"
    elif not os.WIFEXITED(status) or not told:
        told = f"the process died ({status})"
    seen.update([told if told in ("read", "refused") else "harmed"])
    seen["MiB"] = max(seen["MiB"], int(taken or 0) >> 20)
    return told


def _child(read, folder: Path, report: int):
    events, outcome = [], "read"
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.chdir(folder)  # what removes a folder names its files without it
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 4 * MEMORY, now + 4 * MEMORY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.addaudithook(lambda name, given: _watch(name, given, folder, events))
        try:
            read()
        except UserError:
            outcome = "refused"
        except BaseException:
            outcome = traceback.format_exc()[-1500:]
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if taken > MEMORY:
            outcome = f"it took {taken / 2**20:.0f} MiB"
        if events:
            outcome = f"it ran or wrote: {events[:3]}"
        os.write(report, f"{max(taken, 0)} {outcome}".encode(errors="replace"))
    finally:
        os._exit(0)


def _watch(name: str, given: tuple, folder: Path, seen: list) -> None:
    if name in CODE and not (name == "import" and _trusted(given)):
        seen.append(f"{name} {str(given)[:80]}")
    if name == "open" and isinstance(given[0], str) and given[2] & (os.O_WRONLY | os.O_RDWR):
        _inside(name, given[0], folder, seen)
    if name in CHANGES:
        for path in given[: 2 if name in ("os.rename", "os.link") else 1]:
            _inside(name, path, folder, seen)


def _trusted(given: tuple) -> bool:
    """An import that the code itself does late; a stranger's name would be no installed module."""
    return str(given[0]).split(".")[0] in {m.split(".")[0] for m in sys.modules}


def _inside(name: str, path, folder: Path, seen: list) -> None:
    if path != os.devnull and not Path(os.fsdecode(path)).resolve().is_relative_to(folder):
        seen.append(f"{name} {path}")


# -- rounds ----------------------------------------------------------------------------------------
def fuzz(strategy, check) -> int:
    """Call ``check(input)`` with inputs of `strategy`; return how many were tried.

    Where DIFFRL_FUZZ_REPORT names a table, a row of what came of them is added to it.
    """
    budget = float(os.environ.get("DIFFRL_FUZZ_SECONDS", 0))
    began, number = time.monotonic(), 0
    seen.clear()
    quiet = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while number == 0 or time.monotonic() - began < budget:
        seed(number)(quiet(given(strategy)(lambda data: check(data))))()
        number += 1
    if "DIFFRL_FUZZ_REPORT" in os.environ:
        _report(Path(os.environ["DIFFRL_FUZZ_REPORT"]))
    return seen["read"] + seen["refused"] + seen["harmed"]


def _report(path: Path) -> None:
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0]
    name, _, variant = test.removeprefix("test_").partition("[")
    reader = name.replace("_", " ").split(" without ")[0].removesuffix(" is read")
    reader += f" ({variant.rstrip(']')})" if variant else ""
    counts = [seen["read"], seen["refused"], seen["harmed"]]
    row = {"reader": reader, "inputs": sum(counts), "read": counts[0], "refused": counts[1]}
    row |= {"harmed": counts[2], "most_memory_mib": seen["MiB"]}
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    table = pd.DataFrame([r for r in rows if r["reader"] != reader] + [row])
    write_csv(path, table)
