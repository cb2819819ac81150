"""How a run tells what it does: a progress bar, a log file, and TensorBoard if one asks for it."""

import math
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffrl.base.artifacts import make_folder
from diffrl.base.errors import UserError
from diffrl.base.heartbeat import Heartbeat


class Journal:
    """Writes ``train.log`` in a run's folder, appending; shows a bar where there is a terminal."""

    def __init__(self, folder: Path, name: str, bar: bool = True, tensorboard: bool = False):
        make_folder(folder)
        self.path, self.name = folder / "train.log", name
        self.hidden = None if bar else True  # None: tqdm looks whether it is a terminal
        self.title, self.bar = "", None
        self.board = _board(folder) if tensorboard else None
        self.sign: Heartbeat | None = None  # of the run, while it is at work

    def say(self, text: str) -> None:
        """Append a line with the time of day to the log file."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def phase(
        self, title: str, total: int, done: int = 0, span: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        """Begin a part of `total` units, of which `done` are there already.

        It takes about the share `span` of the whole run, from 0 to 1.
        """
        self.close()
        self.title = title
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=f"{self.name} {title}",
            disable=self.hidden,
            dynamic_ncols=True,
        )
        self.say(f"{title}: {done} of {total} done")
        if self.sign is not None:
            self.sign.tell(phase=title, done=done, total=total, rate=None, span=span)

    def row(self, values: dict[str, Any], done: int, shown: tuple[str, ...]) -> None:
        """Advance to `done` units; show and log some of `values`, all go to TensorBoard."""
        text = {name: f"{values[name]:.3g}" for name in shown if _is_number(values.get(name))}
        if self.bar is not None:
            self.bar.set_postfix(text)
            self.bar.update(done - self.bar.n)
        self.say(" ".join(f"{name}={value}" for name, value in text.items()))
        if self.sign is not None:
            self.sign.tell(done=done)
            told = {"success": values.get("success"), "rate": values.get("sps")}
            self.sign.tell(**{name: value for name, value in told.items() if _is_number(value)})
        if self.board is not None:
            for name, value in values.items():
                if _is_number(value):
                    self.board.add_scalar(f"{self.title}/{name}", value, done)

    def close(self) -> None:
        """End the bar, and flush TensorBoard's files."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if self.board is not None:
            self.board.flush()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard: `pip install tensorboard`, or leave the "
            "option away; diagnostics.csv holds the same numbers."
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
