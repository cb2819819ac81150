"""What a preset will take before it is started: core-hours, GPU-hours, disk and wall time.

`rates` reads what was recorded and names what is guessed; `work` counts what a preset asks for.
"""

from diffrl.plan.rates import Rates
from diffrl.plan.work import control_steps, main, plan, wall_hours, works

__all__ = ["Rates", "control_steps", "main", "plan", "wall_hours", "works"]
