"""The series runs headlessly, finds what is done, tells what failed, and survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from diffrl import doctor, reproduce
from diffrl.__main__ import main
from diffrl.base import artifacts
from diffrl.base.errors import UserError

RECORD = """
from pathlib import Path
folder = Path("ran"); folder.mkdir(exist_ok=True)
with (folder / "{number}.txt").open("a") as stream:
    stream.write(PRESET + "\\n")
"""


pytestmark = pytest.mark.notebooks


def write_notebook(home, number, code=""):
    book = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell('PRESET = "none"', metadata={"tags": ["parameters"]})
    body = nbformat.v4.new_code_cell(RECORD.format(number=number) + code)
    book.cells = [nbformat.v4.new_markdown_cell(f"# Part {number}"), parameters, body]
    nbformat.write(book, home / "notebooks" / f"{number:02d}_part.ipynb")


def runs(home):
    """How often each notebook ran."""
    paths = [home / "ran" / f"{number}.txt" for number in range(1, 6)]
    return [len(p.read_text().split()) if p.exists() else 0 for p in paths]


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for number in range(1, 6):
        write_notebook(tmp_path, number)
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_versions,))  # the quick one
    monkeypatch.setattr(reproduce, "_package_hash", lambda: "unchanged")  # whoever edits meanwhile
    return tmp_path


def test_a_notebook_runs_again_when_a_longer_run_that_it_shows_has_finished(home):
    assert main(["reproduce", "--preset", "smoke"]) == 0
    artifacts.write_json(home / "runs" / "smoke" / "vla_further.csv", {})
    assert main(["reproduce", "--preset", "smoke"]) == 0
    assert runs(home) == [1, 1, 1, 1, 2]


def test_the_series_runs_once_and_is_found_afterwards(home, capsys):
    assert main(["reproduce", "--preset", "smoke"]) == 0
    assert main(["reproduce", "--preset", "smoke"]) == 0
    assert runs(home) == [1, 1, 1, 1, 1]
    assert (home / "ran" / "3.txt").read_text() == "smoke\n"
    assert capsys.readouterr().out.count("found") == 5
    executed = home / "runs" / "smoke" / "notebooks"
    assert len(list(executed.glob("*.ipynb"))) == len(list(executed.glob("*.html"))) == 5
    record = json.loads((home / "runs" / "smoke" / "series.json").read_text())
    assert len(record["seconds"]) == 5
    assert record["config"]["name"] == "smoke"
    assert json.loads((home / "runs" / "smoke" / "doctor.json").read_text())["ok"]


def test_a_part_has_notebooks_and_figures_of_its_own_and_leaves_the_whole_s_done(home):
    assert main(["reproduce", "--preset", "laptop", "--only", "1"]) == 0
    part = ["reproduce", "--preset", "laptop", "--suite", "libero_object"]
    assert main([*part, "--only", "1"]) == 0
    assert main(["reproduce", "--preset", "laptop", "--only", "1"]) == 0
    assert runs(home) == [2, 0, 0, 0, 0]
    assert (home / "ran" / "1.txt").read_text() == "laptop\nlaptop:libero_object\n"
    whole = artifacts.runs_dir("laptop")
    assert (whole / "notebooks" / "libero_object" / "series.json").is_file()
    assert json.loads((whole / "series.json").read_text())["config"]["suites"] == []
    assert artifacts.figures_dir("laptop:libero_object").parent == artifacts.figures_dir("laptop")


def test_notebooks_of_vlas_are_left_out_where_no_vla_learns_from_a_part(home, capsys):
    assert main(["reproduce", "--preset", "laptop", "--suite", "libero_goal"]) == 0
    assert runs(home) == [1, 1, 1, 0, 0]
    assert capsys.readouterr().out.count("preset laptop:libero_goal trains no VLA") == 2


def test_without_a_terminal_a_line_tells_now_and_then_how_far_a_notebook_is(
    home, capsys, monkeypatch
):
    monkeypatch.setattr(reproduce, "PULSE", 0.2)
    code = "import sys, time\nsys.stderr.write('half\\rexperts: 50%'); time.sleep(2)"
    write_notebook(home, 1, code)
    assert main(["reproduce", "--only", "1"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "at work for 0:0" in line]
    assert len(told) >= 3
    assert all(line.startswith("[1/5] 01_part") for line in told)
    assert told[-1].endswith("; experts: 50%")


def test_a_changed_notebook_and_those_after_it_run_again(home):
    main(["reproduce"])
    write_notebook(home, 3, "print('changed')")
    assert main(["reproduce"]) == 0
    assert runs(home) == [1, 1, 2, 2, 2]


def test_from_only_and_force_choose_what_runs(home):
    assert main(["reproduce", "--only", "2"]) == 0
    assert runs(home) == [0, 1, 0, 0, 0]
    assert main(["reproduce", "--from", "4"]) == 0
    assert runs(home) == [0, 1, 0, 1, 1]
    assert main(["reproduce", "--only", "2", "--force"]) == 0
    assert runs(home) == [0, 2, 0, 1, 1]
    assert artifacts.FORCE not in os.environ
    assert main(["reproduce", "--only", "2"]) == 0  # in the same process
    assert runs(home) == [0, 2, 0, 1, 1]


def test_a_failing_cell_is_shown_and_what_came_before_is_kept(home, capsys):
    write_notebook(home, 2, "print(1 / 0)")
    assert main(["reproduce"]) == 1
    told = capsys.readouterr().err
    assert "02_part.ipynb failed in cell In [3]" in told
    assert "ZeroDivisionError" in told
    assert runs(home) == [1, 1, 0, 0, 0]
    write_notebook(home, 2)
    assert main(["reproduce"]) == 0
    assert runs(home) == [1, 2, 1, 1, 1]


def test_a_users_error_in_a_cell_is_one_paragraph(home, capsys):
    write_notebook(home, 1, "from diffrl.presets import get_preset\nget_preset('smoek')")
    assert main(["reproduce"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: 01_part.ipynb: There is no preset 'smoek'")
    assert "Traceback" not in told


def test_a_dead_kernel_is_told(home, capsys):
    write_notebook(home, 1, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert main(["reproduce"]) == 1
    assert "The kernel of 01_part.ipynb died" in capsys.readouterr().err


def test_a_problem_found_by_the_doctor_stops_the_series(home, capsys, monkeypatch):
    monkeypatch.setattr(
        artifacts, "versions", lambda: {**dict.fromkeys(artifacts.pins(), "1"), "mujoco": "3.4.0"}
    )
    assert main(["reproduce"]) == 1
    assert "mujoco is 3.4.0" in capsys.readouterr().err
    assert runs(home) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "smok"], "did you mean 'smoke'"),
        (["--only", "6"], "numbered 1 to 5"),
        (["--from", "0"], "numbered 1 to 5"),
        (["--from", "2", "--only", "3"], "exclude each other"),
    ],
)
def test_bad_arguments_are_refused(home, capsys, arguments, message):
    assert main(["reproduce", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_notebook_is_named(home, capsys):
    (home / "notebooks" / "04_part.ipynb").unlink()
    assert main(["reproduce"]) == 1
    assert "04_*.ipynb" in capsys.readouterr().err


def test_two_at_once_are_refused(home):
    with reproduce._alone("smoke"), pytest.raises(UserError, match="Another reproduce"):
        main_series = reproduce._alone("smoke")
        main_series.__enter__()


def test_after_a_kill_the_unfinished_notebook_runs_again(home):
    write_notebook(home, 2, "import time\nif not Path('go').exists():\n    time.sleep(120)")
    code = (
        "from diffrl import doctor, reproduce\ndoctor.CHECKS = (doctor.check_versions,)\n"
        "reproduce._package_hash = lambda: 'unchanged'\n"
        "from diffrl.__main__ import main\nmain(['reproduce'])"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    while runs(home)[1] == 0:
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (home / "go").write_text("")
    assert main(["reproduce"]) == 0
    assert runs(home) == [1, 2, 1, 1, 1]
