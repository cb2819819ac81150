"""How a person drives the arm: speed, tremor, pauses, detours, aim.

The numbers per suite are fitted to the action statistics of LIBERO's human demonstrations
(`python -m diffrl operator` prints the comparison); the model itself is our choice. All noise
scales with one number: 0 is a steady machine, 1 is calibrated.
"""

from dataclasses import dataclass, replace

import numpy as np

LIMIT = 0.9375  # largest command in LIBERO's human sets: the SpaceMouse's end stop


@dataclass(frozen=True)
class Manner:
    """Speeds are in action units (1 is 0.05 m of goal offset, about 0.3 m/s), lengths in metres.

    Attributes:
        speed: cap of the commanded speed per axis on the way, (x, y, z).
        careful: the same close to an object, one number.
        turn: cap of the commanded rotation; 0.375 is the largest in the human sets.
        spread: log-standard-deviation of the speed from leg to leg.
        waver: relative standard deviation of the speed within a leg.
        tremor: standard deviation of the unwanted part of a moving hand's command, six axes.
        pause: probability of letting go of the device before a leg.
        pause_length: mean length of such a pause, control steps.
        detour: standard deviation of a leg's middle point off the straight line.
        aim: standard deviation of the error in judging where a thing is.
        carry: height over what is in the way.
    """

    speed: tuple[float, float, float] = (0.6, 0.75, 0.9)
    careful: float = 0.45
    turn: float = 0.375
    spread: float = 0.2
    waver: float = 0.25
    tremor: tuple[float, ...] = (0.05, 0.05, 0.05, 0.02, 0.04, 0.04)
    pause: float = 0.3
    pause_length: float = 5.0
    detour: float = 0.02
    aim: float = 0.005
    carry: float = 0.05

    def scaled(self, noise: float) -> "Manner":
        """Return this manner with all randomness times `noise` (speeds stay)."""
        return replace(
            self,
            spread=self.spread * noise,
            waver=self.waver * noise,
            tremor=tuple(x * noise for x in self.tremor),
            pause=min(1.0, self.pause * noise),
            detour=self.detour * noise,
            aim=self.aim * noise,
        )

    def with_tremor(self, scale: float) -> "Manner":
        """Return this manner with its tremor alone times `scale`: 0 is a hand that never shakes."""
        return replace(self, tremor=tuple(x * scale for x in self.tremor))


MANNERS = {
    "libero_spatial": Manner(
        speed=(0.85, 0.75, 0.9375),
        careful=0.6,
        turn=0.25,
        spread=0.15,
        tremor=(0.05, 0.05, 0.05, 0.04, 0.065, 0.03),
        carry=0.09,
    ),
    "libero_object": Manner(
        speed=(0.65, 0.7, 0.9375), tremor=(0.05, 0.05, 0.05, 0.026, 0.04, 0.034), carry=0.08
    ),
    "libero_goal": Manner(
        speed=(0.9375, 0.8, 0.9375),
        careful=0.7,
        turn=0.2,
        spread=0.12,
        pause=0.18,
        pause_length=4.0,
        tremor=(0.05, 0.05, 0.05, 0.015, 0.075, 0.09),
        carry=0.06,
    ),
    "libero_10": Manner(speed=(0.5, 0.65, 0.75)),
    "libero_90": Manner(),
}


class Tremor:
    """Correlated noise of a hand, one sample per control step: AR(1) with a memory of 0.2 s."""

    memory = 0.8  # correlation between neighbouring control steps

    def __init__(self, generator: np.random.Generator):
        self._generator = generator
        self._value = generator.normal(size=7)

    def step(self) -> np.ndarray:
        """Return the next sample, (7,), standard normal in each component."""
        fresh = self._generator.normal(size=7) * np.sqrt(1 - self.memory**2)
        self._value = self.memory * self._value + fresh
        return self._value
