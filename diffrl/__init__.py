"""diffrl: diffusion-policy RL that generates demonstrations for VLA training on LIBERO."""

__version__ = "0.1.0"
