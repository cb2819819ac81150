"""Choices that the simulator and the presets share, apart from all that imports MuJoCo."""

from typing import Literal

Physics = Literal["exact", "training"]
Detail = Literal["exact", "reduced"]  # of pictures
