"""Build the site into build/site/html, without a network: ``make site``.

    python tools/build_site.py [preset]

The report, how-to pages and log of docs/, the five notebooks, every kept figure with its caption,
and the reference of the package from its docstrings, a page a room. A warning or a broken link is
an error. Notebooks that were not executed yet are executed first where the preset's evidence is in
results/, so that nothing is trained; else they stand as they are, with the reference run's figures.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from diffrl.reproduce import executed_folder, notebooks

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
INDEX = """# diffrl

**Do demonstrations that an RL policy makes teach a vision-language-action model (VLA) more than
those of a demonstrator?** diffrl is an open reproduction of
["Beyond Human Demonstrations"](https://arxiv.org/abs/2509.19752) on LIBERO: clone a small policy
per task from a few demonstrations, improve it by RL in the simulator, record what it does, and
train the VLA on that.

```{{include}} README.md
:start-after: "## What it found so far"
:end-before: "## The series"
```

New here? Read [the report](docs/report.md), two minutes with five figures. Then
[measure a file of your own](docs/measure-your-own-file.md) or
[evaluate a policy of your own](docs/evaluate-your-own-policy.md).

```{{toctree}}
:caption: Results
:maxdepth: 1

docs/report
docs/laptop
figures/laptop/README
figures/benchmark/README
results/README
docs/cards
```

```{{toctree}}
:caption: The series ({how})
:maxdepth: 1

{notebooks}
```

```{{toctree}}
:caption: How to
:maxdepth: 1

docs/measure-your-own-file
docs/evaluate-your-own-policy
docs/explore
docs/add-a-task
docs/run-on-a-cluster
```

```{{toctree}}
:caption: Reference
:maxdepth: 1

api/index
README
CONTRIBUTING
docs/LOG
CHANGELOG
```
"""


def assemble(source: Path, preset: str) -> None:
    """Lay out what the site is made of as the repository does, so that relative links hold."""
    shutil.rmtree(source, ignore_errors=True)
    (source / "docs").mkdir(parents=True)
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, source / "docs")
    shutil.copy(ROOT / "docs" / "conf.py", source)
    (source / "_static").mkdir()
    shutil.copy(ROOT / "docs" / "site.css", source / "_static")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "cluster", source / "cluster")  # files that a page offers
    for folder in (ROOT / "figures").iterdir():
        shutil.copytree(folder, source / "figures" / folder.name)
    (source / "results").mkdir()
    shutil.copy(ROOT / "results" / "README.md", source / "results")
    names = _notebooks(source / "notebooks", preset)
    how = f"executed, preset {preset}" if _executed(preset) else "not executed here"
    listed = "\n".join(f"notebooks/{name}" for name in names)
    (source / "index.md").write_text(INDEX.format(how=how, notebooks=listed), encoding="utf-8")
    _reference(source / "api")


def _executed(preset: str) -> bool:
    return all((executed_folder(preset) / path.name).is_file() for path in notebooks())


def _notebooks(target: Path, preset: str) -> list[str]:
    target.mkdir()
    for path in notebooks():
        if _executed(preset):
            path = executed_folder(preset) / path.name
        book = nbformat.read(path, as_version=4)
        if any("injected-parameters" in cell.metadata.get("tags", []) for cell in book.cells):
            kept = [c for c in book.cells if "parameters" not in c.metadata.get("tags", [])]
            book.cells = kept  # two cells that name a preset would be one too many
        nbformat.write(book, target / path.name)
    return [path.stem for path in notebooks()]


def _reference(target: Path) -> None:
    """A page for each room of the package: its modules with their public members."""
    target.mkdir()
    package = ROOT / "diffrl"
    rooms = sorted(path for path in package.iterdir() if (path / "__init__.py").is_file())
    listed = "\n".join(room.name for room in rooms)
    head = "# The package\n\nA page for each room, in alphabetical order.\n\n"
    text = f"{head}```{{toctree}}\n:maxdepth: 1\n\n{listed}\nentry-points\n```\n"
    (target / "index.md").write_text(text, encoding="utf-8")
    for room in rooms:
        modules = sorted(room.rglob("*.py"))
        _page(target / f"{room.name}.md", f"diffrl.{room.name}", modules)
    loose = [path for path in sorted(package.glob("*.py")) if not path.stem.startswith("__")]
    _page(target / "entry-points.md", "Entry points", loose)


def _page(target: Path, title: str, modules: list[Path]) -> None:
    parts = [f"# {title}"]
    for path in modules:
        names = path.relative_to(ROOT).with_suffix("").parts
        door = names[-1] == "__init__"
        module = ".".join(names[:-1] if door else names)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            continue
        options = "" if door else "   :members:\n"
        heading = [] if door else [f"## {names[-1]}"]
        block = f"```{{eval-rst}}\n.. automodule:: {module}\n{options}```"
        parts += [*heading, block]
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _execute(preset: str) -> bool:
    """Execute the notebooks of a preset whose evidence is here; tell whether nothing failed."""
    if _executed(preset) or not (ROOT / "results" / preset).is_dir():
        return True
    command = [sys.executable, "-m", "diffrl", "reproduce", "--preset", preset]
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode == 0


def main() -> int:
    """Assemble the sources and build them; return Sphinx's exit code."""
    preset = sys.argv[1] if len(sys.argv) > 1 else "laptop"
    if not _execute(preset):
        print(f"The notebooks of preset {preset} did not run: see above.", file=sys.stderr)
        return 1
    source, target = SITE / "source", SITE / "html"
    assemble(source, preset)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    code = subprocess.run([*command, source, target], check=False).returncode
    if code:
        print(f"The site is not whole (Sphinx ended with {code}): see above.", file=sys.stderr)
        return 1
    print(target / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
