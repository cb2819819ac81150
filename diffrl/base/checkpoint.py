"""Checkpoints: one safetensors file that holds a whole tree of state, written atomically.

No pickle: arrays lie in the file by name, the tree around them (dicts with any scalar key, lists,
numbers, strings) as JSON in its header. What is read back equals what was written, bit by bit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffrl.base.artifacts import atomic_path
from diffrl.base.errors import UserError

# what a broken file, or a tree of another's making, raises
UNREADABLE = (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError)
_ARRAY, _DICT, _TUPLE = "$array", "$dict", "$tuple"


def save(path: Path, tree: Any, config_hash: str) -> None:
    """Write `tree` to `path`; `config_hash` names the settings that it belongs to.

    Raises:
        TypeError: a leaf is neither a tensor, an array, a number, a string nor None.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_flatten(tree, tensors))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": skeleton, "config": config_hash})


def load(path: Path, config_hash: str) -> Any:
    """Return the tree that `save` wrote.

    Raises:
        UserError: the file is broken, or belongs to other settings.
    """
    skeleton = check(path, config_hash)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _restore(skeleton, tensors)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def check(path: Path, config_hash: str) -> Any:
    """Return a checkpoint's tree without its arrays, if it is whole and of these settings.

    Raises:
        UserError: as `load`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        found, skeleton = metadata["config"], json.loads(metadata["tree"])
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if found != config_hash:
        raise UserError(
            f"The checkpoint {path} belongs to other settings ({found}, not {config_hash}): "
            "restore those settings to continue it, or start again with --force (from Python "
            "force=True)."
        )
    return skeleton


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The checkpoint {path} cannot be read ({error}): delete it to start this run again."
    )


def _flatten(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, (torch.Tensor, np.ndarray)):
        name = str(len(tensors))
        kind = "torch" if isinstance(node, torch.Tensor) else "numpy"
        if isinstance(node, np.ndarray):
            node = torch.from_numpy(np.array(node, order="C"))  # a number's array keeps its shape
        tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_ARRAY: name, "kind": kind}
    if isinstance(node, dict):
        return {_DICT: [[key, _flatten(value, tensors)] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {_TUPLE: [_flatten(value, tensors) for value in node]}
    if isinstance(node, list):
        return [_flatten(value, tensors) for value in node]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a checkpoint cannot hold a {type(node).__name__}: {node!r}")


def _restore(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_restore(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _ARRAY in node:
        tensor = tensors[node[_ARRAY]]
        return tensor.numpy() if node["kind"] == "numpy" else tensor
    if _TUPLE in node:
        return tuple(_restore(value, tensors) for value in node[_TUPLE])
    return {key: _restore(value, tensors) for key, value in node[_DICT]}
