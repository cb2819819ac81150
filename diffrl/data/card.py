"""The data-set card: what a Hugging Face data set says of itself."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diffrl.base.artifacts import atomic_path, provenance
from diffrl.base.errors import UserError
from diffrl.data.hdf5 import iterate_episodes, read_attributes
from diffrl.data.outcomes import read_attempts
from diffrl.sim.pictures import Detail

_MADE = {"task", "source", "mode", "preset", "seed", "experts"}  # of the attribute generation
_HEAD = """---
license: {license}
task_categories: [robotics]
tags: [LeRobot, LIBERO, diffrl, simulation]
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# LIBERO demonstrations by diffrl

{episodes} episodes, {frames} frames, {fps} Hz, {tasks} task(s), simulated in LIBERO (MuJoCo
{mujoco}, robosuite {robosuite}). Format: LeRobotDataset {version}.

## How it was made

diffrl {diffrl}, commit `{commit}`. Who acted, and how its actions were chosen:

{sources}

{protocol}

{table}

## Features

| feature | meaning |
|---|---|
| `observation.images.image` | agentview camera, {size}², {detail} |
| `observation.images.image2` | eye-in-hand camera, {size}², {detail} |
| `observation.state` | end-effector position [m] 3, axis-angle [rad] 3, finger joints [m] 2 |
| `action` | end-effector goal offset: ±1 is ±0.05 m (3), ±0.5 rad (3); gripper −1 open, +1 close |
| `next.reward`, `next.done` | 1 in the step that reaches the goal, which ends the episode |

Images are turned by 180° against LIBERO's own orientation, as openpi, OpenVLA-OFT and lerobot do.
`meta/episodes` also names each episode's task, source, mode, policy, start state and seed.

## Limits

Simulation only, one robot (Panda), one camera pose. "operator" is a scripted program with
human-like noise and must not be called human. Experts were trained in the same simulator that
recorded them.
"""
_OURS = """
An attempt of diffrl starts in a *fresh* state, drawn by LIBERO's placement sampler; none of
LIBERO's 50 official start states of a task, which evaluations use, occurs. Attempts are played in a
fixed order until the wanted number succeeded; **only successes are kept**: how often a source fails
is in the table, not in the data. Nothing else is filtered, smoothed or cut.
"""
_HUMAN = """
Human demonstrations are LIBERO's own (Liu et al. 2023, arXiv 2306.03310), licensed CC BY 4.0; name
them when you share this. Observations were recomputed from the recorded states, and rendered anew;
start states are those of the recordings.
"""
_FOREIGN = """
Files that diffrl did not generate were converted as they are: how they were made, what was
filtered, and under which licence they may be shared, is not known here. A file that is LIBERO's own
upload of human demonstrations (Liu et al. 2023, arXiv 2306.03310) is licensed CC BY 4.0.
"""


@dataclass(frozen=True)
class Source:
    """What a card says of one data set: its row of the table, and how diffrl made it, if it did."""

    file: Path
    row: dict[str, Any]
    made: dict[str, Any]


def source_of(file: Path) -> Source:
    """Read what a card says of a data set.

    Raises:
        UserError: the file is not sound, or what tells its origin cannot be read.
    """
    return Source(Path(file), _row(Path(file)), _made(Path(file)))


def write_card(path: Path, sources: Sequence[Source], info: dict, detail: Detail) -> None:
    """Write the card of an export of data sets; `info` is its ``meta/info.json``."""
    made, rows = provenance(), [source.row for source in sources]
    origins = sorted({_origin(source) for source in sources})
    actors = {source.made.get("source") for source in sources}  # None: not known
    human, foreign, ours = "human" in actors, None in actors, bool(actors - {"human", None})
    paragraphs = {_OURS: ours, _HUMAN: human, _FOREIGN: foreign}
    text = _HEAD.format(
        episodes=info["total_episodes"],
        frames=info["total_frames"],
        tasks=info["total_tasks"],
        fps=info["fps"],
        version=info["codebase_version"],
        size=next(iter(info["features"].values()))["shape"][0],
        detail={"exact": "LIBERO's own picture", "reduced": "with reduced meshes"}[detail],
        diffrl=made["diffrl"],
        commit=made["git_commit"] or "unknown",
        mujoco=made["versions"].get("mujoco"),
        robosuite=made["versions"].get("robosuite"),
        sources="\n".join(origins),
        license="unknown" if foreign else "cc-by-4.0" if human else "mit",
        protocol="".join(text for text, holds in paragraphs.items() if holds).strip(),
        table=_table(pd.DataFrame(rows)),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _row(file: Path) -> dict:
    lengths, first = [], None
    for episode in iterate_episodes(file, images=False):
        first = first or episode
        lengths.append(episode.length)
    assert first is not None  # a data set has episodes
    row: dict[str, Any] = {"task": first.task, "source": first.source, "mode": first.mode}
    row |= {"episodes": len(lengths), "mean steps": round(sum(lengths) / len(lengths), 1)}
    outcomes = read_attempts(file)["outcome"]
    if len(outcomes):
        fair = outcomes[outcomes != "error"]
        row["attempts"] = len(outcomes)
        row["succeeded"] = f"{(fair == 'success').mean():.0%}"
    return row


def _made(file: Path) -> dict:
    """How diffrl made a file; empty for files of others."""
    said = read_attributes(file).get("generation")
    if said is None:
        return {}
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        made = json.loads(said)
        if isinstance(made, dict) and made.keys() >= _MADE and isinstance(made["experts"], list):
            return made
    raise UserError(
        f"{file}: its attribute generation does not say how diffrl made it: generate it again, or "
        "remove the attribute if the file is not diffrl's."
    )


def _origin(source: Source) -> str:
    made = source.made
    if not made:
        return f"- `{source.file.name}`: not generated by diffrl"
    experts = ", ".join(f"`{str(digest)[:12]}`" for digest in made["experts"])
    weights = f"; experts' weights (SHA-256) {experts}" if experts else ""
    settings = f"preset {made['preset']}, seed {made['seed']}"
    return f"- {made['task']}: {made['source']}, {made['mode']}; {settings}{weights}"


def _table(rows: pd.DataFrame) -> str:
    """A Markdown table."""
    cells = [
        rows.columns.tolist(),
        ["---"] * len(rows.columns),
        *rows.astype(object).fillna("").values.tolist(),
    ]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)
