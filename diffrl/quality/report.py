"""From trajectories to the tables: values, intervals, and paired comparisons of the arms.

An arm is a (source, mode). `measure` gives one row per trajectory or start state, `summarise` the
record `quality.csv`, `compare` the tests; all three are tables, so any of them can be plotted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffrl.base import intervals
from diffrl.base.arm import Arm
from diffrl.base.errors import UserError, whole
from diffrl.presets import QualityConfig
from diffrl.quality import consistency
from diffrl.quality.smoothness import trajectory_measures
from diffrl.quality.trajectory import Trajectory

Pairs = Sequence[tuple[Arm, Arm]]
Item = TypeVar("Item")


class Measure(NamedTuple):
    """How a measure is written, and which direction the paper's claim calls better (0: neither).

    No interval of a mean goes beyond `least` and `most`, which the measure itself cannot pass.
    """

    label: str
    unit: str
    better: int
    least: float = -np.inf
    most: float = np.inf


MEASURES = {
    "jerk_rms": Measure("Jerk, RMS", "m/s³", -1, least=0),
    "jerk_mean": Measure("Jerk, mean", "m/s³", -1, least=0),
    "angular_jerk_rms": Measure("Angular jerk, RMS", "rad/s³", -1, least=0),
    "ldlj": Measure("Log dimensionless jerk, speed", "", 1),
    "ldlj_cartesian": Measure("Log dimensionless jerk, path", "", 1),
    "sparc": Measure("Spectral arc length", "", 1, most=0),
    "dimensionless_jerk": Measure("Jerk · T³ / path length", "", -1, least=0),
    "action_change": Measure("Action change |Δa|", "", -1, least=0),
    "path_length": Measure("Path length", "m", -1, least=0),
    "path_ratio": Measure("Path / straight line", "", -1, least=1),
    "steps": Measure("Steps to success", "", -1, least=0),
    "idle_share": Measure("Idle share (no command)", "", -1, least=0, most=1),
    "still_share": Measure(
        "Still share (<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}cm/s)", "", -1, least=0, most=1
    ),
    "gripper_switches": Measure("Gripper switches", "", -1, least=0),
    "position_variance": Measure("Position variance, equal phase", "cm²", -1, least=0),
    "warped_position_variance": Measure("Position variance, time-warped", "cm²", -1, least=0),
    "action_variance": Measure("Action variance, equal phase", "", -1, least=0),
    "warped_action_variance": Measure("Action variance, time-warped", "", -1, least=0),
    "conditional_action_variance": Measure("Action variance given state", "", -1, least=0),
    "endpoint_variance": Measure("Endpoint variance", "cm²", -1, least=0),
    "own_position_variance": Measure("Position variance, same start", "cm²", -1, least=0),
    "own_action_variance": Measure("Action variance, same start", "", -1, least=0),
    "mode_count": Measure("Ways taken", "", 0, least=0),
}

# How a measure of MEASURES is computed from one trajectory; NaN where it is undefined. The others
# are computed together: see `trajectory_measures` and `_rows`.
COMPUTED: dict[str, Callable[[Trajectory], float]] = {}

# The questions, fixed before the data: same mode first, the confounded contrast last.
PLANNED = (
    (Arm("diffusion", "deterministic"), Arm("gaussian", "deterministic")),
    (Arm("diffusion", "stochastic"), Arm("gaussian", "stochastic")),
    (Arm("diffusion", "deterministic"), Arm("operator", "recorded")),
    (Arm("diffusion", "deterministic"), Arm("human", "recorded")),
    (Arm("gaussian", "deterministic"), Arm("operator", "recorded")),
    (Arm("gaussian", "deterministic"), Arm("human", "recorded")),
    (Arm("diffusion", "deterministic"), Arm("diffusion", "stochastic")),
    (Arm("diffusion", "deterministic"), Arm("gaussian", "stochastic")),
)
# Without noise the Gaussian policy repeats itself exactly: 0 by construction is shown, not tested.
CONSTRUCTED = {
    (Arm("gaussian", "deterministic"), name)
    for name in ("own_position_variance", "own_action_variance")
}
FLIPS = 2**16  # sign patterns of tasks that are enumerated; of more tasks so many are drawn
MIN_PAIRS = 6  # the least p is 0.03 then (`intervals.least_p`): fewer can never reach 0.05

_ARM = ["source", "mode"]


def measure(trajectories: list[Trajectory], config: QualityConfig) -> pd.DataFrame:
    """Every measure of every successful trajectory, at most `config.episodes` per arm and task.

    Returns rows (source, mode, task, start_state, measure, value); the variances have one row per
    start state. Raises UserError for mixed control rates, for an arm with one trajectory only and
    for fewer than two neighbours.
    """
    whole(config.neighbours, "neighbours", 2)  # one alone does not vary
    kept = select(trajectories, config.episodes)
    rates = sorted({t.rate for t in kept})
    if len(rates) > 1:
        raise UserError(
            f"Control rates differ ({', '.join(f'{r:g} Hz' for r in rates)}): third differences at "
            "different rates cannot be compared. Resample the files to one rate first."
        )
    rows = []
    for task, same_task in _grouped(kept, lambda t: t.task):
        moved = _moved(same_task)
        for arm, group in _grouped(same_task, lambda t: t.arm):
            if len(group) < 2:
                raise UserError(
                    f"{group[0].label}: the only successful trajectory of {arm} on "
                    f"{task}; variances and intervals need at least two. Add demonstrations."
                )
            for start_state, name, value in _rows(group, moved, config):
                rows.append((*arm, task, start_state, name, value))
    columns = [*_ARM, "task", "start_state", "measure", "value"]
    table = pd.DataFrame(rows, columns=columns)
    return table[np.isfinite(table["value"])].reset_index(drop=True)


def without_neighbours(units: pd.DataFrame, config: QualityConfig) -> list[str]:
    """Return a sentence for each arm and task with commands but too few trajectories to compare."""
    measured = units.groupby([*_ARM, "task"])["measure"].agg(set)
    return [
        f"{task}, {source} {mode}: the action variance given the state is left out; it needs more "
        f"than {config.neighbours} episodes (--neighbours)."
        for (source, mode, task), names in measured.items()
        if "action_variance" in names and "conditional_action_variance" not in names
    ]


def select(trajectories: list[Trajectory], episodes: int) -> list[Trajectory]:
    """The first `episodes` successes of each arm and task; those that nobody knows count as such.

    Raises UserError when there are none.
    """
    groups = _grouped(
        [t for t in trajectories if t.success is not False], lambda t: (t.task, t.arm)
    )
    kept = [t for _, group in groups for t in group[:episodes]]
    if not kept:
        raise UserError(
            "No successful trajectory to measure: quality is defined on successes. Generate data, "
            "or check the files' `success` attributes, rewards and dones."
        )
    return kept


def summarise(units: pd.DataFrame, config: QualityConfig) -> pd.DataFrame:
    """Means with 95 % bootstrap intervals: one row per arm, task and measure, and task "all".

    Returns the columns of the record: source, mode, task, measure, value, low, high, n, and those
    of `over_tasks`. low and high are over trajectories: about these experts' data, not their class.
    """
    rows = []
    for (source, mode, name), group in units.groupby([*_ARM, "measure"], sort=True):
        parts = [(task, part) for task, part in group.groupby("task", sort=True)]
        for task, part in [*parts, ("all", group)]:
            interval = intervals.stratified_bootstrap(
                part["value"], part["task"], resamples=config.resamples, seed=config.seed
            )
            rows.append((source, mode, task, name, *_possible(interval, name), len(part)))
    table = pd.DataFrame(rows, columns=[*_ARM, "task", "measure", "value", "low", "high", "n"])
    order = [*_ARM, "task", "measure"]
    return over_tasks(table.sort_values(order, key=_record_order, ignore_index=True))


def levels(summary: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Means of each arm over the tasks that all arms have: a row a measure, and their number.

    summary: of `summarise`. Its rows of task "all" are means over the tasks of their own arm;
    where one arm lacks a task, they differ by that task, too. Teleoperation is of another task,
    and stands beside the others as it is. Columns: (source, mode).
    """
    single = summary[(summary["task"] != "all") & summary["measure"].isin(measures)]
    foreign = single["source"] == "teleoperation"
    arm = single.groupby(_ARM).ngroup()
    met = arm.groupby(single["task"]).transform("nunique")
    shown = single[foreign | (met == arm[~foreign].nunique())]
    means = shown.pivot_table("value", "measure", _ARM).reindex(list(measures))
    means.loc["tasks"] = shown.groupby(_ARM)["task"].nunique()
    return means


def over_tasks(summary: pd.DataFrame) -> pd.DataFrame:
    """Add to the rows of task "all" what holds over tasks, from the rows of the single tasks.

    Columns low_tasks, high_tasks: Student's t interval of the tasks' means (one expert made a
    task's data, so tasks are the replicates). p_tasks: of no difference from the operator, whom the
    policies learned from, by flipping the signs of whole tasks. NaN where there is none.
    """
    means = _task_means(summary)
    rows = []
    for row in summary.itertuples():
        tasks = means.get((row.source, row.mode, row.measure)) if row.task == "all" else None
        if tasks is None:
            rows.append([np.nan] * 3)
            continue
        shown = means.get(("operator", "recorded", row.measure))
        fair = row.source not in ("operator", "teleoperation")  # and not 0 by construction
        fair &= (Arm(row.source, row.mode), row.measure) not in CONSTRUCTED
        p = _task_contrast(tasks, shown)["p_tasks"] if fair and shown is not None else np.nan
        interval = intervals.interval_over_tasks(list(tasks.values()))
        rows.append([*_possible(interval, row.measure)[1:], p])
    return summary.assign(**dict(zip(("low_tasks", "high_tasks", "p_tasks"), np.transpose(rows))))


def _possible(interval: intervals.Interval, name: str) -> intervals.Interval:
    """The interval of a mean, cut to what the measure can be."""
    least, most = MEASURES[name].least, MEASURES[name].most
    return interval._replace(
        low=np.clip(interval.low, least, most), high=np.clip(interval.high, least, most)
    )


def _task_means(rows: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, float]]:
    """(source, mode, measure) → task → mean, of `measure`'s rows or of those of the record."""
    single = rows[rows["task"] != "all"]
    means = single.groupby([*_ARM, "measure", "task"], sort=True)["value"].mean()
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for (*key, task), value in means.items():
        found.setdefault(tuple(key), {})[task] = value
    return found


def _task_contrast(first: dict[str, float], second: dict[str, float]) -> dict[str, Any]:
    """First minus second over the tasks that both have: a difference of means a task."""
    gaps = [first[task] - second[task] for task in first if task in second]
    if not gaps:
        names = ("difference_tasks", "low_tasks", "high_tasks", "p_tasks")
        return dict.fromkeys(names, np.nan) | {"n_tasks": 0}
    mean, low, high = intervals.interval_over_tasks(gaps)
    p = intervals.sign_flip_test(gaps, resamples=FLIPS)
    return {
        **{"difference_tasks": mean, "low_tasks": low, "high_tasks": high},
        **{"p_tasks": p, "n_tasks": len(gaps)},
        "tasks": f"{sum(gap > 0 for gap in gaps)} of {len(gaps)}",
    }


def compare(units: pd.DataFrame, config: QualityConfig, pairs: Pairs = PLANNED) -> pd.DataFrame:
    """Test each planned pair of arms on each measure, over the tasks that both have.

    Paired by start state (sign flips) where at least MIN_PAIRS start states are shared, else by
    permutation within tasks; for variances on their pseudo-values, hence approximately. p_holm
    corrects over all rows. Columns: measure, first, second,
    difference (first - second), low, high, p, p_holm, cliffs_delta, n, test; then those of
    `compare_over_tasks`, which alone speak of a class of policies. What is 0 by construction
    (CONSTRUCTED) is no question and has no row.
    """
    means = units.groupby([*_ARM, "measure", "task", "start_state"])["value"].mean()
    rows = []
    for first, second in pairs:
        for name in (n for n in MEASURES if MEASURES[n].better):  # else one number a task
            if {(first, name), (second, name)} & CONSTRUCTED:
                continue
            try:
                a, b = means.loc[(*first, name)], means.loc[(*second, name)]
            except KeyError:
                continue  # one of the arms is not at hand
            row = _contrast(a, b, config)
            if row is not None:
                rows.append(
                    {"measure": name, "first": first.joined("/"), "second": second.joined("/")}
                )
                rows[-1] |= row
    columns = ["measure", "first", "second", "difference", "low", "high", "p", "p_holm"]
    table = pd.DataFrame(rows, columns=[*columns, "cliffs_delta", "n", "test"])
    return compare_over_tasks(table.assign(p_holm=intervals.holm(table["p"])), units)


def compare_over_tasks(tests: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Add to rows of `compare` the same contrasts with tasks as replicates.

    means: rows of `measure` or of the record quality.csv, all start states of a task weighing the
    same. Columns: difference_tasks with low_tasks, high_tasks (Student's t over tasks), p_tasks
    (signs of whole tasks flipped), p_tasks_holm (over all rows; NaN where so few tasks could not
    make so many rows significant), tasks (those where first is larger, of all).
    """
    found = _task_means(means)
    rows = [
        _task_contrast(*(found[(*Arm.parse(arm), row.measure)] for arm in (row.first, row.second)))
        for row in tests.itertuples()
    ]
    columns = ["difference_tasks", "low_tasks", "high_tasks", "p_tasks", "tasks"]
    added = pd.DataFrame(rows, columns=columns, index=tests.index)
    least = intervals.least_p([row["n_tasks"] for row in rows], FLIPS)
    added.insert(4, "p_tasks_holm", intervals.holm(added["p_tasks"], least))
    return pd.concat([tests.drop(columns=added.columns, errors="ignore"), added], axis=1)


def findings(tests: pd.DataFrame, level: float = 0.05, by: str = "p_holm") -> pd.DataFrame:
    """What the tests say: a row per comparison, the measures significant at `level` after Holm.

    by: "p_holm", over start states, is about these data sets; "p_tasks_holm", over tasks, about
    what made them. Columns: first, second, better, worse, not significant – "better" in the paper's
    sense (smoother, shorter, more consistent) for the first arm, the strongest effect first.
    """
    rows = []
    for (first, second), group in tests.groupby(["first", "second"], sort=False):
        told = group[group[by] < level].sort_values("cliffs_delta", key=abs, ascending=False)
        sign = told["difference_tasks" if by == "p_tasks_holm" else "difference"] * [
            MEASURES[name].better for name in told["measure"]
        ]
        names = told["measure"].map(lambda name: MEASURES[name].label)
        better, worse = ("; ".join(names[side]) or "–" for side in (sign > 0, sign < 0))
        rest = f"{len(group) - len(told)} of {len(group)} measures"
        if group[by].isna().all():
            rest = "too few tasks for a test" if by == "p_tasks_holm" else "too few for a test"
        rows.append((first, second, better, worse, rest))
    return pd.DataFrame(rows, columns=["first", "second", "better", "worse", "not significant"])


def _contrast(a: pd.Series, b: pd.Series, config: QualityConfig) -> dict[str, Any] | None:
    """One row of `compare`: a, b indexed by (task, start_state)."""
    tasks = sorted(set(a.index.get_level_values(0)) & set(b.index.get_level_values(0)))
    if not tasks:
        return None
    a, b = a.loc[tasks], b.loc[tasks]
    shared = a.index.intersection(b.index)
    options = {"resamples": config.resamples, "seed": config.seed}
    labels_a, labels_b = a.index.get_level_values(0), b.index.get_level_values(0)
    if len(shared) >= MIN_PAIRS:
        a, b = a.loc[shared], b.loc[shared]
        difference, strata = (a - b).to_numpy(), shared.get_level_values(0)
        interval = intervals.stratified_bootstrap(difference, strata, **options)
        p = intervals.sign_flip_test(difference, strata, seed=config.seed)
        test, n = "paired sign flip", len(shared)
    elif min(len(a), len(b)) >= MIN_PAIRS:
        interval = intervals.bootstrap_difference(a, b, labels_a, labels_b, **options)
        p = intervals.permutation_test(a, b, labels_a, labels_b, seed=config.seed)
        test, n = "permutation", len(a) + len(b)
    else:
        return None  # too few to reach any level
    deltas = [intervals.cliffs_delta(a.loc[t], b.loc[t]) for t in tasks if t in a and t in b]
    return {
        **{"difference": interval.value, "low": interval.low, "high": interval.high, "p": p},
        **{"cliffs_delta": float(np.mean(deltas)), "n": n, "test": test},
    }


def _rows(
    group: Sequence[Trajectory], moved: NDArray[np.bool_] | None, config: QualityConfig
) -> Iterator[tuple[str, str, float]]:
    """(start state, measure, value) of one arm on one task."""
    for trajectory in group:
        values = trajectory_measures(trajectory)
        values |= {name: function(trajectory) for name, function in COMPUTED.items()}
        yield from ((trajectory.start_state, name, value) for name, value in values.items())
    starts = [t.start_state for t in group]
    commands = all(t.has_commands for t in group)  # else warping needs a stand-in
    positions = np.stack([100 * consistency.at_phases(t.position, config.phases) for t in group])
    actions = positions
    if commands:
        actions = np.stack([consistency.at_phases(t.actions[:, :6], config.phases) for t in group])
    warped_position, warped_action = consistency.warped_distances(positions, actions)  # cm², 1
    distances = {
        "position_variance": consistency.squared_distances(positions),
        "warped_position_variance": warped_position,
        "action_variance": consistency.squared_distances(actions),
        "warped_action_variance": warped_action,
        "endpoint_variance": 1e4 * consistency.endpoint_distances([t.position for t in group]),
    }
    for name, squared in distances.items():
        if "action" in name and not commands:
            continue
        own, data = consistency.dispersion(squared, starts)
        yield from ((start, name, value) for start, value in zip(np.unique(starts), data))
        if f"own_{name}" in MEASURES:
            yield from ((s, f"own_{name}", value) for s, value in zip(np.unique(starts), own))
    if commands and len(group) > config.neighbours:  # each other trajectory offers one neighbour
        fingers = all(t.opening is not None for t in group)
        given_state = consistency.conditional_action_variance(
            [_state(t, moved, fingers) for t in group],
            [t.actions[t.late :, :6] for t in group],
            config.neighbours,
        )
        yield from zip(starts, ["conditional_action_variance"] * len(group), given_state)
    yield "all", "mode_count", float(consistency.mode_count(warped_position, threshold=5.0))


def _state(trajectory: Trajectory, moved: NDArray[np.bool_] | None, fingers: bool) -> np.ndarray:
    """What a clone sees before each action, in m: gripper, its opening, objects relative to it.

    Before the first action of a trajectory that was seen late it saw what is not stored.
    """
    steps = len(trajectory.actions) - trajectory.late
    parts = [trajectory.position[:steps]]
    if fingers and trajectory.opening is not None:
        parts.append(trajectory.opening[:steps, None])
    if moved is not None and trajectory.objects is not None:
        relative = trajectory.objects[:steps, moved] - trajectory.position[:steps, None]
        parts.append(relative.reshape(steps, -1))
    return np.concatenate(parts, axis=1)


def _moved(trajectories: Sequence[Trajectory]) -> NDArray[np.bool_] | None:
    """(K,) bool, or None where some arm of the task has stored no objects."""
    objects = [t.objects for t in trajectories if t.objects is not None]
    alike = len({o.shape[1] for o in objects}) == 1 and len(objects) == len(trajectories)
    return consistency.moved_objects(objects) if alike else None


def _grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> list[tuple[Any, list[Item]]]:
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return sorted(groups.items(), key=lambda pair: pair[0])


def _record_order(column: pd.Series) -> pd.Series:
    if column.name == "measure":
        return column.map(list(MEASURES).index)
    return column.where(column != "all", "")  # "all" first
