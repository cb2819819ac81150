"""No output of a notebook gets into the repository, whatever became of the environment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "strip_notebook.py"
NOTEBOOK = ROOT / "notebooks" / "01_rl_training.ipynb"
# a hook of git's that runs the tests tells its children about the repository that it is of
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def git(folder: Path, *arguments: str, fails: bool = False) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=OUTSIDE
    )
    assert bool(result.returncode) == fails, result.stdout + result.stderr
    return result.stderr if fails else result.stdout


def register(folder: Path) -> None:
    command = [sys.executable, str(folder / "tools" / SCRIPT.name), "--install"]
    subprocess.run(command, cwd=folder, check=True, env=OUTSIDE)


def with_outputs(notebook: dict) -> dict:
    """A notebook as an editor leaves it: outputs, counts, random ids, folded cells, whole texts."""
    spoilt = json.loads(json.dumps(notebook))
    for number, cell in enumerate(spoilt["cells"]):
        cell["id"] = f"a1b2c3-{number}"
        cell["metadata"] |= {"collapsed": True, "scrolled": False, "execution": {"at": 1}}
        if cell["cell_type"] == "code":
            stream = {"output_type": "stream", "name": "stdout", "text": ["secret\n"]}
            cell["outputs"], cell["execution_count"] = [stream], number
            cell["source"] = "".join(cell["source"])
    spoilt["metadata"] |= {"widgets": {"state": {}}, "signature": "x"}
    return spoilt


@pytest.fixture
def clone(tmp_path):
    """A clone whose first commit, `old`, has no filter, and whose second one has."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "notebook.ipynb").write_bytes(NOTEBOOK.read_bytes())
    shutil.copy(ROOT / ".gitattributes", folder)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "old")
    git(folder, "tag", "old")
    (folder / "tools").mkdir()
    shutil.copy(SCRIPT, folder / "tools")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "new")
    register(folder)
    register(folder)  # there is nothing left to do
    return folder


def spoil(folder: Path) -> None:
    spoilt = with_outputs(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    (folder / "notebook.ipynb").write_text(json.dumps(spoilt), encoding="utf-8")


def test_what_is_added_has_no_outputs_and_the_bytes_that_were_committed(clone):
    spoil(clone)
    assert git(clone, "diff") == ""  # the text that git compares is stripped as well
    git(clone, "add", "notebook.ipynb")
    assert git(clone, "status", "--porcelain") == ""


def test_a_second_worktree_and_an_older_commit_let_no_outputs_through(clone, tmp_path):
    git(clone, "worktree", "add", "-q", str(tmp_path / "second"), "old")
    for folder in (tmp_path / "second", clone):
        git(folder, "checkout", "-q", "--detach", "old")
        assert not (folder / "tools").exists()
        spoil(folder)
        git(folder, "add", "notebook.ipynb")
        assert "secret" not in git(folder, "show", ":notebook.ipynb")


def test_a_filter_that_is_missing_stops_git(clone):
    (clone / ".git" / SCRIPT.name).unlink()
    spoil(clone)
    told = git(clone, "add", "notebook.ipynb", fails=True)
    assert "filter" in told
    assert "secret" not in git(clone, "show", ":notebook.ipynb")


@pytest.mark.parametrize("text", ["{", "[]", '{"nbformat": 3}', '{"nbformat": 4}'])
def test_what_is_no_notebook_is_not_added(clone, text):
    (clone / "notebook.ipynb").write_text(text)
    assert "cannot be stripped" in git(clone, "add", "notebook.ipynb", fails=True)


def test_an_environment_s_old_filter_is_replaced(clone):
    git(clone, "config", "filter.nbstripout.clean", ".venv/bin/nbstripout")
    git(clone, "config", "--unset", "filter.nbstripout.required")
    register(clone)
    assert SCRIPT.name in git(clone, "config", "filter.nbstripout.clean")
    assert git(clone, "config", "filter.nbstripout.required") == "true\n"


def test_the_filter_s_bytes_are_nbstripout_s():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for text in (NOTEBOOK.read_text(encoding="utf-8"), json.dumps(with_outputs(notebook))):
        outputs = [
            subprocess.run(
                [sys.executable, *command], input=text.encode(), capture_output=True, check=True
            ).stdout
            for command in ([str(SCRIPT)], ["-m", "nbstripout"])
        ]
        assert outputs[0] == outputs[1]
        assert b"secret" not in outputs[0]


def test_outside_a_clone_there_is_nothing_to_register(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    register(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]
