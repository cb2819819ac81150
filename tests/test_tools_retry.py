"""The rule by which a task of preset libero is trained once more."""

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "tasks_to_retry.py"
spec = importlib.util.spec_from_file_location("tasks_to_retry", TOOL)
spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))


def test_a_task_that_neither_class_learned_is_tried_once_more_with_both():
    success = {
        "libero_goal/0": {"diffusion": 0.85, "gaussian": 0.4},
        "libero_goal/1": {"diffusion": 0.95, "gaussian": 0.4},  # one class learned it: it can be
        "libero_goal/2": {"gaussian": 0.99},  # the diffusion's clone never succeeded
        "libero_goal/3": {"diffusion": 0.2, "gaussian": 0.1},
    }
    assert tool.to_retry(success, tried={"libero_goal/3"}) == ["libero_goal/0", "libero_goal/2"]
