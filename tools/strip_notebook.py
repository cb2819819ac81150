"""Git's filter for notebooks: what is committed holds no outputs and no execution counts.

    python3 tools/strip_notebook.py --install     register the filter in this clone (make does it)
    python3 tools/strip_notebook.py [NOTEBOOK]    print a notebook (or standard input) stripped
    python3 tools/strip_notebook.py --write NOTEBOOK …    strip notebooks where they lie

It needs Python alone and runs from a copy in git's own folder, which all worktrees share, so a
removed `.venv`, a second worktree or an older commit cannot go without it. Git's configuration
requires it: where it is missing or fails, `git add` fails too. Its bytes are nbstripout's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

NAME = Path(__file__).name
COMMAND = f'python3 "$(git rev-parse --git-common-dir)/{NAME}"'
SETTINGS = {
    "filter.nbstripout.clean": COMMAND,
    "filter.nbstripout.smudge": "cat",
    "filter.nbstripout.required": "true",
    "diff.ipynb.textconv": COMMAND,
}
VOLATILE = ("collapsed", "ExecuteTime", "execution", "heading_collapsed", "hidden", "scrolled")


def strip(text: str) -> str:
    """Return a notebook (JSON, format 4) without outputs, counts and what an editor remembers.

    Raises:
        ValueError: it is no notebook of format 4.
    """
    notebook = json.loads(text)
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4:
        raise ValueError("it is no notebook of format 4")
    for name in ("signature", "widgets", "orig_nbformat", "orig_nbformat_minor"):
        notebook["metadata"].pop(name, None)
    for number, cell in enumerate(notebook["cells"]):
        for name in (*VOLATILE, "trusted"):
            cell["metadata"].pop(name, None)
        if isinstance(cell["source"], list):
            cell["source"] = "".join(cell["source"])
        cell["source"] = cell["source"].splitlines(True)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if "id" in cell:
            cell["id"] = str(number)  # editors draw random ones
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def install(clone: Path) -> None:
    """Copy this script into the clone's git folder, and register it as a required filter.

    Outside a clone (an unpacked archive) there is nothing to guard, and nothing is done.

    Raises:
        subprocess.CalledProcessError: git refuses, or the registered filter does not work.
    """
    if not (clone / ".git").exists():
        return
    folder = Path(_git(clone, "rev-parse", "--git-common-dir").strip())
    target = clone / folder / NAME  # `folder` may be absolute
    content = Path(__file__).read_bytes()
    listed = _git(clone, "config", "--local", "--null", "--list").split("\0")
    missing = {key: value for key, value in SETTINGS.items() if f"{key}\n{value}" not in listed}
    if not missing and target.is_file() and target.read_bytes() == content:
        return
    temporary = target.with_name(f".{NAME}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, target)
    for key, value in missing.items():
        _git(clone, "config", "--replace-all", key, value)
    sample = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    subprocess.run(
        COMMAND, shell=True, cwd=clone, input=sample.encode(), stdout=subprocess.DEVNULL, check=True
    )


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(arguments: list[str]) -> int:
    """Install, or strip one notebook; return the exit code."""
    if arguments == ["--install"]:
        try:
            install(Path(__file__).resolve().parent.parent)
        except subprocess.CalledProcessError as error:
            print(f"The notebook filter is not registered: {error}", file=sys.stderr)
            return 1
        return 0
    if arguments[:1] == ["--write"]:
        return max(map(_write, arguments[1:]), default=0)
    try:
        data = Path(arguments[0]).read_bytes() if arguments else sys.stdin.buffer.read()
        stripped = strip(data.decode("utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return _refuse("this notebook", error)
    sys.stdout.buffer.write(stripped.encode("utf-8"))
    return 0


def _write(path: str) -> int:
    try:
        before = Path(path).read_bytes()
        after = strip(before.decode("utf-8")).encode("utf-8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return _refuse(path, error)
    if after != before:
        Path(path).write_bytes(after)
    return 0


def _refuse(notebook: str, error: Exception) -> int:
    print(f"{NAME}: {notebook} cannot be stripped of outputs: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
