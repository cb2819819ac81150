"""Policies: a diffusion and a Gaussian one, and any that is registered.

They are saved as safetensors and JSON. `ChainPolicy` is what RL, the rollouts and the evaluation
need of any of them.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffrl.base.arm import Mode
from diffrl.base.artifacts import atomic_path, plain, read_json, write_json
from diffrl.base.errors import UserError, bounded
from diffrl.policy.chain import ChainPolicy, PolicyConfig, trial_generator
from diffrl.policy.features import Features, Layout
from diffrl.presets import CloneConfig, RLConfig

__all__ = [
    "ChainPolicy",
    "Features",
    "Layout",
    "Mode",
    "PolicyConfig",
    "halve",
    "load",
    "make_config",
    "make_policy",
    "policy_class",
    "register",
    "save",
    "trial_generator",
]
KINDS = {  # the package's own: module and class, imported when wanted (diffusers takes seconds)
    "diffusion": "diffrl.policy.diffusion:DiffusionPolicy",
    "gaussian": "diffrl.policy.gaussian:GaussianPolicy",
}
_registered: dict[str, type[ChainPolicy]] = {}
WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"
# What a description may ask for: a stranger's must not fill the memory before its weights are seen.
# The largest that we know of are DPPO's networks (1024 wide) and LIBERO's scenes (16 objects).
SIZES = {
    "width": (1, 4096),
    "horizon": (1, 256),
    "chunk": (1, 256),
    "cross_fade": (0, 256),
    "training_steps": (1, 10_000),
    "sampling_steps": (1, 1000),
}
LAYOUT_SIZES = {
    "objects": (0, 256),
    "goals": (0, 64),
    "joints": (0, 256),
    "image_size": (0, 1024),
    "tail": (0, 256),
}


def make_config(algorithm: str, clone: CloneConfig, rl: RLConfig) -> PolicyConfig:
    """Return the policy's part of a preset's settings."""
    settings = {**vars(rl), **vars(clone), "algorithm": algorithm}
    names = [field.name for field in dataclasses.fields(PolicyConfig)]
    return PolicyConfig(**{name: settings[name] for name in names})


def register(name: str, kind: type[ChainPolicy]) -> None:
    """Enter a policy class: from now on `name` is an algorithm like "diffusion" and "gaussian".

    It is trained, generates data and is evaluated as they are, in this process. One that the
    package's commands are to know has its module in `KINDS` instead.

    Raises:
        UserError: the name is no single word, or is another class's.
    """
    if not name.isidentifier():
        raise UserError(f"A policy class needs one word as its name, and {name!r} is none.")
    if name in KINDS or _registered.get(name, kind) is not kind:
        raise UserError(f"There is another policy class {name!r}: choose another name.")
    _registered[name] = kind


def policy_class(algorithm: str) -> type[ChainPolicy]:
    """Return the class of an algorithm.

    Raises:
        UserError: nobody registered one of that name.
    """
    if algorithm in _registered:
        return _registered[algorithm]
    if algorithm not in KINDS:
        raise UserError(
            f"There is no algorithm {algorithm!r}: choose {' or '.join((*KINDS, *_registered))}, "
            "or register a policy class of that name (diffrl.policy.register)."
        )
    module, _, name = KINDS[algorithm].partition(":")
    kind: type[ChainPolicy] = getattr(importlib.import_module(module), name)
    return kind


def make_policy(config: PolicyConfig, layout: Layout, seed: int = 0) -> ChainPolicy:
    """Return a new policy with weights from `seed`; one that sees images is on the GPU, if any."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = policy_class(config.algorithm)(config, layout)
    # an MLP over states is faster on the CPU, beside the robots
    return policy.to("cuda" if layout.image_size and torch.cuda.is_available() else "cpu")


def save(folder: str | Path, policy: ChainPolicy) -> None:
    """Write ``policy.safetensors`` and ``policy.json`` into `folder`, each atomically."""
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as path:
        tensors = {key: value.contiguous() for key, value in policy.state_dict().items()}
        save_file(tensors, path)
    # without settings that came later and are neutral, so earlier versions read it, too
    description = plain({"config": policy.config, "layout": policy.layout}, whole=False)
    write_json(folder / DESCRIPTION, description)


def halve(policy: ChainPolicy) -> None:
    """Round every weight to the nearest that float16 holds, in place; the type stays float32.

    Raises:
        UserError: a weight is beyond float16's range.
    """
    for name, tensor in policy.state_dict().items():
        if tensor.dtype == torch.float32:
            rounded = tensor.half().float()
            if rounded.isinf().any():
                raise UserError(
                    f"{name} of the policy holds {tensor.abs().max():.3g}, which float16 does not: "
                    "train with rl.half_weights = False."
                )
            tensor.copy_(rounded)


def load(folder: str | Path) -> ChainPolicy:
    """Read the policy that `save` wrote into `folder`.

    Raises:
        UserError: a file is missing, broken, or does not fit the other.
    """
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION)
    try:
        bounded(description["config"], SIZES)
        bounded(description["layout"], LAYOUT_SIZES)
        config = PolicyConfig(**description["config"])
        fits(folder / WEIGHTS, config.width**2)
        policy = make_policy(config, Layout(**description["layout"]))
    except UserError:
        raise
    except Exception as error:  # whatever a description of another's making brings about
        raise UserError(
            f"{folder / DESCRIPTION} does not describe a policy of this version ({error}): "
            "train the expert again."
        ) from error
    load_weights(policy, folder / WEIGHTS)
    return policy.eval()


def fits(path: Path, least: int) -> None:
    """Check that a file can hold a network with `least` weights, which is not yet built.

    Raises:
        ValueError: it is too small, with two bytes a weight.
        UserError: it is missing.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): train the expert again.") from error
    if size < 2 * least:
        raise ValueError(f"{least} weights or more do not fit into the {size} bytes of {path.name}")


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Read `module`'s weights from a safetensors file.

    Raises:
        UserError: the file is missing, broken or of another network; the module is unchanged.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): train the expert again.") from error
    own = module.state_dict()
    wrong = [key for key in own if key not in tensors or tensors[key].shape != own[key].shape]
    if wrong or len(own) != len(tensors):
        example = wrong[0] if wrong else next(key for key in tensors if key not in own)
        raise UserError(
            f"{path} belongs to another network (see {example!r}): the folder's policy.json and "
            "weights do not fit; train the expert again."
        )
    module.load_state_dict(tensors)
