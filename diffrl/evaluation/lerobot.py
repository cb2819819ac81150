"""A lerobot checkpoint, driven in lerobot's own environment.

lerobot needs another torch than this package, so it never shares our process: `lerobot_server.py`
runs under its Python, serves the checkpoint by openpi's protocol on the loopback, and is asked like
any policy server. That environment needs `lerobot`, `websockets` and `msgpack`.
"""

import atexit
import re
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import ClientConnection

from diffrl.base.artifacts import file_hash, read_json, user_path
from diffrl.base.errors import UserError, bounded
from diffrl.evaluation.openpi import RENDERED, OpenPI, seconds
from diffrl.sim.pictures import Detail

LARGEST_SIDE = 2048  # pixels of an image that is rendered for a checkpoint
SERVER = Path(__file__).with_name("lerobot_server.py")


class LeRobot(OpenPI):
    """A lerobot policy behind a server process that this one starts and ends.

    Args:
        python: the interpreter of lerobot's environment.
        checkpoint: folder that `lerobot-train` wrote (``checkpoints/last``, or the
            ``pretrained_model`` in it), or name on the hub.
        replan, timeout: as of `OpenPI`.
        start: seconds that loading may take.
        detail: of the pictures, exact or reduced: what the checkpoint was trained on.

    A folder's pictures are rendered at the size that it was trained on, a hub's at 256 pixels.
    """

    sent_size = RENDERED

    def __init__(
        self,
        python: str,
        checkpoint: str,
        replan: str = "8",
        timeout: str = "60",
        start: str = "600",
        detail: Detail = "exact",
    ):
        super().__init__("ws://127.0.0.1:0", checkpoint, replan, timeout)
        if detail not in ("exact", "reduced"):
            raise UserError(f"lerobot's detail is exact or reduced, not {detail!r}.")
        python, folder = str(user_path(python)), _folder(checkpoint)
        content = file_hash(folder) if folder else "of the hub"
        self.fingerprint = f"lerobot {checkpoint} {content} {replan}"
        self.image_size = self.sent_size = _image_size(folder) if folder else RENDERED
        self.detail = detail
        if (self.image_size, detail) != (RENDERED, "exact"):
            self.fingerprint += f" {self.image_size} {detail}"
        checkpoint = str(folder or checkpoint)
        self.command = [python, "-I", str(SERVER), checkpoint]  # -I: our folder is not importable
        self.start = seconds(start, "start")
        self.server: subprocess.Popen[str] | None = None

    def _connect(self) -> ClientConnection:
        if self.server is None:  # only now, so that naming a policy starts nothing
            self.address = f"ws://127.0.0.1:{self._launch()}"
        return super()._connect()

    def _launch(self) -> int:
        """Start the server and return its port.

        Raises:
            UserError: it does not start; the message ends with its last line.
        """
        output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # lives as long as the server
        try:
            self.server = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True
            )
        except OSError as error:
            raise UserError(
                f"lerobot's Python {self.command[0]} does not start ({error.strerror}): give the "
                "interpreter of the environment that lerobot is installed in."
            ) from error
        atexit.register(self.server.kill)
        deadline = time.monotonic() + self.start
        while time.monotonic() < deadline:
            ended = self.server.poll() is not None
            output.seek(0)
            lines = output.read().splitlines()
            for line in lines:
                if line.startswith("listening "):
                    return int(line.split()[1])
            if ended:
                raise UserError(
                    f"lerobot's server for {self.command[-1]} did not start: "
                    f"{lines[-1] if lines else 'it printed nothing'}"
                )
            time.sleep(0.2)
        self.server.kill()
        raise UserError(f"lerobot's server was not ready after {self.start:g} s: raise `start`.")


def _image_size(folder: Path) -> int:
    """Return the pixels of the square images that a checkpoint was trained on.

    Raises:
        UserError: they are not square, not all of one size, or the config says nothing of them.
    """
    try:
        features = read_json(folder / "config.json").get("input_features", {}).values()
        sizes = {size for f in features if f.get("type") == "VISUAL" for size in f["shape"][1:]}
        for size in sizes:
            bounded({"side": size}, {"side": (1, LARGEST_SIDE)})
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not say what images the checkpoint was trained on "
            f"({error}): name a folder that lerobot-train wrote."
        ) from error
    if len(sizes) > 1:
        raise UserError(
            f"{folder} was trained on images with sides of {sorted(sizes)} pixels: only square "
            "ones of one size can be rendered for it."
        )
    return sizes.pop() if sizes else RENDERED


def _folder(checkpoint: str) -> Path | None:
    """Return the folder that holds a checkpoint's policy; None if it is a name on the hub.

    Raises:
        UserError: it is a path, and no checkpoint lies there.
    """
    path = user_path(checkpoint)
    for folder in (path / "pretrained_model", path):
        if (folder / "config.json").is_file():
            return folder
    hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", checkpoint)
    if hub and not path.exists():
        return None
    raise UserError(
        f"{path} holds no config.json of a lerobot checkpoint: name what lerobot-train wrote, such "
        "as outputs/train/…/checkpoints/last, or a checkpoint on the hub, <user>/<name>."
    )
