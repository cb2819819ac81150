"""Pack a finished run into the few files that git keeps, and unpack them again.

    python -m diffrl evidence --preset libero      # runs/libero -> results/libero, figures/libero

``runs/<preset>/`` has a folder per expert, experiment and VLA. Packed, ``results/<preset>/`` holds

- the tables of the preset as they are (``experts.csv``, …),
- ``runs.csv``: a row per run: configuration, commit, environment, seed, minutes,
- ``records.zip``, which `packed_table` reads:

  - ``<kind>_<name>.csv``: every ``<name>.csv`` and ``….<name>.csv`` below ``<kind>/``, with the run
    in the first column; and tables of the preset above 1 MiB,
  - ``documents.csv``: a row per JSON file, its configuration and environment by their hashes,
  - ``configs.json`` and ``environments.json``: each distinct one once,

- ``weights/<suite>.safetensors``: the weights of the experts from which data sets come, as float16
  where that loses nothing, of as many as 30 MiB hold.

`unpack` gives back the same bytes, which `pack` checks before it replaces older evidence; it never
replaces runs or tables by none. Stages that are restored count as done although their data sets are
not there, so that `reproduce` renders every table and figure from them without training anything. A
run that was packed before its last table was there goes on instead: every command that works on the
preset first takes from git what its own run lacks, all else is computed. A VLA that has played all
its trials is not trained again. Nothing of an own run is replaced or removed.
"""

import csv
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffrl.base import artifacts, bundles, heartbeat
from diffrl.base.errors import UserError
from diffrl.gallery import copy_figures
from diffrl.presets import Preset, get_preset

# Folders that a run keeps for itself; of the others, tables and JSON documents are packed.
WORK = {"videos", "notebooks", "figures", "checkpoint", "evaluation"}
EXPERT, POLICY = "expert.done.json", "policy.safetensors"  # an expert's marker and its weights
MARKERS = (EXPERT, "run.done.json", "vla.done.json")  # one a run
DONE = ".done.json"  # the end of a marker's name
UNDONE = ".undone.json"  # of a marker whose outputs are not here
TAKEN = ".evidence"  # in a run that goes on: hash of the bundle from which it took what it lacked
# What commands leave that are no work of a run: pictures, and what a machine was found to be
BESIDE = {"figures", "notebooks", "videos", "dry_run.csv", "doctor.json"}
MOST_WEIGHTS = 30 * 2**20  # bytes of weights that git keeps of a preset: eighty experts'
LARGE = 2**20  # bytes above which a table of the preset goes into the zip
DOCUMENTS = ("path", "config", "environment", "commit", "seed", "key", "outputs", "records")
RUNS = ("kind", "run", "config", "commit", "environment", "seed", "minutes")
BUNDLE, RUN_TABLE, WEIGHTS = "records.zip", "runs.csv", "weights"
CONFIGS, ENVIRONMENTS, LAYOUTS = "configs.json", "environments.json", "layouts.json"
DOCUMENT_TABLE = "documents.csv"
# Without them, or with rows of no trials, a run was not at its end.
LAST_TABLE, SEED_TABLE = "evaluation.csv", "evaluation_seeds.csv"
UNREADABLE = (  # what evidence raises that is not whole, or a stranger's
    *bundles.UNREADABLE,
    *(SafetensorError, csv.Error, RecursionError, LookupError, TypeError, AttributeError),
)


# ---- packing ---------------------------------------------------------------------------------


def pack(runs: Path, results: Path, preset: Preset | None = None) -> None:
    """Write the evidence of the run in `runs` into `results`, in place of what lies there.

    An expert from which no data set of `preset` comes keeps its records and not its weights.

    Raises:
        UserError: there is nothing to pack, what was packed does not give the same files back, or
            older evidence has runs or tables that this run lacks.
    """
    files = list(_files(runs))
    if not any(path.suffix == ".csv" for path in files):
        raise UserError(f"{runs} holds no records: run the preset first (`make reproduce`).")
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=results.parent) as temporary:
        packed = Path(temporary) / "packed"
        packed.mkdir()
        texts = _pack_tables(runs, files, packed) | _pack_documents(runs, files, packed)
        bundles.write(packed / BUNDLE, texts)
        _pack_weights(runs, packed, preset)
        _check(runs, files, packed, Path(temporary) / "unpacked")
        _lose_nothing(results, packed)
        if results.exists():
            results.rename(Path(temporary) / "old")
        packed.rename(results)


def _files(runs: Path) -> Iterator[Path]:
    """The records of a run, sorted: tables and JSON documents, the work itself left out."""
    for path in sorted(runs.rglob("*")):
        parts = path.relative_to(runs).parts
        hidden = path.name.startswith(".") or parts == (artifacts.EVIDENCE,)
        hidden |= path.name.endswith((heartbeat.RUNNING, heartbeat.FAILED))
        hidden |= path.name.endswith(UNDONE) and _place(path).exists()
        if path.suffix in (".csv", ".json") and not hidden and not WORK & set(parts):
            yield path


def _place(path: Path) -> Path:
    """Where a file of a run lies in what is unpacked: of an undone stage, where its marker was."""
    name = path.name
    return path.with_name(name.removesuffix(UNDONE) + DONE) if name.endswith(UNDONE) else path


def _pack_tables(runs: Path, files: list[Path], packed: Path) -> dict[str, str]:
    """Copy the preset's tables, return what goes into the zip: name → text."""
    tables: dict[str, list[Path]] = {}
    texts = {}
    for path in files:
        if path.suffix == ".csv":
            kind, *rest = path.relative_to(runs).parts
            if rest:
                if "_" in kind:  # a member of the zip is named <kind>_<table>.csv
                    raise UserError(
                        f"{runs / kind} holds tables, and evidence cannot tell a kind with an "
                        "underscore from a table's name: rename the folder."
                    )
                tables.setdefault(f"{kind}_{path.name.split('.')[-2]}.csv", []).append(path)
            elif path.stat().st_size > LARGE:
                texts[path.name] = path.read_text(encoding="utf-8")
            else:
                shutil.copy(path, packed)
    layouts = {}
    for name, paths in tables.items():
        texts[name], layouts[name] = _pack_table(runs, paths)
    return texts | {LAYOUTS: artifacts.json_text(layouts)}


def _pack_table(runs: Path, paths: list[Path]) -> tuple[str, dict]:
    """Join tables of one name; return the text, and their distinct headers and empty tables.

    Columns: run, layout (which header), and every column that any of them has. Cells are text, so
    nothing is rounded.
    """
    headers: list[list[str]] = []
    empty: list[list[str | int]] = []
    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for path in paths:
        header, *body = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        if header not in headers:
            headers.append(header)
        columns |= dict.fromkeys(header)
        run, layout = _run_of(path.relative_to(runs)), headers.index(header)
        rows += [{"run": run, "layout": layout, **dict(zip(header, row))} for row in body]
        if not body:
            empty.append([run, layout])
    return _csv_text(["run", "layout", *columns], rows), {"headers": headers, "empty": empty}


def _run_of(path: Path) -> str:
    """What stands before the name: ``a/b/`` of kind/a/b/name.csv, ``a/b.`` of kind/a/b.name.csv."""
    whole = path.relative_to(path.parts[0]).as_posix().removesuffix(".csv")
    return whole[: max(whole.rfind("/"), whole.rfind(".")) + 1]


def _pack_documents(runs: Path, files: list[Path], packed: Path) -> dict[str, str]:
    """Write the table of runs, return what goes into the zip: name → text."""
    configs, environments, rows, index = {}, {}, [], []
    for path in files:
        if path.suffix != ".json":
            continue
        place, document = _place(path).relative_to(runs).as_posix(), artifacts.read_json(path)
        if not place.endswith(DONE):
            configs[artifacts.config_hash(document)] = document
            rows.append({"path": place, "config": artifacts.config_hash(document)})
            continue
        environment = {name: document[name] for name in ("diffrl", "platform", "versions")}
        row = {
            "path": place,
            "config": artifacts.config_hash(document["config"]),
            "environment": artifacts.config_hash(environment),
            "commit": document["git_commit"] or "",
            **{name: _compact(document[name]) for name in ("seed", "key", "outputs", "records")},
        }
        configs[row["config"]] = document["config"]
        environments[row["environment"]] = environment
        rows.append(row)
        index += _index(row, document)
    (packed / RUN_TABLE).write_text(_csv_text(RUNS, index), encoding="utf-8")
    return {
        DOCUMENT_TABLE: _csv_text(DOCUMENTS, rows),
        CONFIGS: json.dumps(configs, indent=1, sort_keys=True) + "\n",
        ENVIRONMENTS: artifacts.json_text(environments),
    }


def _index(row: Mapping, document: Mapping) -> list[dict]:
    """The row of ``runs.csv`` for a marker of an expert, an experiment's run or a VLA."""
    path = PurePosixPath(row["path"])
    if path.name not in MARKERS:
        return []
    records = document["records"]
    measured = records["rows"][0] if "rows" in records else records
    shared = {name: row[name] for name in ("config", "commit", "environment", "seed")}
    run = path.parent.relative_to(path.parts[0]).as_posix()
    return [{"kind": path.parts[0], "run": run, **shared, "minutes": measured.get("minutes", "")}]


def _pack_weights(runs: Path, packed: Path, preset: Preset | None) -> None:
    """The experts' weights, a file per suite; float16 where it holds the very same numbers.

    As many experts as `MOST_WEIGHTS` has room for: first seeds before later ones, then tasks by
    their number, so that each suite and both policy classes keep the same.
    """
    suites: dict[str, dict[str, torch.Tensor]] = {}
    paths = sorted((runs / "experts").glob(f"*/*/{POLICY}"), key=_rank)
    paths = [path for path in paths if _makes_data(path.parent, preset)]
    room, left_out = MOST_WEIGHTS, 0
    for path in paths:
        run = path.parent.relative_to(runs / "experts").as_posix()
        kept = _halved(load_file(path))
        room -= sum(tensor.nbytes for tensor in kept.values())
        if room < 0:
            left_out += 1
            continue
        suite = suites.setdefault(run.rsplit("-", 2)[0], {})
        suite |= {f"{run}/{name}": tensor for name, tensor in kept.items()}
    if left_out:
        print(f"{left_out} of {len(paths)} experts' weights exceed {MOST_WEIGHTS >> 20} MiB.")
    for name, weights in suites.items():
        with artifacts.atomic_path(packed / WEIGHTS / f"{name}.safetensors") as path:
            save_file(weights, path)


def _rank(path: Path) -> tuple[int, int, str]:
    """Sort key of an expert's weights, ``<suite>-<index>/<algorithm>-seed<seed>/…``."""
    return _number(path.parent), _number(path.parent.parent), path.as_posix()


def _number(folder: Path) -> int:
    """The number at the end of a folder's name; 0 without one."""
    found = re.search(r"\d+$", folder.name)
    return int(found[0]) if found else 0


def _makes_data(expert: Path, preset: Preset | None) -> bool:
    """Whether data sets come from the expert in a folder; of no preset they may."""
    task = "/".join(expert.parent.name.rsplit("-", 1))
    return preset is None or _number(expert) in preset.data_seeds(task)


def _halved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as float16 if all of them are the very same numbers then, else as they are."""
    half = {k: t.half() if t.dtype == torch.float32 else t for k, t in tensors.items()}
    exact = all(torch.equal(half[name].to(t.dtype), t) for name, t in tensors.items())
    return half if exact else dict(tensors)


def _check(runs: Path, files: list[Path], packed: Path, again: Path) -> None:
    unpack(packed, again)
    for path in files:
        copy = again / _place(path).relative_to(runs)
        if not copy.is_file() or _content(copy) != _content(path):
            raise UserError(
                f"{path} cannot be packed without loss: it is no table or JSON of ours."
            )


def _lose_nothing(results: Path, packed: Path) -> None:
    """Refuse to replace evidence by a part of it, such as that of a run begun anew elsewhere."""
    old, new = (_held(folder) for folder in (results, packed))
    if lost := sorted(old - new):
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise UserError(
            f"{results} holds what this run lacks: {', '.join(lost[:3])}{more}. Move the run away "
            "and restore that evidence before you go on (`reproduce`, or any command that works "
            "on the preset), or delete the folder if it is no longer wanted; git has it."
        )


def _held(folder: Path) -> set[str]:
    """The names of the tables and runs of some evidence; none if there is none."""
    held = {path.name for path in folder.glob("*.csv")}
    if (folder / BUNDLE).is_file():
        with zipfile.ZipFile(folder / BUNDLE) as bundle:
            held |= set(_large_tables(bundle))
        runs = _rows(RUN_TABLE, (folder / RUN_TABLE).read_text(encoding="utf-8"))
        held |= {f"{row['kind']}/{row['run']}" for row in runs}
    return held


def _large_tables(bundle: zipfile.ZipFile) -> list[str]:
    """The names of the preset's own tables that lie in the zip."""
    others = {*json.loads(bundles.member(bundle, LAYOUTS)), DOCUMENT_TABLE}
    return [name for name in bundle.namelist() if name.endswith(".csv") and name not in others]


def _content(path: Path):
    if path.suffix == ".csv":
        return path.read_bytes()
    return {k: v for k, v in artifacts.read_json(path).items() if k != artifacts.UNPACKED}


# ---- unpacking -------------------------------------------------------------------------------


def unpack(results: Path, runs: Path, goes_on: bool = False, preset: Preset | None = None) -> None:
    """Restore from the evidence in `results` the run that was packed, in the new folder `runs`.

    If it `goes_on`, stages whose outputs git does not keep come back undone, but for experts from
    which no data set of `preset` comes.

    Raises:
        UserError: the evidence is not whole.
    """
    runs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=runs.parent) as temporary:
        whole = Path(temporary) / "runs"
        whole.mkdir()
        try:
            with zipfile.ZipFile(results / BUNDLE) as bundle:
                _unpack_tables(results, bundle, whole)
                _unpack_documents(bundle, whole, goes_on)
            _unpack_weights(results, whole)
            if goes_on:
                _leave_undone(whole, preset)
        except UNREADABLE as error:
            raise UserError(
                f"The evidence in {results} is not whole ({error!r}): restore it from git."
            ) from error
        if not goes_on:
            artifacts.write_json(whole / artifacts.EVIDENCE, {"of": results.name})
        whole.rename(runs)


def _unpack_tables(results: Path, bundle: zipfile.ZipFile, runs: Path) -> None:
    for path in sorted(results.glob("*.csv")):
        if path.name != RUN_TABLE:
            with path.open("rb") as stream:
                (runs / path.name).write_text(bundles.text(stream, path.name), encoding="utf-8")
    for name, layout in json.loads(bundles.member(bundle, LAYOUTS)).items():
        _unpack_table(name, bundles.member(bundle, name), runs, layout)
    for name in _large_tables(bundle):
        _inside(runs, name).write_text(bundles.member(bundle, name), encoding="utf-8")


def _unpack_table(title: str, text: str, runs: Path, layout: Mapping) -> None:
    kind, name = title.removesuffix(".csv").split("_", 1)
    bodies: dict[tuple[str, int], list] = {(run, which): [] for run, which in layout["empty"]}
    for row in _rows(title, text):
        bodies.setdefault((row["run"], int(row["layout"])), []).append(row)
    for (run, which), rows in bodies.items():
        target = _inside(runs, f"{kind}/{run}{name}.csv")
        target.write_text(_csv_text(layout["headers"][which], rows), encoding="utf-8")


def _unpack_documents(bundle: zipfile.ZipFile, runs: Path, goes_on: bool) -> None:
    """Restore the JSON files; of a run that goes on, markers ask for inputs and outputs as ever."""
    configs = json.loads(bundles.member(bundle, CONFIGS))
    environments = json.loads(bundles.member(bundle, ENVIRONMENTS))
    for row in _rows(DOCUMENT_TABLE, bundles.member(bundle, DOCUMENT_TABLE)):
        document = configs[row["config"]]
        if row["environment"]:
            document = {
                "config": document,
                "config_hash": json.loads(row["key"])["config"],
                "git_commit": row["commit"] or None,
                **({} if goes_on else {artifacts.UNPACKED: True}),
                **environments[row["environment"]],
                **{name: json.loads(row[name]) for name in ("seed", "key", "outputs", "records")},
            }
        text = artifacts.json_text(document)  # the whole folder is temporary, so no file is synced
        _inside(runs, row["path"]).write_text(text, encoding="utf-8")


def _unpack_weights(results: Path, runs: Path) -> None:
    experts: dict[str, dict[str, torch.Tensor]] = {}
    for path in sorted((results / WEIGHTS).glob("*.safetensors")):
        for key, tensor in load_file(path).items():
            run, name = key.rsplit("/", 1)
            kept = tensor.float() if tensor.dtype == torch.float16 else tensor
            experts.setdefault(run, {})[name] = kept
    for run, tensors in experts.items():
        with artifacts.atomic_path(_inside(runs, f"experts/{run}/{POLICY}")) as path:
            save_file(tensors, path)


def _leave_undone(runs: Path, preset: Preset | None) -> None:
    """Set aside the markers of stages whose outputs are not kept: a run that goes on needs those.

    They are packed again with it, unless the stage is done anew. Of an expert outside `experts`,
    of one from which no data set comes, and of a VLA whose trials are all there, nothing but what
    was measured is needed, which is kept.
    """
    stand = _played(runs, preset) if preset is not None else set()
    for marker in list(runs.rglob(f"*{DONE}")):
        if marker in stand:
            artifacts.write_json(marker, {**artifacts.read_json(marker), artifacts.UNPACKED: True})
            continue
        outputs = artifacts.read_json(marker)["outputs"]
        inside = marker.name == EXPERT and marker.is_relative_to(runs / "experts")
        if inside and _makes_data(marker.parent, preset):
            outputs = [*outputs, POLICY]
        if not all((marker.parent / name).exists() for name in outputs):
            marker.rename(marker.with_name(marker.name.removesuffix(DONE) + UNDONE))


def _played(runs: Path, preset: Preset) -> set[Path]:
    """The markers of those of a preset's VLAs that have played every trial of its plan."""
    from diffrl.evaluation.stage import is_played, played  # not for every command that looks here
    from diffrl.vla.stage import model_folder, models_of

    here, found = artifacts.run_folder(preset.name), set()
    for further, name in ((False, "vla_trials.csv"), (True, "vla_further_trials.csv")):
        tables = played(runs / name)
        for data, seed in models_of(preset, further):
            if is_played(preset, data, seed, tables):
                folder = model_folder(preset, data, seed).relative_to(here)
                found.add(runs / folder / "vla.done.json")
    return {marker for marker in found if marker.is_file()}


def _inside(folder: Path, place: str) -> Path:
    """The path of `place` below `folder`; evidence may be a stranger's. Its folder is made."""
    path = folder / place
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"The evidence names {place!r}, which lies outside the run: restore it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# ---- text ------------------------------------------------------------------------------------


def _csv_text(columns, rows: Iterable[Mapping]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(name: str, text: str) -> Iterator[dict[str, str]]:
    """The rows of a table; each has a cell for every column, or few bytes could be many cells.

    A cell may be as large as a file of the bundle: a marker of many inputs names each of them.
    """
    csv.field_size_limit(bundles.LARGEST)
    reader = csv.reader(io.StringIO(text))
    header = next(reader, [])
    for row in filter(None, reader):
        if len(row) != len(header):
            raise ValueError(f"{name} has {len(row)} cells under {len(header)} columns")
        yield dict(zip(header, row))


def _compact(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def packed_table(results: Path, name: str) -> pd.DataFrame:
    """Read a table of ``records.zip``, such as ``experts_trials.csv``, without unpacking the run.

    Raises:
        UserError: the evidence is not whole, or has no such table.
    """
    try:
        with zipfile.ZipFile(results / BUNDLE) as bundle:
            return pd.read_csv(io.StringIO(bundles.member(bundle, name)))
    except UNREADABLE as error:
        raise UserError(f"{results / BUNDLE} gives no {name} ({error!r}): restore it.") from error


# ---- the preset's folders --------------------------------------------------------------------


def restore(preset: str) -> bool:
    """Take from a preset's evidence what its run lacks; tell whether that was anything.

    A finished run's evidence is unpacked where nothing was computed yet. Of an unfinished one all
    runs and tables come that are not there, once for each evidence: what was begun here stays as
    it is. Of several processes that begin at once, as the jobs of an array do, one does it.
    """
    runs, results = artifacts.root() / "runs" / preset, artifacts.results_dir(preset)
    if not (results / BUNDLE).is_file():
        return False
    finished = _finished(results)
    wanted = "" if finished else artifacts.file_hash(results / BUNDLE)
    if _has_its_own(runs, wanted):
        return False
    handle = artifacts.lock(artifacts.make_folder(runs.parent) / f".{preset}.lock", None)
    try:
        if _has_its_own(runs, wanted):  # by another process, meanwhile
            return False
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=runs.parent) as temporary:
            whole = Path(temporary) / "whole"
            unpack(results, whole, goes_on=not finished, preset=get_preset(preset))
            if not finished:
                taken = _take(whole, artifacts.make_folder(runs))
                (runs / TAKEN).write_text(wanted, encoding="utf-8")
                return taken
            if runs.exists():
                shutil.copytree(runs, whole, dirs_exist_ok=True)  # what lies beside a run's work
                runs.rename(Path(temporary) / "beside")
            whole.rename(runs)
            return True
    finally:
        os.close(handle)


def _has_its_own(runs: Path, wanted: str) -> bool:
    """Whether a run took the evidence of hash `wanted`; without a hash, whether it has begun."""
    if wanted:
        taken = runs / TAKEN
        return taken.is_file() and taken.read_text(encoding="utf-8") == wanted
    return any(
        not BESIDE & set(path.relative_to(runs).parts) and not path.name.startswith(".")
        for path in runs.rglob("*")
        if path.is_file()
    )


def _take(whole: Path, runs: Path) -> bool:
    """Move into `runs` what it lacks of `whole`; tell whether there was anything.

    The folder of an expert, an experiment's run or a VLA comes as one if nothing is there; of all
    other files those of one name (a data set's list and marker) come together.
    """
    own = {path.parent for path in whole.rglob("*.json") if _place(path).name in MARKERS}
    units: dict[Path, list[Path]] = {}
    for path in sorted(filter(Path.is_file, whole.rglob("*"))):
        folder = next((parent for parent in path.parents if parent in own), None)
        units.setdefault(folder or path.with_name(path.name.partition(".")[0]), []).append(path)
    taken = False
    for unit, paths in units.items():
        target = runs / unit.relative_to(whole)
        if _is_begun(target, unit in own):
            continue
        taken = True
        target.parent.mkdir(parents=True, exist_ok=True)
        if unit in own:
            for empty in sorted(target.rglob("*"), reverse=True):
                empty.rmdir()  # it fails where a file has come meanwhile: nothing of it is lost
            unit.rename(target)  # an empty folder gives way
        else:
            for path in sorted(paths, key=lambda path: path.name.endswith((DONE, UNDONE))):
                path.rename(target.parent / path.name)  # the marker last
    return taken


def _is_begun(target: Path, is_folder: bool) -> bool:
    """Whether a run has a file in the folder `target`, or one beside it of that name."""
    if is_folder:
        return any(path.is_file() for path in target.rglob("*"))
    beside = target.parent.iterdir() if target.parent.is_dir() else ()
    return any(path.name.startswith(f"{target.name}.") for path in beside)


def _finished(results: Path) -> bool:
    """Whether evidence is of a whole run: its last tables are there, and no row is empty."""
    paths = [path for name in (LAST_TABLE, SEED_TABLE) if (path := results / name).is_file()]
    full = all((pd.read_csv(path)["trials"] > 0).all() for path in paths)
    return bool(full and (results / LAST_TABLE).is_file())


def go_on(preset: str) -> bool:
    """`restore` a run that was packed before its end, and say so; tell whether there was one.

    A finished run's evidence stays packed: who trains its preset wants a run of their own.
    """
    name = preset.partition(":")[0]  # of the whole preset, also where a part of it is asked for
    results = artifacts.results_dir(name)
    if not (results / BUNDLE).is_file() or _finished(results) or not restore(name):
        return False
    print(f"The run of preset {name} goes on from {results}.")
    return True


def main(preset: str = "libero") -> None:
    """Pack a run into results/ and figures/, which git keeps.

    Args:
        preset: the preset whose run in runs/ is packed.
    """
    settings = get_preset(preset)
    name = settings.name
    results = artifacts.results_dir(name)
    pack(artifacts.runs_dir(name), results, settings)
    target = copy_figures(name)
    kept = [path for path in results.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in kept) / 2**20
    print(f"{results} holds {len(kept)} files, {size:.1f} MiB; figures lie in {target}.")
