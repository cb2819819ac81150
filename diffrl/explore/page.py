"""The board as one HTML page with a working slider: no server, no network, no library."""

import base64
import html
import io
import json
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from diffrl.base.artifacts import atomic_path
from diffrl.explore.board import HEIGHT, SIDE, WIDTH, Board


def write_page(path: Path, board: Board) -> None:
    """Write a board with all its steps as a page of some megabytes, which any browser opens."""
    data = {
        "width": WIDTH,
        "height": HEIGHT,
        "side": SIDE,
        "rate": board.rate,
        "background": _image(board.background, "PNG"),
        "cursors": board.cursors,
        "readings": [board.reading(step) for step in range(board.steps)],
        "clips": [_clip(board, index) for index in range(len(board.entries))],
    }
    trajectory = board.entries[0].trajectory
    text = resources.files("diffrl.explore").joinpath("page.html").read_text("utf-8")
    text = text.replace("@TITLE@", html.escape(f"{trajectory.task}, {trajectory.start_state}"))
    script = json.dumps(data).replace("<", "\\u003c")  # no text of a file can end the script
    with atomic_path(path) as temporary:
        temporary.write_text(text.replace("@DATA@", script), encoding="utf-8")


def _clip(board: Board, index: int) -> dict:
    """One episode's pictures, and which of its rows belongs to each step."""
    rows = [board.row(index, step) for step in range(board.steps)]
    first = {row: rows.index(row) for row in dict.fromkeys(rows)}
    drawn = [board.picture(index, step) for step in first.values()]
    number = {row: place for place, row in enumerate(first)}
    return {
        "box": board.boxes[index],
        "rows": rows,
        "frame": [number[row] for row in rows],
        "pictures": [_image(picture, "JPEG") for picture in drawn if picture is not None],
        "dots": [np.round(dots.points, 1).tolist() for dots in board.dots[index]],
        "colour": board.dots[index][0].colour,
    }


def _image(pixels: np.ndarray, kind: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"quality": 85} if kind == "JPEG" else {}))
    code = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{code}"
