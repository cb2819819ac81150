"""Pictures of a simulator's copies, drawn where it is safe to draw them.

EGL and CUDA in one process may abort on some GPUs. Where a policy lives on a GPU its pictures are
drawn by spawned processes that stay, one OpenGL context each, and never load CUDA; elsewhere by
this one. The pictures are the same either way.
"""

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from diffrl.base.errors import UserError
from diffrl.base.opengl import environment, find_opengl
from diffrl.sim.camera import Detail, check_picture, draw_states
from diffrl.sim.pictures import picture_model
from diffrl.sim.scene import load_scene


class Painters:
    """Draws states of one task from some cameras.

    Args:
        task: its id, "libero_object/0".
        cameras: their names, in the order of the pictures.
        size: pixels a side.
        detail: "exact" or "reduced".
        workers: spawned processes; 0 draws in this process and thread.

    Raises:
        UserError: no OpenGL renderer works, or such a picture is not possible.
    """

    def __init__(
        self, task: str, cameras: Sequence[str], size: int, detail: Detail, workers: int = 0
    ):
        check_picture(size, detail)
        self.task, self.cameras, self.size, self.detail = task, tuple(cameras), size, detail
        self.workers = workers
        self._pool = None
        if workers:
            find_opengl()  # fail here, once, rather than in every worker
            picture_model(load_scene(task), detail)  # make it once, if it is not cached
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context)

    def draw(self, states: np.ndarray, fixtures: np.ndarray) -> np.ndarray:
        """Return (n, cameras, size, size, 3) uint8 of states (n, state_size), fixtures (n, k, 7).

        Upside down as LIBERO's.

        Raises:
            UserError: a process that draws has ended.
        """
        rows = np.array_split(np.arange(len(states)), max(1, self.workers))
        jobs = [
            (self.task, states[part], fixtures[part], self.cameras, self.size, self.detail)
            for part in rows
            if len(part)
        ]
        return np.concatenate(self._drawn(jobs))

    def _drawn(self, jobs: list[tuple]) -> list[np.ndarray]:
        if self._pool is None:
            return [draw_together(job) for job in jobs]
        try:
            with environment(CUDA_VISIBLE_DEVICES=""):  # processes are spawned as they are needed
                return list(self._pool.map(draw_together, jobs))
        except BrokenProcessPool as error:
            raise UserError(
                f"A process that draws pictures of {self.task} has ended by itself, perhaps for "
                "want of memory. Start the command again: it goes on from its last checkpoint."
            ) from error

    def loaded(self) -> list[str]:
        """Return the modules that a process that draws has loaded; [] if this one draws."""
        return [] if self._pool is None else self._pool.submit(loaded_modules).result()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> "Painters":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def draw_together(job: tuple) -> np.ndarray:
    """Draw (task, states, fixtures, cameras, size, detail): (n, cameras, size, size, 3) uint8."""
    return np.stack(list(draw_states(job).values()), axis=1)


def loaded_modules() -> list[str]:
    """Return the names of the modules that this process has loaded."""
    return sorted(sys.modules)
