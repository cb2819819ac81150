"""What the evaluation asks of a policy, and what a trial is."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffrl.base.artifacts import user_path
from diffrl.base.errors import UserError
from diffrl.policy import trial_generator
from diffrl.sim.observation import Observation
from diffrl.sim.pictures import Detail


class Trial(NamedTuple):
    """One planned rollout; its start state's id tells the fixtures' poses, too."""

    task: str  # "libero_object/0"
    start_state: str  # "official/7", "fresh/1/30"
    seed: int  # of the policy's noise


class Policy(Protocol):
    """What the evaluation needs of a policy.

    One that has `together = False` besides plays one trial at a time.
    """

    cameras: tuple[str, ...]  # that it looks through; () for none
    image_size: int  # pixels, square
    detail: Detail  # of the pictures
    chunk: int  # control steps that one decision executes
    fingerprint: str  # changes when the policy does
    failures: dict[Trial, str]  # trials whose decision could not be had, and why

    def begin(self, trial: Trial, instruction: str) -> None:
        """Get ready for a trial."""

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        """Decide for n trials under way.

        observation has n rows; images (n, cameras, size, size, 3) uint8 as LIBERO gives them
        (upside down). Returns (n, chunk, 7) in [−1, 1]; a row of `failures` may hold anything.
        """

    def end(self, trial: Trial) -> None:
        """Forget a trial."""


class Base:
    """What most policies share: they see no images, remember a generator per trial, never fail."""

    cameras: tuple[str, ...] = ()
    image_size, chunk = 128, 8
    detail: Detail = "reduced"

    def __init__(self) -> None:
        self.failures: dict[Trial, str] = {}
        self.memory: dict[Trial, Any] = {}

    def begin(self, trial: Trial, instruction: str) -> None:
        self.memory[trial] = trial_generator(*trial)

    def end(self, trial: Trial) -> None:
        self.memory.pop(trial, None)


def read_options(text: str, keys: Sequence[str], of: str) -> tuple[str, dict[str, str]]:
    """Part ``<place>?<key>=<value>&…`` where a known key begins; everything else is as written.

    So a path may hold ``+``, ``%``, spaces, even ``?`` and ``&``.

    Raises:
        UserError: an option is unknown or given twice; `of` is whose options they are.
    """
    known = "|".join(map(re.escape, keys))
    place, *rest = re.split(rf"[?&](?=(?:{known})=)", text) if keys else [text]
    options: dict[str, str] = {}
    for part in rest:
        key, _, value = part.partition("=")
        if key in options:
            raise UserError(f"The option {key} of {of} is given twice.")
        options[key] = value
    for value in (place, *options.values()):
        found = re.search(r"[?&](\w+)=", value)
        if found and not user_path(value).exists():
            listed = f"its options are {', '.join(keys)}" if keys else "it has none"
            raise UserError(f"{of} has no option {found[1]!r}: {listed}.")
    return place, options
