"""Data sets: writing them against simulating them, and their export against the bare camera.

One thread and one process each. What is simulated is replayed from the same episodes; the bare
camera draws every tenth of the states that the export draws, half of them before it and half after
it. The export counts everything: reading, the scene, the renderer's start, checksums, the disk.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffrl.benchmark.common import timed
from diffrl.data.attributes import libero_attributes
from diffrl.data.episode import Episode
from diffrl.data.export import export_hdf5
from diffrl.data.hdf5 import EpisodeWriter
from diffrl.data.human import replay
from diffrl.demonstrator.episodes import operator_demonstrations
from diffrl.presets import get_preset
from diffrl.sim.camera import CAMERAS, Renderer
from diffrl.sim.pictures import Pictures
from diffrl.sim.scene import load_scene
from diffrl.sim.tasks import get_task

TASK = "libero_object/0"
SIZE = 128  # pixels a side
EVERY = 10  # of the states, for the bare camera


def measure_data(episodes: int = 50) -> dict:
    """Return control steps a second simulated and written, and images a second drawn and exported.

    The episodes are the operator's; the images are the reduced ones, which leave the export the
    least time.
    """
    scene = load_scene(TASK)
    made, _ = operator_demonstrations(scene, episodes, 0, get_preset("laptop").demonstrations)
    steps = sum(episode.length for episode in made)
    images = sum(len(episode.states) for episode in made) * len(CAMERAS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suite" / "task_demo.hdf5"
        _, simulating = timed(lambda: replay(scene, made, threads=1))
        _, writing = timed(lambda: _write(file, made))
        with Renderer(scene, SIZE, "reduced") as renderer:
            before = _draw(renderer, made, EVERY // 2)
            _, exporting = timed(
                lambda: export_hdf5([file], Path(folder) / "images", Pictures(SIZE, "reduced"))
            )
            after = _draw(renderer, made, 0)
    drawn, drawing = (a + b for a, b in zip(before, after, strict=True))
    rates = {
        "simulating": steps / simulating,
        "writing": steps / writing,
        "camera": drawn / drawing,
        "export": images / exporting,
    }
    about = {"task": TASK, "episodes": episodes, "images": images, "size": SIZE}
    return about | {name: round(rate, 1) for name, rate in rates.items()}


def _write(file: Path, episodes: Sequence[Episode]) -> None:
    with EpisodeWriter(file, TASK, libero_attributes(get_task(TASK))) as writer:
        for episode in episodes:
            writer.append(episode)


def _draw(renderer: Renderer, episodes: Sequence[Episode], first: int) -> tuple[int, float]:
    """Draw every tenth state from `first` on; return the number of images and the seconds."""
    places = [(state, e.fixtures) for e in episodes for state in e.states][first::EVERY]
    renderer.render(*places[0])  # uploads what the driver has left for later
    _, seconds = timed(lambda: [renderer.render(*p, camera) for p in places for camera in CAMERAS])
    return len(places) * len(CAMERAS), seconds
