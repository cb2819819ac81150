"""Say which tasks get the one retry of preset libero, by the rule that was written before its runs.

    python tools/tasks_to_retry.py --preset libero

The rule looks at held-out start states alone and treats both classes alike: a task is trained
again, with both classes and the same settings, where the better of the two experts of seed 0
succeeds on less than ENOUGH of its held-out states, or where either class's clone never succeeded.
It goes into RETRIED of `diffrl.presets`, and is not named again. Before that, `--keep-records`
copies what its first experts did to `runs/<preset>/tried/<task>-first` (`-gaussian` at the end). A
task is judged when both classes have been trained to their end or have failed to learn; those that
have not are counted.
"""

import shutil

import pandas as pd
import tyro

from diffrl import evidence
from diffrl.base import heartbeat
from diffrl.base.artifacts import read_json, runs_dir, write_csv
from diffrl.base.errors import TrainingError
from diffrl.presets import ALGORITHMS, RETRIED, Preset, get_preset
from diffrl.rl.records import COLUMNS, expert_folder, finished_experts

KEPT = ("clone.csv", "config.json", "diagnostics.csv", "trials.csv")
ENOUGH = 0.9  # success without noise on held-out states; our choice, before any run


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


def keep(preset: Preset, task: str) -> None:
    """Copy the records of a task's experts of seed 0: their folders are about to be used again."""
    for name, algorithm, seed, folder in finished_experts(preset):
        if name == task and seed == 0:
            label = f"{task.replace('/', '-')}-first" + "-gaussian" * (algorithm == "gaussian")
            target = runs_dir(preset.name) / "tried" / label
            rows = read_json(folder / "expert.done.json")["records"]["rows"]
            write_csv(target / "expert.csv", pd.DataFrame(rows, columns=COLUMNS))
            for file in KEPT:
                shutil.copy(folder / file, target)


def main(preset: str = "libero", suite: tuple[str, ...] = (), keep_records: bool = False) -> None:
    """Print the tasks that are to be trained again.

    Args:
        preset: whose experts are looked at.
        suite: only these of its suites.
        keep_records: copy the records of their first experts.
    """
    evidence.go_on(preset)
    settings = get_preset(preset, suite)
    success = judged(settings)
    for task in to_retry(success, set(RETRIED)):
        print(task, success[task])
        if keep_records:
            keep(settings, task)
    if waiting := len(settings.tasks) - len(success):
        print(f"Not judged yet, for want of training: {waiting} of {len(settings.tasks)} tasks.")


if __name__ == "__main__":
    tyro.cli(main)
