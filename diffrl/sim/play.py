"""The one loop that plays start states on copies of a simulator, whoever acts.

Experts, the scripted operator and everything that is evaluated are actors in it. A trial is the
same in any company: copies do not feel each other, and an actor keeps apart what it remembers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from diffrl.base.control import SETTLE_STEPS
from diffrl.sim.simulator import Simulator, Step
from diffrl.sim.starts import StartStates


@dataclass(eq=False)
class Playing:
    """One start state that is played on one copy.

    Attributes:
        number: of the start state among those that are played.
        copy: of the simulator.
        status: "running", then how it ended. An actor that cannot decide sets "error".
        message: why, if it ended in an error.
        steps: control steps that were executed, settling not counted.
        states: (steps + 1) rows of (state_size,) float64, the settled start first; [] unless kept.
        actions: (steps) rows of (7,) float64; [] unless kept.
        fixtures: (k, 7) float64, pose of what stands fixed; None unless kept.
    """

    number: int
    copy: int
    status: Literal["running", "success", "failure", "error"] = "running"
    message: str = ""
    steps: int = 0
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    fixtures: np.ndarray | None = None

    @property
    def kept(self) -> bool:
        """Whether states and actions are kept."""
        return self.fixtures is not None

    def note(self, step: Step, actions: np.ndarray) -> None:
        """Enter what a chunk (chunk, 7) did."""
        executed = int(step.steps[self.copy])
        self.steps += executed
        if self.kept:
            assert step.states is not None  # they were recorded for this trial
            self.states.extend(step.states[self.copy, :executed].copy())
            self.actions.extend(actions[:executed])
        if step.error[self.copy]:
            self.status, self.message = "error", "the physics diverged"
        elif step.success[self.copy]:
            self.status = "success"
        elif step.timeout[self.copy]:
            self.status = "failure"


class Actor(Protocol):
    """Who acts in `play`."""

    chunk: int  # control steps that one decision executes

    def begin(self, playing: Playing) -> None:
        """Get ready for a trial, before its start state is set."""

    def act(self, simulator: Simulator, playing: Sequence[Playing]) -> np.ndarray:
        """Decide for m trials under way: (m, chunk, 7) in [−1, 1]."""

    def end(self, playing: Playing) -> None:
        """Forget a trial; its status says how it ended."""


def play(
    simulator: Simulator,
    starts: StartStates,
    actor: Actor,
    keep: Callable[[int], bool] = lambda number: True,
    settle: int = SETTLE_STEPS,
) -> Iterator[Playing]:
    """Play each start state once, on whichever copy is free; yield each trial as it ends.

    Args:
        simulator: its copies play side by side; their number changes no trial.
        starts: n start states of its scene; each is settled before anybody acts.
        actor: who decides, once per round for all trials under way.
        keep: whether the states and actions of a start state's number are kept.
        settle: control steps of settling.
    """
    waiting = deque(range(len(starts)))
    playing: list[Playing] = []
    while waiting or playing:
        taken = {one.copy for one in playing}
        free = [copy for copy in range(simulator.n) if copy not in taken]
        begun = [Playing(waiting.popleft(), copy) for copy in free[: len(waiting)]]
        _begin(simulator, starts, actor, begun, keep, settle)
        playing = sorted([*playing, *begun], key=lambda one: one.copy)
        yield from _ended(simulator, actor, playing)
        playing = [one for one in playing if one.status == "running"]
        if not playing:
            continue
        decided = actor.act(simulator, playing)
        _advance(simulator, playing, decided)
        yield from _ended(simulator, actor, playing)
        playing = [one for one in playing if one.status == "running"]


def _begin(
    simulator: Simulator,
    starts: StartStates,
    actor: Actor,
    begun: Sequence[Playing],
    keep: Callable[[int], bool],
    settle: int,
) -> None:
    if not begun:
        return
    for one in begun:
        actor.begin(one)
    copies = [one.copy for one in begun]
    simulator.reset(starts[[one.number for one in begun]], copies=copies, settle=settle)
    states, fixtures = simulator.states(), simulator.fixtures()
    for one in begun:
        if simulator.error[one.copy]:
            one.status = "error"
            one.message = "the physics diverged while the start state settled"
        elif keep(one.number):
            one.states, one.fixtures = [states[one.copy]], fixtures[one.copy]


def _advance(simulator: Simulator, playing: Sequence[Playing], decided: np.ndarray) -> None:
    """Execute what was decided for the trials that go on."""
    actions = np.zeros((simulator.n, *np.shape(decided)[1:]))
    going = [(one, own) for one, own in zip(playing, decided) if one.status == "running"]
    for one, own in going:
        actions[one.copy] = own
    for one in playing:  # nothing moves where nobody decided
        simulator.done[one.copy] |= one.status != "running"
    step = simulator.step(actions, record=any(one.kept for one, _ in going))
    for one, _ in going:
        one.note(step, actions[one.copy])


def _ended(simulator: Simulator, actor: Actor, playing: Sequence[Playing]) -> Iterator[Playing]:
    for one in playing:
        if one.status != "running":
            simulator.done[one.copy] = True
            actor.end(one)
            yield one
