"""Pictures of episodes: drawn from their states, in batches, and written as MP4."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from diffrl.base.artifacts import atomic_path
from diffrl.base.control import CONTROL_HZ
from diffrl.base.errors import UserError
from diffrl.data.episode import Episode
from diffrl.sim.pictures import Detail, Pictures
from diffrl.sim.scene import load_scene
from diffrl.sim.tasks import CAMERAS

_BATCH_BYTES = 800e6  # of frames in memory at once
_ENCODING = (
    *("-crf", "18", "-preset", "veryfast"),  # visually lossless
    *("-g", "2"),  # a key frame every second frame: training reads frames at random (lerobot's)
    *("-threads", "1", "-bitexact", "-fflags", "+bitexact"),  # the same frames: the same bytes
    *("-movflags", "+faststart", "-video_track_timescale", "10240"),
)


@contextlib.contextmanager
def mp4_writer(path: Path, fps: int = CONTROL_HZ) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a frame (H, W, 3) uint8, upright, to an H.264 film.

    The film appears under its name when the block ends without an error and it is whole.

    Raises:
        UserError: no frame came, or ffmpeg does not write them.
    """
    with atomic_path(path) as temporary:
        film, frames = None, 0

        def append(frame: np.ndarray) -> None:
            nonlocal film, frames
            if film is None:
                film = _ffmpeg(temporary, (frame.shape[1], frame.shape[0]), fps)
            film.send(np.ascontiguousarray(frame))
            frames += 1

        try:
            yield append
        except OSError as error:
            raise UserError(f"{path}: ffmpeg does not write the film ({error}).") from error
        finally:
            if film is not None:
                film.close()
        if film is None:
            raise UserError(f"{path}: a film needs at least one frame.")
        if (whole := _frames(temporary)) != frames:
            raise UserError(
                f"{path}: ffmpeg wrote {whole} of {frames} frames; its own words, if any, stand "
                "above. Make room on that disk, and start again."
            )


def _frames(film: Path) -> int:
    """How many frames a film holds: the writer hides it when ffmpeg fails at the end."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(film)[0]
    except RuntimeError:  # it cannot be read at all
        return 0


def _ffmpeg(path: Path, size: tuple[int, int], fps: int):
    film = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=fps,
        codec="libx264",
        quality=None,  # -crf below decides
        macro_block_size=2,
        output_params=list(_ENCODING),
        ffmpeg_log_level="error",
    )
    film.send(None)
    return film


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = CONTROL_HZ) -> None:
    """Write a film of frames (H, W, 3); see `mp4_writer`."""
    with mp4_writer(path, fps) as append:
        for frame in frames:
            append(frame)


def side_by_side(films: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield frames that show several films (n_i, H, W, 3) in a row; ended ones keep their end."""
    for index in range(max(len(film) for film in films)):
        yield np.hstack([film[min(index, len(film) - 1)] for film in films])


def pictures(
    episode: Episode, every: int = 2, size: int = 128, detail: Detail = "reduced"
) -> np.ndarray:
    """Draw every `every`-th state of an episode, and the last: (n, size, size, 3), upright.

    Raises:
        UserError: no OpenGL renderer works here.
    """
    from diffrl.sim.camera import Renderer  # only here: most readers of data draw nothing

    rows = {*range(0, len(episode.states), every), len(episode.states) - 1}
    with Renderer(load_scene(episode.task), size, detail) as renderer:
        drawn = [renderer.render(episode.states[row], episode.fixtures) for row in sorted(rows)]
    return np.stack(drawn)[:, ::-1]


def with_frames(
    episodes: Iterable[Episode], pictures: Pictures, workers: int = 1
) -> Iterator[tuple[Episode, dict[str, np.ndarray]]]:
    """Yield each episode with its frames, camera → (L, size, size, 3), in LIBERO's orientation.

    Episodes of one task are drawn together, as many as fit into memory: starting `workers`
    processes takes seconds.

    Raises:
        UserError: no renderer works, or an episode's task is not LIBERO's.
    """
    limit = max(1, int(_BATCH_BYTES / (len(CAMERAS) * 3 * pictures.size**2)))  # states
    batch: list[Episode] = []
    for episode in itertools.chain(episodes, [None]):
        states = sum(len(waiting.states) for waiting in batch)
        full = batch and (
            episode is None or episode.task != batch[0].task or states + len(episode.states) > limit
        )
        if full:
            yield from _draw(batch, pictures, workers)
            batch = []
        if episode is not None:
            batch.append(episode)


def _draw(batch: list[Episode], pictures: Pictures, workers: int):
    from diffrl.sim.camera import render_states

    states = np.concatenate([episode.states for episode in batch])
    fixtures = np.concatenate(
        [np.broadcast_to(e.fixtures, (len(e.states), *e.fixtures.shape)) for e in batch]
    )
    size, detail = pictures
    drawn = render_states(batch[0].task, states, fixtures, CAMERAS, size, detail, workers)
    first = 0
    for episode in batch:
        rows = slice(first, first + len(episode.states))
        yield episode, {camera: frames[rows] for camera, frames in drawn.items()}
        first = rows.stop
