"""Write results/README.md, the tables of all presets, from the records: no number is typed twice.

``python tools/results_table.py`` writes the file; ``--check`` exits with 1 if that would change it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from diffrl.base.intervals import wilson
from diffrl.presets import PRESETS
from diffrl.quality import MEASURES
from diffrl.sim.tasks import MAX_STEPS

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Results

These tables are written by `make readme` from the records beside this file; do not edit them here.
Evaluation follows the protocol of OpenVLA-OFT and openpi: official start states, ten settle steps,
at most {limits} control steps.
Success is the share of all trials, pooled; a trial that ended in an error of the simulator enters
no rate. One training seed stands behind each expert of `laptop`, whose minutes are of cloning and
RL alone; in the other presets the minutes include scene and demonstrations.
"""
SUITE_NAMES = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
    "libero_90": "LIBERO-90",
}
MEANS = {
    "mean_suites": "mean of the suites",
    "mean_tasks": "mean of the tasks",
}
SHOWN = ("jerk_rms", "ldlj_cartesian", "action_change", "steps", "position_variance")
NOTHING = "No preset has results yet: `make reproduce` makes them."


def percent(success: float, low: float, high: float) -> str:
    return f"{100 * success:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


UNLIKE = (
    "Rows of unequal tasks are means over other tasks, too: `quality_tests.csv` compares arms on\n"
    "the tasks that both have."
)
UNEQUAL = (
    "Arms of more trials met other start states and training seeds as well: only rows of equally\n"
    "many trials are of the same ones. `effects.csv` compares arms on the trials that both met."
)


def markdown(rows: list[list], header: list[str]) -> str:
    """Return a table, each cell as it is written."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def experts(table: pd.DataFrame) -> str:
    """The experts of each class; where the classes' tasks or seeds differ, the shared ones, too."""
    classes = table.groupby(["task", "seed"])["algorithm"].transform("nunique")
    shared = table[classes == table["algorithm"].nunique()]
    if len(shared) in (0, len(table)):
        return experts_rows(table)
    count = shared["task"].nunique()
    told = (
        "The rows are of different tasks or training seeds. On what both classes have, "
        f"{count} tasks:"
    )
    return f"{experts_rows(table)}\n\n{told}\n\n{experts_rows(shared)}"


def experts_rows(table: pd.DataFrame) -> str:
    """Success of all trials, with Wilson's interval; of the rest means over tasks and seeds."""
    rows = []
    for (algorithm, mode), group in table.groupby(["algorithm", "mode"]):
        successes, trials = int(group["successes"].sum()), int(group["trials"].sum())
        seeds = group.groupby("task")["seed"].nunique()
        each = group.groupby("task")[["clone_success", "control_steps", "minutes"]]
        mean = each.mean().mean()
        rows.append(
            [
                algorithm,
                mode,
                group["task"].nunique(),
                "–".join(map(str, sorted({seeds.min(), seeds.max()}))),
                f"{100 * mean['clone_success']:.0f} %",
                percent(successes / trials, *wilson(successes, trials)),
                trials,
                f"{mean['control_steps'] / 1000:.0f} k",
                f"{mean['minutes']:.1f}",
            ]
        )
    header = ["RL", "collection", "tasks", "seeds", "clone", "after RL", "trials", "control steps"]
    return markdown(rows, [*header, "minutes"])


def quality(table: pd.DataFrame) -> str:
    """The means over the tasks of a few measures, with their bootstrap intervals over episodes.

    Teleoperation is of another task and beside the repository: it has no row here.
    """
    table = table[table["source"] != "teleoperation"]
    whole = table[(table["task"] == "all") & table["measure"].isin(SHOWN)]
    tasks = table[table["task"] != "all"].groupby(["source", "mode"])["task"].nunique()
    rows = []
    for (source, mode), group in whole.groupby(["source", "mode"]):
        found = group.set_index("measure")
        cells = [
            "{value:.3g} [{low:.3g}, {high:.3g}]".format(**found.loc[name])
            if name in found.index
            else "–"
            for name in SHOWN
        ]
        rows.append([source, mode, tasks[source, mode], *cells])
    titles = [
        f"{MEASURES[m].label}{f' ({MEASURES[m].unit})' * bool(MEASURES[m].unit)}" for m in SHOWN
    ]
    means = markdown(rows, ["data", "collection", "tasks", *titles])
    return means if tasks.nunique() < 2 else f"{means}\n\n{UNLIKE}"


def evaluation(table: pd.DataFrame) -> str:
    """Success of the VLAs trained on each source: a row per source, a column per suite.

    The means over the suites that it learned, where there are several, are the last columns.
    """
    columns = list(dict.fromkeys(table["suite"]))
    suites = [name for name in columns if name not in MEANS]
    titles = [MEANS.get(name, name) for name in columns]
    rows = []
    for (source, mode), group in table.groupby(["source", "mode"]):
        found = {row.suite: row for row in group.itertuples()}
        counts = [found[suite].trials for suite in suites if suite in found]
        trials = " + ".join(map(str, counts))
        if len(counts) > 2 and len(set(counts[1:])) == 1:  # of the suites that no data are of
            trials = f"{counts[0]} + {len(counts) - 1} × {counts[1]}"
        rows.append([source, mode, trials, *(_rate(found.get(column)) for column in columns)])
    rates = markdown(rows, ["trained on", "collection", "trials", *titles])
    own = table[table["suite"].isin(suites)]
    met = (own["trials"] + own["errors"]).where(lambda count: count > 0).groupby(own["suite"])
    return f"{rates}\n\n{UNEQUAL}" if (met.nunique() > 1).any() else rates


def _rate(row) -> str:
    if row is None or not row.trials:
        return "–"
    rates = "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * np.array([row.success, row.low, row.high])))
    return rates + f" (+ {row.errors} errors)" * bool(row.errors)


def effects(table: pd.DataFrame) -> str:
    """What the class of the policy and the noise at collection are worth, in points of success."""

    def interval(low: float, high: float) -> str:
        return "[{:+.1f}, {:+.1f}]".format(*(100 * np.array([low, high])))

    rows = [
        [
            r.suite,
            r.effect,
            f"{100 * r.difference:+.1f}",
            interval(r.low, r.high) if np.isfinite(r.low) else "no start state differs",
            f"{r.p_holm:.2g}",
            interval(r.low_tasks, r.high_tasks) if np.isfinite(r.low_tasks) else "–",
            f"{r.p_tasks_holm:.2g}",
            r.tasks,
            " ".join(f"{100 * float(value):+.1f}" for value in str(r.by_seed).split()),
        ]
        for r in table.itertuples()
    ]
    header = ["suite", "effect", "points", "over start states", "p over start states"]
    header += ["over tasks", "p over tasks", "tasks ahead", "each training seed"]
    return markdown(rows, header) if rows else ""


def throughput(record: dict) -> str:
    """Control steps a second beside LIBERO's own environment and bare physics, in one run."""
    parts = {"suites", "reset_ms", "start_s", "camera_fps", "data", "training", "evaluation"}
    if missing := parts - record.keys():
        raise SystemExit(
            f"results/throughput.json lacks {', '.join(sorted(missing))}: it was begun anew on "
            "another machine. Run `python -m diffrl benchmark`."
        )
    machine, camera = record["machine"], record["camera_fps"]
    measured = ""
    if part := record.get("quality"):
        measured = (
            f"\n{part['trajectories']} trajectories of {part['steps']} control steps have all "
        )
        measured += f"their own measures in {part['trajectories'] / part['rate']:.1f} s."
    rows = [
        [
            suite,
            *(f"{row[arm]:.0f}" for arm in ("libero", "physics", "ours_1", "ours_n")),
            f"{row['ours_1'] / row['libero']:.1f} ×",
            f"{100 * row['ours_1'] / row['physics']:.0f} %",
        ]
        for suite, row in record["suites"].items()
    ]
    threads = max(row["threads"] for row in record["suites"].values())
    header = ["suite", "LIBERO", "bare physics", "diffrl, 1 thread", f"{threads} threads"]
    reset = "reset {libero:.0f} → {ours:.1f} ms".format(**record["reset_ms"])
    start = "start {libero:.1f} → {cached:.2f} s".format(**record["start_s"])
    images = "{exact:.0f} → {reduced:.0f} images/s ({psnr_db:.0f} dB)".format(**camera)
    training, trials, data = record["training"], record["evaluation"], record["data"]
    shares = (
        f"{name} {training[name]['training'] / training[name]['bare']:.0%}"
        for name in ("diffusion", "gaussian")
    )
    vla = (f"{d} pictures {trials[d] / trials['libero']:.0f} ×" for d in ("exact", "reduced"))
    return (
        f"**Control steps a second, no cameras ({machine['processor']}, {machine['cores']} cores)**"
        + "\n\n"
        + markdown(rows, [*header, "× LIBERO", "of bare physics"])
        + "\n\nBare physics is MuJoCo's step alone, on LIBERO's own model. diffrl's step does more "
        + "and is a little faster:\nits model lacks sensors, lights, cameras and geoms without "
        + "collisions, which change no movement."
        + f"\n\nLIBERO → diffrl: {reset}, cached {start}. Exact → reduced pictures: {images}."
        + f"\nData sets of {data['task']} are written "
        + f"{data['writing'] / data['simulating']:.0f} × as fast as they are simulated; their "
        + "export with reduced pictures keeps "
        + f"{data['export'] / data['camera']:.0%} of the camera's rate."
        + f"\nOf the bare simulator's speed RL training keeps, on {training['task']}: "
        + f"{', '.join(shares)}.\nEvaluating a VLA on {trials['task']} with {trials['workers']} "
        + f"processes, against one that loops over LIBERO's environment: {', '.join(vla)}."
        + measured
    )


TABLES = (
    (
        "experts.csv",
        "Experts on LIBERO's official start states (95 % Wilson intervals; control steps and "
        "minutes are of one expert's training, in the mean)",
        experts,
    ),
    (
        "quality.csv",
        "Quality of their trajectories (95 % bootstrap intervals over the episodes of these data "
        "sets, not over tasks)",
        quality,
    ),
    (
        "evaluation.csv",
        "The VLA trained on each source (95 % Wilson intervals; a start state counts once for each "
        "training seed)",
        evaluation,
    ),
    (
        "evaluation_effects.csv",
        "The policy or the noise? Effects on the VLA's success (95 % intervals: bootstrap over "
        "start states, for these models alone; Student's t over tasks, whose data are of one "
        "expert each, as in README; each p is corrected for the suite's three effects)",
        effects,
    ),
)


def generate() -> str:
    """Return the whole file: speed, and every preset with records, by its size."""
    limits = ", ".join(f"{MAX_STEPS[suite]} ({name})" for suite, name in SUITE_NAMES.items())
    parts = [HEAD.format(limits=limits).rstrip()]
    speed = ROOT / "results" / "throughput.json"
    if speed.is_file():
        parts.append(throughput(json.loads(speed.read_text(encoding="utf-8"))))
    for preset in PRESETS:
        for name, title, function in TABLES:
            path = ROOT / "results" / preset / name
            if path.is_file() and (text := function(pd.read_csv(path))):
                parts.append(f"**Preset `{preset}`. {title}**\n\n{text}")
    return "\n\n".join(parts if len(parts) > 1 else [*parts, NOTHING]) + "\n"


def publish(page: Path, wanted: str) -> int:
    """Write a page, or with ``--check`` say whether it differs: 1 if so, else 0."""
    if "--check" not in sys.argv[1:]:
        page.write_text(wanted, encoding="utf-8")
        return 0
    differs = not page.is_file() or page.read_text(encoding="utf-8") != wanted
    if differs:
        name = page.relative_to(ROOT)
        print(f"{name} differs from the records: run `make readme`.", file=sys.stderr)
    return int(differs)


if __name__ == "__main__":
    sys.exit(publish(ROOT / "results" / "README.md", generate()))
