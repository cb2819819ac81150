"""python -m diffrl validate FILE …: are data sets whole, safe and consistent?"""

from pathlib import Path

import tyro

from diffrl.base.errors import UserError
from diffrl.data.hdf5 import validate_file


def data_files(paths: tuple[Path, ...]) -> list[Path]:
    """Return the files that are meant: HDF5 files, and all of them (.hdf5, .h5) in folders.

    A file that is named twice, or also lies in a folder that is named, is taken once.
    What an interrupted generation has left in a folder is passed over.

    Raises:
        UserError: nothing is named, or a folder holds none.
    """
    if not paths:
        raise UserError("No file given: name HDF5 data sets, or folders of them.")
    files: dict[Path, Path] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            both = sorted([*path.rglob("*.hdf5"), *path.rglob("*.h5")])
            inside = [file for file in both if not _unfinished(file, path)]
        if not inside:
            raise UserError(f"{path} holds no .hdf5 file: name a data set or a folder of them.")
        for file in inside:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _unfinished(file: Path, folder: Path) -> bool:
    places = file.relative_to(folder).parts
    return any(place.startswith(".") or place.endswith(".parts") for place in places)


def main(paths: tyro.conf.Positional[tuple[Path, ...]]) -> int:
    """Check data sets (ours, LIBERO's official ones, its collector's) and print what is wrong.

    Args:
        paths: HDF5 files, or folders of them.
    """
    bad = 0
    for file in data_files(paths):
        findings = validate_file(file)
        bad += bool(findings)
        for finding in findings:
            print(finding)
        if not findings:
            print(f"{file}: sound")
    return 1 if bad else 0
