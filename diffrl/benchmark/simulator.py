"""LIBERO's own environment, bare physics and ours, in control steps a second.

Every arm plays the same episodes of `EPISODE` control steps from the same start state. A round
gives each arm its turn, so that a busy moment of the machine meets all of them; the median over the
rounds is reported, with the slowest and the fastest.

    libero     `env.step` of LIBERO's environment without cameras
    physics    25 × `mj_step` of LIBERO's full model, the arm held by gravity compensation
    ours_k     `Simulator.step` on k threads, `COPIES` robots a thread, one action a call
"""

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from tqdm import tqdm

from diffrl.base.scale import cores
from diffrl.benchmark.common import EPISODE, smooth_actions, timed
from diffrl.sim import compiler, mujoco
from diffrl.sim.observation import place_fixtures
from diffrl.sim.osc import SUBSTEPS
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import official_start_states
from diffrl.sim.tasks import Task

COPIES = 4  # robots a thread: enough to keep it busy while the others finish
TASKS = {  # one task a suite: our choice, made before any was timed
    "libero_spatial": "libero_spatial/0",
    "libero_object": "libero_object/0",
    "libero_goal": "libero_goal/0",
    "libero_90": "libero_90/3",
    "libero_10": "libero_10/2",
}

Arm = tuple[Callable[[], None], Callable[[np.ndarray], int]]  # begin(), step(action) -> steps


def measure_simulators(suites: Sequence[str], seconds: float, rounds: int) -> dict:
    """Return the record's suites, reset_ms and start_s."""
    record: dict = {"suites": {}, "reset_ms": {}, "start_s": {}}
    resets: list[dict[str, float]] = []
    starts: list[dict[str, float]] = []
    for suite in tqdm(suites, desc="simulator", disable=None):
        scene = load_scene(TASKS[suite])
        env, start = timed(lambda task=scene.task: _libero(task))
        arms = _arms(scene, env)
        record["suites"][suite] = {"task": scene.task.id} | _measure(arms, seconds, rounds)
        resets.append(_resets(scene, env))
        starts.append({"libero": start} | _starts(scene))
        env.close()
        del env, arms
        gc.collect()
    for name, rows in (("reset_ms", resets), ("start_s", starts)):
        record[name] = {key: round(median(row[key] for row in rows), 3) for key in rows[0]}
    return record


def _libero(task: Task):
    env = compiler.make_env(task)
    env.reset()
    return env


def _measure(arms: dict[str, Arm], seconds: float, rounds: int) -> dict:
    """Return control steps a second of each arm: median, and {arm}_range (slowest, fastest)."""
    actions = smooth_actions(EPISODE, seed=0)
    for arm in arms.values():
        _rate(arm, actions[:5], 0.0)  # compiles, fills caches
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        names = list(arms)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rates[name].append(_rate(arms[name], actions, seconds))
    result = {name: round(median(values), 1) for name, values in rates.items()}
    spread = {f"{n}_range": [round(min(v), 1), round(max(v), 1)] for n, v in rates.items()}
    threads = max(int(name.removeprefix("ours_")) for name in arms if name.startswith("ours_"))
    return (
        result
        | spread
        | {"ours_n": result[f"ours_{threads}"], "threads": threads, "rounds": rounds}
    )


def _rate(arm: Arm, actions: np.ndarray, seconds: float) -> float:
    """Play whole episodes for at least `seconds`; return control steps a second without resets."""
    begin, step = arm
    steps, spent = 0, 0.0
    while spent < seconds or steps == 0:
        begin()
        start = time.perf_counter()
        for action in actions:
            steps += step(action)
        spent += time.perf_counter() - start
    return steps / spent


def _arms(scene: Scene, env) -> dict[str, Arm]:
    counts = sorted({1, 2, cores()} & set(range(1, cores() + 1)))
    ours = {f"ours_{threads}": _our_arm(scene, threads) for threads in counts}
    return {"libero": _libero_arm(scene, env), "physics": _physics_arm(scene)} | ours


def _libero_arm(scene: Scene, env) -> Arm:
    state = official_start_states(scene).states[0]

    def begin() -> None:
        env.timestep, env.done = 0, False
        env.sim.set_state_from_flattened(state)
        env.sim.forward()

    def step(action: np.ndarray) -> int:
        env.step(action)
        return 1

    return begin, step


def _physics_arm(scene: Scene) -> Arm:
    model = mujoco.MjModel.from_xml_string(scene.picture_xml())
    data = mujoco.MjData(model)
    start = official_start_states(scene)[0]
    motors = [model.actuator(name).id for name in scene.meta["arm_actuators"]]
    dofs = [int(model.joint(name).dofadr[0]) for name in scene.meta["arm_joints"]]

    def begin() -> None:
        mujoco.mj_resetData(model, data)
        place_fixtures(scene, model, start.fixtures[0])
        data.qpos[:] = start.states[0, 1 : 1 + model.nq]
        mujoco.mj_forward(model, data)

    def step(action: np.ndarray) -> int:
        data.ctrl[motors] = data.qfrc_bias[dofs]
        mujoco.mj_step(model, data, SUBSTEPS)
        return 1

    return begin, step


def _our_arm(scene: Scene, threads: int) -> Arm:
    n = COPIES * threads
    simulator = Simulator(scene, n, threads=threads, max_steps=10 * EPISODE)
    starts = official_start_states(scene)[np.zeros(n, int)]

    def begin() -> None:
        simulator.reset(starts, settle=0)

    def step(action: np.ndarray) -> int:
        return int(simulator.step(np.tile(action, (n, 1))).steps.sum())

    return begin, step


def _resets(scene: Scene, env, repeats: int = 5) -> dict[str, float]:
    """Return ms from an episode's end to the next start state, without settling."""
    begin_libero, _ = _libero_arm(scene, env)
    with Simulator(scene, 1, threads=1) as simulator:
        start = official_start_states(scene)[0]
        ours = [timed(lambda: simulator.reset(start, settle=0))[1] for _ in range(4 * repeats)]
    libero = [timed(lambda: (env.reset(), begin_libero()))[1] for _ in range(repeats)]
    return {"libero": 1e3 * median(libero), "ours": 1e3 * median(ours)}


def _starts(scene: Scene, repeats: int = 5) -> dict[str, float]:
    """Return s from a task's name to a simulator: compiled for the first time, and cached."""
    first = timed(lambda: compiler.compile_task(scene.task))[1]

    def start() -> None:
        load_scene.cache_clear()
        Simulator(load_scene(scene.task.id), 1, threads=1).close()

    return {"first": first, "cached": median(timed(start)[1] for _ in range(repeats))}
