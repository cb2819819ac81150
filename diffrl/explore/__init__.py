"""The explorer: one moment of an episode in picture, path, speed, jerk and gripper together.

In a notebook `explore` makes a widget (or, where nobody watches, a figure); `python -m diffrl view`
makes a page or a film. They show any HDF5 file that `diffrl.quality` reads.
"""

from diffrl.explore.library import Library
from diffrl.explore.widget import explore

__all__ = ["Library", "explore"]
