"""Skills of the scripted operator for what is fixed and moves: drawers, doors, knobs.

The joint tells where a handle will go: along a slide's axis, or round a hinge.
"""

import numpy as np
from numpy.linalg import norm

from diffrl.demonstrator.grasps import collisions
from diffrl.demonstrator.motion import CLOSED, DOWN, OPEN, Actions, Operator, turned
from diffrl.demonstrator.things import UP, thin_direction, travel
from diffrl.demonstrator.workspace import Workspace

STEEP = 65.0  # degrees from the vertical at which a hand takes a handle; less slips off
LEVEL = 80.0  # where a steep hand would touch the handle above


class _Leaf:
    """A drawer or door on its way to `threshold` [m or rad]."""

    def __init__(self, see: Workspace, name: str, threshold: float):
        self.see, self.joint, self.threshold = see, see.joint_of(name), threshold
        self.sign = np.sign(threshold - see.joint(self.joint))
        self.slides = see.slides(self.joint)

    def there(self) -> bool:
        """Whether the joint is beyond the threshold."""
        return bool(self.sign * (self.see.joint(self.joint) - self.threshold) > 0)

    def points(self) -> np.ndarray:
        """Its surface, (p, 3)."""
        return self.see.body_points(int(self.see.model.jnt_bodyid[self.joint]))

    def way(self) -> np.ndarray:
        """Unit vector along which its free edge moves towards the threshold now."""
        axis, anchor = self.see.joint_frame(self.joint)
        if self.slides:
            return axis * self.sign
        arm = self._edge().mean(axis=0) - anchor
        way = np.cross(axis, arm) * self.sign
        return way / norm(way)

    def _edge(self) -> np.ndarray:
        """All of a drawer; of a door the part farthest from its hinge."""
        points = self.points()
        if self.slides:
            return points
        axis, anchor = self.see.joint_frame(self.joint)
        arm = points - anchor
        distance = norm(arm - (arm @ axis)[:, None] * axis, axis=1)
        return points[distance > distance.max() - 0.04]

    def outermost(self, out: np.ndarray) -> np.ndarray:
        """Middle of the part that lies farthest in direction `out`: its handle, or its back."""
        points = self._edge()
        far = points @ out
        tip = points[far > far.max() - 0.016]
        return (tip.max(axis=0) + tip.min(axis=0)) / 2


def pull(op: Operator, name: str, threshold: float) -> Actions:
    """Pinch the handle of a drawer or door and pull until its joint is beyond `threshold`."""
    see, leaf = op.see, _Leaf(op.see, name, threshold)
    tilt = _tilt(leaf) if leaf.slides else LEVEL

    def hand() -> np.ndarray:
        return facing(-leaf.way(), tilt, sideways=not leaf.slides)

    def handle(ahead: float = 0.0, deep: float = 0.0) -> np.ndarray:
        return leaf.outermost(leaf.way()) + ahead * leaf.way() + deep * hand()[:, 2]

    aim = op.misjudge(0.3)
    yield from op.grip(OPEN, 0)
    yield from travel(op, lambda: handle(deep=-0.10) + aim, hand())
    yield from op.go(
        lambda: handle(deep=0.008) + aim, hand(), careful=True, tolerance=0.006, steps=60
    )
    yield from op.grip(CLOSED, 8)
    yield from op.go(lambda: handle(ahead=0.05), hand, steps=150, until=leaf.there)
    yield from op.grip(OPEN, 4)
    away = see.eef_pos - 0.05 * hand()[:, 2] + 0.02 * UP
    yield from op.go(away, hand(), tolerance=0.02, steps=30)


def _tilt(leaf: _Leaf) -> float:
    """Tilt of a hand at the handle that touches neither the cabinet nor other handles."""
    see, out = leaf.see, leaf.way()
    own = int(see.model.jnt_bodyid[leaf.joint])
    root = int(see.model.body_rootid[own])
    rest = np.concatenate([see.body_points(b) for b in see.subtree(root) if b != own])
    hits = collisions(rest, leaf.outermost(out), facing(-out, STEEP))
    return LEVEL if hits else STEEP


def push(op: Operator, name: str, threshold: float) -> Actions:
    """Push a drawer's front or a door's edge until its joint is beyond `threshold`."""
    see, leaf = op.see, _Leaf(op.see, name, threshold)
    hand = facing(leaf.way(), 35, sideways=True) if leaf.slides else see.hand
    yield from op.grip(CLOSED, 0)

    def front(ahead: float) -> np.ndarray:
        place = leaf.outermost(-leaf.way()) + ahead * leaf.way()
        if not leaf.slides:  # with the palm over a door's upper edge
            place[2] = leaf.points()[:, 2].max() - 0.02
        return place

    yield from travel(op, lambda: front(-0.08), hand)
    yield from op.go(lambda: front(0.05), hand, steps=150, until=leaf.there)
    yield from op.go(see.eef_pos - 0.08 * leaf.way(), hand, tolerance=0.02, steps=30)


def turn_knob(op: Operator, name: str, threshold: float) -> Actions:
    """Take a knob's ridge from above and turn the wrist until its joint is beyond `threshold`."""
    see, joint = op.see, op.see.joint_of(name)
    sign = np.sign(threshold - see.joint(joint))
    ridge = see.body_points(int(see.model.jnt_bodyid[joint]))
    top = ridge[:, 2].max()
    ridge = ridge[ridge[:, 2] > top - 0.012]
    centre = (ridge.max(axis=0) + ridge.min(axis=0)) / 2
    place = np.array([centre[0], centre[1], top - 0.015]) + op.misjudge(0.5)
    yaw = thin_direction(ridge)
    yield from op.grip(OPEN, 0)
    yield from travel(op, lambda: place + 0.06 * UP, turned(yaw))
    yield from op.go(place, turned(yaw), careful=True, tolerance=0.008, steps=50)
    yield from op.grip(CLOSED, 8)
    for step in range(1, 12):
        yield from op.go(place, turned(yaw + sign * 0.2 * step), tolerance=0.01, steps=10)
        if sign * (see.joint(joint) - threshold) > 0.05:
            break
    yield from op.grip(OPEN, 5)
    yield from op.go(see.eef_pos + 0.08 * UP, None, tolerance=0.02, steps=25)


def facing(direction: np.ndarray, tilt: float, sideways: bool = False) -> np.ndarray:
    """A hand that points down and `tilt` degrees towards the horizontal `direction`.

    The fingers open in the vertical plane of `direction`, or sideways, across it.
    """
    angle = np.deg2rad(tilt)
    pointing = np.sin(angle) * direction - np.cos(angle) * UP
    across = np.cross(pointing, direction)
    across = across / norm(across)
    opening = across if sideways else np.cross(pointing, across)
    x = np.cross(opening, pointing)
    hand = np.stack([x, opening, pointing], axis=1)
    if (hand * DOWN).sum() < (hand * [-1, -1, 1] * DOWN).sum():  # the fingers are alike
        hand = hand * [-1, -1, 1]
    return hand
