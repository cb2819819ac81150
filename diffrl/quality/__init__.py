"""Trajectory quality: smoothness, efficiency and consistency of demonstrations, with intervals.

`smoothness` measures one trajectory, `consistency` many of them, `report` makes the tables,
`files` reads any HDF5 file. The measures are pure functions on arrays.
"""

from diffrl.quality.files import read_files, read_trajectories
from diffrl.quality.report import (
    MEASURES,
    PLANNED,
    compare,
    findings,
    levels,
    measure,
    select,
    summarise,
)
from diffrl.quality.smoothness import boundary_share, trajectory_measures
from diffrl.quality.stage import load_datasets, main, printable, run_quality
from diffrl.quality.trajectory import Trajectory, panda_forward_kinematics

__all__ = [
    "MEASURES",
    "PLANNED",
    "Trajectory",
    "boundary_share",
    "compare",
    "findings",
    "levels",
    "load_datasets",
    "main",
    "measure",
    "panda_forward_kinematics",
    "printable",
    "read_files",
    "read_trajectories",
    "run_quality",
    "select",
    "summarise",
    "trajectory_measures",
]
