"""Skills of the scripted operator for things: take, put, push along.

Each skill is a generator of actions (see `motion`). What cannot go on raises `Lost`; the operator
then starts over from where things are now.
"""

import numpy as np
from numpy.linalg import norm

from diffrl.demonstrator.grasps import Grasp, find_grasps, half_turn
from diffrl.demonstrator.motion import CLOSED, DOWN, OPEN, Actions, Operator, turned
from diffrl.demonstrator.workspace import Workspace

PRESS = 0.012  # m above the table's level: finger tips press on a plate's floor
CLOSING_STEPS = 13  # fewer leave a bowl's rim loose in the fingers
UP = np.array([0.0, 0.0, 1.0])


class Lost(Exception):
    """The skill does not see how to go on."""


# ---- take and put ----------------------------------------------------------------------------


def take(op: Operator, name: str, tries: int = 4) -> Actions:
    """Grasp `name` and lift it a little; look again and retry when it stays behind."""
    for attempt in range(tries):
        grasp = _choose(op, name, attempt)
        error = op.misjudge(0.5**attempt)

        def place(height: float = 0.0, grasp: Grasp = grasp, error: np.ndarray = error):
            return op.see.position(name) + grasp.offset + error + height * UP

        yield from op.grip(OPEN, 0)
        yield from travel(op, lambda: place(0.06), grasp.hand)
        yield from op.go(place, grasp.hand, careful=True, tolerance=0.006, steps=50)
        before = op.see.position(name)
        yield from op.grip(CLOSED, CLOSING_STEPS)
        yield from op.go(op.see.eef_pos + 0.06 * UP, grasp.hand, tolerance=0.02, steps=20)
        if op.see.position(name)[2] - before[2] > 0.015:
            return
        yield from op.grip(OPEN, 4)
    raise Lost(f"{name} stays behind")


def _choose(op: Operator, name: str, attempt: int) -> Grasp:
    see = op.see
    points, origin = see.points(name), see.position(name)
    near = [see.points(other) for other in see.things if other != name]
    obstacles = np.concatenate(near) if near else np.zeros((0, 3))
    close = norm((obstacles - origin)[:, :2], axis=1) < 0.25
    grasps = find_grasps(points, origin, obstacles[close], see.hand, see.base)
    if not grasps:
        raise Lost(f"{name} has no side that the fingers can take")
    return grasps[min(attempt // 2, len(grasps) - 1)]


def travel(
    op: Operator, where, hand: np.ndarray, held: str | None = None, near: float = 0.03
) -> Actions:
    """Go up, over everything in the way, and down to `where()` once within `near` of its place."""
    see, end = op.see, where()
    if held:
        yield from _get_out(op, held)
    clear = _highest(see, see.eef_pos, end, held) + op.manner.carry

    def top() -> float:
        """Height of the finger tips: what they hold may hang and swing."""
        depth = see.eef_pos[2] - see.points(held)[:, 2].min() if held else 0.01
        return max(clear + depth, end[2])

    if see.eef_pos[2] < top() - 0.03:
        here = see.eef_pos
        yield from op.go(lambda: _level(here, top()), None, tolerance=0.015 if held else 0.03)
    yield from op.go(lambda: _level(where(), top()), hand, tolerance=near, steps=120, detour=True)
    if top() > end[2] + 0.03:
        yield from op.go(where, hand, tolerance=0.02)


def _get_out(op: Operator, held: str) -> Actions:
    """Move sideways from under whatever hangs over the thing in the hand."""
    see = op.see
    above = np.concatenate([see.points(name) for name in see.things if name != held])
    for _ in range(10):
        own = see.points(held)
        middle = own.mean(axis=0)
        radius = np.ptp(own, axis=0)[:2].max() / 2 + 0.02
        offset = (above - middle)[:, :2]
        over = (norm(offset, axis=1) < radius) & (above[:, 2] > own[:, 2].max())
        if not over.any():
            return
        away = -offset[over].mean(axis=0)
        step = 0.04 * away / max(float(norm(away)), 1e-6)
        yield from op.go(see.eef_pos + np.array([*step, 0]), None, tolerance=0.015, steps=12)


def _level(place: np.ndarray, z: float) -> np.ndarray:
    return np.array([place[0], place[1], z])


def _highest(see: Workspace, start: np.ndarray, end: np.ndarray, held: str | None) -> float:
    """Height of what lies within a hand's breadth of the straight way."""
    points = np.concatenate([see.points(name) for name in see.things if name != held])
    way = (end - start)[:2]
    along = np.clip((points - start)[:, :2] @ way / max(way @ way, 1e-9), 0, 1)
    near = norm((points - start)[:, :2] - along[:, None] * way, axis=1) < 0.09
    return points[near, 2].max(initial=min(start[2], end[2]) - 0.1)


def put(op: Operator, name: str, target: str, shift: float = 0.0) -> Actions:
    """Carry what the hand holds over `target`, lower and release it.

    `shift` [m] moves the place along the thing's thin side, to leave room for another.
    """
    see = op.see
    turn = _alignment(see, name, target)
    hand = turn @ see.hand
    held = see.points(name)
    on_edge = _stands_on_edge(held)
    middle = (held.max(axis=0) + held.min(axis=0)) / 2 if on_edge else see.position(name)
    offset = turn @ (middle - see.eef_pos)  # what has to come over the target
    grip = turn @ (see.position(name) - see.eef_pos)
    depth = see.eef_pos[2] - held[:, 2].min()
    place, height = _destination(see, name, target)
    aim = op.misjudge() + shift * turned(thin_direction(held))[:, 1]

    def above(z: float):
        return lambda: _level(place() - offset + aim, z + depth)

    near = 0.006 if on_edge else 0.03
    yield from travel(op, above(height + 0.03), hand, held=name, near=near)
    _check_held(op, name, grip)
    yield from op.go(above(height), hand, careful=True, tolerance=0.008, steps=40)
    yield from op.grip(OPEN, 5)
    yield from op.go(op.see.eef_pos + 0.08 * UP, None, tolerance=0.02, steps=25)


def _stands_on_edge(points: np.ndarray) -> bool:
    """Whether a thing is a book: thin, longer than wide, and upright."""
    along, across, _ = turned(thin_direction(points)).T
    return bool(np.ptp(points @ along) > 0.08 and np.ptp(points @ across) < 0.045)


def _alignment(see: Workspace, name: str, target: str) -> np.ndarray:
    """Turn about the vertical that lines a book up with a narrow compartment, (3, 3)."""
    points = see.points(name)
    if not see.is_region(target) or not _stands_on_edge(points):
        return np.eye(3)
    _, half = see.region(target)
    slot = np.pi / 2 if half[0] < half[1] else 0.0
    wide = abs(half[0] - half[1]) < 0.01  # a square one takes it as it is
    angle = 0.0 if wide else half_turn(slot - thin_direction(points))
    return turned(angle) @ DOWN


def _check_held(op: Operator, name: str, offset: np.ndarray) -> None:
    if norm(op.see.position(name) - op.see.eef_pos - offset) > 0.04:
        raise Lost(f"{name} slipped out of the hand")


def _destination(see: Workspace, name: str, target: str):
    """Where the thing is to go (a function) and the height of its lowest point there."""
    if not see.is_region(target):
        heights = see.points(target)[:, 2]
        into = 0.012 if np.ptp(heights) > 0.03 else 0.0  # bowls take things in, plates do not
        return lambda: see.position(target), heights.max() + 0.008 - into
    centre, half = see.region(target)
    owner = see.owner(target)

    def place() -> np.ndarray:
        return see.region(target)[0]

    if owner is None:  # a piece of the table
        return place, centre[2] + 0.025
    if see.has_joint(target):
        free = exposed(see, target)
        return lambda: free, centre[2] + 0.02
    points = see.points(owner)
    if target.endswith("contain_region"):
        on_edge = _stands_on_edge(see.points(name))
        return place, centre[2] - half[2] + 0.03 if on_edge else points[:, 2].max() - 0.02
    inside = (np.abs(points - centre)[:, :2] < half[:2] * 0.9).all(axis=1)
    below = points[inside & (points[:, 2] < centre[2] + 0.05), 2]
    return place, below.max(initial=centre[2]) + 0.01


def is_covered(see: Workspace, target: str) -> bool:
    """Whether a region lies under a roof: in a microwave, between the boards of a shelf."""
    owner = see.owner(target) if see.is_region(target) else None
    if owner is None:
        return False
    centre, half = see.region(target)
    offset = see.points(owner) - centre
    middle = (np.abs(offset[:, :2]) < 0.6 * half[:2]).all(axis=1)
    return bool((middle & (offset[:, 2] > 0.03)).any())


def is_flat(see: Workspace, name: str) -> bool:
    """Whether a thing is too flat and wide to be lifted."""
    x, y, z = np.ptp(see.points(name), axis=0)
    return bool(min(x, y) > 0.08 and z < 0.025)


def push_along(op: Operator, name: str, target: str) -> Actions:
    """Push a flat thing over the table to `target` with closed fingers inside its rim."""
    see = op.see
    goal, _ = _destination(see, name, target)
    height = see.points(name)[:, 2].min() + PRESS
    aim = op.misjudge(0.5)

    def way() -> np.ndarray:
        return _level(goal() - see.position(name), 0)

    def ahead(lead: float) -> np.ndarray:
        """`lead` metres beyond the thing's middle, on the line to the goal."""
        return _level(see.position(name) + way() / norm(way()) * lead, height)

    hand = turned(half_turn(np.arctan2(way()[1], way()[0])))
    yield from op.grip(CLOSED, 0)
    yield from travel(op, lambda: ahead(0.02) + aim + 0.06 * UP, hand)
    yield from op.go(lambda: ahead(0.02) + aim, hand, careful=True, steps=50)
    yield from op.go(
        lambda: ahead(0.08), hand, careful=True, steps=120, until=lambda: bool(norm(way()) < 0.012)
    )
    yield from op.go(see.eef_pos + 0.08 * UP, None, tolerance=0.02, steps=25)


def exposed(see: Workspace, drawer: str) -> np.ndarray:
    """Middle of the part of an open drawer that lies before its cabinet's front."""
    joint = see.joint_of(drawer)
    axis, _ = see.joint_frame(joint)
    out = axis * np.sign(see.joint(joint))
    centre, half = see.region(drawer)
    own = see.model.jnt_bodyid[joint]
    rest = [b for b in see.subtree(see.scene.body_id(see.owner(drawer))) if b != own]
    front = max((see.body_points(b) @ out).max(initial=-np.inf) for b in rest)
    wall = centre @ out + half @ np.abs(out)
    return centre + out * max(0.0, (front + wall) / 2 - centre @ out)


def thin_direction(points: np.ndarray) -> float:
    """Yaw of a hand whose fingers close across the thin side of `points`."""
    flat = points[:, :2] - points[:, :2].mean(axis=0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    x, y = vectors[:, 0]
    return half_turn(float(np.arctan2(-x, y)))
