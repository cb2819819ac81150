"""The headline numbers, computed a second time without the package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def run(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "tools" / "second_path.py"), "laptop"]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_second_path_from_the_trials_gives_the_published_numbers():
    done = run(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") > 25


def test_the_second_path_notices_a_number_that_the_trials_do_not_give(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "second_path.py", tmp_path / "tools")
    shutil.copytree(ROOT / "results" / "laptop", tmp_path / "results" / "laptop")
    file = tmp_path / "results" / "laptop" / "effects.csv"
    table = pd.read_csv(file)
    table.loc[0, "points"] += 0.1
    table.to_csv(file, index=False)
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("DIFFERENT") == 1


def test_the_second_path_uses_nothing_of_the_package():
    assert "diffrl." not in (ROOT / "tools" / "second_path.py").read_text()
