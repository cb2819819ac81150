"""LIBERO's tasks by name: the five official suites and the sixteen LIBERO-PRO variants.

The names are facts of the benchmark and travel with the package (`tasks.json`), so listing tasks,
or running one from the scene cache, imports neither LIBERO nor robosuite.
"""

import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from diffrl.base.errors import UserError

CAMERAS = ("agentview", "robot0_eye_in_hand")  # that LIBERO records
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_90", "libero_10")
PRO_VARIANTS = ("lan", "object", "swap", "task")
PRO_SUITES = tuple(f"{s}_{v}" for s in SUITES if s != "libero_90" for v in PRO_VARIANTS)

# Control steps an episode may take, as OpenVLA-OFT and openpi evaluate.
MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_90": 400,
    "libero_10": 520,
}


@dataclass(frozen=True)
class Task:
    """One task of LIBERO.

    `id` is `<suite>/<index>` with LIBERO's own order (`task_order_index=0`). `instruction` is the
    sentence that VLAs are given: from the file name in the official suites (LIBERO's
    `Task.language`), from the BDDL file in LIBERO-PRO, where the file name no longer tells it. The
    official BDDL files word the same tasks differently; where LIBERO-PRO's says what one of them
    says, the sentence is that task's official one, so that only `lan` changes words of a task.
    `max_steps` counts control steps at 20 Hz after settling.
    """

    id: str
    suite: str
    index: int
    name: str
    instruction: str
    max_steps: int


@cache
def _table() -> dict[str, tuple[Task, ...]]:
    names = json.loads(resources.files("diffrl.sim").joinpath("tasks.json").read_text("utf-8"))
    return {
        suite: tuple(
            Task(f"{suite}/{i}", suite, i, name, instruction, MAX_STEPS[_base(suite)])
            for i, (name, instruction) in enumerate(rows)
        )
        for suite, rows in names.items()
    }


def _base(suite: str) -> str:
    return next(s for s in SUITES if suite == s or suite.startswith(s + "_"))


def suite_tasks(suite: str) -> tuple[Task, ...]:
    """All tasks of a suite, in LIBERO's order. Raises UserError for an unknown suite."""
    try:
        return _table()[suite]
    except KeyError:
        raise UserError(
            f"Unknown suite {suite!r}{_nearest(suite, _table())}. Suites: {', '.join(_table())}."
        ) from None


def get_task(task_id: str) -> Task:
    """The task called `<suite>/<index>`, such as `libero_object/0`. Raises UserError if none."""
    suite = str(task_id).partition("/")[0]
    tasks = suite_tasks(suite)
    for task in tasks:
        if task.id == task_id:  # one spelling only: results lie in folders of this name
            return task
    raise UserError(
        f"Unknown task {task_id!r}: write it as {suite}/<index> with an index from 0 to "
        f"{len(tasks) - 1}, without zeros in front (`python -m diffrl tasks` lists them)."
    )


def _nearest(word: str, known) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
