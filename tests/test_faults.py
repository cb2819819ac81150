"""A small series that is broken ends as if it had not been; all of it is `make check-faults`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "check_faults.py"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import check_faults

    return check_faults


def test_a_file_that_is_half_there_is_noticed_and_a_temporary_one_is_not(tool, tmp_path):
    save_file({"a": np.zeros(1000)}, tmp_path / "whole.safetensors")
    (tmp_path / "whole.csv").write_text("a,b\n1,2\n")
    (tmp_path / "whole.json").write_text("{}")
    (tmp_path / ".cut-abc.tmp.json").write_text("{")
    assert tool.half_written(tmp_path) == []
    for path in list(tmp_path.glob("whole.*")):
        content = path.read_bytes()
        path.with_stem("cut").write_bytes(content[: len(content) - 1])
    found = {Path(path).name for path in tool.half_written(tmp_path)}
    assert found == {"cut.safetensors", "cut.csv", "cut.json"}


@pytest.mark.parametrize(
    ("said", "clear"),
    [
        ("a bar\nError: The folder\nis gone.\n", True),
        ("Error:\n/a/long/path: is gone.\n", True),
        ("Traceback (most recent call last):\nError: x", False),
        ("a bar\n", False),
    ],
)
def test_a_call_is_clear_when_it_ends_with_a_paragraph_and_no_traceback(tool, said, clear):
    assert tool.one_paragraph(said) == clear


def test_every_fault_of_the_record_left_an_unbroken_run_s_records_and_the_page_shows_it(tool):
    record = pd.read_csv(ROOT / "results" / "faults.csv")
    assert (record["same"] == record["tries"]).all()
    assert (record[["unclear", "half_written"]] == 0).all(axis=None)
    pairs = [(f, s) for f in tool.FAULTS for s in tool.STAGES_OF.get(f, tool.STAGES)]
    assert list(record[["fault", "stage"]].itertuples(index=False, name=None)) == pairs
    counts = record.pivot(index="fault", columns="stage", values="faults").fillna(0).astype(int)
    kills = counts.loc["killed"].sum()
    assert kills >= 100
    page = (ROOT / "docs" / "run-on-a-cluster.md").read_text(encoding="utf-8")
    others = counts.to_numpy().sum() - kills
    assert f"{kills} SIGKILLs at random moments and {others} other faults" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["fault", *tool.STAGES]
    shown = {name: [int(n or 0) for n in row] for name, *row in cells[2:]}
    assert shown == {f: counts.loc[f, list(tool.STAGES)].tolist() for f in tool.FAULTS}


@pytest.mark.sim
@pytest.mark.skipif(sys.platform != "linux", reason="the faults are Linux's")
def test_a_few_kills_and_two_runs_at_once_leave_the_records_of_an_unbroken_series(tmp_path):
    command = [sys.executable, str(TOOL), "--kills", "15", "--each", "1", "--folder", str(tmp_path)]
    command += ["--only", "killed", "two runs", "corrupted input", "--stages", "expert", "quality"]
    environment = {**os.environ, "DIFFRL_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tries = pd.read_csv(tmp_path / "tries.csv")
    assert tries["same"].all()
    assert (tries[["unclear", "half_written"]] == 0).all(axis=None)
    assert tries.loc[tries["fault"] == "killed", "faults"].sum() >= 3
    assert set(tries["stage"]) == {"expert", "quality"}
