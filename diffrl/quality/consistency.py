"""Measures across trajectories of one task: how much they differ, overall and given the state.

Dispersion is a mean over pairs, ½ E|x_i - x_j|² = variance, so one matrix of squared distances
serves every notion of "the same moment" and keeps two questions apart: pairs with the same start
state show the policy's own variance, pairs with different ones the variance of the data.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from diffrl.base.errors import UserError
from diffrl.base.jit import njit

Floats = NDArray[np.floating]


def at_phases(values: Floats, phases: int) -> Floats:
    """Resample at equal shares of the duration, linearly: (T, d) → (phases, d)."""
    values = np.asarray(values, float)
    at = np.linspace(0, len(values) - 1, phases)
    low = np.minimum(at.astype(int), len(values) - 2)
    between: Floats = values[low] + (at - low)[:, None] * (values[low + 1] - values[low])
    return between


def squared_distances(profiles: Floats) -> Floats:
    """Mean over phases of |x_i - x_j|²: profiles (n, phases, d) → (n, n), in unit²."""
    flat = profiles.reshape(len(profiles), -1)
    pairs: Floats = squareform(pdist(flat, "sqeuclidean")) / profiles.shape[1]
    return pairs  # of equal ones exactly 0


@njit()
def _squared(first: Floats, second: Floats) -> float:
    total = 0.0
    for k in range(len(first)):
        total += (first[k] - second[k]) ** 2
    return total


@njit()
def _warp(
    first: Floats, second: Floats, first_action: Floats, second_action: Floats, cost: Floats
) -> tuple[float, float]:
    """Squared position and action distance of two paths, mean over their optimal alignment."""
    n, m = len(first), len(second)
    cost[:, 0], cost[0, :] = np.inf, np.inf
    cost[0, 0] = 0.0
    for i in range(n):
        for j in range(m):
            best = min(cost[i, j], cost[i, j + 1], cost[i + 1, j])
            cost[i + 1, j + 1] = best + _squared(first[i], second[j])
    i, j, steps, position, action = n, m, 0, 0.0, 0.0
    while i > 0 and j > 0:
        position += _squared(first[i - 1], second[j - 1])
        action += _squared(first_action[i - 1], second_action[j - 1])
        steps += 1
        diagonal, up, left = cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]
        if diagonal <= up and diagonal <= left:
            i, j = i - 1, j - 1
        elif up <= left:
            i -= 1
        else:
            j -= 1
    return position / steps, action / steps


@njit()
def warped_distances(positions: Floats, actions: Floats) -> tuple[Floats, Floats]:
    """Squared distances after dynamic time warping on position (Sakoe & Chiba 1978), all pairs.

    positions (n, phases, 3) m, actions (n, phases, d) → two (n, n): m², action unit². Each is the
    mean over the alignment that minimises the summed squared position distance.
    """
    n, phases = positions.shape[:2]
    by_position, by_action = np.zeros((n, n)), np.zeros((n, n))
    cost = np.empty((phases + 1, phases + 1))
    for i in range(n):
        for j in range(i + 1, n):
            p, a = _warp(positions[i], positions[j], actions[i], actions[j], cost)
            by_position[i, j] = by_position[j, i] = p
            by_action[i, j] = by_action[j, i] = a
    return by_position, by_action


def dispersion(squared: Floats, start_states: Sequence[str]) -> tuple[Floats, Floats]:
    """Variance within and between start states, as one value per start state.

    squared (n, n) squared distances, start_states (n,) labels. Returns two (g,) arrays in the order
    of the sorted labels: `own`, the variance among repeats of that start state (NaN without), and
    `data`, jackknife pseudo-values whose mean is the variance over pairs of different start states
    (Miller 1974) – so both go straight into a bootstrap. Raises UserError for one trajectory.
    """
    n = len(squared)
    if n < 2:
        raise UserError(
            "Consistency compares trajectories, and here is only one: give more demonstrations of "
            "the same task (`trajectory_measures` measures a single one)."
        )
    labels, group = np.unique(np.asarray(start_states), return_inverse=True)
    member = (group[:, None] == np.arange(len(labels))).astype(float)  # (n, g)
    count = member.sum(axis=0)
    sums = member.T @ squared @ member  # (g, g) over ordered pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        own = 0.5 * np.diag(sums) / np.where(count > 1, count * (count - 1), np.nan)
    return own, _pseudo_values(0.5 * sums / np.outer(count, count))


def _pseudo_values(between: Floats) -> Floats:
    """Jackknife pseudo-values of the mean off-diagonal entry of a symmetric (g, g) matrix.

    Two rows have one pair, which is one value: the second is NaN, as all are of a single row.
    """
    g = len(between)
    if g < 2:
        return np.full(g, np.nan)
    row = (between.sum(axis=1) - np.diag(between)) / (g - 1)
    mean = row.mean()
    if g == 2:
        return np.array([mean, np.nan])
    without: Floats = (g * mean - 2 * row) / (g - 2)
    values: Floats = g * mean - (g - 1) * without
    return values


@njit()
def _nearest_step_of_each(
    own: Floats, points: Floats, starts: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """Which step of each trajectory lies nearest to each of `own`; the first of equal ones.

    own (T, s), points (N, s) of n trajectories that begin at rows starts[:-1] (n + 1,). Returns
    squared distances (T, n) and rows of points (T, n).
    """
    steps, others = len(own), len(starts) - 1
    distance, nearest = np.zeros((steps, others)), np.zeros((steps, others), np.int64)
    for j in range(others):
        row = starts[j]
        for t in range(steps):
            best = _squared(own[t], points[row])  # the step before was near it: most end early
            for other in range(starts[j], starts[j + 1]):
                total = 0.0
                for k in range(points.shape[1]):
                    total += (own[t, k] - points[other, k]) ** 2
                    if total > best:
                        break
                if total < best or (total == best and other < row):
                    best, row = total, other
            distance[t, j], nearest[t, j] = best, row
    return distance, nearest


def conditional_action_variance(
    states: Sequence[Floats], actions: Sequence[Floats], neighbours: int = 10
) -> Floats:
    """Variance of the action among the nearest states of *other* trajectories: what a clone faces.

    states: n arrays (T_i, s), one unit (m) in all columns; actions: n arrays (T_i, d). Each other
    trajectory offers its nearest step and no second one: consecutive steps of one that dwells there
    are no independent witnesses. Of these the `neighbours` nearest give the summed variance of d
    actions; returns its mean per trajectory (n,), action unit² (our choice). Raises UserError if
    there are fewer than `neighbours` other trajectories.
    """
    if len(states) - 1 < neighbours:
        raise UserError(
            f"{neighbours} neighbours were asked for, one of each other trajectory, and there are "
            f"only {len(states) - 1} others: give more demonstrations or fewer neighbours."
        )
    ends = np.cumsum([len(s) for s in states])
    points, commands = np.concatenate(states), np.concatenate(actions)
    result = np.full(len(states), np.nan)
    for i, own in enumerate(states if neighbours > 1 else ()):
        kept = np.ones(len(points), bool)
        kept[ends[i] - len(own) : ends[i]] = False
        starts = np.r_[0, np.cumsum([len(s) for j, s in enumerate(states) if j != i])]
        distance, nearest = _nearest_step_of_each(np.asarray(own, float), points[kept], starts)
        closest = np.argsort(distance, axis=1, kind="stable")[:, :neighbours]
        rows = np.take_along_axis(nearest, closest, axis=1)
        found = commands[kept][rows]  # (T_i, k, d)
        result[i] = found.var(axis=1, ddof=1).sum(axis=1).mean()
    return result


def endpoint_distances(positions: Sequence[Floats]) -> Floats:
    """Squared distance between the last positions: n arrays (T_i, 3) m → (n, n) m²."""
    ends = np.stack([p[-1] for p in positions])
    return squared_distances(ends[:, None])


def mode_count(squared: Floats, threshold: float = 0.05, share: float = 0.05) -> int:
    """How many ways there are: clusters of paths more than `threshold` (m RMS, our choice) apart.

    squared (n, n) m², best after time warping, so that another timing is not another way. Average
    linkage; only clusters with at least two paths and `share` of all count, so 0 says that the
    paths are too scattered to have ways in common.
    """
    distances = squareform(np.sqrt(squared), checks=False)
    labels = fcluster(linkage(distances, "average"), threshold, "distance")
    return int(np.sum(np.bincount(labels) >= max(2, share * len(squared))))


def moved_objects(objects: Sequence[Floats], distance: float = 0.05) -> NDArray[np.bool_]:
    """Which objects a task moves: n arrays (T_i, K, 3) m → (K,) bool.

    True where the object ends more than `distance` (m) from its start in most trajectories. The
    objects that only stand by would otherwise decide which states are near each other.
    """
    travelled = np.stack([np.linalg.norm(o[-1] - o[0], axis=-1) for o in objects])  # (n, K)
    moved: NDArray[np.bool_] = np.median(travelled, axis=0) > distance
    return moved
