"""Frames hold what the state shows."""

import dataclasses

import numpy as np
import pytest
import torch
from vla_samples import TINY, make_model, standing_episode

from diffrl.base.errors import UserError
from diffrl.vla import model as vla
from diffrl.vla.frames import make_frames


@pytest.mark.sim
def test_a_frame_holds_the_picture_and_the_proprioception_of_its_state(tmp_path, monkeypatch):
    from diffrl.sim.camera import Renderer
    from diffrl.sim.observation import observe
    from diffrl.sim.scene import load_scene
    from diffrl.sim.starts import fresh_start_states

    monkeypatch.setattr("diffrl.vla.frames.cache_dir", lambda: tmp_path)
    scene = load_scene("libero_object/0")
    starts = fresh_start_states(scene, 4, 7)
    episode = standing_episode(steps=3, state_size=scene.state_size)
    episode.states[:, 1:] = starts.states[:, 1:]
    episode.fixtures = starts.fixtures[0]
    config = dataclasses.replace(TINY, frame_stride=2)
    frames = make_frames([episode], config, workers=1)
    assert len(frames) == 2  # states 0 and 2
    with Renderer(scene, size=config.image_size, detail=config.detail) as renderer:
        images = [
            [renderer.render(episode.states[t], episode.fixtures, camera=c) for c in vla.CAMERAS]
            for t in (0, 2)
        ]
    model = make_model(config)
    inputs, _, _ = frames.batch(np.arange(2), model)
    assert torch.equal(inputs.vision, model.look(np.array(images)))
    felt = observe(scene, episode.states[[0, 2]], episode.fixtures)
    expected = vla.proprioception(felt.eef_pos, felt.eef_quat, felt.gripper_qpos)
    assert np.array_equal(frames.proprio, expected)
    for cached in (tmp_path / "frames").iterdir():  # a second look renders nothing
        before = cached.stat().st_mtime_ns
        make_frames([episode], config, workers=1)
        assert cached.stat().st_mtime_ns == before
        cached.write_bytes(b"broken")
    with pytest.raises(UserError, match=str(tmp_path)):
        make_frames([episode], config, workers=1)
