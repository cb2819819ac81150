"""The transformer's parts: glimpses at the images, attention, layers, the flow's clock."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALIGNED = 16  # keys are padded to a multiple of so many, 64 bytes of float32


class Glimpses(nn.Module):
    """Queries, asked by the instruction, look at each camera's map and say what they saw and where.

    A spatial softmax (Levine et al. 2016) whose attention depends on the words.
    (n, cameras, side * side, C), (n, width) -> (n, cameras * queries, width)
    """

    def __init__(self, channels: int, cameras: int, side: int, queries: int, width: int):
        super().__init__()
        self.cells = nn.Sequential(nn.Linear(channels, width), nn.GELU())
        self.position = nn.Parameter(torch.randn(cameras, side * side, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(cameras, queries, width))
        self.ask = nn.Linear(width, queries * width)
        self.what = nn.Linear(width, width)
        self.where = nn.Linear(2, width)
        line = torch.linspace(-1, 1, side)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
        self.register_buffer("grid", grid.reshape(-1, 2), persistent=False)

    def forward(self, cells: Tensor, text: Tensor) -> Tensor:
        cells = self.cells(cells)
        cells = cells + self.position.to(cells.dtype)  # no half-precision cells in a wide tensor
        asked = self.ask(text).reshape(len(text), 1, *self.queries.shape[1:])
        scores = (self.queries + asked) @ cells.transpose(2, 3)  # (n, cameras, queries, cells)
        look = (scores * cells.shape[-1] ** -0.5).softmax(-1)
        seen = self.what(look @ cells) + self.where(look @ self.grid)
        return seen.flatten(1, 2)


class Attention(nn.Module):
    """Multi-head attention with a norm before it: (n, K, width) -> x + …"""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, key_value: Tensor | None = None, mask: Tensor | None = None):
        """Attend to x itself, or to a memory's keys and values (n, M, 2 width)."""
        normal = self.norm(x)
        key_value = self.key_value(normal) if key_value is None else key_value
        query, key, value = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(normal), *key_value.chunk(2, dim=-1))
        )
        return x + self.out(attend(query, key, value, mask).transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (n, heads, Q, d), (n, heads, K, d) twice -> (n, heads, Q, d).

    Written out: over sequences as short as ours (16-30 tokens) torch's fused kernel is the slower
    one on a CPU, above all backwards in bfloat16. `mask` is true where a key counts. Keys are
    padded so that each row's scores begin at an equally aligned address (d is a multiple of 16 in
    every preset): on some processors the rounding of a batch of products depends on that, and with
    it on a row's place in the batch.
    """
    missing = -key.shape[-2] % ALIGNED
    if missing:
        mask = query.new_ones(key.shape[-2], dtype=torch.bool) if mask is None else mask
        mask = F.pad(mask, (0, missing))
        key, value = (F.pad(x, (0, 0, 0, missing)) for x in (key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


class Layer(nn.Module):
    """A transformer layer: attention to itself, optionally to a memory, then an MLP."""

    def __init__(self, width: int, heads: int, memory: bool = False):
        super().__init__()
        self.itself = Attention(width, heads)
        self.cross = Attention(width, heads) if memory else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (n, K, width), mask (n, 1, 1, K) of the tokens that count."""
        x = self.itself(x, mask=mask)
        return x + self.mlp(x)

    def remember(self, memory: Tensor) -> Tensor:
        """Keys and values (n, M, 2 width) of a memory (n, M, width), for any number of chunks."""
        assert self.cross is not None  # the layer was made with a memory
        return self.cross.key_value(memory)

    def chunk(self, x: Tensor, key_value: Tensor, mask: Tensor) -> Tensor:
        """x (n, draws, horizon, width): a draw sees itself and the memory only."""
        assert self.cross is not None  # the layer was made with a memory
        draws = x.shape[1]
        x = self.itself(x.flatten(0, 1)).view_as(x)
        x = self.cross(x.flatten(1, 2), key_value, mask).unflatten(1, (draws, -1))
        return x + self.mlp(x)


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of flow time (...) in [0, 1], periods 4 to 0.004 [pi0] -> (..., width)."""
    periods = 4.0 * (1e-3 ** torch.linspace(0, 1, width // 2, device=time.device))
    angle = 2 * math.pi * time[..., None] / periods
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
