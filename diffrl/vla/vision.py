"""What the camera images become before the transformer sees them: cells of 16 × 16 pixels.

Two encoders, one interface. The frozen one (`diffrl.policy.vision`) is never trained: its cells are
computed once per image and cached, so training never sees a pixel. The learned one is a small
convolutional net, trained with the policy.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from diffrl.base.errors import UserError
from diffrl.policy.vision import FrozenEfficientNet

Vision = Literal["efficientnet", "conv"]


class ConvEncoder(nn.Module):
    """Four strided convolutions with GroupNorm, trained: (n, 3, H, W) -> (n, 128, H/16, W/16)."""

    channels = 128

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 96, self.channels)
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 5 if k == 0 else 3, stride=2, padding=2 - (k > 0))]
            layers += [nn.GroupNorm(8, after), nn.ReLU()]
        self.net = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def make_encoder(vision: Vision) -> FrozenEfficientNet | ConvEncoder:
    """Return the encoder called `vision`.

    Raises:
        UserError: there is none of that name, or its weights are not installed.
    """
    if vision == "efficientnet":
        return FrozenEfficientNet()
    if vision == "conv":
        return ConvEncoder()
    raise UserError(f"There is no image encoder {vision!r}: choose efficientnet or conv.")
