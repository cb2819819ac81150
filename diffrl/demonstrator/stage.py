"""What the scripted operator can do, and how like a person it moves: two committed tables.

`operator.csv`: success per task with the reason where it fails. `operator_calibration.csv`: its
successful actions against LIBERO's human demonstrations, suite by suite.
"""

import json
import math
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from diffrl.base.artifacts import config_hash, runs_dir, write_csv
from diffrl.base.errors import UserError, whole
from diffrl.base.intervals import wilson
from diffrl.data.episode import Episode
from diffrl.demonstrator.episodes import operator_episodes, skills_of, suite_of
from diffrl.demonstrator.manner import MANNERS
from diffrl.presets import OperatorConfig
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import fresh_start_states
from diffrl.sim.tasks import PRO_SUITES, SUITES, get_task, suite_tasks

FORMAT = 1  # raise it when the operator comes to move in another way with the same settings
AXES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
SUITES_OF_FOUR = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def main(
    tasks: tuple[str, ...] = SUITES_OF_FOUR,
    attempts: int = 20,
    preset: str = "laptop",
    noise: float = 1.0,
    seed: int = 0,
    threads: int = 1,
    force: bool = False,
) -> None:
    """Try tasks with the scripted operator and write the tables of runs/<preset>.

    Args:
        tasks: ids such as libero_object/0, or whole suites; all takes LIBERO's 130.
        attempts: episodes per task, on fresh start states (never the official ones).
        preset: the preset whose folder in runs/ gets the tables.
        noise: scale of the human-like noise; 0 is a steady machine, 1 is calibrated.
        seed: seed of the start states and of the noise.
        threads: simulator threads; they change no result.
        force: also try the tasks that the table already holds.
    """
    whole(attempts, "--attempts")
    whole(seed, "--seed", least=0)
    if not 0 <= noise < math.inf:
        raise UserError(f"--noise is {noise}: give 0 or a positive number.")
    folder = runs_dir(preset)
    paths = folder / "operator.csv", folder / "operator_motion.csv"
    for task in tqdm(_task_ids(tasks), unit="task"):
        settings = (MANNERS[suite_of(task)], attempts, noise, seed)
        key = _key(settings, FORMAT)
        table, motion = _read(paths[0]), _read(paths[1])
        known = table[table.task == task].config.tolist() if len(table) else []
        if known == [key] and not force:
            continue
        for format in range(1, FORMAT):
            if known == [_key(settings, format)]:
                tqdm.write(
                    f"{paths[0]}: {task} was tried by format {format} of the operator, now "
                    f"{FORMAT}: it is tried again."
                )
        row, moves = _try(task, attempts, noise, seed, threads)
        load_scene.cache_clear()
        write_csv(paths[1], _replace(motion, moves))
        write_csv(paths[0], _replace(table, row | {"config": key}))
    calibration = calibrate(_read(paths[1]))
    write_csv(folder / "operator_calibration.csv", calibration)
    print(_read(paths[0]).drop(columns=["config", "goal"]).to_string(index=False))
    print(calibration.to_string(index=False))


def _key(settings: tuple, format: int) -> str:
    return config_hash(settings if format == 1 else (*settings, format))


def _task_ids(tasks: tuple[str, ...]) -> list[str]:
    names = SUITES if tasks == ("all",) else tasks
    whole = {name: [task.id for task in suite_tasks(name)] for name in names if "/" not in name}
    return [get_task(task).id for name in names for task in whole.get(name, [name])]


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False) if path.is_file() else pd.DataFrame()


def _replace(table: pd.DataFrame, row: dict) -> pd.DataFrame:
    """`table` with `row` in the place of its task's old one, in LIBERO's order."""
    others = table[table.task != row["task"]] if len(table) else table
    joined = pd.concat([others, pd.DataFrame([row])], ignore_index=True)
    order = {name: k for k, name in enumerate((*SUITES, *PRO_SUITES))}
    place = joined.task.str.split("/", expand=True)
    rank = place[0].map(order) * 1000 + place[1].astype(int)
    return joined.loc[rank.sort_values(kind="stable").index].reset_index(drop=True)


def _try(task: str, attempts: int, noise: float, seed: int, threads: int) -> tuple[dict, dict]:
    """Play one task; return its row of each table."""
    scene = load_scene(task)
    starts = fresh_start_states(scene, attempts, seed)
    config = OperatorConfig(noise=noise)
    trials = list(operator_episodes(scene, starts, seed, config, threads))
    good = [episode for episode, _ in trials if episode is not None and episode.success]
    low, high = (float(bound) for bound in wilson(len(good), attempts))
    row = {
        "task": task,
        "instruction": scene.instruction,
        "goal": " & ".join(f"{p}({', '.join(names)})" for p, *names in scene.goal),
        "skills": skills_of(scene),
        "attempts": attempts,
        "successes": len(good),
        "rate": len(good) / attempts,
        "low": low,
        "high": high,
        "mean_length": np.mean([e.length for e in good]) if good else float("nan"),
        "trouble": _most_frequent([trouble for _, trouble in trials if trouble]),
    }
    return row, {"task": task} | _moments(good)


def _most_frequent(troubles: list[str]) -> str:
    return "; ".join(f"{n}× {what}" for what, n in Counter(troubles).most_common(2))


def idle(actions: np.ndarray) -> np.ndarray:
    """Which of (T, 7) actions are no-ops: no motion, the gripper's command as before.

    The rule by which the public human sets were thinned (|command| < 1e-4).
    """
    before = np.concatenate([[-1.0], actions[:-1, 6]])
    return (np.linalg.norm(actions[:, :6], axis=1) < 1e-4) & (actions[:, 6] == before)


def _moments(episodes: list[Episode]) -> dict:
    """Sums over all steps that are not idle, enough to pool tasks into suites."""
    kept = [e.actions[~idle(e.actions)] for e in episodes]
    actions = np.concatenate(kept) if kept else np.zeros((0, 7))
    actions[:, 6] = (1 - actions[:, 6]) / 2  # 0 close, 1 open, as in the human sets
    sums = {f"sum_{axis}": total for axis, total in zip(AXES, actions.sum(axis=0))}
    squares = {f"square_{axis}": total for axis, total in zip(AXES, (actions**2).sum(axis=0))}
    steps = sum(e.length for e in episodes)
    return {"episodes": len(episodes), "steps": steps, "moving": len(actions)} | sums | squares


def calibrate(motion: pd.DataFrame) -> pd.DataFrame:
    """Compare pooled actions with the human sets: one row per suite and quantity.

    `ratio` is operator / human; `limit` says what was asked for (issue of the data room).
    """
    human = json.loads(
        resources.files("diffrl.demonstrator").joinpath("human_actions.json").read_text()
    )
    rows = []
    for suite in SUITES_OF_FOUR:
        part = motion[motion.task.str.startswith(suite + "/")]
        pooled = part.drop(columns="task").sum()
        if not len(part) or pooled.episodes == 0:
            continue
        reference = human[suite]
        for k, axis in enumerate(AXES):
            mean = pooled[f"sum_{axis}"] / pooled.moving
            std = np.sqrt(pooled[f"square_{axis}"] / pooled.moving - mean**2)
            rows.append(_compared(suite, f"std {axis}", std, reference["std"][k], 0.25))
        length = reference["transitions"] / reference["trajectories"]
        rows.append(_compared(suite, "length", pooled.moving / pooled.episodes, length, 0.15))
        share = 1 - pooled.moving / pooled.steps
        rows.append(
            _row(suite, "idle share", share, float("nan"), "0.05-0.20", 0.05 <= share <= 0.2)
        )
    if not rows:
        raise UserError("No episode of a suite with human statistics: try libero_object first.")
    return pd.DataFrame(rows)


def _compared(suite: str, what: str, operator: float, human: float, limit: float) -> dict:
    fine = abs(operator / human - 1) <= limit
    return _row(suite, what, operator, human, f"±{limit:.0%}", fine)


def _row(suite: str, what: str, operator: float, human: float, limit: str, fine: bool) -> dict:
    return {
        "suite": suite,
        "quantity": what,
        "operator": operator,
        "human": human,
        "ratio": operator / human,
        "limit": limit,
        "within": bool(fine),
    }
