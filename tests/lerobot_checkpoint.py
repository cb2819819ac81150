"""Makes a small lerobot checkpoint with random weights; runs under lerobot's Python.

    python lerobot_checkpoint.py FOLDER

FOLDER gets what `lerobot-train` leaves (policy and processors) and, for one observation that the
caller left there in ``seen.npz``, what lerobot itself makes of it: ``expected.npy``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

CAMERAS = ("observation.images.image", "observation.images.image2")


def main(folder):
    """Write the checkpoint, and its answer."""
    images = {name: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for name in CAMERAS}
    config = ACTConfig(
        input_features=images | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        chunk_size=10,
        n_action_steps=10,
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )
    torch.manual_seed(0)
    policy = ACTPolicy(config).eval()
    with torch.no_grad():
        policy.model.encoder_img_feat_input_proj.weight.mul_(100)  # what is seen must matter
    shapes = {"observation.state": (8,), "action": (7,)} | dict.fromkeys(CAMERAS, (3, 1, 1))
    stats = {
        name: {"mean": torch.full(shape, 0.1), "std": torch.full(shape, 0.5)}
        for name, shape in shapes.items()
    }
    stats[CAMERAS[1]]["std"] *= 4  # ACT itself would not tell one camera from the other
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    for part in (policy, before, after):
        part.save_pretrained(folder)
    seen = np.load(folder / "seen.npz")
    batch = {"observation.state": torch.from_numpy(seen["state"]).float(), "task": "do it"}
    for name, image in zip(CAMERAS, seen["images"]):
        batch[name] = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        chunk = after(policy.predict_action_chunk(before(batch)))
    np.save(folder / "expected.npy", chunk[0].numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
