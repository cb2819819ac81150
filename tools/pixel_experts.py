"""Train the experts of preset `pixels`, and record them with what they see.

    python tools/pixel_experts.py --tasks libero_object/0

Writes `results/pixels/experts.csv` after each expert: the columns of `experts.csv`, and encoder,
network, picture_detail. What is finished is found again, and a run that was killed goes on from its
last iteration.
"""

from collections.abc import Sequence

import pandas as pd
import tyro

from diffrl.base.artifacts import results_dir, write_csv
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.rl.records import COLUMNS
from diffrl.rl.stage import train_experts

SEEN = ["encoder", "network", "picture_detail"]


def with_eyes(table: pd.DataFrame, preset: Preset) -> pd.DataFrame:
    """Return the rows of ``experts.csv`` with what each expert sees, and through which network.

    The Gaussian policy's mean is an MLP whatever the network of the diffusion policy.
    """
    clones = [preset.of(task).clone for task in table["task"]]
    networks = [
        clone.network if algorithm == "diffusion" else "mlp"
        for clone, algorithm in zip(clones, table["algorithm"])
    ]
    encoders = [clone.encoder + "+wrist" * clone.wrist for clone in clones]
    details = [clone.detail for clone in clones]
    columns = dict(zip(SEEN, (encoders, networks, details)))
    return table[COLUMNS].assign(**columns)


def main(
    tasks: Sequence[str] = (),
    algorithms: Sequence[str] = ALGORITHMS,
    preset: str = "pixels",
    workers: int = 1,
) -> None:
    """Train what is missing, one expert after the other.

    Args:
        tasks: of the preset; default: all of them.
        algorithms: diffusion and gaussian, or one of them.
        preset: whose experts.
        workers: processes that train side by side.
    """
    settings = get_preset(preset)
    for task in tasks or settings.tasks:
        for algorithm in algorithms:
            table = train_experts(settings, [task], [algorithm], workers=workers)
            write_csv(results_dir(preset) / "experts.csv", with_eyes(table, settings))
            print(table[table["task"] == task].to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
