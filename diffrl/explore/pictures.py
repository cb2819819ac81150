"""The pictures of an episode: frames that its file stores, else drawn from its states, when wanted.

Nothing is drawn before somebody looks at it, and what was drawn is kept. One thread draws, whoever
asks: a renderer belongs to the thread that made it, and JupyterLab runs a cell and the events of
its widgets in different threads.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from diffrl.base.errors import UserError
from diffrl.data import integrity
from diffrl.data.demo import DAMAGE
from diffrl.data.episode import Episode
from diffrl.data.human import completed
from diffrl.explore.library import Entry
from diffrl.sim.camera import Renderer
from diffrl.sim.pictures import Detail
from diffrl.sim.scene import load_scene

STORED = ("obs/agentview_rgb", "obs/agentview_image", "obs/front_image", "obs/image")
_KEPT = 3000  # pictures in memory: 600 MB at 256²


class Pictures:
    """Pictures of any step of any episode, upright, at most `_KEPT` in memory.

    Args:
        size: side of the pictures that are drawn, in pixels.
        detail: "exact" or "reduced" (`diffrl.sim.camera`).
    """

    def __init__(self, size: int = 256, detail: Detail = "reduced"):
        self.size, self.detail = size, detail
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._sources: dict[tuple[Path, str], Callable | str] = {}
        self._episodes: dict[Path, dict[str, Episode]] = {}
        self._renderer: Renderer | None = None
        self._painter = ThreadPoolExecutor(1, "pictures")  # its thread begins with the first one

    def at(self, entry: Entry, row: int) -> np.ndarray | None:
        """The picture (h, w, 3) uint8 of one row of a trajectory, None where there is none."""
        key = (*entry.place, row)
        if key not in self._kept:
            source = self._source(entry)
            if isinstance(source, str):
                return None
            self._kept[key] = source(row)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def missing(self, entry: Entry) -> str:
        """Why an episode has no pictures; "" if it has some."""
        source = self._source(entry)
        return source if isinstance(source, str) else ""

    def close(self) -> None:
        """Free the renderer and its thread; nothing more is drawn."""
        self._painter.submit(self._free).result()
        self._painter.shutdown()

    def _source(self, entry: Entry) -> Callable | str:
        """A function row → picture, or the reason why there is none."""
        if entry.place not in self._sources:
            try:
                self._sources[entry.place] = self._stored(entry) or self._drawn(entry)
            except (*DAMAGE, UserError) as error:
                self._sources[entry.place] = f"no picture: {error}"
        return self._sources[entry.place]

    def _stored(self, entry: Entry) -> Callable | str | None:
        """Frames of the file, or why they are none; LIBERO's are upside down, robomimic's not."""
        path, demo = entry.place
        with integrity.open_hdf5(path) as file:
            data = file.get("data", file)
            flipped = data.attrs.get("macros_image_convention", "opengl") == "opengl"
            for name in STORED:
                item = integrity.find_array(data[demo], name, path)
                if item is not None and item.ndim == 4 and item.dtype == np.uint8:
                    if item.shape[3] not in (3, 4):
                        return (
                            f"no picture: {name} {item.shape}; colours are expected on the last "
                            "axis, (N, H, W, 3)"
                        )
                    place, last = item.name, len(item) - 1
                    upside_down = flipped and name.endswith("_rgb")
                    return lambda row: _frame(path, place, min(row, last), upside_down)
        return None

    def _drawn(self, entry: Entry) -> Callable | str:
        path, demo = entry.place
        if path not in self._episodes:
            with integrity.open_hdf5(path) as file:
                names = sorted(file["data"], key=lambda name: (len(name), name))
            self._episodes[path] = dict(zip(names, completed(path)))
        episode = self._episodes[path][demo]
        scene = load_scene(episode.task)
        if episode.states.shape[1] != scene.state_size:
            return f"no picture: its states are not those of {episode.task}"

        def draw(row: int) -> np.ndarray:
            return self._painter.submit(self._draw, episode, row).result()

        draw(0)  # here, so that what cannot be drawn is said at once
        return draw

    def _free(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _draw(self, episode: Episode, row: int) -> np.ndarray:
        if self._renderer is None or self._renderer.scene.task.id != episode.task:
            self._free()
            self._renderer = Renderer(load_scene(episode.task), self.size, self.detail)
        state = episode.states[min(row, len(episode.states) - 1)]
        return self._renderer.render(state, episode.fixtures)[::-1].copy()


def _frame(path: Path, place: str, row: int, upside_down: bool) -> np.ndarray:
    with integrity.open_hdf5(path) as file:
        frame = file[place][row]
    frame = frame[..., :3]  # without transparency
    return frame[::-1].copy() if upside_down else frame
