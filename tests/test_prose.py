"""What README, CONTRIBUTING, the pages of docs/ and the notebooks tell a reader to type works."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffrl.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
HOW_TO = ("evaluate-your-own-policy", "measure-your-own-file", "add-a-task", "explore")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATED = "LOG.md"  # it may name what is no more


def text_of(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def commands(text):
    """Each ``python -m diffrl …`` that a text names: its command and its options."""
    for number, part in enumerate(text.split("```")):
        lines = part.split("\n") if number % 2 else re.findall(r"`([^`]+)`", part)
        for line in lines:  # of a block of code, or a quotation in a paragraph
            found = re.search(r"-m diffrl\s+([\w-]+)([^#]*)", line)
            if found:
                yield found[1], re.findall(r"(?<!\S)--[a-z-]+", found[2])


def test_commands_are_found_in_code_and_in_sentences():
    code = "python -m diffrl doctor --json  # --no"
    text = f"Try `python -m diffrl tasks --suite\npro`.\n```\n{code}\n```"
    assert [*commands(text)] == [("tasks", ["--suite"]), ("doctor", ["--json"])]


@functools.cache
def help_of(command):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main([command, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_what_each_option_means(command):
    text = re.sub(r"[│╭╰─╮╯]", " ", help_of(command)).replace("None", "")
    assert re.search(r"\n\n[A-Z][^\n]+\n", text), "no sentence about the command"
    assert re.findall(r"(?m)^ +(--[a-z-]+)[^a-z(]*\((?:default|required)", text) == []


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_every_command_and_option_that_a_page_names_exists(page):
    if page.name == DATED:
        pytest.skip("the log is of its days")
    for command, options in commands(text_of(page)):
        assert command in COMMANDS, f"{page.name}: {command}"
        for option in {*options} - {"--ray"}:
            assert f"{option} " in help_of(command), f"{page.name}: {command} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_and_link_that_a_page_names_exists(page):
    text = text_of(page)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    if page.name != DATED:
        for name in re.findall(r"`((?:diffrl|docs|tests|tools|notebooks)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_what_contributing_names_stands_in_the_file_that_it_names():
    for recipe in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        files = re.findall(r"`((?:diffrl|tests)/[\w./]+)`", recipe)
        source = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in set(files))
        for name in re.findall(r"`_?([A-Za-z_][A-Za-z_.]*)`", recipe):
            word = name.split(".")[-1]
            assert re.search(rf"\b_?{word}\b", source), f"{recipe.splitlines()[0]}: {name}"


OBSCURE = r"told apart|tells? \w+ apart|\bmend(s|ed|ing)?\b|\b(is|are) said of\b|\b(is|are) told\b"


def test_no_sentence_for_readers_uses_the_words_that_the_house_avoids():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "diffrl").rglob("*.py")]
    for text in [*map(text_of, [*PAGES, *NOTEBOOKS]), *sources]:
        found = re.search(OBSCURE, " ".join(text.split()), re.IGNORECASE)
        assert not found, found.string[max(found.start() - 60, 0) : found.end() + 60]


def test_no_test_is_named_by_the_words_that_the_house_avoids():
    for path in (ROOT / "tests").glob("*.py"):
        names = re.findall(r"^ *def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        for name in names:
            assert not re.search("told_apart|(^|_)mend(s|ed|ing)?(_|$)", name), (path.name, name)


def test_contributing_has_the_six_recipes():
    recipes = re.findall(r"^## (.*)$", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    assert [recipe.lower() for recipe in recipes] == [
        *("a policy class", "a suite", "a measure", "a preset", "a loss", "a vla to evaluate")
    ]


def _data_set_of_smoke(demonstrations, home):
    """What a page that opens preset smoke needs: one of its data sets."""
    from diffrl.sim.tasks import get_task

    task = get_task("libero_object/0")
    folder = home / "runs" / "smoke" / "datasets" / "operator-recorded" / task.suite
    folder.mkdir(parents=True)
    shutil.copy(demonstrations, folder / f"{task.name}_demo.hdf5")


@pytest.mark.sim
@pytest.mark.parametrize("name", HOW_TO)
def test_a_how_to_page_does_what_it_says(name, demonstrations, tmp_path):
    """Its Python blocks, saved under the names that it gives, then its commands.

    The files that it names are ours; lerobot's own tool has a test where lerobot is installed.
    """
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for file in ("my_demo", "mine", "FILE", "A", "B"):
        shutil.copy(demonstrations, tmp_path / f"{file}.hdf5")
    _data_set_of_smoke(demonstrations, tmp_path)
    environment = os.environ | {"DIFFRL_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    saved = re.search(r"Save this as `(\w+\.py)`", text)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        script = tmp_path / (saved[1] if saved else "block.py")
        script.write_text(block)
        subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True)
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    assert lines
    for line in lines:
        if "build/lerobot" in line:
            continue
        result = subprocess.run(
            line.replace("python -m", f"{sys.executable} -m"),
            **{"shell": True, "cwd": tmp_path, "env": environment, "text": True},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_or_a_broken_link():
    pytest.importorskip("myst_nb")
    tool = ROOT / "tools" / "build_site.py"
    result = subprocess.run([sys.executable, tool], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    page = Path(result.stdout.strip()).read_text(encoding="utf-8")
    assert "05_success" in page
    foreign = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page)
    assert foreign == []  # it is read without a network, too
