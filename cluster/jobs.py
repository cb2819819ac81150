"""Print the experts of a preset, a line each: task, policy class, training seed.

python cluster/jobs.py paper        # all of them
python cluster/jobs.py paper 17     # number 17, counted from 0, for an array of jobs
"""

import sys

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


if __name__ == "__main__":
    lines = jobs(sys.argv[1])
    print("\n".join(lines if len(sys.argv) == 2 else [lines[int(sys.argv[2])]]))
