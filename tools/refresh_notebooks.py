"""Write into each notebook what the reference run found, from the gallery of its figures.

    python tools/refresh_notebooks.py [--check]      # make readme runs it

A code host shows notebooks without outputs. So one cell of each, tagged `reference`, embeds the
figures of the reference run with captions and sentences; `reproduce` leaves it out, because an
executed notebook shows its own preset's.
"""

import json
import sys
from pathlib import Path

from diffrl.gallery import gallery
from diffrl.reproduce import REFERENCE

ROOT = Path(__file__).resolve().parents[1]
PRESET = "laptop"  # the reference run
FIRST = ("01_success", "03_gaps", "05_success")  # of their notebooks
LEFT_OUT = {"01_task"}


def reference_cell(number: int) -> str:
    """The Markdown of notebook `number`: every figure of it, its caption, what it says."""
    parts = [
        f"## What preset `{PRESET}` found\n\nThe reference run; an executed notebook shows its own "
        f"preset in place of this. [More of it in words](../docs/{PRESET}.md)."
    ]
    kept = gallery(ROOT / "figures" / PRESET)
    for name in sorted(kept, key=lambda name: (name not in FIRST, name)):
        words = kept[name]
        if name.startswith(f"{number:02d}_") and name not in LEFT_OUT:
            caption, _, text = words.partition("\n\n")
            parts.append(f"![{name}](../figures/{PRESET}/{name}.png)\n\n*{caption}*")
            parts += [text] if text else []
    return "\n\n".join(parts)


def refreshed(path: Path) -> str:
    """The notebook's text with its reference cell filled."""
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if REFERENCE in cell["metadata"].get("tags", []):
            cell["source"] = reference_cell(int(path.name[:2])).splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Refresh the notebooks; with --check say which are not what the gallery says."""
    stale = []
    for path in sorted((ROOT / "notebooks").glob("0[1-5]_*.ipynb")):
        text = refreshed(path)
        if text != path.read_text(encoding="utf-8"):
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"Stale: {', '.join(stale)}. Run `make readme`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
