"""Where data come from: an arm is a source and the mode in which its actions were chosen."""

import re
from typing import Literal, NamedTuple, get_args

from diffrl.base.errors import UserError

Mode = Literal["recorded", "deterministic", "stochastic"]
MODES: tuple[Mode, ...] = get_args(Mode)
POLICY_MODES = MODES[1:]  # those in which a policy plays; demonstrations are recorded
IN_WORDS = {"recorded": "", "deterministic": "without noise", "stochastic": "with noise"}
LABELS = {  # of the series' sources, in its order
    "operator": "Scripted operator",
    "human": "Human",
    "teleoperation": "Teleoperation, another task",
    "gaussian": "Gaussian RL",
    "diffusion": "Diffusion RL",
    "steady": "Operator without tremor",
    "gaussian_clone": "Gaussian clone",
    "diffusion_clone": "Diffusion clone",
    "diffusion_zero": "Diffusion RL, zero first latent",
}
SOURCES = tuple(LABELS)
DEMONSTRATORS = ("operator", "human", "steady")  # steady: the operator without tremor


class Arm(NamedTuple):
    """A source (operator, human, a policy class, or any other word) and a mode.

    >>> Arm.parse("diffusion-deterministic")
    Arm(source='diffusion', mode='deterministic')
    >>> str(Arm("gaussian", "stochastic"))
    'gaussian-stochastic'
    >>> Arm("gaussian", "stochastic").label
    'Gaussian RL with noise'
    """

    source: str
    mode: str = "recorded"

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Read ``<source>-<mode>``; records of earlier versions have a space or a slash between.

        Raises:
            UserError: the text is not of this form.
        """
        found = re.fullmatch(r"(.+)[-/ ]([\w+]+)", text)
        if not found:
            raise UserError(
                f"{text!r} names no arm: write <source>-<mode>, such as diffusion-deterministic."
            )
        return cls(*found.groups())

    def __str__(self) -> str:
        return self.joined("-")

    def joined(self, separator: str) -> str:
        """Return the source and the mode as a record writes them, with its own separator."""
        return f"{self.source}{separator}{self.mode}"

    @property
    def label(self) -> str:
        """ "Diffusion RL without noise"; recorded data have no mode to name.

        A source may be a part or a mixture, as a VLA's data: "Human + Diffusion RL (10)".
        """
        parts = [part.partition(":") for part in self.source.split("+")]
        named = [LABELS.get(n, n) + (f" ({count})" if count else "") for n, _, count in parts]
        mode = IN_WORDS.get(self.mode, self.mode)
        return " ".join([" + ".join(named), mode]).strip()

    @property
    def order(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """Sort key: sources and modes in the series' order, then the others by name."""
        return _rank(self.source, SOURCES), _rank(self.mode, MODES)


def _rank(word: str, known: tuple[str, ...]) -> tuple[int, str]:
    return (known.index(word), "") if word in known else (len(known), word)
