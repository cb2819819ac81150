"""Evaluating a VLA: our evaluation against a plain loop over LIBERO's environment.

Both ask the same policy, a compact VLA with untrained weights, which never succeeds, so every
trial has its full length. The plain loop is what the peers' scripts do: one robot, both cameras
rendered at every control step, a decision a chunk. Its reset and its start are not counted; ours
count everything, the start of the processes included.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch

from diffrl.base.arm import Arm
from diffrl.base.scale import cores
from diffrl.benchmark.common import timed
from diffrl.evaluation.policies import open_policy
from diffrl.evaluation.protocol import Policy, Trial
from diffrl.evaluation.stage import Job, evaluate, plan
from diffrl.presets import get_preset
from diffrl.sim import compiler
from diffrl.sim.pictures import Detail
from diffrl.sim.tasks import get_task
from diffrl.vla import model as vla

TASK = "libero_object/0"
PLAIN_STEPS = 80  # control steps of the plain loop: ten decisions
TRIALS = 20  # of ours


def measure_evaluation() -> dict:
    """Return control steps a second of the plain loop and of ours, with each kind of pictures."""
    record: dict = {"task": TASK, "trials": TRIALS, "workers": cores()}
    with tempfile.TemporaryDirectory() as folder:
        for detail in get_args(Detail):
            name = f"compact:{_untrained(Path(folder) / detail, detail)}"
            if detail == "exact":
                record["libero"] = round(_plain_rate(open_policy(name)), 1)
            trials = tuple(plan([TASK], TRIALS))
            job = Job(name, trials, Path(folder) / f"trials-{detail}", Arm("untrained"))
            table, seconds = timed(lambda job=job: evaluate([job]))
            record[detail] = round(table["steps"].sum() / seconds, 1)
    return record


def _untrained(folder: Path, detail: Detail) -> Path:
    config = replace(get_preset("laptop").vla, detail=detail)
    scales = ((0.0,) * vla.PROPRIO, (1.0,) * vla.PROPRIO, (-1.0,) * 7, (1.0,) * 7)
    words = vla.read_words([get_task(TASK).instruction])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vla.save(vla.VLA(config, *words, vla.Statistics(*scales)), folder, {})
    return folder


def _plain_rate(policy: Policy) -> float:
    env = compiler.make_env(get_task(TASK), cameras=policy.cameras, size=policy.image_size)
    trial = Trial(TASK, "official/0", 0)
    policy.begin(trial, get_task(TASK).instruction)
    seen = env.reset()
    seen, *_ = env.step(np.zeros(7))  # uploads what the driver has left for later
    _, seconds = timed(lambda: _play(env, policy, trial, seen))
    policy.end(trial)
    env.close()
    return PLAIN_STEPS / seconds


def _play(env, policy: Policy, trial: Trial, seen: dict) -> None:
    for _ in range(PLAIN_STEPS // policy.chunk):
        for action in policy.act(_felt(seen), _pictures(seen, policy.cameras), [trial])[0]:
            seen, *_ = env.step(action)


def _felt(seen: dict) -> Any:
    """What policies read of an `Observation`."""
    names = ("eef_pos", "eef_quat", "gripper_qpos")
    return SimpleNamespace(**{name: seen[f"robot0_{name}"][None] for name in names})


def _pictures(seen: dict, cameras: Sequence[str]) -> np.ndarray:
    return np.stack([seen[f"{camera}_image"] for camera in cameras])[None]
