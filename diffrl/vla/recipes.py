"""Commands that train the big VLAs on an exported data set, with the tools of their own users.

π0 and SmolVLA need weights and hardware of their own; this package hands the data over
(`python -m diffrl export`) and evaluates what comes back (`openpi:` and `lerobot:` policies).
"""

import json
from collections.abc import Sequence

from diffrl.presets import Preset
from diffrl.sim.tasks import suite_tasks

CAMERAS = {"image": "camera1", "image2": "camera2"}  # our export's names -> SmolVLA's


def commands(preset: Preset, data: str) -> dict[str, list[str]]:
    """Return what to type, step by step, for one source's data set, <source>-<mode>.

    Steps and batch size are those of SmolVLA's and openpi's own recipes, the same for each source.
    lerobot trains both models on the export as it is. openpi reads LeRobotDataset v2.1: convert the
    export, and describe it by a `TrainConfig` in openpi's ``config.py``: a copy of ``pi0_libero``
    under the name used here, with the `repo_id` used here and a mapping of the export's names.
    """
    suites = list(dict.fromkeys(task.partition("/")[0] for task in preset.vla_tasks))
    played = [name for suite in suites for name in _named(suite, preset.vla_tasks)]
    whole = f"runs/{preset.name}/datasets/{data}"
    folder, name = f"exports/{data}", f"diffrl/{data}"
    config = f"pi0_{data.replace('-', '_')}"
    rename = {f"observation.images.{a}": f"observation.images.{b}" for a, b in CAMERAS.items()}
    train = (
        f"--dataset.repo_id={name} --dataset.root={folder} --policy.push_to_hub=false --seed=1000"
    )
    evaluate = f"python -m diffrl evaluate --suite {' '.join(played)} --out "
    evaluate += f"runs/evaluations/{preset.name}-"

    def judge(model: str) -> str:
        checkpoint = f"outputs/{model}-{data}/checkpoints/last/pretrained_model"
        policy = f"lerobot:LEROBOT/bin/python?checkpoint={checkpoint}"
        return f"{evaluate}{model}-{data} --policy '{policy}'"

    return {
        "export": [
            f"python -m diffrl export {' '.join(f'{whole}/{s}' for s in suites)} --to {folder}",
        ],
        "SmolVLA": [
            f"lerobot-train --policy.path=lerobot/smolvla_base {train} --batch_size=64 "
            f"--steps=20000 --output_dir=outputs/smolvla-{data} "
            f"--rename_map='{json.dumps(rename)}'",
            judge("smolvla"),
        ],
        "π0": [
            f"lerobot-train --policy.type=pi0 --policy.pretrained_path=lerobot/pi0_base {train} "
            "--policy.dtype=bfloat16 --policy.gradient_checkpointing=true --batch_size=32 "
            f"--steps=30000 --output_dir=outputs/pi0-{data}",
            judge("pi0"),
        ],
        "π0 in openpi, from a copy in v2.1": [
            f"uv run scripts/compute_norm_stats.py --config-name {config}",
            f"uv run scripts/train.py {config} --exp-name={data}",
            "uv run scripts/serve_policy.py policy:checkpoint "
            f"--policy.config={config} --policy.dir=checkpoints/{config}/{data}/29999",
            f"{evaluate}openpi-{data} --policy 'openpi:ws://localhost:8000?model={config}'",
        ],
    }


def _named(suite: str, tasks: Sequence[str]) -> list[str]:
    """Name what is learned of a suite as `evaluate --suite` takes it: the suite, or some tasks."""
    whole = {task.id for task in suite_tasks(suite)}
    return [suite] if whole <= set(tasks) else [task for task in tasks if task in whole]
