"""Tables and policies for the tests of evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd

from diffrl.base.arm import Arm
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.stage import Job, evaluate

TASK = "libero_object/0"


EXPERTS = "experts/libero_object-0"  # of preset laptop


class Seen:
    """An observation of n robots at rest."""

    def __init__(self, n: int):
        self.eef_pos = np.zeros((n, 3))
        self.eef_quat = np.tile([1.0, 0.0, 0.0, 0.0], (n, 1))
        self.gripper_qpos = np.zeros((n, 2))


def run(policy: str, trials: list[Trial], folder: Path, **options) -> pd.DataFrame:
    return evaluate([Job(policy, tuple(trials), folder, Arm("test"))], **options)


def records(folder: Path) -> str:
    """A folder's trials.csv without its only wall-clock column."""
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds").to_csv()
