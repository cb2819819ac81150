"""Motions of the scripted operator: generators that look at the workspace and yield actions (7,).

A motion yields one action per control step and sees the workspace as it is when it is resumed, so
all of them are closed loops.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from diffrl.demonstrator.manner import LIMIT, Manner, Tremor
from diffrl.demonstrator.workspace import Workspace

OPEN, CLOSED = -1.0, 1.0  # gripper commands
METRE, RADIAN = 1 / 0.05, 1 / 0.5  # action units per metre and per radian of goal offset
STALL = 10  # control steps without progress after which a motion ends
DOWN = np.diag([1.0, -1.0, -1.0])  # the hand pointing down, fingers opening along world y

Actions = Iterator[np.ndarray]


def turned(yaw: float) -> np.ndarray:
    """Rotation of a hand that points down, turned by `yaw` rad about the vertical."""
    return Rotation.from_rotvec([0, 0, yaw]).as_matrix() @ DOWN


class Operator:
    """The arm, its manner and its random numbers: motions that all skills are made of.

    With a generator for the tremor alone, what is drawn for a leg (speed, pause, detour, aim) does
    not depend on how many steps the legs before it took.
    """

    def __init__(
        self,
        workspace: Workspace,
        manner: Manner,
        generator: np.random.Generator,
        tremor: np.random.Generator | None = None,
    ):
        self.see = workspace
        self.manner = manner
        self.random = generator
        self.gripper = OPEN
        self.trouble = ""  # what was in the way last
        self._tremor = Tremor(tremor or generator)

    def rest(self, steps: int) -> Actions:
        """Let go of the device: zero command, gripper as it is."""
        for _ in range(steps):
            yield np.array([0.0] * 6 + [self.gripper])

    def grip(self, command: float, steps: int) -> Actions:
        """Open or close the fingers, hand at rest."""
        self.gripper = command
        yield from self.rest(steps)

    def misjudge(self, scale: float = 1.0) -> np.ndarray:
        """Return an aiming error (3,) in metres; its height is zero."""
        return self.random.normal(size=3) * [1, 1, 0] * self.manner.aim * scale

    def go(
        self,
        where: np.ndarray | Callable[[], np.ndarray],
        hand: np.ndarray | Callable[[], np.ndarray] | None = None,
        *,
        careful: bool = False,
        tolerance: float = 0.01,
        steps: int = 80,
        detour: bool = False,
        until: Callable[[], bool] | None = None,
    ) -> Actions:
        """Move the finger tips to `where` and turn the hand to `hand`, or until `until()`.

        Gives up after `steps`, or when nothing moves any more.
        """
        m = self.manner
        target = where if callable(where) else lambda: where
        if self.random.random() < m.pause:
            yield from self.rest(1 + self.random.poisson(m.pause_length))
        cap = m.careful * np.ones(3) if careful else np.array(m.speed)
        cap = np.minimum(cap * np.exp(m.spread * self.random.normal()), LIMIT)
        middle = self._middle(target()) if detour and m.detour > 0 else None
        before, effort = [], 1.0
        for k in range(steps):
            goal = target()
            offset = goal - self.see.eef_pos
            turn = self._turn(hand() if callable(hand) else hand)
            if np.linalg.norm(offset) < tolerance and np.linalg.norm(turn) < 0.1:
                return
            if until is not None and until():
                return
            if middle is not None:
                towards = middle - self.see.eef_pos
                if np.linalg.norm(towards) < 0.05 or np.dot(goal - middle, towards) < 0:
                    middle = None
                else:
                    offset = towards
            before.append(np.concatenate([self.see.eef_pos, 0.1 * turn]))
            if len(before) > STALL and np.linalg.norm(before[-1] - before.pop(0)) < 0.004:
                if careful or effort > 4:
                    return  # something is in the way, or the arm reaches no farther
                effort, before = 2 * effort, []  # a straight elbow needs more to bend
            yield self._command(effort * offset, turn, cap * min(1.0, (k + 1) / 4))

    def _middle(self, goal: np.ndarray) -> np.ndarray | None:
        """A point half-way, off the straight line; None for short ways."""
        start = self.see.eef_pos
        length = np.linalg.norm(goal - start)
        if length < 0.12:
            return None
        sideways = self.random.normal(size=3) * self.manner.detour * np.array([1, 1, 0.5])
        return (start + goal) / 2 + sideways

    def _turn(self, hand: np.ndarray | None) -> np.ndarray:
        if hand is None:
            return np.zeros(3)
        return Rotation.from_matrix(hand @ self.see.hand.T).as_rotvec()

    def _command(self, offset: np.ndarray, turn: np.ndarray, cap: np.ndarray) -> np.ndarray:
        noise = self._tremor.step()
        speed = max(0.2, 1 + self.manner.waver * noise[6])
        move = np.clip(offset * METRE, -cap, cap) * speed
        spin = np.clip(turn * RADIAN, -self.manner.turn, self.manner.turn)
        effort = 0.3 + min(1.0, float(np.linalg.norm(move)))  # a hand at work shakes more
        command = np.concatenate([move, spin]) + noise[:6] * self.manner.tremor * effort
        return np.append(np.clip(command, -LIMIT, LIMIT), self.gripper)
