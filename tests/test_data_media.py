"""Films: whole, or not there."""

import contextlib
import resource

import imageio.v3 as iio
import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.data.media import write_mp4

NOISE = np.random.default_rng(0).integers(0, 255, (20, 128, 128, 3), dtype=np.uint8)  # 200 kB


@contextlib.contextmanager
def largest_file(limit):
    """No file grows beyond `limit` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_film_holds_every_frame(tmp_path):
    write_mp4(tmp_path / "film.mp4", NOISE)
    assert iio.imread(tmp_path / "film.mp4").shape == NOISE.shape


def test_a_film_that_ffmpeg_could_not_finish_is_told_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"an older film")
    full = pytest.raises(UserError, match=r"film\.mp4: ffmpeg wrote 0 of 20 frames.*Make room")
    with full, largest_file(100_000):
        write_mp4(path, NOISE)
    assert path.read_bytes() == b"an older film"
    assert list(tmp_path.iterdir()) == [path]
