"""The board: pictures, paths, speed, jerk and gripper of one or two episodes at one moment.

matplotlib draws the curves once; a step then only pastes pictures and sets cursors into a copy.
The same geometry, in pixels, serves the widget, the film and the page.
"""

import math
import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from diffrl.base.arm import DEMONSTRATORS
from diffrl.explore.library import Entry
from diffrl.explore.pictures import Pictures
from diffrl.figures.style import arm_label, arm_style
from diffrl.quality.smoothness import jerk, speed_profile

WIDTH, HEIGHT, SIDE = 1120, 560, 256  # pixels of the board, and of a picture
SPEED_AT, JERK_AT = 0.5, 1.5  # samples from the first one to the middle of the first difference
_GAP, _TOP = 12, 40
_HANDS = (*DEMONSTRATORS, "teleoperation")  # decide step by step: they have no chunks


@dataclass(frozen=True)
class Dots:
    """Where one episode's hand is in one panel, in pixels of the board: a row per sample."""

    points: np.ndarray  # (N, 2) x, y from the left upper corner
    colour: str


class Board:
    """One or two episodes, ready to be shown at any step.

    Args:
        entries: the episodes; the second's curves are dashed if its colour is the first's.
        pictures: where their pictures come from.
        chunk: steps of a policy's decision, to mark where they meet; None: not marked.
    """

    def __init__(self, entries: list[Entry], pictures: Pictures, chunk: int | None = None):
        self.entries, self.pictures, self.chunk = list(entries), pictures, chunk
        self.rate = entries[0].trajectory.rate
        longest = max((len(t.position) - 1) / t.rate for t in (e.trajectory for e in entries))  # s
        self.steps = 1 + math.ceil(longest * self.rate - 1e-6)  # of the first one's clock
        self._styles = [arm_style(*e.trajectory.arm) for e in entries]
        self._figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
        canvas = FigureCanvasAgg(self._figure)
        self._draw()
        canvas.draw()
        self.background = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        self.boxes = [(_GAP + i * (SIDE + _GAP), _TOP) for i in range(len(entries))]
        self.cursors = [self._span(axes) for axes in self._curves]
        self.dots = [[self._dots(axes, i) for axes in self._paths] for i in range(len(entries))]

    def time(self, step: int) -> float:
        """Seconds from the first sample."""
        return step / self.rate

    def row(self, index: int, step: int) -> int:
        """The sample of episode `index` at a step of the first one's clock; the last once ended."""
        trajectory = self.entries[index].trajectory
        row = round(self.time(step) * trajectory.rate)
        return min(row, len(trajectory.position) - 1)

    def frame(self, step: int) -> np.ndarray:
        """The board (HEIGHT, WIDTH, 3) uint8 at a step."""
        image = self.background.copy()
        for index, (left, top) in enumerate(self.boxes):
            picture = self.picture(index, step)
            if picture is not None:
                image[top : top + SIDE, left : left + SIDE] = picture
        for start, scale, top, bottom in self.cursors:
            x = round(start + scale * self.time(step))
            image[top:bottom, x : x + 2] = (0, 0, 0)
        for index, panels in enumerate(self.dots):
            for dots in panels:
                x, y = dots.points[self.row(index, step)]
                _disc(image, x, y, 6, (0, 0, 0))
                _disc(image, x, y, 4, _rgb(dots.colour))
        return image

    def picture(self, index: int, step: int) -> np.ndarray | None:
        """The picture (SIDE, SIDE, 3) of episode `index` at a step; None where there is none."""
        found = self.pictures.at(self.entries[index], self.row(index, step))
        if found is None or found.shape == (SIDE, SIDE, 3):
            return found
        image = Image.fromarray(found)
        image.thumbnail((SIDE, SIDE)) if max(found.shape) > SIDE else None
        scale = SIDE / max(image.size)
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.NEAREST)
        whole = Image.new("RGB", (SIDE, SIDE), "white")
        whole.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
        return np.asarray(whole)

    def reading(self, step: int) -> str:
        """The numbers at a step, a line per episode."""
        lines = [f"step {step} · {self.time(step):.2f} s"]
        for index, entry in enumerate(self.entries):
            t, row = entry.trajectory, self.row(index, step)
            speed = _at(row, 100 * speed_profile(t.position, t.rate), SPEED_AT)
            text = f"{arm_label(*t.arm)}: speed {speed:.1f} cm/s"
            text += f", jerk {_at(row, jerk(t.position, t.rate), JERK_AT):.1f} m/s³"
            if t.opening is not None:
                text += f", gripper {100 * t.opening[row]:.1f} cm open"
            lines.append(text)
        return " | ".join(lines)

    # -- what matplotlib draws, once ---------------------------------------------------------------
    def _draw(self) -> None:
        across = max(2, len(self.entries))
        wide = across * (SIDE + _GAP)
        for index, entry in enumerate(self.entries):
            left = _GAP + index * (SIDE + _GAP)
            t = entry.trajectory
            outcome = {True: "", False: " (failed)", None: ""}[t.success]
            self._figure.text(
                (left + 2) / WIDTH, 1 - 35 / HEIGHT, arm_label(*t.arm) + outcome,
                color=self._styles[index]["color"], fontsize=9, fontweight="bold",
            )  # fmt: skip
            if why := self.pictures.missing(entry):
                text = _wrapped(why)
                self._figure.text((left + 6) / WIDTH, 1 - 60 / HEIGHT, text, fontsize=7, va="top")
        shown = [entry.trajectory for entry in self.entries]
        titles = dict.fromkeys(f"{t.task} · start state {t.start_state}" for t in shown)
        title = "  and  ".join(titles)
        self._figure.text(_GAP / WIDTH, 1 - 10 / HEIGHT, title, fontsize=7, va="center")
        low = _TOP + SIDE + 24
        place = [(46 + i * (wide // 2), low, wide // 2 - 66, HEIGHT - low - 44) for i in (0, 1)]
        self._paths = [self._axes(*box) for box in place]
        for axes, names in zip(self._paths, (("y", "x"), ("y", "z"))):
            self._draw_paths(axes, names)
        left, height = wide + 60, (HEIGHT - 70) // 3
        right = [(left, 22 + i * height, WIDTH - left - 14, height - 26) for i in range(3)]
        self._curves = [self._axes(*box) for box in right]
        self._draw_curves()

    def _axes(self, left: int, top: int, width: int, height: int):
        box = (left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        axes = self._figure.add_axes(box)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        return axes

    def _line(self, index: int) -> dict:
        line = {
            "color": self._styles[index]["color"],
            "linestyle": self._styles[index]["linestyle"],
        }
        twins = index and line == {k: self._styles[0][k] for k in line}
        return line | ({"linestyle": ":"} if twins else {})

    def _draw_paths(self, axes, names: tuple[str, str]) -> None:
        for index in range(len(self.entries)):
            across, up = self._projected(index, names)
            axes.plot(across, up, lw=1.2, **self._line(index))
            axes.plot(across[0], up[0], "o", color="black", ms=3)
            axes.plot(across[-1], up[-1], "s", color="black", ms=3)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(f"{names[0]} (cm)", fontsize=7, labelpad=1)
        axes.set_ylabel(f"{names[1]} (cm)", fontsize=7, labelpad=1)
        axes.set_title("from above" if names[1] == "x" else "from the front", fontsize=7, pad=2)

    def _projected(self, index: int, names: tuple[str, str]) -> list[np.ndarray]:
        position = 100 * self.entries[index].trajectory.position
        return [position[:, "xyz".index(name)] for name in names]

    def _draw_curves(self) -> None:
        speed, third, gripper = self._curves
        known = any(entry.trajectory.opening is not None for entry in self.entries)
        for index, entry in enumerate(self.entries):
            t, line = entry.trajectory, {"lw": 1.1, **self._line(index)}
            values = 100 * speed_profile(t.position, t.rate)
            speed.plot((np.arange(len(values)) + SPEED_AT) / t.rate, values, **line)
            values = jerk(t.position, t.rate)
            third.plot((np.arange(len(values)) + JERK_AT) / t.rate, values, **line)
            self._draw_gripper(gripper, t, line, known)
            if self.chunk and t.source not in _HANDS:
                for axes in self._curves:
                    for at in np.arange(self.chunk, len(t.actions), self.chunk) / t.rate:
                        axes.axvline(at, color=line["color"], lw=0.5, alpha=0.3, zorder=0)
        opening = "gripper (cm open)" if known else "gripper (1 = open)"
        for axes, label in zip(self._curves, ("speed (cm/s)", "jerk (m/s³)", opening)):
            axes.set_ylabel(label, fontsize=8)
            axes.set_xlim(0, self.time(self.steps - 1))
            axes.set_ylim(bottom=0)
        label = "time (s)"
        if self.chunk and any(e.trajectory.source not in _HANDS for e in self.entries):
            label += f"; thin lines: every {self.chunk} steps the policy decides anew"
        gripper.set_xlabel(label, fontsize=8)

    def _draw_gripper(self, axes, t, line: dict, known: bool) -> None:
        """The opening; where no episode's is known the command, 1 open and 0 closed."""
        if t.opening is not None:
            axes.plot(np.arange(len(t.opening)) / t.rate, 100 * t.opening, **line)
        elif not known and t.has_commands and t.grips:
            command = t.actions[:, 6] < 0
            axes.step(np.arange(len(command)) / t.rate, command, where="post", **line)

    # -- geometry ----------------------------------------------------------------------------------
    def _span(self, axes) -> tuple[float, float, int, int]:
        """Left end (pixels), pixels a second, upper and lower end of a cursor in a panel."""
        (left, low), (right, high) = axes.transData.transform(
            [(0, axes.get_ylim()[0]), (self.time(self.steps - 1), axes.get_ylim()[1])]
        )
        scale = (right - left) / self.time(self.steps - 1)
        return float(left), float(scale), round(HEIGHT - high), round(HEIGHT - low)

    def _dots(self, axes, index: int) -> Dots:
        names = ("y", "x") if axes is self._paths[0] else ("y", "z")
        points = axes.transData.transform(np.column_stack(self._projected(index, names)))
        points[:, 1] = HEIGHT - points[:, 1]
        return Dots(points, self._styles[index]["color"])


def _at(row: int, values: np.ndarray, first: float) -> float:
    """A curve's value at a sample; `values` begin at sample `first` and stay at their ends."""
    return float(np.interp(row, np.arange(len(values)) + first, values))


def _disc(image: np.ndarray, x: float, y: float, radius: int, colour) -> None:
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    left, top = max(int(x) - radius, 0), max(int(y) - radius, 0)
    part = np.s_[top : int(y) + radius + 2, left : int(x) + radius + 2]
    inside = (rows[part[0]] - y) ** 2 + (columns[:, part[1]] - x) ** 2 <= radius**2
    image[part][inside] = colour


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 44, max_lines=14)
