"""A small policy server that speaks openpi's protocol, in a process of its own.

    python openpi_server.py <behaviour> [<actions.npy>]

It prints its port. Behaviours: replay (plays the given actions (T, 7) back, one connection one
episode), still, nan, shape, text, silent (greets, then never answers), mute (never greets), dies
(after two answers), garbage (bytes that are no msgpack), frozen (greets, then reads nothing),
liar (greets with an array that is none).
"""

import os
import signal
import sys
import time

import msgpack
import numpy as np
from websockets.sync.server import ServerConnection, serve

HORIZON = 10


def array(value: np.ndarray) -> dict:
    """openpi's form of an array, written out here so that the client's own code is not trusted."""
    shape = list(value.shape)
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": "<f8", b"shape": shape}


def check(request: dict) -> None:
    """Insist on what openpi's LIBERO example sends."""
    for name in ("observation/image", "observation/wrist_image"):
        image = request[name]
        assert image[b"dtype"] == "|u1"
        assert list(image[b"shape"]) == [224, 224, 3]
        assert len(image[b"data"]) == 224 * 224 * 3
    state = request["observation/state"]
    assert list(state[b"shape"]) == [8]
    assert np.isfinite(np.frombuffer(state[b"data"], state[b"dtype"])).all()
    assert isinstance(request["prompt"], str)
    assert request["prompt"]


def answer(behaviour: str, recorded: np.ndarray, number: int):
    """Return what is sent back to request `number` of a connection."""
    actions = np.zeros((HORIZON, 7))
    if behaviour == "replay":
        part = recorded[5 * number : 5 * number + HORIZON]  # the client replans after five
        actions[: len(part)] = part
    if behaviour == "nan":
        actions[3, 2] = np.nan
    if behaviour == "shape":
        actions = actions[:, :6]
    if behaviour == "text":
        return "Traceback\nValueError: out of memory"
    if behaviour == "garbage":
        return b"\xc1\xff\x00"
    return msgpack.packb({"actions": array(actions), "server_timing": {"infer_ms": 1.0}})


def main(behaviour: str, path: str = "") -> None:
    """Serve until killed."""
    recorded = np.load(path) if path else np.zeros((0, 7))

    def handle(connection: ServerConnection) -> None:
        if behaviour == "mute":
            time.sleep(3600)
        greeting = {b"__ndarray__": True} if behaviour == "liar" else {"robot": "test"}
        connection.send(msgpack.packb(greeting))
        if behaviour == "frozen":
            os.kill(os.getpid(), signal.SIGSTOP)
        for number, request in enumerate(connection):
            check(msgpack.unpackb(request, strict_map_key=False))
            if behaviour == "silent":
                time.sleep(3600)
            if behaviour == "dies" and number == 2:
                os._exit(1)
            connection.send(answer(behaviour, recorded, number))

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(server.socket.getsockname()[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
