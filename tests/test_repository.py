"""What a clone holds fits together."""

import ast
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from diffrl.base import bundles

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = re.compile(r"[A-Za-z0-9._-]+")


def committed(*patterns):
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *patterns]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    assert not result.returncode, result.stderr  # or the guards below would pass without a look
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


MEBIBYTE = 2**20


@pytest.mark.parametrize(
    ("place", "files", "size"),
    [(".", 380, 48), ("results", 80, 42), ("figures", 80, 12), ("tests", 90, 2)],
)
def test_a_clone_stays_small(place, files, size):
    """Whoever adds a file finds out here that another one could go."""
    kept = committed(place)
    assert 0 < len(kept) <= files
    assert sum(path.stat().st_size for path in kept) <= size * MEBIBYTE


def test_no_test_file_has_more_than_500_lines():
    texts = {path.name: path.read_text("utf-8") for path in committed("tests/*.py")}
    assert [name for name, text in texts.items() if text.count("\n") > 500] == []


def test_what_is_computed_is_not_tracked():
    assert committed("runs", "*/smoke/*", "*.hdf5", "*.pdf", "*.log") == []
    names = [path.name for path in committed("figures")]
    assert {name.rsplit(".", 1)[1] for name in names} == {"png", "zip", "md"}
    sheets = [name for name in names if "contact_sheet_" in name]
    assert len(sheets) <= 1  # one contact sheet, not one a task


def test_environment_yml_lists_no_package_a_second_time():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in environment if isinstance(entry, str)]
    [pip] = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    [requirement] = pip
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", requirement)[1].split(",")
    assert set(extras) <= PYPROJECT["project"]["optional-dependencies"].keys()
    listed = {NAME.match(line)[0] for line in PYPROJECT["project"]["dependencies"]}
    assert not listed & {NAME.match(entry)[0] for entry in conda}


def test_environment_yml_makefile_and_pyproject_agree_on_python_and_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    makefile = (ROOT / "Makefile").read_text()
    assert "python=3.11" in environment
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.13"
    assert "(3, 11) <= sys.version_info < (3, 13)" in makefile
    [extras] = re.findall(r"-e '\.(\[notebooks.*\])'", makefile)
    assert {"pip": [f"-e .{extras}"]} in environment


def test_every_required_package_has_a_bound():
    lines = PYPROJECT["project"]["dependencies"]
    assert [line for line in lines if not re.search(r"==|<", line)] == []


def imported(path):
    """The top-level modules that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_every_imported_package_is_declared():
    extras = itertools.chain(*PYPROJECT["project"]["optional-dependencies"].values())
    lines = [*PYPROJECT["project"]["dependencies"], *extras]
    declared = {NAME.match(line)[0].lower().replace("_", "-") for line in lines}
    brought = {
        "ipython": "ipykernel",
        "llvmlite": "numba",
        "nbclient": "papermill",
        "packaging": "matplotlib",
    }
    assert set(brought.values()) <= declared
    owners = importlib.metadata.packages_distributions()
    ours = set((ROOT / "diffrl").rglob("*.py")) - {
        ROOT / "diffrl" / "evaluation" / "lerobot_server.py"
    }
    for path in ours:  # that one runs in lerobot's own environment
        for module in set(imported(path)) - set(sys.stdlib_module_names) - {"diffrl"}:
            names = {name.lower().replace("_", "-") for name in owners.get(module, [module])}
            assert names & (declared | brought.keys()), f"{path.name} imports {module}"


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / "diffrl").rglob("*.py")}
    assert [folder.name for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_notebook_is_committed_with_outputs():
    spoilt = []
    for path in committed("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell.get("outputs") or cell.get("execution_count") is not None:
                spoilt.append(path.name)
    assert spoilt == []


def test_cells_are_numbered_as_the_filter_numbers_them():
    """Else every clone with the filter shows a changed notebook."""
    for path in committed("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert [cell["id"] for cell in cells] == [str(k) for k in range(len(cells))], path.name


def test_every_notebook_has_one_cell_of_parameters():
    for path in committed("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1, path.name
        assert 'PRESET = "smoke"' in "".join(tagged[0]["source"]), path.name


def test_every_notebook_names_the_kernel_that_papermill_starts():
    for path in committed("notebooks/*.ipynb"):
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        assert metadata["kernelspec"]["name"] == "python3", path.name
        assert metadata["kernelspec"]["language"] == "python", path.name


def test_a_notebooks_cells_have_at_most_fifteen_lines():
    for path in committed("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                assert len(lines) <= 15, f"{path.name}: {lines[0]}"


def test_nothing_committed_names_a_path_of_somebodys_machine():
    # the home of the clone, and usual homes; /tmp and system paths are everybody's
    private = re.compile(rf"{re.escape(str(ROOT))}(?![\w-])|/(home|Users)/\w+/|/roo[t]/")
    guilty = {}
    for path in committed():
        if path.suffix in {".png", ".pdf", ".gz", ".safetensors", ".npz", ".hdf5", ".mp4"}:
            continue
        texts = bundles.read(path).values() if path.suffix == ".zip" else [path.read_text("utf-8")]
        if found := private.search("".join(texts)):
            guilty[str(path.relative_to(ROOT))] = found[0]
    guilty.pop("tests/test_repository.py", None)
    assert guilty == {}


def test_readme_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_lists_every_preset():
    from diffrl.presets import PRESETS

    assert re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE) == list(PRESETS)


def test_readme_is_read_in_minutes():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", ["results_table", "cards"])
def test_a_written_page_is_that_of_the_records(page):
    command = [sys.executable, ROOT / "tools" / f"{page}.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.sim
def test_readmes_examples_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 4
    script = tmp_path / "examples.py"
    body = "".join(examples)
    script.write_text("if __name__ == '__main__':\n    " + body.replace("\n", "\n    "))
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert "3 successes in" in result.stdout
    assert "m/s³" in result.stdout
    assert len(re.findall(r"failure +280", result.stdout)) == 2  # the policy of one's own


@pytest.mark.sim
def test_the_commands_of_the_cards_play_an_expert_that_git_keeps(tmp_path):
    page = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
    [commands] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "libero").symlink_to(ROOT / "results" / "libero")
    for line in commands.splitlines():
        words, home = [sys.executable, *shlex.split(line)[1:]], {"DIFFRL_HOME": str(tmp_path)}
        result = subprocess.run(
            words, cwd=tmp_path, env=os.environ | home, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    row = re.search(r"libero_object/0 +10 +0 +(\d+)", result.stdout)  # trials, errors, successes
    assert row
    assert int(row[1]) >= 8


# ---- what holds the habits: local hooks, and a CI that calls the targets that a person calls -----


def test_every_hook_is_local_so_that_none_needs_a_network():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {"ruff", "ruff-format", "notebooks", "codespell"} == {hook["id"] for hook in hooks}


def test_ci_calls_targets_that_the_makefile_has():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = {m[1] for s in steps if (m := re.match(r"make (\w+)", s.get("run", "")))}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert called == {"lint", "test", "coverage"}
    assert called <= targets


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "diffrl" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()


def test_a_notebook_is_stripped_where_it_lies_and_a_broken_one_is_refused(tmp_path):
    cell = {"cell_type": "code", "id": "x", "metadata": {}, "source": "1", "outputs": [{}]}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path, broken = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    path.write_text(json.dumps(notebook))
    broken.write_text("no notebook")
    command = [sys.executable, str(ROOT / "tools" / "strip_notebook.py"), "--write"]
    result = subprocess.run([*command, str(path), str(broken)], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"{broken} cannot be stripped" in result.stderr
    assert json.loads(path.read_text())["cells"][0]["outputs"] == []
