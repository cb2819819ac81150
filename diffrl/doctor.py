"""Check what the numbers rest on: versions, renderer, hardware, LIBERO's files, the simulator.

``python -m diffrl doctor [--json]`` exits with 1 and a remedy when something is off. A pin alone
does not prove the simulator, hence the last check is one of behaviour.

The manifest ``libero_files.tsv.gz`` lists the git blob hashes (SHA-1) of all 585 assets and 135
task files of the official repository (Lifelong-Robot-Learning/LIBERO, commit 8f1084e), and for the
130 official start-state files, which the wheels carry as ``.npz`` instead of pickles, the SHA-1 of
their numbers.
"""

import gzip
import hashlib
import os
import platform
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from json import dumps
from pathlib import Path

import numpy as np

from diffrl.base import artifacts
from diffrl.base.control import SETTLE_STEPS
from diffrl.base.errors import UserError
from diffrl.base.opengl import find_opengl

BOWL_LIMIT = 0.02  # m; 3.3.2 moves it by about 0.014, mujoco >= 3.4 by about 0.06 (measured)
DISK_NEEDED = 2.0  # GB for one small preset; our choice
MEMORY_NEEDED = 4.0  # GB; our choice
REINSTALL = "`pip install --force-reinstall --no-deps {}` or `make clean` and `make` fix it."


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: str  # "ok", "warning" (works, but worse), "problem" (exit code 1)
    detail: str
    remedy: str = ""


def check_versions() -> list[Finding]:
    """Compare every required package with its pin. An exact pin that fails is a problem."""
    from packaging.specifiers import SpecifierSet

    findings, found = [], artifacts.versions()
    for name, specifier in artifacts.pins().items():
        version = found[name]
        if version != "missing" and SpecifierSet(specifier).contains(version, prereleases=True):
            continue
        grave = version == "missing" or "==" in specifier
        detail = f"{name} is {version}, but pyproject.toml asks for {specifier}"
        remedy = f'`pip install "{name}{specifier}"` (or `make`) fixes it.'
        findings.append(Finding("versions", "problem" if grave else "warning", detail, remedy))
    return findings or [Finding("versions", "ok", f"{len(found)} packages are within their pins")]


def check_opengl() -> list[Finding]:
    """Find a renderer, and tell whether the CPU draws."""
    try:
        return [Finding("renderer", "ok", str(find_opengl()))]
    except UserError as error:
        return [Finding("renderer", "problem", str(error), "The command is in the message.")]


def check_machine() -> list[Finding]:
    """Look at cores, memory, disk and GPU."""
    machine = describe_machine()
    gpus = ", ".join(machine["gpus"]) or "none (CPU only)"
    detail = (
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB memory, "
        f"{machine['disk_free_gb']:.0f} GB free for results, GPU: {gpus}"
    )
    findings = [Finding("machine", "ok", detail)]
    if machine["disk_free_gb"] < DISK_NEEDED:
        remedy = "Free some, or set DIFFRL_HOME and DIFFRL_CACHE to a larger disk."
        findings.append(Finding("machine", "problem", f"less than {DISK_NEEDED} GB free", remedy))
    if machine["memory_gb"] < MEMORY_NEEDED:
        remedy = "Use fewer worker processes."
        findings.append(Finding("machine", "warning", f"less than {MEMORY_NEEDED} GB", remedy))
    return findings


def describe_machine() -> dict:
    """Return what a reader of a timing wants to know; no names that identify the machine."""
    from diffrl.base.scale import cores

    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except ImportError:  # the versions say so
        count = 0
    there = (place for place in (artifacts.root(), *artifacts.root().parents) if place.exists())
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(next(there)).free / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(count)],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def manifest() -> dict[str, str]:
    """Return path → hash of LIBERO's official files (see the module's docstring)."""
    packed = resources.files("diffrl").joinpath("libero_files.tsv.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    return dict(line.split("\t") for line in lines)


def blob_hash(path: Path) -> str:
    """Return git's blob hash of a file: SHA-1 over "blob <size>\\0" and the bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def states_hash(path: Path) -> str:
    """Return the SHA-1 of an ``.npz`` file's start states (shape, then little-endian float64)."""
    with np.load(path, allow_pickle=False) as archive:
        states = np.ascontiguousarray(archive["states"], dtype="<f8")
    digest = hashlib.sha1(repr(states.shape).encode(), usedforsecurity=False)
    digest.update(states.tobytes())
    return digest.hexdigest()


def _folders() -> dict[str, Path]:
    """Return where LIBERO looks for each kind of file; its config file may move them."""
    from diffrl.sim.libero import libero_path

    kinds = {"assets": "assets", "bddl_files": "bddl_files", "init_files": "init_states"}
    return {top: libero_path(key) for top, key in kinds.items()}


def check_libero_files() -> list[Finding]:
    """Compare LIBERO's assets, tasks and start states with the official ones, byte by byte."""
    wheels = [f"{name}{pin}" for name, pin in artifacts.pins().items() if name.startswith("libero")]
    remedy = REINSTALL.format(" ".join(wheels))
    remedy += " A LIBERO config file (LIBERO_CONFIG_PATH) may point elsewhere."
    try:
        folders = _folders()
    except Exception as error:  # ImportError, its own ValueError, KeyError: all mean "not there"
        return [Finding("libero files", "problem", f"LIBERO is not usable: {error}", remedy)]
    missing, changed, expected = [], [], manifest()
    for name, digest in expected.items():
        top, _, rest = name.partition("/")
        path = folders[top] / rest
        if not path.is_file():
            missing.append(name)
        elif _digest(path) != digest:
            changed.append(name)
    if not missing and not changed:
        return [Finding("libero files", "ok", f"{len(expected)} files equal the official ones")]
    parts = [
        f"{len(names)} {word}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for word, names in (("missing", missing), ("changed", changed))
        if names
    ]
    return [Finding("libero files", "problem", "; ".join(parts), remedy)]


def _digest(path: Path) -> str:
    if path.suffix != ".npz":
        return blob_hash(path)
    try:
        return states_hash(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return "unreadable"


def check_behaviour() -> list[Finding]:
    """Let libero_spatial/5 settle: the bowl stays on the ramekin, within 2 cm in x and y."""
    try:
        shift = settle_shift()
    except UserError as error:
        return [Finding("simulator", "problem", str(error), "The remedy is in the message.")]
    except Exception as error:  # whatever another mujoco or a broken LIBERO raises
        remedy = "Fix the problems above and unset MUJOCO_GL. Then run the doctor again."
        return [Finding("simulator", "problem", f"it does not start: {error}", remedy)]
    detail = f"libero_spatial/5 settles: the bowl moves {100 * shift:.1f} cm at most"
    if shift <= BOWL_LIMIT:
        return [Finding("simulator", "ok", detail)]
    remedy = REINSTALL.format("mujoco==3.3.2") + " Other versions have other contacts."
    return [Finding("simulator", "problem", f"{detail}, 2 cm are allowed", remedy)]


def settle_shift(task: str = "libero_spatial/5", states: int = 5) -> float:
    """Return by how many metres the goal's object moves while the start states settle.

    The larger of x and y, over the first `states` official start states, which settle for the
    protocol's ten steps.
    """
    from diffrl.sim.scene import load_scene
    from diffrl.sim.simulator import Simulator
    from diffrl.sim.starts import official_start_states

    scene = load_scene(task)
    starts = official_start_states(scene)[:states]
    index = list(scene.object_names).index(scene.goal[0][1])
    simulator = Simulator(scene, states, threads=1)
    simulator.reset(starts, settle=0)
    before = simulator.observation.object_pos[:, index, :2].copy()  # (states, 2)
    simulator.reset(starts, settle=SETTLE_STEPS)
    after = simulator.observation.object_pos[:, index, :2]
    return float(np.abs(after - before).max())


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_versions,
    check_opengl,
    check_machine,
    check_libero_files,
    check_behaviour,
)


def report() -> dict:
    """Run the checks; return a JSON-able report with `ok`, `findings`, `versions`, `machine`."""
    findings = [finding for check in CHECKS for finding in check()]
    return {
        "ok": all(finding.status != "problem" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
        "versions": {"python": platform.python_version(), **artifacts.versions()},
        "machine": describe_machine(),
        "git_commit": artifacts.git_commit(),
    }


def main(json: bool = False) -> int:
    """Check versions, renderer, machine, LIBERO's files and the simulator's behaviour.

    Args:
        json: print the report as JSON.
    """
    result = report()
    if json:
        print(dumps(result, indent=2, sort_keys=True))
        return 0 if result["ok"] else 1
    for finding in result["findings"]:
        print(f"{finding['status']:<8} {finding['check']:<13} {finding['detail']}")
        if finding["status"] != "ok":
            print(f"{'':<22} {finding['remedy']}")
    return 0 if result["ok"] else 1
