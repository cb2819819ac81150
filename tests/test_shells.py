"""The package in the shells that people have: no home, no renderer, no rights, no UTF-8."""

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffrl import __main__
from diffrl.base import jit, opengl
from diffrl.base.errors import UserError

TASK = "libero_object/3"
ROOT = Path(__file__).parents[1]

# What a hostile machine does to every process that is started with this file on its path.
NO_HOME = """
import os, pwd
def nobody(*_): raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = nobody
os.environ.pop("HOME", None)
"""
NO_OPENGL = """
import sys
sys.modules["OpenGL"] = None
"""
ANOTHERS_LOG = """
import logging
def refuse(self, filename, *_, **__): raise PermissionError(13, "Permission denied", filename)
logging.FileHandler.__init__ = refuse
"""


@pytest.fixture
def shell(tmp_path):
    """Run Python with arguments in a shell that has some of these faults, and variables."""
    place = tmp_path / "site"
    place.mkdir()

    def run(*arguments: str, faults: str = "", prepare=None, **variables: str | None):
        (place / "sitecustomize.py").write_text(faults)
        given = {"PYTHONPATH": f"{place}:{ROOT}", "DIFFRL_HOME": str(tmp_path / "home")} | variables
        environment = {k: v for k, v in (os.environ | given).items() if v is not None}
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            preexec_fn=prepare,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )

    return run


@pytest.fixture
def recording(tmp_path):
    """A file of demonstrations in robomimic's layout."""
    path, steps = tmp_path / "demo.hdf5", 40
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_kwargs": {"control_freq": 20}}'
        for i in range(4):
            demo = file.create_group(f"data/demo_{i}")
            place = np.cumsum(rng.normal(0, 0.005, (steps, 3)), axis=0)
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["obs/robot0_eef_pos"] = place
            demo["obs/robot0_eef_quat"] = np.tile([1.0, 0, 0, 0], (steps, 1))
            demo["obs/robot0_gripper_qpos"] = np.zeros((steps, 2))
            demo["rewards"] = demo["dones"] = (np.arange(steps) == steps - 1).astype(float)
            demo.attrs["num_samples"] = steps
    return str(path)


# ---- no home, no renderer, a shared machine ---------------------------------------------------


@pytest.mark.sim
def test_a_scene_compiles_and_moves_whatever_the_shell_lacks_and_is_the_same(shell, tmp_path):
    code = f"""
import os
from diffrl.sim.scene import load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import official_start_states
scene = load_scene({TASK!r})
simulator = Simulator(scene, 1)
simulator.reset(official_start_states(scene)[0])
print(simulator.states()[0].tolist())
print([os.environ.get(name) for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "HOME")])
"""
    gpu = {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "0", "CUDA_VISIBLE_DEVICES": "1"}
    caches = [tmp_path / "hostile", tmp_path / "usual"]  # a model holds its meshes' paths, so both
    faults = NO_HOME + NO_OPENGL + ANOTHERS_LOG  # are compiled by this very installation
    result = shell("-c", code, faults=faults, DIFFRL_CACHE=str(caches[0]), **gpu)
    assert result.returncode == 0, result.stderr
    usual = shell("-c", code, DIFFRL_CACHE=str(caches[1]))
    assert result.stdout.splitlines()[0] == usual.stdout.splitlines()[0]
    assert result.stdout.splitlines()[1] == "['egl', '0', None]"  # nothing of it stays
    [compiled], [other] = (list((cache / "scenes").glob("*.scene")) for cache in caches)
    assert compiled.name == other.name
    assert compiled.read_bytes() == other.read_bytes()


@pytest.mark.sim
def test_after_a_scene_was_compiled_libero_itself_can_still_draw(shell, tmp_path):
    code = f"""
import diffrl.sim.compiler as compiler
from diffrl.sim.tasks import get_task
compiler.make_env(get_task({TASK!r}))
env = compiler.make_env(get_task({TASK!r}), cameras=["agentview"], size=32)
print(env.reset()["agentview_image"].std() > 10)
"""
    result = shell("-c", code, MUJOCO_GL=None, PYOPENGL_PLATFORM=None)
    assert result.stdout.strip() == "True", result.stderr


def test_listing_and_quality_need_neither_home_nor_renderer(shell, recording):
    for arguments in (["tasks", "--suite", "libero_object"], ["quality", recording]):
        result = shell("-m", "diffrl", *arguments, faults=NO_HOME + NO_OPENGL, MUJOCO_GL="osmesa")
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) >= 10


@pytest.mark.parametrize("backend", ["osmesa", "egl", "disabled"])
def test_pictures_without_opengl_fail_with_the_remedy(shell, backend):
    code = "from diffrl.base.opengl import find_opengl; find_opengl()"
    result = shell("-c", code, faults=NO_OPENGL, MUJOCO_GL=backend)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("diffrl.base.errors.UserError: ")
    assert "nset" in last  # MUJOCO_GL
    assert "RL on states runs without" in last


@pytest.mark.parametrize(
    ("word", "backends"),
    [("EGL", ["egl"]), (" osmesa ", ["osmesa"]), ("1", ["egl", "osmesa"]), ("", ["egl", "osmesa"])],
)
def test_mujocos_spellings_of_a_backend_are_understood(monkeypatch, word, backends):
    tried = []
    monkeypatch.setenv("MUJOCO_GL", word)
    monkeypatch.setattr(opengl, "probe", lambda name: (None, tried.append(name) or "none"))
    with pytest.raises(UserError):
        opengl.find_opengl.__wrapped__()
    assert tried == backends


def test_without_a_home_the_cache_s_folder_is_asked_for(shell):
    code = "from diffrl.base.artifacts import cache_dir; print(cache_dir())"
    result = shell("-c", code, faults=NO_HOME, DIFFRL_CACHE=None)
    assert "UserError: The path ~/.cache/diffrl begins with a home folder" in result.stderr
    assert "DIFFRL_CACHE" in result.stderr


def test_an_empty_cache_variable_is_no_folder(shell, tmp_path):
    code = "from diffrl.base.artifacts import cache_dir; print(cache_dir())"
    result = shell("-c", code, DIFFRL_CACHE="", HOME=str(tmp_path))
    assert result.stdout.strip() == str(tmp_path / ".cache" / "diffrl")


# ---- rights and room ---------------------------------------------------------------------------


@pytest.mark.sim
def test_a_disk_that_is_full_is_one_paragraph(shell):
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # refuses root's files, too

    policy = ["evaluate", "--policy", "random:", "--suite", TASK, "--trials", "1"]
    result = shell("-m", "diffrl", *policy, "--workers", "2", prepare=full)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr, result.stderr
    assert "File too large" in result.stderr
    assert "DIFFRL_HOME" in result.stderr


def test_a_full_standard_output_is_one_paragraph():
    for arguments in (["--help"], ["tasks", "--help"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run(
                [sys.executable, "-m", "diffrl", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert result.returncode == 1
        assert result.stderr.startswith("Error: A file or folder cannot be used (No space left")
        assert len(result.stderr.splitlines()) == 2


# ---- pipes and letters -------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["tasks"], ["tasks", "--help"]])
def test_a_pipe_that_closes_is_quiet(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "diffrl", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_pipe_that_breaks_elsewhere_is_not_hidden(monkeypatch):
    def broken(_):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(__main__, "_run", broken)
    with pytest.raises(BrokenPipeError, match="worker's"):
        __main__.main(["tasks"])


def test_a_terminal_that_is_not_utf8_prints_something(recording, monkeypatch):
    told = {}
    for encoding in ("ascii", "latin-1", "utf-8"):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", terminal)
        assert __main__.main(["quality", recording]) == 0
        told[encoding] = terminal.buffer.getvalue().decode(encoding)
    assert "²" in told["utf-8"]
    for encoding in ("ascii", "latin-1"):
        letters = told["utf-8"].encode(encoding, "replace").decode(encoding)
        assert told[encoding] == letters


# ---- numba's cache -----------------------------------------------------------------------------

PLACE = "import numba, diffrl.base.jit; print(numba.config.CACHE_DIR)"


def test_compiled_code_is_kept_in_our_cache_unless_the_user_chose_a_folder(shell, tmp_path):
    ours, theirs = tmp_path / "cache", tmp_path / "theirs"
    result = shell("-c", PLACE, DIFFRL_CACHE=str(ours), NUMBA_CACHE_DIR=None)
    assert result.stdout.strip() == str(ours / f"numba-{os.getuid()}")
    result = shell("-c", PLACE, DIFFRL_CACHE=str(ours), NUMBA_CACHE_DIR=str(theirs))
    assert result.stdout.strip() == str(theirs)
    late = "import numba; numba.njit(lambda x: x)(1);" + PLACE  # imported before us
    result = shell("-c", late, DIFFRL_CACHE=str(ours), NUMBA_CACHE_DIR=None)
    assert result.stdout.strip() == str(ours / f"numba-{os.getuid()}")


def test_without_home_and_cache_compiled_code_goes_to_a_private_temporary_folder(shell, tmp_path):
    variables = {"DIFFRL_CACHE": None, "NUMBA_CACHE_DIR": None, "TMPDIR": str(tmp_path)}
    result = shell("-c", PLACE, faults=NO_HOME, **variables)
    folder = Path(result.stdout.strip())
    assert folder == tmp_path / f"diffrl-numba-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_never_read(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path))
    monkeypatch.delenv(jit.VARIABLE)
    (tmp_path / f"numba-{os.getuid()}").mkdir()
    monkeypatch.setattr(jit.os, "getuid", lambda: 4242)  # whoever asks, the folder is not theirs
    (tmp_path / "numba-4242").mkdir()
    assert not jit._choose()
    assert jit.VARIABLE not in os.environ


def test_where_nothing_can_be_written_functions_are_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(jit, "_writable", lambda folder: False)
    monkeypatch.setattr(jit, "_KEPT", jit._choose())
    assert jit.njit()(lambda x: x + 1)(2) == 3


def test_two_clones_and_several_processes_share_a_cache_without_mixing_code(shell, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import own;"
        "print(own.f(1), sum(own.f.stats.cache_hits.values()))"
    )
    variables = {"DIFFRL_CACHE": str(tmp_path / "cache"), "NUMBA_CACHE_DIR": None}
    for number in (10, 20):
        clone = tmp_path / str(number)
        clone.mkdir()
        body = f"from diffrl.base.jit import njit\n@njit()\ndef f(x):\n    return x + {number}\n"
        (clone / "own.py").write_text(body)
    environment = {k: v for k, v in (os.environ | variables).items() if v is not None}
    environment["PYTHONPATH"] = str(ROOT)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / str(number))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (10, 20, 10)
    ]
    told = [process.communicate()[0].split()[0] for process in started]
    assert told == ["11", "21", "11"]
    result = shell("-c", code, str(tmp_path / "20"), **variables)
    assert result.stdout.split() == ["21", "1"]  # found, not compiled
    (tmp_path / "10" / "own.py").write_text(body.replace("20", "30"))  # a checkout: other source
    result = shell("-c", code, str(tmp_path / "10"), **variables)
    assert result.stdout.split() == ["31", "0"]
