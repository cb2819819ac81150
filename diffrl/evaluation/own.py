"""A policy of one's own: any object with `infer(obs)`, named by module or file, or given as it is.

    class MyPolicy:
        def infer(self, obs):  # openpi's observation of one robot
            return {"actions": ...}  # (k, 7)

`obs` is what openpi's LIBERO example sends: ``observation/image`` and ``observation/wrist_image``
(224, 224, 3) uint8, upright; ``observation/state`` (8,) float64: the gripper's position [m],
axis × angle of its rotation [rad], both finger joints [m]; ``prompt``, the instruction. The answer
is a chunk of actions (k, 7), one action (7,), or a map with them as ``actions``: LIBERO's
(dx, dy, dz, drx, dry, drz, gripper) in [−1, 1], clipped there; +1 closes the gripper. All k are
executed before the next call.

What the object may have besides:

- ``reset()`` or ``reset(seed)``: called before each trial. An object that has it plays one trial
  at a time; without it the calls of several trials alternate, so it must remember nothing.
- ``replan``: how many actions of each chunk are executed.
- ``cameras``: those it looks through, of ("agentview", "robot0_eye_in_hand"); () renders nothing.
- ``image_size``: pixels to render; default: openpi's 256, resized to 224. ``detail``: of the
  pictures, "exact" or "reduced".
- ``fingerprint``: a text that changes when the policy does, as when other weights are loaded.
"""

import contextlib
import importlib
import inspect
import re
import sys
import traceback
import types
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffrl.base.artifacts import config_hash, file_hash, user_path
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.evaluation.openpi import RENDERED, SENT, request
from diffrl.evaluation.protocol import Base, Policy, Trial, read_options
from diffrl.policy import trial_generator
from diffrl.sim.observation import Observation
from diffrl.vla.model import CAMERAS

_NAME = re.compile(
    r"(?P<where>.+\.py|\w+(?:\.\w+)*):(?P<what>[A-Za-z_]\w*)(?P<options>\?.*)?", re.S
)
_PROTOCOL = (
    *("cameras", "image_size", "detail", "chunk", "fingerprint", "failures"),
    *("begin", "act", "end"),
)
_imported: dict[str, str] = {}  # module -> hash of its files when this process first opened it


class Named(NamedTuple):
    """What the name of a policy of one's own says."""

    where: str  # a module, or the path of a Python file
    what: str  # the class in it
    options: str  # "?key=value&…", or nothing


def parse(name: str) -> Named | None:
    """Read ``module:Class`` or ``path/to/file.py:Class`` (``?key=value&…``); None if neither."""
    found = _NAME.fullmatch(name)
    return Named(found["where"], found["what"], found["options"] or "") if found else None


def open_own(name: Named) -> Policy:
    """Import what `name` names and make it a policy.

    Its fingerprint holds the bytes of its file, its options, and the files that these name.

    Raises:
        UserError: there is no such module, file or class, it raises, or is no policy.
    """
    module = _load_file(name.where) if name.where.endswith(".py") else _import(name.where)
    if not hasattr(module, name.what):
        known = [key for key, value in vars(module).items() if hasattr(value, "infer")]
        hint = f"; it has {', '.join(known)}" if known else ""
        raise UserError(f"{name.where} has no {name.what}{hint}.")
    found, options = getattr(module, name.what), {}
    policy = found
    if inspect.isclass(found) or not (hasattr(found, "infer") or hasattr(found, "act")):
        options = _options(found, name)
        policy = _call(f"{name.what}()", found, **options)
    files = {_file_of(module), _file_of(sys.modules.get(type(policy).__module__, module))}
    hashes = sorted(file_hash(path) for path in files)
    _refuse_stale(name, config_hash(hashes))
    content = [file_hash(value) for value in options.values() if _exists(value)]
    identity = config_hash([name.what, hashes, options, content])
    fingerprint = f"own {identity} {getattr(policy, 'fingerprint', '')}"
    if not hasattr(policy, "infer"):  # the whole protocol: its own word alone would miss an edit
        with contextlib.suppress(AttributeError):
            policy.fingerprint = fingerprint
    return _adapted(policy, name.what, fingerprint)


def _exists(place: str) -> bool:
    try:
        return Path(place).exists()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def adapt(policy: Any) -> Policy:
    """Make a Python object a policy: one with `infer`, or with all that `Policy` names.

    Nobody can tell whether an object is the one of yesterday, so its trials are found again only if
    it has a `fingerprint`.

    Raises:
        UserError: it is neither.
    """
    if inspect.isclass(policy):
        raise UserError(f"{policy.__name__} is a class: give an object, {policy.__name__}(…).")
    name = type(policy).__name__
    unknown = getattr(policy, "fingerprint", None) is None
    adapted = _adapted(policy, name, f"object {uuid.uuid4() if unknown else policy.fingerprint}")
    if isinstance(adapted, Own):
        adapted.unknown = unknown
    return adapted


class Own(Base):
    """An object with `infer`, behind the protocol of all policies.

    Args:
        policy: the object.
        name: of its class, for messages.
        fingerprint: of its content.
    """

    unknown = False  # whether its fingerprint is of this one object, which says nothing of itself

    def __init__(self, policy: Any, name: str, fingerprint: str):
        super().__init__()
        self.policy, self.name = policy, name
        cameras = getattr(policy, "cameras", CAMERAS)
        self.cameras = tuple(cameras) if isinstance(cameras, Iterable) else cameras
        self.image_size = getattr(policy, "image_size", RENDERED)
        self.sent_size = getattr(policy, "image_size", SENT)
        self.detail = getattr(policy, "detail", "exact")
        self.replan = getattr(policy, "replan", None)
        self.chunk = 0  # known with the first answer
        self.together = not callable(getattr(policy, "reset", None))
        self._check()
        settings = [self.cameras, self.image_size, self.sent_size, self.detail, self.replan]
        self.fingerprint = f"{fingerprint} {config_hash(settings)}"

    def _check(self) -> None:
        """Refuse settings of the object that mean nothing."""
        sound = {
            "cameras": isinstance(self.cameras, tuple) and all(map(_camera, self.cameras)),
            "image_size": _positive(self.image_size),
            "detail": isinstance(self.detail, str) and self.detail in ("exact", "reduced"),
            "replan": self.replan is None or _positive(self.replan),
        }
        for setting, fine in sound.items():
            if not fine:
                raise UserError(
                    f"{self.name}.{setting} is {getattr(self.policy, setting)!r}: cameras are some "
                    f"of {CAMERAS}, image_size and replan positive whole numbers, and detail is "
                    "exact or reduced."
                )

    def begin(self, trial: Trial, instruction: str) -> None:
        self.memory[trial] = instruction
        if self.together:
            return
        reset, seed = self.policy.reset, trial_generator(*trial).initial_seed() % 2**32
        options = {"seed": seed} if "seed" in _parameters(reset) else {}
        _call(f"{self.name}.reset", reset, **options)

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        return np.stack(
            [self._ask(observation, images, row, trial) for row, trial in enumerate(trials)]
        )

    def _ask(
        self, observation: Observation, images: np.ndarray | None, row: int, trial: Trial
    ) -> np.ndarray:
        seen = {} if images is None else dict(zip(self.cameras, images[row]))
        message = request(observation, row, seen, self.memory[trial], self.sent_size)
        actions = self._actions(_call(f"{self.name}.infer", self.policy.infer, message))
        if self.replan:
            actions = actions[: self.replan]
        self.chunk = self.chunk or len(actions)
        if len(actions) != self.chunk:
            raise UserError(
                f"{self.name}.infer returned {len(actions)} actions where it returned {self.chunk} "
                "before: return as many each time, or set `replan` to the number to execute."
            )
        return actions

    def _actions(self, answer: Any) -> np.ndarray:
        """Return what `infer` returned as (k, 7) finite numbers."""
        if isinstance(answer, Mapping):
            if "actions" not in answer:
                raise UserError(
                    f"{self.name}.infer returned a map without `actions`: {sorted(answer)}."
                )
            answer = answer["actions"]
        if isinstance(answer, torch.Tensor):
            answer = answer.detach().cpu().double().numpy()
        try:
            actions = np.atleast_2d(np.asarray(answer, np.float64))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.name}.infer returned no array of numbers, but {type(answer).__name__} "
                f"({error}): return actions (k, {ACTION_SIZE})."
            ) from error
        least = self.replan or 1
        if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE or len(actions) < least:
            raise UserError(
                f"{self.name}.infer returned actions of the shape {np.shape(answer)}; expected "
                f"({least} or more, {ACTION_SIZE}): (control steps, dx dy dz drx dry drz gripper)."
            )
        if not np.isfinite(actions).all():
            raise UserError(
                f"{self.name}.infer returned actions that are not finite: its weights or its "
                "inputs are broken."
            )
        return actions


def _camera(name: Any) -> bool:
    return isinstance(name, str) and name in CAMERAS


def _positive(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _adapted(policy: Any, name: str, fingerprint: str) -> Policy:
    """Wrap an object with `infer`; leave one that follows the whole protocol as it is."""
    if callable(getattr(policy, "infer", None)):
        return Own(policy, name, fingerprint)
    if not callable(getattr(policy, "act", None)):
        raise UserError(
            f"{name} is no policy: give it a method infer(obs) that returns actions "
            f"(k, {ACTION_SIZE})."
        )
    if missing := [part for part in _PROTOCOL if not hasattr(policy, part)]:
        raise UserError(
            f"{name} has `act`, but not all that diffrl's protocol `Policy` names: "
            f"{', '.join(missing)} is missing. One that inherits `Base` calls super().__init__()."
        )
    whole: Policy = policy
    return whole


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some compiled ones do not tell
        return {}


def _options(make: Callable[..., Any], name: Named) -> dict[str, str]:
    """Read the options of a name; a path may begin with ~."""
    keys = list(_parameters(make))
    if any(p.kind == p.VAR_KEYWORD for p in _parameters(make).values()):
        keys = re.findall(r"[?&](\w+)=", name.options)
    place, options = read_options(name.options, keys, name.what)
    if place:
        raise UserError(f"{name.what}: {place!r} is no option; write ?key=value&key=value.")
    for key, value in options.items():
        if value.startswith("~"):
            options[key] = str(user_path(value))
    return options


def _load_file(where: str) -> types.ModuleType:
    """Execute a Python file as a module of its own, each time anew: it may have been edited."""
    path = user_path(where).resolve()
    if not path.is_file():
        raise UserError(f"There is no file {path}: a policy of your own is <file.py>:<class>.")
    _look_first(path.parent)  # as Python does for what lies beside a file that it runs
    module = types.ModuleType(f"diffrl_own_{config_hash(str(path))}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look there

    def execute() -> None:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))

    _call(str(path), execute)
    return module


def _import(where: str) -> types.ModuleType:
    """Import a module by name; the working folder is looked through as well."""
    _look_first(Path.cwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where + ".").startswith(error.name + "."):
            raise UserError(
                f"There is no module {error.name!r} to import from here: install it, or name its "
                "file, <path/to/file.py>:<class>."
            ) from error
        raise _told(where, error) from error
    except Exception as error:
        raise _told(where, error) from error


def _look_first(folder: Path) -> None:
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _file_of(module: types.ModuleType) -> Path:
    if file := getattr(module, "__file__", None):
        return Path(file)
    raise UserError(f"{module.__name__} has no file: give evaluate() an object of it instead.")


def _refuse_stale(name: Named, content: str) -> None:
    """A module is imported once: what was edited since is not what would be evaluated."""
    if not name.where.endswith(".py") and _imported.setdefault(name.where, content) != content:
        raise UserError(
            f"{name.where} has changed since it was imported: start Python again, or name its "
            "file, <path/to/file.py>:<class>, which is read each time."
        )


def _call(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except UserError:
        raise
    except Exception as error:
        raise _told(what, error) from error


def _told(what: str, error: Exception) -> UserError:
    """Say what a stranger's code raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    own = [f for f in theirs if "site-packages" not in f.filename] or theirs
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return UserError(f"{what} raised {type(error).__name__}: {error}{place}.")
