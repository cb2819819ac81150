"""Say which tasks get the one retry of preset libero, by the rule that was written before its runs.

    python tools/tasks_to_retry.py --preset libero

The rule looks at held-out start states alone and treats both classes alike: a task is trained
again, with both classes and the same settings, where the better of the two experts of seed 0
succeeds on less than ENOUGH of its held-out states, or where either class's clone never succeeded.
The printed lines go into the preset's `own`; a task that they hold already is not named again. A
task is judged when both classes have been trained to their end or have failed to learn; those that
have not are counted.
"""

import pandas as pd
import tyro

from diffrl import evidence
from diffrl.base import heartbeat
from diffrl.base.errors import TrainingError
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.rl.records import expert_folder, finished_experts

ENOUGH = 0.9  # success without noise on held-out states; our choice, before any run
RETRY = {  # more to imitate, and more episodes an iteration
    "demonstrations.count": 20,
    "rl.decisions": 72,
    "rl.iterations": 40,
    "rl.measure_every": 2,
    "rl.noise_start": 1.0,
    "rl.annealing": "cosine",
}


def held_out(preset: Preset) -> dict[str, dict[str, float]]:
    """Return each task's best success on held-out states by class, of the experts of seed 0."""
    found: dict[str, dict[str, float]] = {}
    for task, algorithm, seed, folder in finished_experts(preset):
        if seed == 0:
            table = pd.read_csv(folder / "diagnostics.csv")
            known = table["confirmed_success"].fillna(table["measured_success"])
            confirmed = table["confirmed"] > 0
            known = known[confirmed] if confirmed.any() else known[table["measured"] > 0]
            found.setdefault(task, {})[algorithm] = float(known.max())
    return found


def failed(preset: Preset, task: str, algorithm: str) -> bool:
    """Whether learning failed, as a clone's without any success does; a full disk is not that."""
    sign = heartbeat.read(expert_folder(preset, task, algorithm, 0), "expert") or {}
    return sign.get("state") == "failed" and sign.get("error") == TrainingError.__name__


def judged(preset: Preset) -> dict[str, dict[str, float]]:
    """Return `held_out` of the tasks whose classes have both been trained or failed to learn."""
    found = held_out(preset)
    ended = {
        task: [a in found.get(task, {}) or failed(preset, task, a) for a in ALGORITHMS]
        for task in preset.tasks
    }
    return {task: found.get(task, {}) for task in preset.tasks if all(ended[task])}


def to_retry(success: dict[str, dict[str, float]], tried: set[str]) -> list[str]:
    """Return the tasks that the rule names; a class without success is one whose clone had none."""
    return [
        task
        for task, by_class in success.items()
        if task not in tried
        and (len(by_class) < len(ALGORITHMS) or max(by_class.values()) < ENOUGH)
    ]


def main(preset: str = "libero", suite: tuple[str, ...] = ()) -> None:
    """Print the tasks and their lines for `own`.

    Args:
        preset: whose experts are looked at.
        suite: only these of its suites.
    """
    evidence.go_on(preset)
    settings = get_preset(preset, suite)
    tried = {task for task, key, _ in settings.own if key == "demonstrations.count"}
    success = judged(settings)
    for task in to_retry(success, tried):
        print(task, success[task])
        for key, value in RETRY.items():
            print(f'    ("{task}", "{key}", {value!r}),')
    if waiting := len(settings.tasks) - len(success):
        print(f"Not judged yet, for want of training: {waiting} of {len(settings.tasks)} tasks.")


if __name__ == "__main__":
    tyro.cli(main)
