"""Print the experts of a preset, a line each: task, policy class, training seed.

python cluster/jobs.py paper        # all of them
python cluster/jobs.py paper 17     # number 17, counted from 0, for an array of jobs
"""

import sys

from diffrl.base.errors import UserError
from diffrl.presets import ALGORITHMS, get_preset


def jobs(preset: str) -> list[str]:
    """Return a line per expert, task by task."""
    settings = get_preset(preset)
    return [
        f"{task} {algorithm} {seed}"
        for task in settings.tasks
        for algorithm in ALGORITHMS
        for seed in settings.of(task).rl.seeds
    ]


def chosen(arguments: list[str]) -> list[str]:
    """Return the lines that the command line asks for.

    Raises:
        UserError: no preset is named, or no expert has the number.
    """
    if len(arguments) not in (1, 2):
        raise UserError("Name a preset, or a preset and a number: python cluster/jobs.py paper 17.")
    preset, *numbers = arguments
    lines = jobs(preset)
    for number in numbers:
        if not number.isdecimal() or int(number) >= len(lines):
            raise UserError(
                f"Preset {preset} has no expert number {number}: its experts are 0 to "
                f"{len(lines) - 1}, so submit the array with --array=0-{len(lines) - 1}."
            )
        return [lines[int(number)]]
    return lines


if __name__ == "__main__":
    try:
        print("\n".join(chosen(sys.argv[1:])))
    except UserError as error:
        sys.exit(str(error))
