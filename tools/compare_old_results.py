"""Compare every value of a preset's results in an older commit with its evidence of today.

    .venv/bin/python tools/compare_old_results.py be852a5 [laptop]

At be852a5 each run had files of its own. What is packed now is unpacked and held against them, file
by file: bytes first, else every old column of a table and every value of a document. Prints what
differs and ends with status 1 if anything does.
"""

import collections
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from diffrl import evidence

ROOT = Path(__file__).parents[1]
KEYS = ("suite", "task", "source", "mode", "training_seed", "measure", "effect", "first", "second")


def old_files(commit: str, folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each file that a commit holds below a folder."""
    git = ["git", "-C", str(ROOT)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", commit, folder], check=True, stdout=-1
    )
    names = listed.stdout.decode().splitlines()
    asked = "\n".join(f"{commit}:{name}" for name in names).encode()
    with io.BytesIO(
        subprocess.run([*git, "cat-file", "--batch"], input=asked, check=True, stdout=-1).stdout
    ) as answers:
        for name in names:
            size = int(answers.readline().split()[2])
            yield name.removeprefix(f"{folder}/"), answers.read(size)
            answers.read(1)  # the newline after it


def values(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield place and value of every leaf of a document."""
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, part in pairs:
            yield from values(part, f"{place}/{name}")
    else:
        yield place, repr(tree)


def differences(name: str, old: bytes, new: Path) -> Iterator[str]:
    """Yield what of the old file the new one lacks or has otherwise."""
    if not new.exists():
        yield "is not kept"
    elif new.read_bytes() == old:
        return
    elif name.endswith(".json"):
        found = dict(values(json.loads(new.read_text(encoding="utf-8"))))
        for place, value in values(json.loads(old)):
            if found.get(place) != value:
                yield f"{place}: {value} is now {found.get(place)}"
    elif name.endswith(".csv"):
        before, after = pd.read_csv(io.BytesIO(old)), pd.read_csv(new)
        keys = [key for key in KEYS if key in before]
        both = before.merge(after, how="left", on=keys, suffixes=("", "_new"), indicator=True)
        kept = both[both["_merge"] == "both"]
        if len(kept) < len(before):
            yield f"{len(before) - len(kept)} of {len(before)} rows are not kept"
        for column in before.columns.difference(keys):
            changed = kept[column].compare(kept[f"{column}_new"].rename(column))
            if len(changed):
                yield f"{column}: other values in {len(changed)} of {len(kept)} rows"
    else:
        yield "other bytes"


def main(commit: str, preset: str = "laptop") -> int:
    """Print the differences and the number of files without one."""
    same = 0
    found = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        evidence.unpack(ROOT / "results" / preset, run)
        for name, old in old_files(commit, f"results/{preset}"):
            told = list(differences(name, old, run / name))
            same += not told
            found.update(f"{Path(name).name}: {what}" for what in told)
    print(f"{same} files have every old value.")
    for what, count in found.items():
        print(f"{count} x {what}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
