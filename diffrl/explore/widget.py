"""The explorer in a notebook: lists, a slider, the board; a figure where nobody watches."""

import importlib.util
import io

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from diffrl.base.errors import UserError
from diffrl.explore.board import HEIGHT, WIDTH, Board
from diffrl.explore.library import Entry, Library
from diffrl.explore.pictures import Pictures
from diffrl.figures.style import arm_label, style

ALONE = "(alone)"


def explore(library: Library, chunk: int | None = None, static: bool | None = None):
    """Return the explorer of a library, to be shown by a notebook's cell.

    Args:
        library: the episodes to choose from.
        chunk: steps of a policy's decision, to mark where decisions meet.
        static: True: one figure, of the first episode and one beside it; False: the widget; None:
            the widget if somebody at a front end runs the cell and ipywidgets is installed.

    Raises:
        UserError: the widget is wanted, but ipywidgets is not installed.
    """
    if static is None:
        static = not (attended() and importlib.util.find_spec("ipywidgets"))
    return still(library, chunk) if static else Explorer(library, chunk).box


def attended() -> bool:
    """Whether a front end runs this cell: it names the cell, papermill and nbconvert do not."""
    if not importlib.util.find_spec("IPython"):
        return False
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return bool(kernel and kernel.get_parent("shell").get("metadata", {}).get("cellId"))


def still(library: Library, chunk: int | None = None) -> Figure:
    """The board of the first episode, and of one from the same start state, in its middle."""
    first = library.entries[0]
    pair = next((e for e in library.entries if library.beside(e)), first)
    pictures = Pictures()
    board = Board([pair, *library.beside(pair)[:1]], pictures, chunk)
    shown = board.frame(board.steps // 2)
    pictures.close()
    return _as_figure(shown)


@style
def _as_figure(shown: np.ndarray) -> Figure:
    """A figure of pyplot's, which notebooks know how to show."""
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, layout="none")
    figure.add_axes((0, 0, 1, 1)).imshow(shown, interpolation="none")
    figure.axes[0].axis("off")
    return figure


class Explorer:
    """The widget: data set → task → arm → episode, one beside it, and a slider over time.

    Attributes:
        box: what the notebook shows.
        slider, image, reading: its time, its board as PNG, its numbers.
    """

    def __init__(self, library: Library, chunk: int | None = None):
        try:
            import ipywidgets as widgets
        except ImportError as error:
            raise UserError(
                "The explorer's widget needs ipywidgets: `pip install -e '.[notebooks]'` in the "
                "clone; `python -m diffrl view FILE` needs nothing."
            ) from error
        self.library, self.chunk, self.pictures = library, chunk, Pictures()
        labels = ("data set", "task", "arm", "episode", "beside")
        self.menus = [widgets.Dropdown(description=label) for label in labels]
        self.slider = widgets.IntSlider(description="step", layout={"width": "70%"})
        self.play = widgets.Play(interval=100, step=2)
        self.image = widgets.Image(format="png", layout={"max_width": "100%"})
        self.reading = widgets.Label()
        self.box = widgets.VBox(
            [
                widgets.HBox(self.menus, layout={"flex_flow": "row wrap"}),
                widgets.HBox([self.play, self.slider]),
                self.image,
                self.reading,
            ]
        )
        self.box.explorer = self  # whoever keeps the box keeps what answers its events
        widgets.jslink((self.play, "value"), (self.slider, "value"))
        self._quiet = False
        self._fill(0)
        for level, menu in enumerate(self.menus):
            menu.observe(lambda change, level=level: self._chosen(level), names="value")
        self.slider.observe(lambda change: self.show(), names="value")

    @property
    def entry(self) -> Entry:
        """The episode that is chosen."""
        return self.menus[3].value

    def show(self) -> None:
        """Show the board at the slider's step."""
        stream = io.BytesIO()
        pixels = self.board.frame(self.slider.value)
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
        self.image.value = stream.getvalue()
        self.reading.value = self.board.reading(self.slider.value)

    def _chosen(self, level: int) -> None:
        if not self._quiet:
            self._fill(level + 1)

    def _fill(self, first: int) -> None:
        """Fill the lists from `first` on, which follow from those before; show the episode."""
        self._quiet = True
        for level in range(first, len(self.menus)):
            options = self._options(level)
            kept = self.menus[level].value
            self.menus[level].options = options
            values = [value for _, value in options]
            self.menus[level].value = kept if kept in values else values[0]
        self._quiet = False
        other = self.menus[4].value
        self.board = Board([self.entry, *([other] if other else [])], self.pictures, self.chunk)
        last = self.board.steps - 1
        self.play.max = self.slider.max = last
        self.show()

    def _options(self, level: int) -> list[tuple]:
        dataset, task, arm, entry = (menu.value for menu in self.menus[:4])
        if level == 0:
            return [(name, name) for name in self.library.datasets()]
        if level == 1:
            return [(name, name) for name in self.library.tasks(dataset)]
        if level == 2:
            return [(arm_label(*a), a) for a in self.library.arms(dataset, task)]
        if level == 3:
            return [(e.title, e) for e in self.library.episodes(dataset, task, arm)]
        others = self.library.beside(entry)
        return [(ALONE, None), *((arm_label(*e.trajectory.arm), e) for e in others)]
