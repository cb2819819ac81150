"""python -m diffrl export FILE … --to FOLDER: images for LIBERO's readers, or a LeRobotDataset."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro

from diffrl.base.errors import UserError
from diffrl.base.scale import processes
from diffrl.data.attributes import libero_attributes
from diffrl.data.episode import IMAGES, Episode
from diffrl.data.hdf5 import iterate_episodes, read_attributes, write_episodes
from diffrl.data.human import completed, libero_task
from diffrl.data.lerobot import export_lerobot
from diffrl.data.media import with_frames
from diffrl.data.validate import data_files
from diffrl.sim.pictures import Pictures


def export_hdf5(
    files: Sequence[Path], folder: Path, pictures: Pictures, workers: int = 1
) -> list[Path]:
    """Write copies of data sets with the images of both cameras; return their paths.

    The layout of folders is LIBERO's, ``<folder>/<suite>/<task>_demo.hdf5``; frames are upside down
    as in LIBERO's own files.

    Raises:
        UserError: a target exists, a file is not sound or not LIBERO's, or no renderer works.
    """
    targets = [Path(folder) / Path(file).parent.name / Path(file).name for file in files]
    for target in targets:
        if target.exists() or targets.count(target) > 1:
            raise UserError(
                f"{target} would be overwritten: choose another folder, and export one source and "
                "mode at a time."
            )
    for file, target in zip(files, targets):
        attrs = read_attributes(file)
        task = libero_task(next(iterate_episodes(file, images=False)), file)
        attrs |= {"env_args": libero_attributes(task, pictures.size)["env_args"]}
        pairs = with_frames(completed(file), pictures, workers)
        write_episodes(target, _with_images(pairs), attrs)
    return targets


def _with_images(pairs) -> Iterator[Episode]:
    for episode, frames in pairs:
        images = dict(zip(IMAGES, frames.values(), strict=True))
        yield replace(episode, observations=episode.observations | images)


def main(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    to: Path,
    format: Literal["lerobot", "hdf5"] = "lerobot",
    size: Literal[128, 256] = 256,
    detail: Literal["exact", "reduced"] = "exact",
    workers: int | None = None,
) -> None:
    """Render data sets and write them for other tools.

    Args:
        paths: HDF5 data sets of ours, or folders of them.
        to: new folder of the export.
        format: a LeRobotDataset v3 with a data-set card, or LIBERO's HDF5 with images.
        size: width and height of the images in pixels.
        detail: LIBERO's exact pictures, or meshes reduced for software renderers.
        workers: rendering processes; default: one per core.
    """
    files = data_files(paths)
    pictures, workers = Pictures(size, detail), processes(workers)
    if format == "hdf5":
        for target in export_hdf5(files, to, pictures, workers):
            print(target)
        return
    info = export_lerobot(files, to, pictures, workers)
    print(
        f"{to}: LeRobotDataset {info['codebase_version']}, {info['total_episodes']} episodes, "
        f"{info['total_frames']} frames, {info['total_tasks']} tasks; its card is README.md."
    )
