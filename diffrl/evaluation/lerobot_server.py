"""Serves a lerobot checkpoint by openpi's protocol. Runs under lerobot's Python, not under ours.

    <lerobot's python> lerobot_server.py <checkpoint>

It imports nothing of this package. It prints "listening <port>" once the policy is loaded. The
checkpoint's first two image features are the agentview and the wrist camera, in this order.
"""

import os
import sys
import threading
import time
import traceback
from typing import Any

import msgpack
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from websockets.sync.server import ServerConnection, serve


def decode(value: dict[Any, Any]) -> Any:
    """Turn openpi's maps into arrays."""
    if b"__ndarray__" not in value:
        return value
    flat = np.frombuffer(value[b"data"], np.dtype(value[b"dtype"]))
    return flat.reshape(value[b"shape"])


def encode(array: np.ndarray) -> dict[Any, Any]:
    """Turn an array into openpi's map."""
    data, kind, shape = array.tobytes(), array.dtype.str, list(array.shape)
    return {b"__ndarray__": True, b"data": data, b"dtype": kind, b"shape": shape}


def resized(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """An image (3, H, W) at the height and width that the checkpoint was trained on."""
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[
        0
    ]


class Served:
    """A checkpoint with its processors."""

    def __init__(self, checkpoint: str) -> None:
        config = PreTrainedConfig.from_pretrained(checkpoint)
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
        self.policy.eval()
        self.before, self.after = make_pre_post_processors(config, pretrained_path=checkpoint)
        self.cameras = {name: tuple(f.shape[1:]) for name, f in config.image_features.items()}

    @torch.no_grad()
    def actions(self, request: dict[Any, Any]) -> np.ndarray:
        """Return the chunk (horizon, 7) for one observation."""
        names = ("observation/image", "observation/wrist_image")
        images = [torch.from_numpy(request[n].copy()).permute(2, 0, 1).float() / 255 for n in names]
        batch = {
            name: image if image.shape[1:] == size else resized(image, size)
            for (name, size), image in zip(self.cameras.items(), images)
        }
        batch["observation.state"] = torch.from_numpy(request["observation/state"].copy()).float()
        batch["task"] = request["prompt"]
        self.policy.reset()
        chunk = self.policy.predict_action_chunk(self.before(batch))
        found: np.ndarray = self.after(chunk)[0].float().cpu().numpy()
        return found


def end_with(parent: int) -> None:
    """Exit when the process that started this one is gone, however it ended."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(0)


def main(checkpoint: str) -> None:
    """Serve until killed, or until nobody is left to serve."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    served = Served(checkpoint)

    def handle(connection: ServerConnection) -> None:
        connection.send(msgpack.packb({"policy": checkpoint}))
        for message in connection:
            try:
                request = msgpack.unpackb(message, object_hook=decode, strict_map_key=False)
                connection.send(msgpack.packb({"actions": encode(served.actions(request))}))
            except Exception:
                connection.send(traceback.format_exc())  # a text frame is an error

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(f"listening {server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
