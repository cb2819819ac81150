"""python -m diffrl view FILE …: look at an episode, in the browser or as a film."""

import os
import sys
import webbrowser
from pathlib import Path

import tyro

from diffrl.base.errors import UserError
from diffrl.data.media import mp4_writer
from diffrl.explore.board import Board
from diffrl.explore.library import Entry, Library
from diffrl.explore.page import write_page
from diffrl.explore.pictures import Pictures
from diffrl.quality.files import tell_user
from diffrl.sim.camera import Detail


def main(
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    episode: int = 0,
    out: Path | None = None,
    chunk: int | None = None,
    rate: float | None = None,
    detail: Detail = "reduced",
) -> None:
    """Look at one episode: picture, path, speed, jerk and gripper, with a slider over time.

    Args:
        files: one HDF5 file that `quality` reads, or two: the second's episode from the same start
            state is shown beside the first's.
        episode: its number in the first file, from 0.
        out: page.html or film.mp4; default: a page beside you, which the browser then opens.
        chunk: steps of a policy's decision, to mark where decisions meet.
        rate: control rate in Hz, for files that do not say theirs.
        detail: of pictures drawn from states: exact, or reduced and several times as fast.
    """
    if not 1 <= len(files) <= 2:
        raise UserError(f"{len(files)} files: python -m diffrl view FILE [FILE] [--episode 3].")
    target = out or Path(f"{files[0].stem}_episode{episode}.html")
    if target.suffix not in (".html", ".mp4"):
        raise UserError(f"--out {target}: a page ends in .html, a film in .mp4.")
    if chunk is not None and chunk < 1:
        raise UserError(f"--chunk {chunk}: give the number of steps of a decision, 1 or more.")
    pictures = Pictures(detail=detail)
    board = Board(chosen(list(files), episode, rate), pictures, chunk)
    if target.suffix == ".mp4":
        _film(target, board)
    else:
        write_page(target, board)
    pictures.close()
    print(target)
    if out is None and _has_screen():
        webbrowser.open(target.resolve().as_uri())


def chosen(files: list[Path], episode: int, rate: float | None = None) -> list[Entry]:
    """The episode of the first file, and the second's from the same start state.

    Without one from the same start state it is the second's episode of the same number, and a
    line on stderr says so.

    Raises:
        UserError: there is no such episode.
    """
    shelves = [Library.of_files([file], rate=rate).entries for file in files]
    for file, entries in zip(files, shelves):
        if not 0 <= episode < len(entries) and file is files[0]:
            raise UserError(f"{file} has no episode {episode}: choose one of 0-{len(entries) - 1}.")
    first = shelves[0][episode]
    found = [first]
    for file, entries in zip(files[1:], shelves[1:]):
        task, start = first.trajectory.task, first.trajectory.start_state
        same = [
            e for e in entries if (e.trajectory.task, e.trajectory.start_state) == (task, start)
        ]
        if not same:
            same = [entries[min(episode, len(entries) - 1)]]
            tell_user(
                f"{file} has no episode of {task} from start state {start}; it shows another one."
            )
        found.append(same[0])
    return found


def _film(path: Path, board: Board) -> None:
    with mp4_writer(path, max(1, round(board.rate))) as append:
        for step in range(board.steps):
            append(board.frame(step))


def _has_screen() -> bool:
    """Whether a browser would open a window (and not take over the terminal)."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) or sys.platform in ("darwin", "win32")
