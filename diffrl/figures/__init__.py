"""Figures that could be printed: one function per figure, one helper that saves them all.

Every function takes a tidy table (or arrays) and returns a matplotlib Figure; `save_figure` writes
it as PDF and PNG, with the table behind it as CSV and its caption as text.
"""

from diffrl.base.arm import LABELS
from diffrl.figures.data import action_statistics, throughput_bars
from diffrl.figures.experiments import ARM_CAPTION, arm_comparison, factorial_forest, jerk_curves
from diffrl.figures.learning import contact_sheet, learning_curves
from diffrl.figures.quality import (
    action_variance_over_phase,
    end_effector_paths,
    measure_distributions,
    path_table,
    phase_profiles,
    quality_forest,
    shared_start_state,
    speed_profiles,
)
from diffrl.figures.style import (
    COLOURS,
    arm_label,
    arm_order,
    arm_style,
    error_bar,
    save_figure,
    style,
)
from diffrl.figures.success import scaling_curve, success_forest, success_heatmap, task_names
from diffrl.figures.work import STATE_COLOURS, work_heatmap

__all__ = [
    "ARM_CAPTION",
    "COLOURS",
    "LABELS",
    "STATE_COLOURS",
    "action_statistics",
    "action_variance_over_phase",
    "arm_comparison",
    "arm_label",
    "arm_order",
    "arm_style",
    "contact_sheet",
    "end_effector_paths",
    "error_bar",
    "factorial_forest",
    "jerk_curves",
    "learning_curves",
    "measure_distributions",
    "path_table",
    "phase_profiles",
    "quality_forest",
    "save_figure",
    "scaling_curve",
    "shared_start_state",
    "speed_profiles",
    "style",
    "success_forest",
    "success_heatmap",
    "task_names",
    "throughput_bars",
    "work_heatmap",
]
