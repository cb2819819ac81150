"""Commands that train the big VLAs on an exported data set, with the tools of their own users.

π0 and SmolVLA need weights and hardware of their own; this package hands the data over
(`python -m diffrl export`) and evaluates what comes back (`openpi:` and `lerobot:` policies).
"""

import json

from diffrl.presets import Preset

CAMERAS = {"image": "camera1", "image2": "camera2"}  # our export's names -> SmolVLA's


def commands(preset: Preset, data: str) -> dict[str, list[str]]:
    """Return what to type, step by step, for one source's data set, <source>-<mode>.

    Steps and batch size are those of SmolVLA's and openpi's own recipes, the same for each source.
    openpi knows a data set by a `TrainConfig` in its ``config.py``: copy ``pi0_libero`` there under
    the name used here and give it the `repo_id` used here.
    """
    suites = " ".join(dict.fromkeys(task.partition("/")[0] for task in preset.vla_tasks))
    folder, name = f"exports/{data}", f"diffrl/{data}"
    config = f"pi0_{data.replace('-', '_')}"
    rename = {f"observation.images.{a}": f"observation.images.{b}" for a, b in CAMERAS.items()}
    checkpoint = f"outputs/smolvla-{data}/checkpoints/last/pretrained_model"
    evaluate = (
        f"python -m diffrl evaluate --suite {suites} --out results/evaluations/{preset.name}-"
    )
    return {
        "export": [
            f"python -m diffrl export results/{preset.name}/datasets/{data} --to {folder}",
        ],
        "SmolVLA": [
            "lerobot-train --policy.path=lerobot/smolvla_base --policy.push_to_hub=false "
            f"--dataset.repo_id={name} --dataset.root={folder} --batch_size=64 --steps=20000 "
            f"--seed=1000 --output_dir=outputs/smolvla-{data} --rename_map='{json.dumps(rename)}'",
            f"{evaluate}smolvla-{data} "
            f"--policy 'lerobot:LEROBOT/bin/python?checkpoint={checkpoint}'",
        ],
        "π0": [
            f"uv run scripts/compute_norm_stats.py --config-name {config}",
            f"uv run scripts/train.py {config} --exp-name={data}",
            "uv run scripts/serve_policy.py policy:checkpoint "
            f"--policy.config={config} --policy.dir=checkpoints/{config}/{data}/29999",
            f"{evaluate}pi0-{data} --policy openpi:ws://localhost:8000",
        ],
    }
