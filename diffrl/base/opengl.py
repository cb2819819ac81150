"""Find an OpenGL that works without a screen: EGL, else OSMesa; and say which renderer it is.

A driver can abort the whole process, and MuJoCo reads ``MUJOCO_GL`` when it is imported, so each
try is a process of its own. An EGL without a GPU silently is Mesa's software renderer, which is
an order of magnitude slower: its name is reported.
"""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from diffrl.base.errors import UserError

BACKENDS = ("egl", "osmesa")
PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri", "libosmesa6")  # Debian, Ubuntu
# mujoco's words in MUJOCO_GL, besides those of a backend:
_OFF = ("disable", "disabled", "off", "false", "0")
_ON = ("enable", "enabled", "on", "true", "1")
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software")

_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
from OpenGL import GL
print("renderer:", GL.glGetString(GL.GL_RENDERER).decode())
"""


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set variables of the environment (None: unset) inside a block, and restore them after it."""
    before = {name: os.environ.get(name) for name in values}

    def put(variables: dict[str, str | None]) -> None:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


def import_mujoco() -> ModuleType:
    """Import mujoco; where the OpenGL that it loads with itself is missing, without OpenGL.

    Physics needs none; `find_opengl` reports the fault to whoever wants pictures.

    Raises:
        RuntimeError: MUJOCO_GL holds a word that mujoco does not know.
    """
    try:
        return importlib.import_module("mujoco")
    except RuntimeError:
        raise
    except Exception:  # ImportError, or what PyOpenGL meets in a library that is None
        with environment(MUJOCO_GL="disabled"):
            return importlib.import_module("mujoco")


def _wanted() -> str:
    """Return the backend that MUJOCO_GL asks for; "" leaves the choice to us."""
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    return "" if wanted in _ON else wanted


@dataclass(frozen=True)
class OpenGL:
    """A working backend: MuJoCo's name for it, and the driver's own name."""

    backend: str  # "egl", "osmesa": the value for MUJOCO_GL
    renderer: str  # e.g. "llvmpipe (LLVM 15.0.6, 256 bits)"

    @property
    def software(self) -> bool:
        """Whether the CPU draws."""
        return any(word in self.renderer.lower() for word in _SOFTWARE)

    def __str__(self) -> str:
        kind = "software (llvmpipe)" if "llvmpipe" in self.renderer.lower() else "software"
        return f"{kind if self.software else 'GPU'} through {self.backend}: {self.renderer}"


def probe(backend: str, timeout: float = 60.0) -> tuple[OpenGL | None, str]:
    """Create a context in a process of its own; return the OpenGL, or None and the reason."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {timeout:.0f} s"
    for line in result.stdout.splitlines():
        if line.startswith("renderer: "):
            return OpenGL(backend, line.removeprefix("renderer: ").strip()), ""
    lines = result.stderr.strip().splitlines()
    return None, lines[-1] if lines else f"exit code {result.returncode}"


@cache
def find_opengl() -> OpenGL:
    """Return the first backend that works; ``MUJOCO_GL``, if set, is the only one that is tried.

    Raises:
        UserError: none works; the message holds each reason and the command that fixes it.
    """
    wanted, reasons = _wanted(), []
    if wanted in _OFF:
        raise UserError(
            f"MUJOCO_GL is {wanted!r}, so nothing can be drawn: unset it to let diffrl choose a "
            "renderer. RL on states runs without; images need it."
        )
    for backend in (wanted,) if wanted else BACKENDS:
        found, reason = probe(backend)
        if found:
            return found
        reasons.append(f"{backend}: {reason}")
    unset = "Unset MUJOCO_GL to let diffrl choose; if that does not help, " if wanted else ""
    raise UserError(
        f"No OpenGL renderer works here ({'; '.join(reasons)}). {unset}install one with "
        f"`{' '.join(install_command())}` (Debian, Ubuntu; elsewhere Mesa's EGL or OSMesa). "
        "RL on states runs without; images need it."
    )


def install_command() -> list[str]:
    """Return the command that installs Mesa's renderers."""
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    return [*prefix, "apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]


def main() -> int:
    """Find a renderer, for make: install one if this is root with apt, else print the command.

    Returns 1 if there is none; everything but images works without.
    """
    try:
        print(find_opengl())
        return 0
    except UserError as error:
        if os.geteuid() != 0 or not shutil.which("apt-get") or os.environ.get("MUJOCO_GL"):
            print(f"Warning: {error}", file=sys.stderr)
            return 1
    print(f"No OpenGL yet: {' '.join(install_command())}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], install_command()):
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False)
    find_opengl.cache_clear()
    try:
        print(find_opengl())
        return 0
    except UserError as error:
        print(f"Warning: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
