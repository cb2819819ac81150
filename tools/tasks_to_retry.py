"""Say which tasks get the one retry of preset libero, by the rule that was written before its runs.

    python tools/tasks_to_retry.py --preset libero

The rule looks at held-out start states alone and treats both classes alike: a task is trained
again, with both classes and the same settings, where the better of the two experts of seed 0
succeeds on less than ENOUGH of its held-out states, or where either class's clone never succeeded.
The printed lines go into the preset's `own`; a task that they hold already is not named again.
"""

import pandas as pd
import tyro

from diffrl import evidence
from diffrl.presets import ALGORITHMS, Preset, get_preset
from diffrl.rl.records import finished_experts

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


def to_retry(success: dict[str, dict[str, float]], tried: set[str]) -> list[str]:
    """Return the tasks whose classes have all been tried once and that the rule names.

    A class without an expert is one whose clone never succeeded: run `train` to its end first.
    """
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
    none = {task: {} for task in settings.tasks}
    success = none | {t: s for t, s in held_out(settings).items() if t in none}
    for task in to_retry(success, tried):
        print(task, success[task])
        for key, value in RETRY.items():
            print(f'    ("{task}", "{key}", {value!r}),')


if __name__ == "__main__":
    tyro.cli(main)
