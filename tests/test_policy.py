"""Policies as a whole: how they decide, what they see, and their files."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from policy_samples import LAYOUT, config_of, draw, make
from scipy.spatial.transform import Rotation

from diffrl import policy as policies
from diffrl.base.errors import UserError
from diffrl.evaluation.policies import BLOCK
from diffrl.policy.decide import in_blocks
from diffrl.policy.features import Layout, rotation_columns, state_features
from diffrl.policy.nets import Critic, random_shift
from diffrl.presets import PRESETS, get_preset

# ---- a decision does not depend on its company ---------------------------------------------------


def test_blocks_make_a_row_independent_of_its_company_and_place():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 96), torch.nn.GELU(), torch.nn.Linear(96, 56))
    rows = torch.randn(2 * BLOCK + 3, 40)
    with torch.no_grad():
        together = in_blocks(net, rows, block=BLOCK)
        alone = torch.cat([in_blocks(net, row[None], block=BLOCK) for row in rows])
        order = torch.randperm(len(rows))
        shuffled = in_blocks(net, rows[order], block=BLOCK)
    assert torch.equal(together, alone)
    assert torch.equal(together[order], shuffled)


# ---- what a policy sees: features, encoders, images ----------------------------------------------


IMAGES = dataclasses.replace(LAYOUT, image_size=128)


def observation(n=4, layout=LAYOUT, seed=0):
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(n, layout.objects + 1, 4))
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    return SimpleNamespace(
        eef_pos=rng.normal(size=(n, 3)),
        eef_quat=quats[:, 0],
        gripper_qpos=rng.normal(size=(n, 2)) * 0.04,
        object_pos=rng.normal(size=(n, layout.objects, 3)),
        object_quat=quats[:, 1:],
        goal_pos=rng.normal(size=(n, layout.goals, 3)),
        fixture_qpos=rng.normal(size=(n, layout.joints)),
    )


def test_rotation_columns_are_the_rotation_matrix_s_and_ignore_the_quaternion_s_sign():
    quats = observation().eef_quat
    expected = Rotation.from_quat(quats).as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    np.testing.assert_allclose(rotation_columns(quats), expected, atol=1e-12)
    np.testing.assert_allclose(rotation_columns(-quats), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 0), (7, 2, 0), (4, 3, 5), (2, 0, 1)])
def test_a_feature_row_has_the_layout_s_size_for_any_scene(shape):
    layout = Layout("libero_90/0", *shape)
    rows = state_features(observation(5, layout))
    assert rows.shape == (5, layout.size)
    assert rows.dtype == np.float32
    assert np.abs(rows[:, layout.absolute :]).max() <= 1  # the tanh columns come last


def test_vectors_to_objects_do_not_change_when_the_whole_scene_moves():
    before, after = observation(), observation()
    after.eef_pos, after.object_pos = after.eef_pos + 0.3, after.object_pos + 0.3
    after.goal_pos = after.goal_pos + 0.3
    rows, moved = state_features(before), state_features(after)
    np.testing.assert_allclose(rows[:, LAYOUT.absolute :], moved[:, LAYOUT.absolute :], atol=1e-6)


def test_the_encoder_standardises_columns_with_a_unit_and_clips_outliers():
    policy = make()
    rows = torch.from_numpy(np.repeat(state_features(observation(200)), 2, axis=0))
    policy.fit({"state": rows}, torch.zeros(400, 7))
    out = policy.encoder({"state": rows})
    torch.testing.assert_close(out[:, :3].mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert torch.equal(out[:, LAYOUT.absolute :], rows[:, LAYOUT.absolute :])
    assert policy.encoder({"state": rows + 1e6}).abs().max() == 5


def test_an_observation_of_another_scene_is_refused():
    other = dataclasses.replace(LAYOUT, objects=5)
    with pytest.raises(UserError, match=r"3 objects.*has 5"):
        make().features(observation(2, other))


@pytest.mark.parametrize("name", ["paper", "gpu"])
def test_the_paper_s_image_policy_has_about_twelve_million_parameters(name):
    preset = get_preset(name)
    assert preset.clone.encoder == "image"
    config = policies.make_config("diffusion", preset.clone, preset.rl)
    policy = policies.make_policy(config, IMAGES)
    count = sum(parameter.numel() for parameter in policy.parameters())
    assert 12.0e6 <= count <= 12.4e6
    trunk = sum(parameter.numel() for parameter in policy.encoder.parameters())
    assert trunk == 11_176_512  # torchvision's resnet18 without fc


def test_the_image_policy_plans_from_images_and_needs_them():
    policy = make(layout=IMAGES, network="unet")
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 128, 128, 3), dtype=np.uint8)
    features = policy.features(observation(2), images)
    noise = policy.noise(torch.Generator().manual_seed(0), 2)
    plan, chain = policy.sample(features, noise)
    assert policy.log_prob(features, chain).shape == (2, 5)
    assert Critic(IMAGES)(features).shape == (2,)
    other = policy.features(observation(2), images[::-1])
    assert not torch.equal(policy.sample(other, noise)[0], plan)
    with pytest.raises(UserError, match="render agentview"):
        policy.features(observation(2))


@pytest.mark.parametrize("layout", [LAYOUT, IMAGES])
@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_policy_on_another_device_computes_there_alone(algorithm, layout):
    # Tensors of "meta" have no data: to mix them with the CPU's is an error, and so is, at the very
    # end, to bring the result back.
    policy = make(algorithm, layout).to("meta")
    images = None if layout is LAYOUT else np.zeros((4, 1, 128, 128, 3), np.uint8)
    features = policy.features(observation(layout=layout), images)
    generator = torch.Generator().manual_seed(0)
    noise = policy.noise(generator, 4)
    chain = torch.zeros(4, policy.steps + 1, policy.horizon, 7)
    for compute in (
        lambda: policy.sample(features, noise),
        lambda: policy.log_prob(features, chain),
        lambda: Critic(layout).to("meta")(features),
    ):
        with pytest.raises(NotImplementedError, match="out of meta"):
            compute()
    loss = policy.loss(features, torch.zeros(4, policy.horizon, 7), generator)
    assert loss.device.type == "meta"


def test_a_random_shift_moves_whole_images_by_at_most_its_padding():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(20, 3, 8, 8)
    shifted = random_shift(image, torch.Generator().manual_seed(0), pad=2)
    inner = shifted[:, :, 2:6, 2:6] - image[:, :, 2:6, 2:6]
    assert (inner == inner[:, :, :1, :1]).all()  # one offset per image
    offsets = {float(value) for value in inner[:, 0, 0, 0]}
    assert len(offsets) > 3
    assert offsets <= {float(8 * row + column) for row in range(-2, 3) for column in range(-2, 3)}


# ---- saved policies come back exactly, or are refused by name ------------------------------------


@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_saved_policy_comes_back_exactly(algorithm, tmp_path):
    policy = make(algorithm, finetuned_steps=3 if algorithm == "diffusion" else None)
    features, noise = draw(policy)
    policies.save(tmp_path, policy)
    again = policies.load(tmp_path)
    assert torch.equal(again.sample(features, noise)[0], policy.sample(features, noise)[0])
    assert again.layout == policy.layout


def test_broken_or_foreign_weights_are_refused_by_name(tmp_path):
    policies.save(tmp_path, make())
    weights = tmp_path / "policy.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"policy\.safetensors cannot be read"):
        policies.load(tmp_path)
    policies.save(tmp_path / "other", make(width=16))
    weights.write_bytes((tmp_path / "other" / weights.name).read_bytes())
    with pytest.raises(UserError, match="belongs to another network"):
        policies.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"policy\.safetensors cannot be read"):
        policies.load(tmp_path)


def test_a_description_of_another_version_is_refused(tmp_path):
    policies.save(tmp_path, make())
    path = tmp_path / "policy.json"
    description = json.loads(path.read_text())
    description["config"]["colour"] = "blue"
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="does not describe a policy"):
        policies.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"horizon": 8, "chunk": 8, "cross_fade": 4}, "cross_fade"),
        ({"noise_correlation": 1.0}, "noise_correlation"),
        ({"finetuned_steps": 6}, "finetuned_steps"),
        ({"algorithm": "gaussian", "gaussian_std": 0.5}, "gaussian_std"),
        ({"algorithm": "transformer"}, "transformer"),
        ({"prediction": "X0"}, "no prediction 'X0': choose epsilon or x0"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, named):
    with pytest.raises(UserError, match=named):
        make(**settings)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_every_preset_describes_a_policy(name, algorithm):
    preset = get_preset(name)
    config = policies.make_config(algorithm, preset.clone, preset.rl)
    assert config.chunk == preset.clone.chunk
    assert config.prediction == preset.rl.prediction


def test_a_policy_saved_before_a_setting_existed_is_read_and_written_as_it_was(tmp_path):
    policies.save(tmp_path, make())
    text = (tmp_path / "policy.json").read_text()
    assert not any(name in text for name in ("noise_everywhere", "tail"))
    again = policies.load(tmp_path)
    assert (again.config.noise_everywhere, again.layout.tail) == (False, 0)
    observing = policies.make_policy(
        config_of("diffusion", width=32, horizon=6, chunk=4, cross_fade=2),
        dataclasses.replace(LAYOUT, tail=2),
    )
    policies.save(tmp_path / "tail", observing)
    assert policies.load(tmp_path / "tail").layout.tail == 2
