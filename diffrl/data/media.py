"""Moving pictures: MP4 files from frames, and one film per task that shows its data sets."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from diffrl.artifacts import atomic_path
from diffrl.data.episode import CONTROL_HZ, Episode
from diffrl.data.hdf5 import iterate_episodes
from diffrl.errors import UserError
from diffrl.sim.scene import load_scene

_ENCODING = (
    *("-crf", "18", "-preset", "fast"),  # visually lossless
    *("-g", "2"),  # a key frame every second frame: training reads frames at random (lerobot's)
    *("-threads", "1", "-bitexact", "-fflags", "+bitexact"),  # the same frames: the same bytes
    *("-movflags", "+faststart", "-video_track_timescale", "10240"),
)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = CONTROL_HZ) -> int:
    """Write an H.264 film atomically from frames (H, W, 3) uint8, upright; return their number.

    Raises:
        UserError: there are no frames, or ffmpeg does not take them.
    """
    stream, count = iter(frames), 0
    first = next(stream, None)
    if first is None:
        raise UserError(f"{path}: a film needs at least one frame.")
    size = (first.shape[1], first.shape[0])
    with atomic_path(path) as temporary:
        film = imageio_ffmpeg.write_frames(
            str(temporary),
            size,
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            output_params=list(_ENCODING),
            ffmpeg_log_level="error",
        )
        film.send(None)
        try:
            for frame in itertools.chain([first], stream):
                film.send(np.ascontiguousarray(frame))
                count += 1
        except OSError as error:
            raise UserError(f"{path}: ffmpeg does not write the film ({error}).") from error
        finally:
            film.close()
    return count


def pictures(
    episode: Episode, every: int = 2, size: int = 128, detail: str = "reduced"
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


def side_by_side(films: list[np.ndarray]) -> Iterable[np.ndarray]:
    """Yield frames that show several films (n_i, H, W, 3) in a row; ended ones keep their end."""
    for index in range(max(len(film) for film in films)):
        yield np.hstack([film[min(index, len(film) - 1)] for film in films])


def first_episode(path: Path) -> Episode:
    """Return the first episode of a data set.

    Raises:
        UserError: the file is not sound up to there.
    """
    return next(iterate_episodes(path, images=False))
