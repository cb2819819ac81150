"""A compact vision-language-action model: a transformer conditions a flow over action chunks.

After pi0 (Black et al. 2024), at about a thousandth of its size: the instruction decides where to
look in each camera's map, a transformer encoder mixes what was seen with the words and the
proprioception, and a decoder over the chunk's control steps predicts the velocity of a flow from
noise to actions (flow matching, Lipman et al. 2023).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffrl.base.artifacts import atomic_path, read_json, write_json
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError, bounded
from diffrl.policy.vision import STRIDE, cells, encode, pixels
from diffrl.presets import VLAConfig
from diffrl.sim.tasks import CAMERAS
from diffrl.vla.layers import Glimpses, Layer, time_embedding
from diffrl.vla.vision import make_encoder

# What a description may ask for: a stranger's must not fill the memory before its weights are seen.
SIZES = {
    "width": (1, 4096),
    "heads": (1, 256),
    "queries": (1, 1024),
    "encoder_layers": (0, 64),
    "decoder_layers": (0, 64),
    "horizon": (1, 1024),
    "chunk": (1, 1024),
    "image_size": (1, 1024),
    "length": (1, 4096),
}
PROPRIO = 8  # gripper position 3, axis-angle 3, finger positions 2 [L]


class Inputs(NamedTuple):
    """What the policy sees at n decisions; all on one device."""

    vision: Tensor  # (n, cameras, cells, C) cached, or (n, cameras, 3, H, W) pixels
    proprio: Tensor  # (n, 8), metres, radians
    words: Tensor  # (n, length) int64 indices into the vocabulary; 0 is padding


@dataclass(frozen=True)
class Statistics:
    """Scales of a training set: proprioception by mean and std, actions by their 1 % quantiles."""

    proprio_mean: tuple[float, ...]
    proprio_std: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]

    @classmethod
    def of(cls, proprio: np.ndarray, actions: np.ndarray) -> "Statistics":
        """From proprio (F, 8) and actions (N, 7); a dimension that hardly moves keeps unit scale.

        Quantiles as in OpenVLA and openpi, so that one jerk of the hand does not set the scale.
        """
        low, high = np.quantile(actions, [0.01, 0.99], axis=0)
        still = high - low < 0.02
        low, high = np.where(still, -1.0, low), np.where(still, 1.0, high)
        arrays = (proprio.mean(0), np.maximum(proprio.std(0), 1e-3), low, high)
        return cls(*(tuple(np.round(a.astype(float), 6).tolist()) for a in arrays))


def read_words(instructions: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Return the vocabulary of the training instructions and the length of the longest."""
    split = [text.lower().split() for text in instructions]
    return tuple(sorted({word for words in split for word in words})), max(map(len, split))


def tokenize(instruction: str, vocabulary: tuple[str, ...], length: int) -> np.ndarray:
    """Return the (length,) int64 indices of an instruction: 0 padding, 1 unknown, then the words.

    An instruction longer than any in training is cut.
    """
    index = {word: k + 2 for k, word in enumerate(vocabulary)}
    words = instruction.lower().split()[:length]
    tokens = np.zeros(length, np.int64)
    tokens[: len(words)] = [index.get(word, 1) for word in words]
    return tokens


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vectors of quaternions (..., 4) xyzw -> (..., 3) rad, of the sign with x ≥ 0.

    LIBERO's gripper points down, half a turn about x, where q and −q are equally short rotations
    with opposite vectors; a fixed sign of x keeps the vector continuous there [C].
    """
    q = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    norm = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(norm, q[..., 3:])
    return q[..., :3] / np.maximum(norm, 1e-12) * angle


def proprioception(eef_pos: np.ndarray, eef_quat: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Return (n, 8) float32: position m, rotation vector rad, finger positions m [L]."""
    return np.concatenate([eef_pos, axis_angle(eef_quat), gripper], axis=-1).astype(np.float32)


class VLA(nn.Module):
    """The compact policy: p(action chunk | two images, proprioception, instruction).

    Words are embedded by a table that is learned with the rest [C]: the sentences of a suite differ
    in a noun phrase, too little for a pretrained encoder to be of use. What that costs with other
    words is what LIBERO-PRO's `lan` suites measure.
    """

    flow_layers: Any  # ModuleList of Layer
    proprio_mean: Tensor
    proprio_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self, config: VLAConfig, vocabulary: tuple[str, ...], length: int, statistics: Statistics
    ):
        super().__init__()
        width, heads = config.width, config.heads
        self.config, self.vocabulary, self.length = config, tuple(vocabulary), length
        self.statistics = statistics
        self.encoder = make_encoder(config.vision)
        self.words = nn.Embedding(len(vocabulary) + 2, width, padding_idx=0)
        with torch.no_grad():
            self.words.weight[1] = 0  # an unknown word says nothing: training never meets one
        self.word_position = nn.Parameter(torch.randn(length, width) * 0.02)
        side = config.image_size // STRIDE
        self.glimpses = Glimpses(self.encoder.channels, len(CAMERAS), side, config.queries, width)
        self.body = nn.Sequential(nn.Linear(PROPRIO, width), nn.GELU(), nn.Linear(width, width))
        self.context_layers = nn.ModuleList(
            Layer(width, heads) for _ in range(config.encoder_layers)
        )
        self.flow_layers = nn.ModuleList(
            Layer(width, heads, memory=True) for _ in range(config.decoder_layers)
        )
        self.action_in = nn.Linear(ACTION_SIZE, width)
        self.step_position = nn.Parameter(torch.randn(config.horizon, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.action_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ACTION_SIZE))
        for name, array in dataclasses.asdict(statistics).items():
            self.register_buffer(name, torch.tensor(array), persistent=False)

    @property
    def frozen_vision(self) -> bool:
        """Whether the image encoder is not trained, so that its maps can be cached."""
        return not any(p.requires_grad for p in self.encoder.parameters())

    def context(self, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
        """Encode what is seen, read and felt into K tokens.

        Returns each flow layer's keys and values of them (n, K, 2 width), and mask (n, 1, 1, K).
        """
        seen = inputs.vision if self.frozen_vision else _per_image(self.encoder, inputs.vision)
        words = self.words(inputs.words) + self.word_position
        present = inputs.words != 0
        text = (words * present[..., None]).sum(1) / present.sum(1, keepdim=True).clamp(min=1)
        proprio = self.body((inputs.proprio - self.proprio_mean) / self.proprio_std)
        tokens = torch.cat([self.glimpses(seen, text), proprio[:, None], words], dim=1)
        others = present.new_ones(len(tokens), tokens.shape[1] - self.length)
        mask = torch.cat([others, present], dim=1)[:, None, None]
        for layer in self.context_layers:
            tokens = layer(tokens, mask)
        return [layer.remember(tokens) for layer in self.flow_layers], mask

    def velocity(self, noisy: Tensor, time: Tensor, context: tuple[list[Tensor], Tensor]) -> Tensor:
        """Velocity of the flow at `noisy` (n, draws, horizon, 7) and times (n, draws)."""
        clock = self.time(time_embedding(time, self.config.width))[:, :, None]
        hidden = self.action_in(noisy) + self.step_position + clock
        memories, mask = context
        for layer, memory in zip(self.flow_layers, memories, strict=True):
            hidden = layer.chunk(hidden, memory, mask)
        return self.action_out(hidden)

    def normalize(self, actions: Tensor) -> Tensor:
        """Actions in the simulator's units -> about [−1, 1] per dimension."""
        return 2 * (actions - self.action_low) / (self.action_high - self.action_low) - 1

    def denormalize(self, actions: Tensor) -> Tensor:
        """The inverse, clipped to the simulator's [−1, 1]."""
        scaled = (actions + 1) / 2 * (self.action_high - self.action_low) + self.action_low
        return scaled.clamp(-1, 1)

    def forward(self, inputs: Inputs, actions: Tensor, real: Tensor, noise: Tensor, time: Tensor):
        """Flow-matching loss, a scalar: mean squared error of the velocity over real steps.

        With x(t) = (1 − t) ε + t a the target is dx/dt = a − ε (Lipman et al. 2023, eq. 23, σ = 0).
        actions (n, horizon, 7), real (n, horizon) bool (false past the episode's end);
        noise (n, draws, horizon, 7) and time (n, draws): several draws share one context.
        """
        target, t = self.normalize(actions)[:, None], time[..., None, None]
        noisy = (1 - t) * noise + t * target
        found = self.velocity(noisy, time, self.context(inputs))
        error = (found - (target - noise)).square().mean(-1) * real[:, None]
        return error.sum() / (time.shape[1] * real.sum().clamp(min=1))

    @torch.no_grad()
    def sample(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """Integrate the flow from `noise` (n, horizon, 7) by Euler steps -> actions in [−1, 1]."""
        context = self.context(inputs)
        steps, actions = self.config.flow_steps, noise[:, None]
        for k in range(steps):
            time = torch.full(actions.shape[:2], k / steps, device=noise.device)
            actions = actions + self.velocity(actions, time, context) / steps
        return self.denormalize(actions[:, 0])

    def read(self, instruction: str) -> np.ndarray:
        """Return an instruction as (length,) indices."""
        return tokenize(instruction, self.vocabulary, self.length)

    def look(self, images: np.ndarray) -> Tensor:
        """Turn images (n, cameras, H, W, 3) uint8 into what `Inputs.vision` expects.

        A frozen encoder's cells take the same way through float16 as in training.
        """
        if self.frozen_vision:
            return torch.from_numpy(encode(self.encoder, images)).float()
        return pixels(images)

    def parameter_count(self) -> int:
        """Number of parameters, the frozen encoder's included."""
        return sum(p.numel() for p in self.parameters())


def _per_image(encoder: nn.Module, images: Tensor) -> Tensor:
    return cells(encoder(images.flatten(0, 1))).unflatten(0, images.shape[:2])


def trained_state(model: VLA) -> dict[str, Tensor]:
    """The tensors that training changes: all but a frozen encoder's."""
    skip = "encoder." if model.frozen_vision else "\0"
    state = model.state_dict()
    return {k: v.detach().contiguous() for k, v in state.items() if not k.startswith(skip)}


def save(model: VLA, folder: Path, about: dict) -> None:
    """Write `model.safetensors` and `model.json` (config, vocabulary, scales, `about`)."""
    with atomic_path(Path(folder) / "model.safetensors") as temporary:
        save_file({k: v.cpu() for k, v in trained_state(model).items()}, temporary)
    description = {
        "format": 1,
        "cameras": CAMERAS,
        "config": model.config,
        "vocabulary": model.vocabulary,
        "length": model.length,
        "statistics": model.statistics,
        "parameters": model.parameter_count(),
        "about": about,
    }
    write_json(Path(folder) / "model.json", description)


def load(folder: Path) -> VLA:
    """Read a model that `save` wrote, in evaluation mode, on the CPU.

    Raises:
        UserError: a file is missing, broken, or of another model.
    """
    folder = Path(folder)
    description = read_json(folder / "model.json")
    try:
        fields = {f.name for f in dataclasses.fields(VLAConfig)}
        config = {k: _frozen(v) for k, v in description["config"].items() if k in fields}
        bounded({**config, "length": description["length"]}, SIZES)
        layers = sum(config.get(k, 1) for k in ("encoder_layers", "decoder_layers"))
        _fits(folder / "model.safetensors", layers * config["width"] ** 2)
        statistics = {k: tuple(v) for k, v in description["statistics"].items()}
        words = tuple(description["vocabulary"]), description["length"]
        model = VLA(VLAConfig(**config), *words, Statistics(**statistics))
    except UserError:
        raise
    except Exception as error:  # whatever a description of another's making brings about
        raise UserError(
            f"{folder / 'model.json'} does not describe a compact VLA ({error}): train it again."
        ) from error
    load_tensors(model, folder / "model.safetensors")
    return model.eval()


def _fits(path: Path, least: int) -> None:
    """Raise ValueError unless the file can hold `least` weights of two bytes; UserError if none."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path} cannot be read as this model ({error}): train it again."
        ) from error
    if size < 2 * least:
        raise ValueError(f"{least} weights or more do not fit into the {size} bytes of {path.name}")


def load_tensors(model: VLA, path: Path) -> None:
    """Fill a model's trained tensors from a safetensors file.

    Raises:
        UserError: the file is missing, truncated, or holds other tensors.
    """
    try:
        state = load_file(path)
        unexpected = set(state) ^ set(trained_state(model))
        model.load_state_dict(state, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read as this model ({error}): train it again."
        ) from error
    if unexpected:
        raise UserError(f"{path} holds other tensors ({sorted(unexpected)[0]}, …): train it again.")


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value
