"""The figures that git keeps: ``figures/<preset>/``.

Every figure is kept as PNG, but those that only a notebook shows. ``numbers.zip`` has the table
behind each, a CSV file of its name, and ``README.md`` shows each with its caption. A run's own
folder has every figure also as PDF.
"""

import shutil
from pathlib import Path

from diffrl.base import artifacts, bundles

GALLERY = "README.md"
NOTEBOOKS_ALONE = {  # too large, or too special, for a clone of the repository
    *("01_learning_curves", "01_learning_by_task", "03_factorial_ways"),
}


def copy_figures(name: str) -> Path:
    """Copy a run's figures to figures/, which git keeps: PNG, numbers and words; return the folder.

    A figure that this run did not draw again keeps its numbers and words.
    """
    source, target = artifacts.figures_dir(name), artifacts.root() / "figures" / name
    target.mkdir(parents=True, exist_ok=True)
    kept = target / bundles.NUMBERS
    numbers = bundles.read(kept) if kept.is_file() else {}
    numbers |= {path.name: path.read_text(encoding="utf-8") for path in source.glob("*.csv")}
    for path in sorted(source.glob("*.png")):
        if path.stem not in NOTEBOOKS_ALONE:
            shutil.copy(path, target)
    drawn = {f"{path.stem}.csv" for path in target.glob("*.png")}
    bundles.write(kept, {name: numbers[name] for name in drawn & numbers.keys()})
    _write_gallery(source, target, name)
    return target


def _write_gallery(source: Path, target: Path, preset: str) -> None:
    """Write README.md: every kept figure with its caption and what it says.

    A figure that this run did not draw again keeps its words.
    """
    words = gallery(target)
    for path in source.glob("*.txt"):
        words[path.stem] = path.read_text(encoding="utf-8").strip()
    parts = [
        f"# Figures of {preset}",
        f"`{bundles.NUMBERS}` has the numbers of each in a CSV of its name.",
    ]
    for picture in sorted(target.glob("*.png")):
        if picture.stem in words:
            parts.append(f"## {picture.stem}\n\n![{picture.stem}]({picture.name})")
            parts.append(words[picture.stem])
    (target / GALLERY).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def gallery(folder: Path) -> dict[str, str]:
    """The words under each figure of a folder of kept figures: caption, and what it says."""
    if not (folder / GALLERY).is_file():
        return {}
    found = {}
    for section in (folder / GALLERY).read_text(encoding="utf-8").split("\n## ")[1:]:
        name, _, words = section.split("\n\n", 2)
        found[name] = words.strip()
    return found
