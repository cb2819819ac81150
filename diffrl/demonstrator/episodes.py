"""The scripted operator: an offline stand-in for human demonstrations, never called human.

It reads the goal's predicates, makes a plan of skills (`plan`) and drives one copy of the
simulator per episode with the manner that `manner` fits to LIBERO's human statistics. An episode
depends on (task, seed, start state) alone, never on what runs beside it.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from diffrl.base.errors import UserError
from diffrl.data.episode import WIDTHS, Episode
from diffrl.demonstrator.front import insert, is_too_tall, lay
from diffrl.demonstrator.joints import pull, push, turn_knob
from diffrl.demonstrator.manner import MANNERS, Manner
from diffrl.demonstrator.motion import OPEN, Actions, Operator
from diffrl.demonstrator.things import UP, Lost, is_covered, is_flat, push_along, put, take
from diffrl.demonstrator.workspace import Workspace
from diffrl.presets import OperatorConfig
from diffrl.sim.observation import observe
from diffrl.sim.play import Playing, play
from diffrl.sim.scene import Scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import StartStates, fresh_start_states

COPIES = 16  # simulated side by side; changes no result
HOPELESS = 40  # attempts without any success after which it gives up; our choice

_ORDER = {"open": 0, "turnon": 1, "turnoff": 1, "in": 2, "on": 2, "close": 3}


def plan(scene: Scene) -> list[tuple]:
    """Order the goal's terms as (predicate, name, ...) so that none undoes or blocks another.

    Open first, then knobs, then carry things, close last; a drawer that nothing goes into is shut
    at once; a thing that others are put on is carried before them.
    """
    moved = {term[1] for term in scene.goal if term[0] in ("in", "on")}
    filled = {term[2] for term in scene.goal if term[0] == "in"}

    def rank(term: tuple) -> tuple:
        order = _ORDER[term[0]]
        if term[0] == "close" and not any(r.startswith(term[1]) for r in filled):
            order = 0
        return order, len(term) > 2 and term[2] in moved

    return sorted(scene.goal, key=rank)


def skills_of(scene: Scene) -> str:
    """Names of the skills that the plan needs, for tables."""
    names = {"open": "pull", "close": "push", "turnon": "turn", "turnoff": "turn"}
    return " + ".join(names.get(term[0], "take, put") for term in plan(scene))


def perform(op: Operator, scene: Scene) -> Actions:
    """Work on the first term of the plan that does not hold, until the episode ends."""
    terms = plan(scene)
    while True:
        todo = [term for term in terms if not op.see.holds(scene.goal.index(term))]
        try:
            if todo:
                op.trouble = " ".join(todo[0]) + " takes too long"
                yield from _skill(op, scene, todo[0])
                op.trouble = " ".join(todo[0]) + " was tried and does not hold"
        except Lost as lost:
            op.trouble = str(lost)
            yield from op.grip(OPEN, 3)
            if op.see.eef_pos[2] < op.see.base[2] + 0.45:  # a better view, and out of the way
                yield from op.go(op.see.eef_pos + 0.1 * UP, None, tolerance=0.02, steps=20)
        yield from op.rest(2)


def _skill(op: Operator, scene: Scene, term: tuple) -> Actions:
    predicate, name = term[:2]
    if predicate in ("in", "on"):
        yield from _carry(op, name, term[2], _shift(scene, term))
        return
    threshold = scene.meta["goal"][scene.goal.index(term)]["threshold"]
    skill = {"open": pull, "close": push}.get(predicate, turn_knob)
    yield from skill(op, name, threshold)


def _shift(scene: Scene, term: tuple) -> float:
    """Room for each of several things that are put on one surface, metres from its middle."""
    sharing = [other for other in scene.goal if other[0] == "on" and other[2:] == term[2:]]
    return 0.11 * (sharing.index(term) - (len(sharing) - 1) / 2) if term in sharing else 0.0


def _carry(op: Operator, name: str, target: str, shift: float) -> Actions:
    see = op.see
    if see.is_region(target) and see.has_joint(target):
        joint = see.joint_of(target)
        limits = see.model.jnt_range[joint]
        wide = limits[np.argmax(np.abs(limits))]
        if abs(see.joint(joint)) < 0.7 * abs(wide):
            yield from pull(op, target, 0.76 * wide)
        if is_too_tall(see, name, target):
            yield from lay(op, name, target)
            return
    elif is_covered(see, target):
        yield from insert(op, name, target)
        return
    if is_flat(see, name):
        yield from push_along(op, name, target)
    else:
        yield from take(op, name)
        yield from put(op, name, target, shift)


# ---- many episodes ---------------------------------------------------------------------------


def operator_episodes(
    scene: Scene,
    starts: StartStates,
    seed: int,
    config: OperatorConfig,
    threads: int | None = None,
    manner: Manner | None = None,
    copies: int = COPIES,
) -> Iterator[tuple[Episode | None, str]]:
    """Yield one episode per start state, in their order, and what was in the way if it failed.

    None stands for an attempt whose physics diverged. At most `copies` are simulated side by side.
    """
    manner = (manner or MANNERS[suite_of(scene.task.id)]).scaled(config.noise)
    if config.tremor is not None:
        manner = manner.with_tremor(config.tremor)
    finished: dict[int, tuple[Episode | None, str]] = {}
    wanted = 0
    with Simulator(scene, min(copies, len(starts)), threads=threads) as simulator:
        actor = _Scripted(scene, starts, seed, manner, config.tremor is not None)
        for played in play(simulator, starts, actor):
            trouble = actor.operators.pop(played.number).trouble
            finished[played.number] = _outcome(scene, starts, played, trouble, seed)
            while wanted in finished:
                yield finished.pop(wanted)
                wanted += 1


def suite_of(task: str) -> str:
    """Return the suite whose manner a task is played with; LIBERO-PRO variants share theirs."""
    return next(name for name in MANNERS if task.startswith(name))


class _Scripted:
    """The actor of `operator_episodes`: an operator of its own at work in each trial."""

    chunk = 1

    def __init__(
        self, scene: Scene, starts: StartStates, seed: int, manner: Manner, own_tremor: bool
    ):
        self.scene, self.starts, self.seed, self.manner = scene, starts, seed, manner
        self.own_tremor = own_tremor
        self.operators: dict[int, Operator] = {}
        self.work: dict[int, Actions] = {}

    def begin(self, playing: Playing) -> None:
        start = self.starts.ids[playing.number]
        key = [zlib.crc32(self.scene.task.id.encode()), self.seed, zlib.crc32(start.encode())]
        generators = [np.random.default_rng(key)]
        if self.own_tremor:
            generators.append(np.random.default_rng([*key, 1]))
        operator = Operator(Workspace(self.scene), self.manner, *generators)
        self.operators[playing.number] = operator
        self.work[playing.number] = perform(operator, self.scene)

    def act(self, simulator: Simulator, playing: Sequence[Playing]) -> np.ndarray:
        return np.stack([self._next(one) for one in playing])[:, None]

    def _next(self, playing: Playing) -> np.ndarray:
        assert playing.fixtures is not None  # all its states are kept
        self.operators[playing.number].see.look(playing.states[-1], playing.fixtures)
        return next(self.work[playing.number])

    def end(self, playing: Playing) -> None:
        del self.work[playing.number]


def _outcome(
    scene: Scene, starts: StartStates, played: Playing, trouble: str, seed: int
) -> tuple[Episode | None, str]:
    if played.status == "error":
        return None, "the physics diverged"
    episode = _episode(scene, starts.ids[played.number], played, seed)
    return episode, "" if episode.success else trouble


def _episode(scene: Scene, start: str, played: Playing, seed: int) -> Episode:
    assert played.fixtures is not None  # all its states are kept
    states, success = np.array(played.states), played.status == "success"
    rewards = np.zeros(len(played.actions))
    rewards[-1] = float(success)
    seen = observe(scene, states, played.fixtures).arrays()
    return Episode(
        task=scene.task.id,
        instruction=scene.instruction,
        start_state=start,
        seed=seed,
        source="operator",
        mode="recorded",
        success=success,
        states=states,
        actions=np.array(played.actions),
        rewards=rewards,
        fixtures=played.fixtures,
        observations={name: seen[name] for name in WIDTHS},
        policy="operator",
        attempt=played.number,
    )


def operator_demonstrations(
    scene: Scene,
    n: int,
    seed: int,
    config: OperatorConfig,
    first: int = 0,
    threads: int | None = None,
) -> tuple[list[Episode], int]:
    """Return the first n successes on fresh start states `first`, `first` + 1, …, and the attempts.

    Raises:
        UserError: fewer than n of `config.max_attempts` attempts succeeded.
    """
    starts = fresh_start_states(scene, config.max_attempts, seed, first)
    successes: list[Episode] = []
    attempts, trouble = 0, ""
    copies = min(COPIES, n)  # what plays beside the last success that is wanted, plays in vain
    for episode, why in operator_episodes(scene, starts, seed, config, threads, copies=copies):
        attempts, trouble = attempts + 1, why or trouble
        if episode is not None and episode.success:
            successes.append(episode.validate())
        if len(successes) == n:
            return successes, attempts
        if attempts == HOPELESS and not successes:
            break
    raise UserError(
        f"The scripted operator reached {len(successes)} of {n} demonstrations of "
        f"{scene.task.id} in {attempts} attempts ({trouble}): choose a task that it can do "
        "(results/laptop/operator.csv), fewer demonstrations, or source='human'."
    )
