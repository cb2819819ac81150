"""Frames of episodes and of mixtures: what is drawn how often, and the memory that it takes."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from vla_samples import LEFT, RIGHT, TINY, standing_episode

from diffrl.base.errors import UserError
from diffrl.vla import frames as vla_frames
from diffrl.vla.frames import chunks, make_frames, mix_frames, moments

CONFIG = dataclasses.replace(TINY, frame_stride=2)


@pytest.fixture
def drawn(monkeypatch):
    """Episodes are their own files, and their cells are noise that the number of states seeds."""

    def read(episode):
        rng, count = np.random.default_rng(len(episode.states)), len(moments(episode, CONFIG))
        vision = rng.integers(0, 9, (count, 2, 16, 272)).astype(np.float16)
        return vision, rng.random((count, 8), np.float32)

    monkeypatch.setattr(vla_frames, "render", lambda episodes, *_: episodes)
    monkeypatch.setattr(vla_frames, "_read", read)
    return read


def episodes_of(lengths, words):
    found = [standing_episode(steps=steps) for steps in lengths]
    return [dataclasses.replace(one, instruction=words) for one in found]


@pytest.mark.usefixtures("drawn")
def test_a_mixture_draws_each_data_set_by_its_weight():
    parts = [episodes_of((20,), LEFT), episodes_of((30, 30), RIGHT)]
    mixed = mix_frames(parts, (3.0, 1.0), CONFIG)
    assert len(mixed) == 10 + 30
    assert np.isclose(mixed.weights[:10].sum(), 0.75)
    assert np.isclose(mixed.weights.sum(), 1.0)
    for wrong in [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, np.nan), (1.0, np.inf)]:
        with pytest.raises(UserError, match="one positive weight"):
            mix_frames(parts, wrong, CONFIG)
    with pytest.raises(UserError, match="no episodes"):
        mix_frames([parts[0], []], (1.0, 1.0), CONFIG)


def test_frames_are_those_of_their_episodes_one_after_the_other(drawn):
    parts = [episodes_of((9, 14), LEFT), episodes_of((11,), RIGHT)]
    mixed, every = mix_frames(parts, (1.0, 1.0), CONFIG), [e for part in parts for e in part]
    cut = [chunks(e.actions, moments(e, CONFIG), CONFIG.horizon) for e in every]
    expected = {
        "vision": np.concatenate([drawn(e)[0] for e in every]),
        "proprio": np.concatenate([drawn(e)[1] for e in every]),
        "actions": np.concatenate([actions for actions, _ in cut]),
        "real": np.concatenate([real for _, real in cut]),
        "instructions": np.array([LEFT] * 12 + [RIGHT] * 6),
        "weights": np.concatenate([np.full(12, 1 / 12) * 0.5, np.full(6, 1 / 6) * 0.5]),
    }
    for name, array in expected.items():
        found = getattr(mixed, name)
        assert found.dtype == array.dtype, name
        assert found.tobytes() == array.tobytes(), name
    alone = make_frames(parts[0], CONFIG)
    assert alone.weights.tobytes() == np.full(12, 1 / 12).tobytes()


@pytest.mark.usefixtures("drawn")
def test_reading_pictures_takes_the_memory_of_the_pictures_and_of_one_episode():
    parts = [episodes_of((100,) * 20, LEFT), episodes_of((100,) * 20, RIGHT)]
    tracemalloc.start()
    try:
        mixed = mix_frames(parts, (1.0, 1.0), CONFIG)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(mixed) == 40 * 50
    assert peak < 1.3 * mixed.vision.nbytes
