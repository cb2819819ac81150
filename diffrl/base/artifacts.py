"""Where results lie, how they are written, and whether a stage is done.

A file appears under its name only when it is whole (`atomic_path`), a record carries what made it
(`provenance`), and a stage is done when its config and its inputs still hash to what they were
(`Stage`). So a run that was killed at any moment continues by being started again.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffrl.base.errors import UserError, file_error

FORCE = "DIFFRL_FORCE_BEFORE"  # environment: what is older than this does not count
EVIDENCE = "evidence.json"  # in a run's folder that `diffrl.evidence` unpacked
SETTLED = 10.0  # s after a change; clocks of file systems are too coarse to tell two at once apart
UNPACKED = "unpacked"  # in a marker that it restored
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
LARGEST_JSON = 16 * 2**20  # bytes; parsed, the worst take 25 times as much


def root() -> Path:
    """Return the folder that holds ``runs/``, ``results/`` and ``figures/``.

    It is ``$DIFFRL_HOME`` if set; else the clone that the package was installed from; else the
    working directory.

    Raises:
        UserError: ``$DIFFRL_HOME`` is a URL, or begins with a home folder that does not exist.
    """
    if home := os.environ.get("DIFFRL_HOME"):
        return folder_path(home, "DIFFRL_HOME").resolve()
    clone = Path(__file__).resolve().parents[2]
    return clone if (clone / "pyproject.toml").is_file() else Path.cwd()


def run_folder(preset: str) -> Path:
    """Return the folder of what a preset computes, which may not exist; git ignores it.

    A part, such as "libero:libero_object", shares the folder of the whole.
    """
    return root() / "runs" / preset.partition(":")[0]


def runs_dir(preset: str) -> Path:
    """Return (and create) the folder of what a preset computes."""
    return make_folder(run_folder(preset))


def restored(preset: str) -> bool:
    """Whether a preset's run was unpacked from evidence and is not forced to be computed again.

    Its tables are there, and its data sets and most of its weights are not.
    """
    return (runs_dir(preset) / EVIDENCE).is_file() and FORCE not in os.environ


def results_dir(preset: str) -> Path:
    """Return the folder of a preset's evidence, which only `diffrl.evidence` writes."""
    return root() / "results" / preset


def figures_dir(preset: str) -> Path:
    """Return (and create) the folder of the figures that a preset draws; a part has its own."""
    return make_folder(runs_dir(preset) / "figures" / preset.partition(":")[2])


def cache_dir() -> Path:
    """Return (and create) the folder of what can be made again: ``$DIFFRL_CACHE`` or the user's.

    Raises:
        UserError: it cannot be created, is a URL, or this user has no home folder.
    """
    place = os.environ.get("DIFFRL_CACHE") or "~/.cache/diffrl"
    return make_folder(folder_path(place, "DIFFRL_CACHE"))


def folder_path(text: str, setting: str) -> Path:
    """Return the folder that a setting names, as `user_path`.

    An object store is no such folder: HDF5 writes in place, a file appears by `os.replace`, and
    `lock` keeps two processes apart, none of which a store offers.

    Raises:
        UserError: it is a URL.
    """
    if _URL.match(text):
        raise UserError(
            f"{setting} is the URL {text}, but files are renamed and locked there, which takes a "
            "file system. Mount the store and give the mount's folder; or compute in a folder, and "
            "copy it to the store when the command has ended."
        )
    return user_path(text)


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a person wrote; a leading ~ is a home folder, as in a shell.

    Shells leave it alone in ``--out=~/x`` and ``compact:~/x``.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(  # for instance of a container's user, whom nothing lists
            f"The path {text} begins with a home folder that does not exist ({error}). Write the "
            "path without ~, or set HOME, or DIFFRL_HOME (results) and DIFFRL_CACHE (cache)."
        ) from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, if they do not exist, and return it.

    Raises:
        UserError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be created ({error.strerror}): make it writable, or set "
            "DIFFRL_HOME (results) or DIFFRL_CACHE (cache) to a folder that is."
        ) from error
    return path


def lock(path: Path, busy: str | None) -> int:
    """Lock a file, created if need be, for this process; closing the result unlocks it.

    So does the end of the process, however it comes. If another process holds the file, this one
    gives up with the message `busy`, or waits for it if that is None. Some network file systems
    offer no locks: there it only warns.

    Raises:
        UserError: another process holds it (the message is `busy`), or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(_unwritable(path.parent, error)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(busy) from error
    except OSError as error:
        print(
            f"Warning: the file system of {path} offers no locks ({error.strerror}). Make "
            "sure that no second process writes there.",
            file=sys.stderr,
        )
    return handle


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of `folder`, which is created if need be.

    Raises:
        UserError: another one is at work there.
    """
    busy = (
        f"Another process is at work on {folder}: wait for it, then call again, or set DIFFRL_HOME "
        "to another folder."
    )
    handle = lock(make_folder(folder) / ".lock", busy)
    try:
        yield
    finally:
        os.close(handle)


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"Nothing can be written in the folder {folder} ({error.strerror}): make it writable, make "
        "room, or set DIFFRL_HOME (results) or DIFFRL_CACHE (cache) to another folder."
    )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder; on success it becomes `path`, whole and on disk.

    On an error it is removed and `path` stays as it was. The temporary name keeps the suffix, as
    many writers look at it. (The pattern: openpi's checkpoints, ours for files.)

    Raises:
        UserError: the folder cannot be created or written.
    """
    path = Path(path)
    folder = make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(f".tmp{path.suffix}", f".{path.stem}-", folder)
    except OSError as error:
        raise UserError(_unwritable(folder, error)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        if (told := file_error(error, path)) is not None:
            raise told from error
        raise
    finally:
        with contextlib.suppress(
            OSError
        ):  # of a folder that is gone or read-only: first things first
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


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` (dataclasses and numpy included) atomically, as `json_text`."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(obj), encoding="utf-8")


def json_text(obj: Any) -> str:
    """Return `obj` as JSON text: sorted keys, two-space indent."""
    return json.dumps(plain(obj), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: str | os.PathLike[str], largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file of at most `largest` bytes.

    Raises:
        UserError: the file is missing, too large, nested too deeply, or is no JSON.
    """
    try:
        return _parse_json(Path(path), largest)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the stage that writes it first.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no valid JSON ({error}): delete it, and the stage that writes it makes it "
            "again."
        ) from error


def _parse_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Read a document that may be a stranger's: its size is known before it takes memory."""
    with path.open("rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return json.loads(data.decode("utf-8"))


def write_csv(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write `table` atomically, without its index; floats with ten significant digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def added(neutral: Any, default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field that came later: its neutral value means "as before the field".

    A setting with its neutral value does not enter `config_hash`, so what was made before the
    setting existed is found again. `default` is the neutral value where none is given.
    """
    default = neutral if default is dataclasses.MISSING else default
    return dataclasses.field(default=default, metadata={"neutral": neutral})


def plain(obj: Any, whole: bool = True) -> Any:
    """Return `obj` as JSON knows it: dict, list, str, float, int, bool, None.

    Unless `whole`, settings that were `added` and have their neutral value are left out.

    Raises:
        TypeError: something in it has no such form.
    """
    again = functools.partial(plain, whole=whole)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        kept = [f for f in dataclasses.fields(obj) if whole or not _neutral(f, obj)]
        return {f.name: again(getattr(obj, f.name)) for f in kept}
    if isinstance(obj, Mapping):
        return {str(key): again(value) for key, value in obj.items()}
    if isinstance(obj, (set, frozenset)):
        return sorted(again(value) for value in obj)
    if isinstance(obj, (list, tuple)):
        return [again(value) for value in obj]
    if isinstance(obj, (np.generic, np.ndarray)):
        return again(obj.tolist())
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if obj is None or isinstance(obj, (str, int, float, bool)):
        return obj
    raise TypeError(f"a {type(obj).__name__} has no JSON form: {obj!r}")


def _neutral(field: dataclasses.Field[Any], obj: Any) -> bool:
    return "neutral" in field.metadata and getattr(obj, field.name) == field.metadata["neutral"]


def config_hash(obj: Any) -> str:
    """Return 12 hexadecimal digits that identify `obj`'s values (not its order of keys).

    Settings that were `added` later count only where they are not neutral.
    """
    text = json.dumps(plain(obj, whole=False), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's files with their names.

    A file that has been left alone for a while is hashed once a process: data sets are large, and
    many stages read the same ones.
    """
    path = Path(path)
    if path.is_dir():
        parts = [p for p in sorted(path.rglob("*")) if p.is_file()]
        return config_hash([(str(p.relative_to(path)), file_hash(p)) for p in parts])
    try:
        now = path.stat()
        if time.time() - now.st_ctime < SETTLED:
            return _sha256(path)
        return _known_sha256(path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    except OSError as error:
        raise UserError(
            f"The input {path} cannot be read ({error.strerror}): run the stage that writes it."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _known_sha256(path: Path, *_: int) -> str:
    """Of a file that is the same as long as these numbers of it are."""
    return _sha256(path)


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
    """Return the clone's commit, with "+" if tracked code is changed; None outside a clone.

    A repository is the clone if it tracks this file: a package that is installed in another
    project's folder has none.
    """
    code = Path(__file__).resolve().parents[1]
    try:
        _git(code, "ls-files", "--error-unmatch", __file__)
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


def forced(path: str | os.PathLike[str]) -> bool:
    """Whether `reproduce --force`, which asks for everything anew, was called after `path`."""
    return os.stat(path).st_mtime < float(os.environ.get(FORCE, 0))


class Stage:
    """One step of the series, with a marker file ``<folder>/<name>.done.json``.

    Args:
        folder: where the stage writes.
        name: of the marker; unique in the folder.
        config: whatever decides the result (dataclasses, dicts, tuples, numbers, strings).
        inputs: files or folders that are read; their bytes decide, too.
        format: of what the stage writes; its room raises it when the same settings come to give
            another result, so that older results are noticed.
        measures: names of what the stage computes, where it has a list of them; older results with
            another list are noticed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        config: Any,
        inputs: Iterable[str | os.PathLike[str]] = (),
        format: int = 1,
        measures: Iterable[str] = (),
    ):
        self.folder = Path(folder)
        self.marker = self.folder / f"{name}.done.json"
        self.config, self.format, self.measures = config, format, sorted(measures)
        self.inputs = tuple(Path(path) for path in inputs)

    @property
    def done(self) -> bool:
        """Whether the stage need not be run: it is not `due`.

        Raises:
            UserError: as `found`.
        """
        return not self.due()

    def due(self, force: bool = False) -> bool:
        """Whether the stage is to be run: it is not found, or somebody forces it to run again.

        If so its inputs are hashed now, before the work reads them: one that changes meanwhile
        must not go into the marker.

        Raises:
            UserError: as `found`.
        """
        force = force or (self.marker.exists() and forced(self.marker))
        if not force and self.found:
            return False
        with contextlib.suppress(UserError):  # of a missing input the work itself says more
            _ = self._key
        return True

    @property
    def found(self) -> bool:
        """Whether the stage has finished with this config and inputs, and its outputs are there.

        A marker restored from evidence asks for its config alone: data sets are not kept there.

        Raises:
            UserError: it was finished with this config and inputs by another format, or with
                other measures.
        """
        if stale := self._judged():
            raise UserError(stale)
        return stale is not None

    @property
    def unpacked(self) -> bool:
        """Whether a marker restored from evidence stands for this stage, with this config."""
        try:
            record = _parse_json(self.marker)
            return bool(record.get(UNPACKED) is True and self._judged() == "")
        except (OSError, ValueError, AttributeError, RecursionError):
            return False

    def forget(self) -> None:
        """Remove the marker of this very stage, also one of another format; any other stays."""
        if self._judged() is not None:
            self.marker.unlink()

    def _judged(self) -> str | None:
        """None: not finished; a text: what is stale about the marker, "" where nothing is."""
        try:
            record = _parse_json(self.marker)
            if record.get(UNPACKED) is True:
                return "" if record["key"]["config"] == config_hash(self.config) else None
            outputs_there = all((self.folder / name).exists() for name in record["outputs"])
            made, wanted = dict(record["key"]), dict(self._key)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None  # no marker, or one that says nothing: the stage is to be done
        before, now = made.pop("format", 1), wanted.pop("format", 1)
        measured, measures = made.pop("measures", []), wanted.pop("measures", [])
        if not outputs_there or made != wanted:
            return None
        if before != now:
            return self._stale(f"by format {before} of its stage, now {now}")
        if measured != measures:
            other = ", ".join(sorted(set(measured) ^ set(measures)))
            added = f"with other measures (the difference: {other})"
            return self._stale(added if measured else "before the stage listed its measures")
        return ""

    def _stale(self, how: str) -> str:
        return (
            f"{self.marker} was made {how}: delete this file, or use --force where the command "
            "has it, to have it computed again; or go on with the version of diffrl that made it."
        )

    @property
    def stale(self) -> str | None:
        """What makes a finished stage stale, and the remedy; None where nothing does."""
        return self._judged() or None

    @property
    def records(self) -> dict[str, Any]:
        """What `finish` was given."""
        records: dict[str, Any] = read_json(self.marker)["records"]
        return records

    def finish(
        self,
        records: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        outputs: Iterable[str | os.PathLike[str]] = (),
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
        key: dict[str, Any] = {"config": config_hash(self.config), "inputs": inputs}
        if self.format != 1:  # so that what was made before there were formats is found
            key["format"] = self.format
        if self.measures:
            key["measures"] = self.measures
        return key


def without_stale(stages: Iterable[Stage], table: Path) -> list[Stage]:
    """Return the stages that `table` is made from; a warning tells of the stale ones left out.

    So one of them stops none of the others, and hides no error.
    """
    judged = [(stage, stage.stale) for stage in stages]
    stale = [why for _, why in judged if why]
    if stale:
        print(
            f"Warning: {table} leaves out what is stale ({len(stale)}). {stale[0]}", file=sys.stderr
        )
    return [stage for stage, why in judged if not why]
