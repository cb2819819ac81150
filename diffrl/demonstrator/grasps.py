"""Where to take hold of a thing: grasps read off its collision shape.

Compact things are taken between the fingers from above; hollow ones (bowls, mugs, ramekins) at
the rim, one finger inside; long ones (a pan) by the slender end. Geometry of the Panda hand,
measured on robosuite's model.
"""

from dataclasses import dataclass

import numpy as np

from diffrl.demonstrator.motion import turned

WIDEST = 0.070  # m; the fingers open 0.080
TIP = 0.010  # m, finger tips below the point between them that poses refer to
PALM = 0.030  # m, palm above that point
REACH = 0.74  # m from the robot's foot; the elbow is straight at about 0.80
YAWS = np.deg2rad(np.arange(-90, 91, 7.5))
BAND = 0.012  # m, half height of the slice that the fingers touch


@dataclass(frozen=True)
class Grasp:
    """A hand pose: `offset` (3,) from the thing's origin, world axes; `hand` (3, 3)."""

    kind: str
    offset: np.ndarray
    hand: np.ndarray
    width: float
    cost: float = 0.0


def find_grasps(
    points: np.ndarray,
    origin: np.ndarray,
    obstacles: np.ndarray,
    hand: np.ndarray,
    base: np.ndarray,
) -> list[Grasp]:
    """Return the grasps of a thing, best first.

    Args:
        points: (p, 3) its surface, world. origin: (3,) of its body.
        obstacles: (q, 3) the surface of everything near it.
        hand: (3, 3) the hand as it is now; turning it costs.
        base: (3,) the robot's foot; beyond `REACH` from it the arm is straight and stiff.
    """
    found = [*_across(points), *_at_rim(points)] or list(_at_slender_end(points))
    rated = []
    for grasp in found:
        away = abs(_yaw_between(hand, grasp.hand))
        hits = collisions(obstacles, grasp.offset, grasp.hand)
        edge = 0.6 * grasp.width  # fingers that stand square to a box close best
        stretch = max(0.0, float(np.linalg.norm((grasp.offset - base)[:2])) - REACH)
        cost = grasp.cost + stretch + 0.03 * away + 0.02 * hits + edge
        rated.append(Grasp(grasp.kind, grasp.offset - origin, grasp.hand, grasp.width, cost))
    return sorted(rated, key=lambda grasp: grasp.cost)


def _height(points: np.ndarray, deep: float) -> float:
    bottom, top = points[:, 2].min(), points[:, 2].max()
    return max(bottom + TIP + 0.003, top - deep)


def _across(points: np.ndarray):
    """Fingers on both sides of the middle."""
    z = _height(points, 0.024)
    band = points[np.abs(points[:, 2] - z) <= BAND + 0.001]
    for yaw in YAWS if len(band) else ():
        along, across = _axes(yaw)
        u, v = band @ across, band @ along
        width = np.ptp(u)
        if width <= WIDEST:
            centre = across * (u.max() + u.min()) / 2 + along * (v.max() + v.min()) / 2
            yield Grasp("across", _at(centre, z), turned(yaw), width)


def _at_rim(points: np.ndarray):
    """One finger inside a hollow thing, the other outside; deep holds best, shallow fits more."""
    centre = (points.max(axis=0) + points.min(axis=0)) / 2 * [1, 1, 0]
    for deep, cost in ((0.031, 0.005), (0.019, 0.025)):
        z = _height(points, deep)
        band = points[(points[:, 2] > z - 0.008) & (points[:, 2] <= z + BAND)]
        for yaw in np.concatenate([YAWS[1:], YAWS[1:] + np.pi]):
            along, across = _axes(yaw)
            u, v = (band - centre) @ across, (band - centre) @ along
            wall = u[(np.abs(v) < 0.012) & (u > 0)]
            if len(wall) and wall.min() > 0.02 and np.ptp(wall) < 0.03:
                place = _at(centre + across * (wall.max() + wall.min()) / 2, z)
                yield Grasp("rim", place, turned(half_turn(yaw)), np.ptp(wall), cost)


def _at_slender_end(points: np.ndarray):
    """Fingers across whatever slice is narrow enough, far from the middle if need be."""
    centre = (points.max(axis=0) + points.min(axis=0)) / 2
    for yaw in YAWS:
        along, across = _axes(yaw)
        v = points @ along
        for part in (0.15, 0.3, 0.7, 0.85):
            middle = v.min() + part * np.ptp(v)
            piece = points[np.abs(v - middle) < 0.015]
            if len(piece) and np.ptp(piece @ across) <= WIDEST:
                u = piece @ across
                place = across * (u.max() + u.min()) / 2 + along * middle
                place = _at(place, _height(piece, 0.024))
                far = float(np.linalg.norm((place - centre)[:2]))
                yield Grasp("end", place, turned(yaw), float(np.ptp(u)), 0.02 + 0.1 * far)


def _at(place: np.ndarray, z: float) -> np.ndarray:
    return np.array([place[0], place[1], z])


def _axes(yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along the fingers' broad side and across (the opening), for a hand at `yaw`."""
    along = np.array([np.cos(yaw), np.sin(yaw), 0])
    return along, np.array([-np.sin(yaw), np.cos(yaw), 0])


def half_turn(yaw: float) -> float:
    """The same grasp with |yaw| <= 90°: the two fingers are alike."""
    return float((yaw + np.pi / 2) % np.pi - np.pi / 2)


def _yaw_between(a: np.ndarray, b: np.ndarray) -> float:
    x = a.T @ b[:, 0]
    return float(np.arctan2(x[1], x[0]))


def collisions(obstacles: np.ndarray, place: np.ndarray, hand: np.ndarray) -> int:
    """Number of obstacle points inside the open fingers or the palm of a hand at `place`."""
    local = (obstacles - place) @ hand
    x, y = np.abs(local[:, :2]).T
    z = local[:, 2]
    fingers = (x < 0.016) & (y > 0.03) & (y < 0.07) & (z < TIP) & (z > -PALM)
    palm = (x < 0.035) & (y < 0.105) & (z <= -PALM) & (z > -0.30)  # on its way down, too
    return int(np.count_nonzero(fingers | palm))
