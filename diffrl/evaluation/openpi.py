"""The openpi policy server: websocket and msgpack, as π0 and π0.5 are served on LIBERO.

The wire format is openpi's: after the handshake the server sends one map of metadata; then each
request is one map, each answer a map with `actions` (horizon, 7), and a text frame is an error.
Arrays travel as maps with byte keys. openpi's own client needs numpy < 2 and waits for ever, so
this one is written anew: every wait for the server has an end, and a failure is a trial's error.
"""

import re
import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgpack
import numpy as np
from PIL import Image
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.data.demo import axis_angle
from diffrl.evaluation.protocol import Base, Trial
from diffrl.sim.observation import Observation
from diffrl.sim.pictures import Detail
from diffrl.vla.model import CAMERAS

GIVE_UP = 3  # failures in a row, after which the server is not asked again
LARGEST = 2**20  # bytes of an answer: 18 000 control steps; decoded it may take 80 times as much
STALLED = (BlockingIOError, ssl.SSLWantWriteError)  # what a send raises that takes too long
LONGEST = 86_400.0  # seconds that a wait may take: a day, which every clock can count
MOST_STEPS = 18_000  # of an answer
KEYS = dict(zip(CAMERAS, ("observation/image", "observation/wrist_image")))
RENDERED, SENT = 256, 224  # pixels that openpi's LIBERO example renders and sends
UNREADABLE = (  # what a lie raises
    *(ValueError, TypeError, LookupError, ArithmeticError, RecursionError),
    msgpack.UnpackException,
)
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])|[<>|=]?[SU][0-9]{1,4}")  # numpy's types


def seconds(text: str, name: str) -> float:
    """Read how long to wait [s].

    Raises:
        UserError: it is no number, not positive, or longer than a day; the message begins with
            `name`.
    """
    with suppress(ValueError):
        if 0 < (wait := float(text)) <= LONGEST:
            return wait
    raise UserError(f"{name} is {text!r}: give a number of seconds, up to {LONGEST:.0f} (a day).")


def pack(message: Any) -> bytes:
    """Encode a message; arrays of numbers become openpi's maps."""
    packed: bytes = msgpack.packb(message, default=_pack_array)
    return packed


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biufSU":
        raise ValueError(f"an array of {value.dtype} cannot be sent")
    if isinstance(value, np.ndarray):
        data, kind, shape = value.tobytes(), value.dtype.str, value.shape
        return {b"__ndarray__": True, b"data": data, b"dtype": kind, b"shape": shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def unpack(data: str | bytes) -> Any:
    """Decode a message.

    Raises:
        ValueError: it is no msgpack, or an array in it contradicts itself.
    """
    return msgpack.unpackb(data, object_hook=_unpack_array, strict_map_key=False)


def _unpack_array(value: dict[str | bytes, Any]) -> Any:
    """Undo `_pack_array`; numpy would take a type of any size, and of objects, from a stranger."""
    if b"__ndarray__" in value:
        shape = value[b"shape"]
        if any(side < 0 for side in shape):  # numpy would guess it
            raise ValueError(f"an array of shape {shape}")
        return np.frombuffer(value[b"data"], _dtype(value)).reshape(shape)
    if b"__npgeneric__" in value:
        return _dtype(value).type(value[b"data"])
    return value


def _dtype(value: dict[str | bytes, Any]) -> np.dtype[Any]:
    kind = value[b"dtype"]
    if not isinstance(kind, str) or not _NUMBERS.fullmatch(kind):
        raise ValueError(f"an array of {str(kind)[:40]!r} is none of numbers or text")
    return np.dtype(kind)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """A square image (H, H, 3) uint8 turned by 180° and bilinear at (size, size), as openpi's."""
    turned = Image.fromarray(np.ascontiguousarray(image[::-1, ::-1]))
    return np.asarray(turned.resize((size, size), Image.Resampling.BILINEAR))


def proxy_for(address: str) -> str | None:
    """Return the proxy that the environment names for a server; this machine's own have none.

    The order is websockets' own: ``ws_proxy``, ``socks_proxy``, ``https_proxy``, ``http_proxy``.
    """
    try:
        parts = urlsplit(address)
        host, secure = parts.hostname or "", parts.scheme == "wss"
        port = parts.port or (443 if secure else 80)
    except ValueError:  # no address at all, which websockets says
        return None
    if _this_machine(host) or proxy_bypass(f"{host}:{port}"):
        return None
    known = getproxies()
    for kind in ("wss", "socks", "https") if secure else ("ws", "socks", "https", "http"):
        if kind in known:
            plain = kind == "socks" and known[kind].startswith("http://")
            return known[kind].replace("http://", "socks5h://", 1) if plain else known[kind]
    return None


def _this_machine(host: str) -> bool:
    try:
        number = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback or number.is_unspecified  # 0.0.0.0: what a server listens on


def request(
    observation: Observation, row: int, images: Mapping[str, np.ndarray], prompt: str, size: int
) -> dict[str, Any]:
    """What openpi's LIBERO example sends of one robot.

    Args:
        observation: of n robots.
        row: of the robot.
        images: (H, H, 3) uint8 by camera, as LIBERO gives them (upside down).
        prompt: the instruction.
        size: of the images that are sent, pixels.
    """
    rotation = axis_angle(observation.eef_quat[row : row + 1])[0]
    state = [observation.eef_pos[row], rotation, observation.gripper_qpos[row]]
    message = {KEYS[camera]: resize(image, size) for camera, image in images.items()}
    return message | {"observation/state": np.concatenate(state), "prompt": prompt}


class OpenPI(Base):
    """A policy behind an openpi server, `ws://host:port`.

    Args:
        address: of the server.
        model: your name of what it serves, as servers do not say: trials are kept under it, and a
            model that was trained again needs a new one.
        replan: actions of each answer that are executed; openpi's LIBERO example takes 5.
        timeout: seconds to wait for a connection, and for each answer.
    """

    cameras: tuple[str, ...] = CAMERAS
    image_size = RENDERED
    detail: Detail = "exact"
    sent_size = SENT

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        model: str = "",
        replan: str = "5",
        timeout: str = "60",
    ):
        super().__init__()
        if not model:
            raise UserError(
                "A policy server does not say which model it serves, and another's trials would be "
                f"found under its address: name it, openpi:{address}?model=<name>."
            )
        self.address = address if "://" in address else f"ws://{address}"
        try:
            self.chunk = int(replan)
        except ValueError:
            self.chunk = 0
        if not 1 <= self.chunk <= MOST_STEPS:
            raise UserError(
                f"replan is {replan!r}: give a whole number of control steps, 1 to {MOST_STEPS}."
            )
        self.timeout = seconds(timeout, "timeout")
        self.fingerprint = f"openpi {model} {self.chunk}"
        self.connection: ClientConnection | None = None
        self.stack = ExitStack()  # closes the connection
        self.proxy: str | None = None
        self.metadata: dict[str, Any] = {}
        self.failed = 0  # in a row
        self.reason = ""

    def begin(self, trial: Trial, instruction: str) -> None:
        self.memory[trial] = instruction

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        assert images is not None  # it has cameras
        actions = np.zeros((len(trials), self.chunk, ACTION_SIZE))
        for row, trial in enumerate(trials):
            try:
                actions[row] = self._ask(self._message(observation, images[row], row, trial))
                self.failed = 0
            except ServerError as error:
                self.failures[trial] = str(error)
        return actions

    def _message(
        self, observation: Observation, images: np.ndarray, row: int, trial: Trial
    ) -> dict[str, Any]:
        seen = dict(zip(CAMERAS, images))
        return request(observation, row, seen, self.memory[trial], self.sent_size)

    def _ask(self, message: dict[str, Any]) -> np.ndarray:
        """Send one observation and return (chunk, 7) actions.

        Raises:
            ServerError: no connection, no answer in time, or none that can be used.
        """
        if self.failed >= GIVE_UP:
            raise ServerError(f"not asked again after {GIVE_UP} failures in a row: {self.reason}")
        try:
            connection = self._connect()
            connection.send(pack(message))
            answer = connection.recv(timeout=self.timeout)
        except (OSError, WebSocketException, ImportError) as error:
            raise self._fail(_explain(error, self.timeout) + self._way()) from error
        try:
            return self._actions(answer)
        except UNREADABLE as error:
            raise self._fail(f"gave an answer that cannot be used: {error}") from error

    def _connect(self) -> ClientConnection:
        if self.connection is None:
            self.proxy = proxy_for(self.address)
            connection = self.stack.enter_context(
                connect(
                    self.address,
                    proxy=self.proxy,
                    compression=None,
                    max_size=LARGEST,
                    ping_interval=None,
                    open_timeout=self.timeout,
                    close_timeout=1,
                )
            )
            seconds, part = divmod(self.timeout, 1)  # no setting of websockets ends a send
            limit = struct.pack("ll", int(seconds), int(part * 1e6))
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            try:
                greeting = connection.recv(timeout=self.timeout)
                self.metadata = unpack(greeting)
            except UNREADABLE as error:
                raise WebSocketException(f"its greeting is no msgpack ({error})") from error
            self.connection = connection
        return self.connection

    def _way(self) -> str:
        """Say that a proxy was asked, without the password that its address may hold."""
        if self.proxy is None:
            return ""
        proxy, host = urlsplit(self.proxy), urlsplit(self.address).hostname
        place = f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
        return (
            f"; it was asked through the proxy {place}, which the environment names: set "
            f"no_proxy={host} to go past it"
        )

    def _actions(self, answer: bytes | str) -> np.ndarray:
        if isinstance(answer, str):
            raise ValueError(f"it reports {(answer.strip().splitlines() or ['nothing'])[-1]!r}")
        found = unpack(answer)
        if not isinstance(found, dict) or "actions" not in found:
            raise ValueError("it holds no `actions`")
        actions = np.asarray(found["actions"], np.float64)
        if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE or len(actions) < self.chunk:
            raise ValueError(
                f"actions of shape {actions.shape}, where ({self.chunk} or more, {ACTION_SIZE}) fit"
            )
        if not np.isfinite(actions[: self.chunk]).all():
            raise ValueError("actions that are not finite")
        return actions[: self.chunk].clip(-1, 1)

    def _fail(self, reason: str) -> "ServerError":
        """Note a failure and drop the connection: a late answer must not meet the next request."""
        self.failed, self.reason = self.failed + 1, f"the policy server {self.address} {reason}"
        self.stack.close()
        self.connection = None
        return ServerError(self.reason)


class ServerError(Exception):
    """The server gave no usable decision; the message says which server and why."""


def _explain(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError) or isinstance(error.__cause__, STALLED):
        return f"did not answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refuses connections: start it, or correct host and port"
    if isinstance(error, ImportError):  # websockets asks for a package that speaks SOCKS
        return f"cannot be reached ({error})"
    if isinstance(error, InvalidURI | InvalidHandshake):
        return f"is no websocket server ({error})"
    return f"broke the connection ({error or type(error).__name__})"
