"""Skills of the scripted operator for places that a thing does not reach upright from above.

Under a roof the thing goes in and the hand stays out. A hand that takes a thing from above at its
top leans until it points into the opening; then the thing's foot leads and only that has to go in.
What is too tall for a drawer leans and is let fall.
"""

import numpy as np
from numpy.linalg import norm

from diffrl.demonstrator.grasps import collisions
from diffrl.demonstrator.joints import facing
from diffrl.demonstrator.motion import DOWN, OPEN, Actions, Operator
from diffrl.demonstrator.things import UP, Lost, exposed, take, travel
from diffrl.demonstrator.workspace import Workspace

# Degrees from the vertical, and whether the fingers are side by side. A level hand is out of the
# way; where it would hold the thing too high, a steeper one lays its broad side flat.
LEANS = ((80.0, True), (55.0, False))
AHEAD = 0.12  # m before the region's near side, where the hand lines up
INSIDE = 0.085  # m beyond it: as far as a palm before a microwave lets the fingers get
SHIFTS = (0.0, 0.015, -0.015, 0.03, -0.03, 0.045, -0.045, 0.06, -0.06)  # m off the region's middle
FALL = 60.0  # degrees from the vertical at which what is let go falls flat
CLEAR = 0.012  # m over the floor on the way in
MARGIN = 0.005  # m that a thing's origin keeps from the region's upper side


def insert(op: Operator, name: str, target: str) -> Actions:
    """Take a thing, bring it through the opening of `target` with its foot ahead, and let go."""
    see, into = op.see, opening(op.see, target)
    yield from take(op, name)
    entry = _Entry(see, name, target, into)
    hand, shift = entry.choose()

    def place(depth: float) -> np.ndarray:
        return entry.place(hand, shift, depth)

    yield from travel(op, lambda: place(-AHEAD), hand, held=name)
    held = hand.T @ (see.position(name) - see.eef_pos)
    yield from op.go(lambda: place(-AHEAD), hand, tolerance=0.015, steps=60)
    if norm(hand.T @ (see.position(name) - see.eef_pos) - held) > 0.04:
        raise Lost(f"{name} slipped out of the hand")
    yield from op.go(lambda: place(INSIDE), hand, careful=True, tolerance=0.008, steps=90)
    yield from op.grip(OPEN, 6)
    yield from op.go(see.eef_pos - 2 * CLEAR * UP, hand, careful=True, steps=15)
    yield from op.go(see.eef_pos - 0.12 * into, hand, tolerance=0.03, steps=50)
    yield from op.go(see.eef_pos - 0.05 * into + 0.1 * UP, DOWN, tolerance=0.03, steps=50)


def is_too_tall(see: Workspace, name: str, drawer: str) -> bool:
    """Whether the origin of a thing that stands in a drawer is above the drawer's region."""
    _, half = see.region(drawer)
    height = see.position(name)[2] - see.points(name)[:, 2].min()
    return bool(height > 2 * half[2])


def lay(op: Operator, name: str, drawer: str) -> Actions:
    """Take a tall thing, lean it along an open drawer and let it fall flat there."""
    see = op.see
    yield from take(op, name)
    centre, half = see.region(drawer)
    along = np.eye(3)[int(half[1] > half[0])]
    hand = facing(along * np.sign((centre - see.base) @ along), FALL, sideways=True)
    own = (see.points(name) - see.eef_pos) @ (hand @ see.hand.T).T
    lowest, middle = own[:, 2].min(), (own.max(axis=0) + own.min(axis=0)) / 2
    place = exposed(see, drawer) - middle
    place[2] = centre[2] - half[2] + 2 * CLEAR - lowest
    yield from travel(op, lambda: place + 0.03 * UP, hand, held=name)
    yield from op.go(place, hand, careful=True, tolerance=0.008, steps=40)
    yield from op.grip(OPEN, 5)
    yield from op.go(see.eef_pos + 0.1 * UP, DOWN, tolerance=0.03, steps=40)


def _walls(see: Workspace, target: str) -> np.ndarray:
    """Points (p, 3) of the fixture that a region belongs to, its doors left out."""
    owner = see.scene.body_id(see.owner(target))
    fixed = [body for body in see.subtree(owner) if not see.model.body_jntnum[body]]
    return np.concatenate([see.body_points(body) for body in fixed])


def room(see: Workspace, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds (3,) of the free space round a region's centre; infinite if none.

    A fixture without a floor of its own stands on one.
    """
    centre, half = see.region(target)
    points = _walls(see, target)
    low, high = np.full(3, -np.inf), np.full(3, np.inf)
    for axis in range(3):
        along = points[_beside(points - centre, half, axis), axis]
        low[axis] = along[along < centre[axis]].max(initial=-np.inf)
        high[axis] = along[along > centre[axis]].min(initial=np.inf)
    low[2] = max(low[2], points[:, 2].min())
    return low, high


def opening(see: Workspace, target: str) -> np.ndarray:
    """Horizontal unit vector that leads into a covered region: from its side without a wall."""
    centre, half = see.region(target)
    offset = _walls(see, target) - centre
    found = []
    for axis in (0, 1):
        along = offset[_beside(offset, half, axis), axis]
        for sign in (1.0, -1.0):
            found.append((int((-sign * along > half[axis]).sum()), axis, sign))
    _, axis, sign = min(found)
    return sign * np.eye(3)[axis]


def _beside(offset: np.ndarray, half: np.ndarray, axis: int) -> np.ndarray:
    """Which points lie on the lines along `axis` through the middle of a region."""
    return np.delete(np.abs(offset) < 0.5 * half, axis, axis=1).all(axis=1)


class _Entry:
    """A thing in the hand before an opening: where the hand is to go, and what would be touched."""

    def __init__(self, see: Workspace, name: str, target: str, into: np.ndarray):
        self.hand, self.into, self.trouble = see.hand, into, f"{name} is too high for {target}"
        self.centre, self.half = see.region(target)
        self.low, self.high = room(see, target)
        self.own, self.origin = see.points(name) - see.eef_pos, see.position(name) - see.eef_pos
        others = [see.points(other) for other in see.things if other != name]
        self.others = np.concatenate(others)
        owner = see.owner(target)
        loose = [see.points(other) for other in see.things if other not in (name, owner)]
        self.loose = np.concatenate([np.zeros((0, 3)), *loose])

    def place(self, hand: np.ndarray, shift: float, depth: float) -> np.ndarray:
        """The hand that holds the thing's origin `depth` beyond the region's near side."""
        turn = hand @ self.hand.T
        aside = shift * np.array([abs(self.into[1]), abs(self.into[0]), 0])
        reach = np.abs(self.into) @ self.half
        goal = self.centre + self.into * (depth - reach) + aside - turn @ self.origin
        lowest = (self.own @ turn.T)[:, 2].min()
        return np.array([goal[0], goal[1], self.low[2] + CLEAR - lowest])

    def choose(self) -> tuple[np.ndarray, float]:
        """The hand that touches least, and how far aside of the region's middle it goes in."""
        for tilt, sideways in LEANS:
            leaning = facing(self.into, tilt, sideways)
            hands = [leaning, leaning * [-1, -1, 1]] if sideways else [leaning]
            lead = hands[0] @ self.hand.T @ self.origin
            height = self.place(hands[0], 0, 0)[2] + lead[2]
            if height < self.centre[2] + self.half[2] - MARGIN:
                ways = [(hand, shift) for shift in SHIFTS for hand in hands]
                return min(ways, key=lambda way: self._hits(*way))
        raise Lost(self.trouble)

    def _hits(self, hand: np.ndarray, shift: float) -> int:
        """Points inside the hand or, on its way, inside the thing; its own beside the opening."""
        start, end = (self.place(hand, shift, depth) for depth in (-AHEAD, INSIDE))
        own = self.own @ (hand @ self.hand.T).T
        axis = int(self.into[1] == 0)
        across = own[:, axis] + end[axis]
        beside = (across < self.low[axis]) | (across > self.high[axis])
        first = np.minimum(start, end) + own.min(axis=0)
        last = np.maximum(start, end) + own.max(axis=0)
        swept = ((self.loose > first) & (self.loose < last)).all(axis=1)
        touched = sum(collisions(self.others, at, hand) for at in (start, end))
        return touched + int(beside.sum()) + int(swept.sum())
