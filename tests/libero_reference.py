"""LIBERO's own environment, driven the way the parity tests need it."""

import contextlib
import io
from pathlib import Path

import numpy as np

from diffrl.sim.starts import StartStates
from diffrl.sim.tasks import get_task


def make_env(task_id: str, **arguments):
    """LIBERO's ControlEnv of a task, reset once, without cameras unless asked for."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from libero.libero import get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv

        task = get_task(task_id)
        file = Path(get_libero_path("bddl_files")) / task.suite / f"{task.name}.bddl"
        arguments = {"use_camera_obs": False, "has_offscreen_renderer": False} | arguments
        env = ControlEnv(bddl_file_name=str(file), **arguments)
        np.random.seed(0)  # noqa: NPY002 (LIBERO draws from numpy's global generator)
        env.reset()
    return env


def begin(env, start: StartStates) -> dict:
    """Put LIBERO's environment into one start state, fixtures included.

    Two quirks are undone, both seen after `set_init_state`: the controller still caches the pose of
    the previous reset, and every forced refresh makes the sensors sample one physics step earlier.
    """
    inner = env.env
    for pose, fixture in zip(start.fixtures[0], inner.fixtures_dict.values(), strict=True):
        body = inner.sim.model.body_name2id(fixture.root_body)
        inner.sim.model.body_pos[body], inner.sim.model.body_quat[body] = pose[:3], pose[3:]
    observation = env.set_init_state(start.states[0])
    inner.sim.data.qacc_warmstart[:] = 0
    inner.robots[0].controller.update(force=True)
    inner.robots[0].gripper.current_action = np.zeros(2)  # as after a reset
    for observable in inner._observables.values():
        observable._time_since_last_sample -= inner.model_timestep
    return observation


def smooth_actions(n: int, seed: int) -> np.ndarray:
    """(n, 7) random actions in [-1, 1] that change slowly, the gripper closing half-way."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 1, (n, 7))
    actions = np.zeros((n, 7))
    for t in range(1, n):
        actions[t] = 0.9 * actions[t - 1] + 0.2 * steps[t]
    actions[:, 6] = np.where(np.arange(n) < n // 2, -1, 1)
    return np.clip(actions, -1, 1)
