"""What holds the habits: local hooks, and a CI that calls the targets that a person calls."""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


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
