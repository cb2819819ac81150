"""Write docs/cards.md: what the experts, the VLAs and the data of preset `libero` are.

``python tools/cards.py`` writes the page from the settings and the records, no number is typed;
``--check`` exits with 1 if that would change it.
"""
# ruff: noqa: E501  (an item of a list is one line)

import sys
from pathlib import Path

import pandas as pd
from results_table import SUITE_NAMES, evaluation, markdown, percent, publish

from diffrl.base.arm import Arm
from diffrl.base.intervals import wilson
from diffrl.presets import Preset, get_preset

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "libero"
FOUR = ("libero_spatial", "libero_object", "libero_goal", "libero_10")  # what is computed first
TEXT = """# Cards of preset `libero`

`make readme` writes this page from the settings and the records; do not edit it. Of LIBERO's 130 tasks the preset computes the forty of
Spatial, Object, Goal and Long first. Where something has not been computed yet, the page says so.

## Experts

- **What:** a policy per task, class and training seed: diffusion ({sampling} denoising steps) or Gaussian.
- **Network:** {network}, width {width}; float32, each weight a float16 number.
- **Sees:** gripper, objects, places that the goal names, joints of drawers and knobs: the simulator's state, no pictures.
- **Answers:** a plan of {chunk} actions: position (3), rotation (3), gripper, in LIBERO's units, [−1, 1], 20 Hz.
- **Learned from:** {least} to {most} demonstrations of a scripted operator, then PPO on the reward of success.
- **Chosen by:** success on held-out start states, {chosen} to choose and {held_out} to confirm; never LIBERO's official ones.
- **Computed:** {count} experts of {tasks} of the forty tasks, {hours:.0f} core-hours with pauses and other work beside.
- **Weights:** `results/libero/weights/`, MIT licence.

Success on LIBERO's official start states with training seed 0, with 95 % Wilson intervals over trials:

{experts}

Any command on the preset unpacks what git keeps into `runs/`, and `evaluate` plays an expert:

```sh
python -m diffrl status --preset libero
python -m diffrl evaluate --policy expert:runs/libero/experts/libero_object-0/diffusion-seed0 --suite libero_object/0 --trials 10
```

**Use.** They make demonstrations for VLAs and serve as a baseline for RL from few demonstrations. **Not for** real robots: an expert knows
exact poses, acts in one scene of one task, and was improved in the simulator that judges it. A training seed gives the same weights on one
kind of processor alone.

## VLAs

- **What:** one compact vision-language-action model for all forty tasks per source of data.
- **Sees:** agentview and wrist camera, {size} × {size} ({detail} pictures); proprioception (8); the instruction's words.
- **Network:** frozen {vision}, transformer of width {vla_width} ({encoders} encoder and {decoders} decoder layers), flow matching over {horizon} actions.
- **Training:** {steps} steps of {batch} decisions, {demonstrations} demonstrations a task, training seeds {seeds}.
- **Weights:** not kept in git: `python -m diffrl train-vla --preset libero` trains them from the data sets.

{vlas}

**Use.** They compare sources of data. **Not for** comparison with π0 or OpenVLA: the model has no pretraining on robots.

## Data sets

- **What:** {episodes} successes a task and source; a failed attempt is counted and not kept.
- **Format:** LIBERO's HDF5 with the simulator's states; `python -m diffrl export` adds pictures or writes a LeRobotDataset.
- **Starts:** drawn by LIBERO's placement sampler; none of the official start states, which evaluations use.
- **Actions:** as they were executed; nothing is filtered, smoothed or cut.
- **Kept:** not in git: `python -m diffrl generate --preset libero` makes them from the experts' weights.
- **Licence:** MIT; LIBERO's assets have their own.

{data}

**Limits.** Simulation only, one robot, one camera pose. The operator is a program whose noise is calibrated on people's recordings and must
not be called human. The experts learned from it, so their data show its ways of doing a task, too.
"""


def experts(table: pd.DataFrame) -> str:
    """Success of each class and mode: a row per suite, and the mean over the tasks computed."""
    table = table[table["seed"] == 0]
    suites = table["task"].str.split("/").str[0]
    rows = []
    for suite in FOUR:
        part = table[suites == suite]
        rows.append([SUITE_NAMES[suite], f"{part['task'].nunique()} of 10", *_rates(part)])
    rows.append(["all of these", f"{table['task'].nunique()} of 40", *_rates(table)])
    header = [f"{c}, {n} noise" for c in ("diffusion", "Gaussian") for n in ("no", "with")]
    return markdown(rows, ["suite", "tasks", *header])


def _rates(table: pd.DataFrame) -> list[str]:
    cells = []
    for algorithm in ("diffusion", "gaussian"):
        for mode in ("deterministic", "stochastic"):
            part = table[(table["algorithm"] == algorithm) & (table["mode"] == mode)]
            trials, successes = int(part["trials"].sum()), int(part["successes"].sum())
            known = trials and percent(successes / trials, *wilson(successes, trials))
            cells.append(known or "not yet")
    return cells


def data(table: pd.DataFrame, preset: Preset) -> str:
    """What each source gave and threw away: a row per source of the preset."""
    rows = []
    for name in preset.vla.data:
        arm = Arm.parse(name)
        part = table[(table["source"] == arm.source) & (table["mode"] == arm.mode)]
        part = part[part["task"].isin(preset.vla_tasks)]
        if part.empty:
            rows.append([arm.label, "not yet", "", "", ""])
            continue
        episodes, attempts = part["episodes"].sum(), part["attempts"].sum()
        steps = (part["mean_steps"] * part["episodes"]).sum() / episodes
        thrown = f"{100 * (1 - episodes / attempts):.1f} %"
        rows.append([arm.label, f"{len(part)} of 40", episodes, thrown, f"{steps:.0f}"])
    return markdown(rows, ["source", "tasks", "episodes", "attempts thrown away", "mean steps"])


def vlas(path: Path) -> str:
    """Success of the VLA of each source, if they were evaluated."""
    if not path.is_file():
        return "None has been evaluated yet."
    return evaluation(pd.read_csv(path))


def generate() -> str:
    """Return the whole page."""
    preset = get_preset("libero")
    table = pd.read_csv(RESULTS / "experts.csv")
    clone, rl, vla = preset.clone, preset.rl, preset.vla
    one = table.drop_duplicates(["task", "algorithm", "seed"])
    counts = [preset.demonstrations.of(task).count for task in preset.vla_tasks]
    return TEXT.format(
        sampling=rl.sampling_steps,
        network=clone.network.upper(),
        width=clone.width,
        chunk=clone.chunk,
        least=min(counts),
        most=max(counts),
        chosen=rl.measure_starts,
        held_out=rl.confirm_starts,
        count=len(one),
        tasks=one["task"].nunique(),
        hours=one["minutes"].sum() / 60,
        experts=experts(table),
        size=vla.image_size,
        detail=vla.detail,
        vision=vla.vision,
        vla_width=vla.width,
        encoders=vla.encoder_layers,
        decoders=vla.decoder_layers,
        horizon=vla.horizon,
        steps=vla.steps,
        batch=vla.batch,
        demonstrations=vla.demonstrations,
        seeds=", ".join(map(str, vla.seeds)),
        vlas=vlas(RESULTS / "evaluation.csv"),
        episodes=preset.generation.episodes,
        data=data(pd.read_csv(RESULTS / "generation.csv"), preset),
    )


if __name__ == "__main__":
    sys.exit(publish(ROOT / "docs" / "cards.md", generate()))
