"""Networks: encoders of states and of images, denoisers (MLP, 1-D U-Net with FiLM), heads."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffrl.policy.features import Features, Layout, on_device
from diffrl.policy.vision import CHANNELS, STRIDE

FLOOR = 0.05  # least scale of a standardised column: 5 cm, 3 degrees; below lies noise
LIMIT = 5.0  # standardised columns are clipped here


def mlp(sizes: tuple[int, ...], activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """Return linear layers of these sizes with `activation` between them."""
    layers: list[nn.Module] = []
    for size, after in itertools.pairwise(sizes):
        layers += [nn.Linear(size, after), activation()]
    return nn.Sequential(*layers[:-1])


class StateEncoder(nn.Module):
    """Standardises the columns with a unit by the demonstrations' mean and deviation.

    The columns of the last plan's tail have a learnt gain that begins at zero (our choice, after
    Bachlechner et al. 2020, arXiv 2003.04887): demonstrations have no plans, so a clone never sees
    a tail, and RL starts from exactly what was cloned.
    """

    mean: Tensor  # (F,)
    scale: Tensor

    def __init__(self, layout: Layout):
        super().__init__()
        self.size = layout.size
        self.absolute, self.tail = layout.absolute, layout.tail_columns
        self.register_buffer("mean", torch.zeros(layout.size))
        self.register_buffer("scale", torch.ones(layout.size))
        if self.tail:
            self.gain = nn.Parameter(torch.zeros(self.tail))

    def fit(self, features: Features) -> None:
        """Take mean and scale from the rows of `features`."""
        rows = features["state"][:, : self.absolute].double()
        self.mean[: self.absolute] = rows.mean(0).float()
        self.scale[: self.absolute] = rows.std(0, correction=0).clamp(min=FLOOR).float()

    def forward(self, features: Features) -> Tensor:
        """(n, F) → (n, F), standardised and clipped."""
        rows = ((features["state"] - self.mean) / self.scale).clamp(-LIMIT, LIMIT)
        if self.tail:
            rows = torch.cat([rows[:, : -self.tail], self.gain * rows[:, -self.tail :]], dim=1)
        return rows


class ImageEncoder(nn.Module):
    """ResNet-18 over one camera, beside the standardised proprioception (the paper's: [S]).

    On a GPU the ResNet is compiled, and its products are bfloat16's; its weights and all that
    follows stay float32, as in the VLA's training.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.state = StateEncoder(layout)
        self.trunk = ResNet18()
        self.size = self.trunk.size + layout.size

    def fit(self, features: Features) -> None:
        """Take the proprioception's mean and scale from the rows of `features`."""
        self.state.fit(features)

    def forward(self, features: Features) -> Tensor:
        """Image (n, 3, S, S) uint8 and state (n, 11 and a tail) → (n, 512 + the state's)."""
        image = features["image"].float() / 127.5 - 1.0
        if image.is_cuda:
            with torch.autocast("cuda", torch.bfloat16):
                seen = self._compiled()(image)
        else:
            seen = self.trunk(image)
        return torch.cat([seen.float(), self.state(features)], dim=1)

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        if "compiled" not in self.__dict__:  # no module of its own: a checkpoint holds it once
            self.__dict__["compiled"] = torch.compile(self.trunk, dynamic=True)
        compiled: Callable[[Tensor], Tensor] = self.__dict__["compiled"]
        return compiled


class CellEncoder(nn.Module):
    """A frozen encoder's cells with their places kept, beside the standardised proprioception.

    Each cell is projected to `CELL` numbers, and one linear layer reads all of them by their place,
    since an arm has to know where a thing is (our choice: a mean over the cells forgets it).
    """

    CELL, SEEN = 32, 256

    def __init__(self, layout: Layout):
        super().__init__()
        self.state = StateEncoder(layout)
        count = len(layout.cameras) * (layout.image_size // STRIDE) ** 2
        self.cell = nn.Sequential(nn.Linear(CHANNELS, self.CELL), nn.SiLU())
        self.place = nn.Sequential(
            nn.Linear(count * self.CELL, self.SEEN), nn.LayerNorm(self.SEEN), nn.SiLU()
        )
        self.size = self.SEEN + layout.size

    def fit(self, features: Features) -> None:
        """Take the proprioception's mean and scale from the rows of `features`."""
        self.state.fit(features)

    def forward(self, features: Features) -> Tensor:
        """Cells (n, cameras, cells, C) float16 and state (n, 11 and a tail) → (n, 256 + state)."""
        cells = self.cell(features["cells"].float())
        return torch.cat([self.place(cells.flatten(1)), self.state(features)], dim=1)


def make_encoder(layout: Layout) -> StateEncoder | ImageEncoder | CellEncoder:
    """Return the encoder that the layout asks for."""
    if layout.frozen:
        return CellEncoder(layout)
    return ImageEncoder(layout) if layout.image_size else StateEncoder(layout)


class ResidualBlock2d(nn.Module):
    """Two 3×3 convolutions with group normalisation and a short cut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(_norm2d(outputs) for _ in range(2))
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        hidden = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(hidden)) + self.short(x))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier; groups of 16 channels, since batch norm breaks RL.

    Group normalisation as in Diffusion Policy (Chi et al. 2023, arXiv 2303.04137, section III-B).
    """

    size = 512

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), _norm2d(64), nn.ReLU()]
        blocks: list[nn.Module] = [*stem, nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for outputs in (64, 128, 256, 512):
            stride = 1 if outputs == 64 else 2
            blocks += [ResidualBlock2d(inputs, outputs, stride)]
            blocks += [ResidualBlock2d(outputs, outputs, 1)]
            inputs = outputs
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, S, S) in [-1, 1] → (n, 512)."""
        features: Tensor = self.layers(image)
        return features


def _norm2d(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


class TimeEmbedding(nn.Module):
    """Sinusoids of the diffusion time, then two layers (Ho et al. 2020, arXiv 2006.11239)."""

    rates: Tensor

    def __init__(self, size: int, hidden: int | None = None):
        super().__init__()
        rates = torch.exp(torch.arange(size // 2) * -(math.log(10_000) / (size // 2 - 1)))
        self.register_buffer("rates", rates, persistent=False)
        self.layers = mlp((size, hidden or 4 * size, size), nn.Mish)

    def forward(self, time: Tensor) -> Tensor:
        """(n,) → (n, size)."""
        angles = time[:, None] * self.rates
        embedded: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded


class MLPDenoiser(nn.Module):
    """An MLP over the noisy plan, the condition and the time."""

    def __init__(self, condition: int, horizon: int, actions: int, width: int):
        super().__init__()
        self.time = TimeEmbedding(16)
        plan = horizon * actions
        self.layers = mlp((plan + condition + 16, width, width, width, plan))

    def forward(self, plan: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """(n, H, A), (n, C), (n,) → (n, H, A)."""
        row = torch.cat([plan.flatten(1), condition, self.time(time)], dim=1)
        output: Tensor = self.layers(row)
        return output.view_as(plan)


class PreactivatedBlock(nn.Module):
    """Two linear layers, each after a Mish, beside a short cut (He et al. 2016, 1603.05027)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) → (n, width)."""
        change: Tensor = self.layers(x)
        return x + change


class ResidualDenoiser(nn.Module):
    """DPPO's `DiffusionMLP` for states: linear layers around one residual block with Mish.

    As its configurations of robomimic have it (``mlp_dims`` three times the width, residual, a time
    embedding of 16 over 32 hidden units; there the width is 512).
    """

    def __init__(self, condition: int, horizon: int, actions: int, width: int):
        super().__init__()
        self.time = TimeEmbedding(16, 32)
        plan = horizon * actions
        self.layers = nn.Sequential(
            nn.Linear(plan + 16 + condition, width),
            PreactivatedBlock(width),
            nn.Linear(width, plan),
        )

    def forward(self, plan: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """(n, H, A), (n, C), (n,) → (n, H, A)."""
        row = torch.cat([plan.flatten(1), self.time(time), condition], dim=1)
        output: Tensor = self.layers(row)
        return output.view_as(plan)


class ResidualBlock1d(nn.Module):
    """Two convolutions over time; the condition scales and shifts the first one's output (FiLM)."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.first = _convolution(inputs, outputs)
        self.second = _convolution(outputs, outputs)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.short = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(n, inputs, H), (n, C) → (n, outputs, H)."""
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        output: Tensor = self.second(scale * self.first(x) + shift) + self.short(x)
        return output


class UNetDenoiser(nn.Module):
    """1-D U-Net over the plan, two levels, FiLM conditioning.

    The shape is DPPO's (dim 40, multipliers 1 and 2, kernel 5, 8 groups), which is
    Diffusion Policy's `ConditionalUnet1D`, smaller. The horizon must be even.
    """

    def __init__(self, condition: int, horizon: int, actions: int, dim: int = 40):
        super().__init__()
        self.time = TimeEmbedding(dim)
        total = dim + condition
        pair = [(actions, dim), (dim, dim)]
        deep = [(dim, 2 * dim), (2 * dim, 2 * dim)]
        self.down = _blocks(pair, total)
        self.downsample = nn.Conv1d(dim, dim, 3, 2, 1)
        self.middle = _blocks([*deep, (2 * dim, 2 * dim), (2 * dim, 2 * dim)], total)
        self.up = _blocks([(4 * dim, dim), (dim, dim)], total)
        self.upsample = nn.ConvTranspose1d(dim, dim, 4, 2, 1)
        self.out = nn.Sequential(_convolution(dim, dim), nn.Conv1d(dim, actions, 1))

    def forward(self, plan: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """(n, H, A), (n, C), (n,) → (n, H, A)."""
        condition = torch.cat([self.time(time), condition], dim=1)
        x = self._run(self.down, plan.transpose(1, 2), condition)
        x = deep = self._run(self.middle[:2], self.downsample(x), condition)
        x = self._run(self.middle[2:], x, condition)
        x = self._run(self.up, torch.cat([x, deep], dim=1), condition)
        output: Tensor = self.out(self.upsample(x))
        return output.transpose(1, 2)

    @staticmethod
    def _run(blocks: nn.ModuleList, x: Tensor, condition: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, condition)
        return x


def _blocks(sizes: list[tuple[int, int]], condition: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock1d(*pair, condition) for pair in sizes)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, 5, padding=2), nn.GroupNorm(8, outputs), nn.Mish()
    )


class Critic(nn.Module):
    """V(o): an encoder of its own and an MLP; it predicts the discounted chance of success.

    A privileged one sees the simulator's state where the policy sees pictures (asymmetric actor
    critic, Pinto et al. 2017, arXiv 1710.06542); it begins with `fit`.
    """

    def __init__(self, layout: Layout, width: int = 256, privileged: bool = False):
        super().__init__()
        self.privileged = privileged
        self.encoder = StateEncoder(layout.blind) if privileged else make_encoder(layout)
        self.layers = mlp((self.encoder.size, width, width, 1))

    def forward(self, features: Features) -> Tensor:
        """Features of n rows → (n,), on the CPU."""
        features = on_device(self._seen(features), next(self.layers.parameters()).device)
        values: Tensor = self.layers(self.encoder(features))
        return values.squeeze(1).cpu()

    def fit(self, features: Features) -> None:
        """Take the normalisers from the rows of `features`."""
        self.encoder.fit(self._seen(features))

    def _seen(self, features: Features) -> Features:
        return {"state": features["privileged"]} if self.privileged else features


def random_shift(image: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image (n, c, S, S) by up to `pad` pixels, edges repeated (DrQ; DPPO's default)."""
    n, _, size, _ = image.shape
    offset = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator) - pad
    place = (offset[:, :, None] + torch.arange(size)).clamp(0, size - 1)  # (n, 2, S)
    rows, columns = place[:, 0, None, :, None], place[:, 1, None, None, :]
    batch, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None]
    return image[batch, channel, rows, columns]
