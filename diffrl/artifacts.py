"""Where results lie, how they are written, and whether a stage is done.

A file appears under its name only when it is whole (`atomic_path`), a record carries what made it
(`provenance`), and a stage is done when its config and its inputs still hash to what they were
(`Stage`). So a run that was killed at any moment continues by being started again.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffrl.errors import UserError

FORCE = "DIFFRL_FORCE_BEFORE"  # environment: what is older than this does not count


def root() -> Path:
    """Return the folder that holds ``results/`` and ``figures/``.

    It is ``$DIFFRL_HOME`` if set; else the clone that the package was installed from; else the
    working directory.
    """
    if home := os.environ.get("DIFFRL_HOME"):
        return Path(home).expanduser().resolve()
    clone = Path(__file__).resolve().parent.parent
    return clone if (clone / "pyproject.toml").is_file() else Path.cwd()


def results_dir(preset: str) -> Path:
    """Return (and create) the folder of a preset's records."""
    return _folder(root() / "results" / preset)


def figures_dir(preset: str) -> Path:
    """Return (and create) the folder of a preset's figures."""
    return _folder(root() / "figures" / preset)


def cache_dir() -> Path:
    """Return (and create) the folder of what can be made again: ``$DIFFRL_CACHE`` or the user's."""
    return _folder(Path(os.environ.get("DIFFRL_CACHE", "~/.cache/diffrl")).expanduser())


def user_path(text: str | os.PathLike) -> Path:
    """Return the path that a person wrote; a leading ~ is a home folder, as in a shell.

    Shells leave it alone in ``--out=~/x`` and ``compact:~/x``.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}. Write the path without ~.") from error


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be created ({error.strerror}): make it writable, or set "
            "DIFFRL_HOME (results) or DIFFRL_CACHE (cache) to a folder that is."
        ) from error
    return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder; on success it becomes `path`, whole and on disk.

    On an error it is removed and `path` stays as it was. The temporary name keeps the suffix, as
    many writers look at it. (The pattern: openpi's checkpoints, ours for files.)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` (dataclasses and numpy included) atomically: sorted keys, two-space indent."""
    text = json.dumps(plain(obj), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the stage that writes it first.") from error
    except ValueError as error:
        raise UserError(
            f"{path} is no valid JSON ({error}): delete it, and the stage that writes it makes it "
            "again."
        ) from error


def write_csv(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write `table` atomically, without its index; floats with ten significant digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def plain(obj: Any) -> Any:
    """Return `obj` as JSON knows it: dict, list, str, float, int, bool, None.

    Raises:
        TypeError: something in it has no such form.
    """
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (set, frozenset)):
        return sorted(plain(value) for value in obj)
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, (np.generic, np.ndarray)):
        return plain(obj.tolist())
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if obj is None or isinstance(obj, (str, int, float, bool)):
        return obj
    raise TypeError(f"a {type(obj).__name__} has no JSON form: {obj!r}")


def config_hash(obj: Any) -> str:
    """Return 12 hexadecimal digits that identify `obj`'s values (not its order of keys)."""
    text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's files with their names."""
    path = Path(path)
    if path.is_dir():
        parts = [p for p in sorted(path.rglob("*")) if p.is_file()]
        return config_hash([(str(p.relative_to(path)), file_hash(p)) for p in parts])
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"The input {path} cannot be read ({error.strerror}): run the stage that writes it."
        ) from error


def pins() -> dict[str, str]:
    """Return the requirements that the installed package declares, name → specifier (no extras)."""
    try:
        lines = importlib.metadata.requires("diffrl") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "diffrl is not installed in this Python: run `make` (or `pip install -e .`) in the "
            "clone and use its .venv."
        ) from error
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?([^;]*)$", line) for line in lines)
    return {match[1]: match[2].strip() for match in found if match}


def versions() -> dict[str, str]:
    """Return the installed version of every required package; "missing" where there is none."""
    found = {}
    for name in pins():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def git_commit() -> str | None:
    """Return the clone's commit, with "+" if tracked code is changed; None outside a clone."""
    code = Path(__file__).resolve().parent
    try:
        commit = _git(code, "rev-parse", "HEAD")
        changed = _git(code, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
    ).stdout.strip()


def provenance(config: Any = None, seed: int | None = None) -> dict[str, Any]:
    """Return what made a record: versions, commit, platform, config with its hash, seed."""
    return {
        "diffrl": importlib.metadata.version("diffrl"),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "platform": {"system": platform.platform(), "cores": os.cpu_count()},
        "config": plain(config),
        "config_hash": config_hash(config),
        "seed": seed,
    }


def forced(path: str | os.PathLike) -> bool:
    """Whether `reproduce --force`, which asks for everything anew, was called after `path`."""
    return os.stat(path).st_mtime < float(os.environ.get(FORCE, 0))


class Stage:
    """One step of the series, with a marker file ``<folder>/<name>.done.json``.

    Args:
        folder: where the stage writes.
        name: of the marker; unique in the folder.
        config: whatever decides the result (dataclasses, dicts, tuples, numbers, strings).
        inputs: files or folders that are read; their bytes decide, too.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str,
        config: Any,
        inputs: Iterable[str | os.PathLike] = (),
    ):
        self.folder = Path(folder)
        self.marker = self.folder / f"{name}.done.json"
        self.config = config
        self.inputs = tuple(Path(path) for path in inputs)

    @property
    def done(self) -> bool:
        """Whether the stage need not be run: it is found, and nobody forces it to run again."""
        return self.found and not forced(self.marker)

    @property
    def found(self) -> bool:
        """Whether the stage has finished with this config and inputs, and its outputs are there."""
        try:
            record = json.loads(self.marker.read_text(encoding="utf-8"))
            outputs_there = all((self.folder / name).exists() for name in record["outputs"])
            return outputs_there and record["key"] == self._key
        except (OSError, ValueError, KeyError, TypeError):
            return False  # no marker, or one that says nothing: the stage is to be done

    @property
    def records(self) -> dict[str, Any]:
        """What `finish` was given."""
        return read_json(self.marker)["records"]

    def finish(
        self,
        records: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        outputs: Iterable[str | os.PathLike] = (),
    ) -> None:
        """Write the marker: `records`, the key, and the provenance of the run.

        `outputs` are files or folders whose absence makes the stage undone again, for instance a
        data set that git ignores.
        """
        relative = [os.path.relpath(path, self.folder) for path in outputs]
        content = {"records": records or {}, "key": self._key, "outputs": relative}
        write_json(self.marker, {**content, **provenance(self.config, seed)})

    @cached_property
    def _key(self) -> dict[str, Any]:
        """Of the inputs as they are when it is first asked for, which is before they are used."""
        inputs = [[path.name, file_hash(path)] for path in self.inputs]
        return {"config": config_hash(self.config), "inputs": inputs}
