"""Figures that could be printed: one function per figure, one helper that saves them all.

Every function takes a tidy table (or arrays) and returns a matplotlib Figure; `save_figure` writes
it as PDF and PNG, with the table behind it as CSV and its caption as text.
"""

from diffrl.base.arm import LABELS
from diffrl.figures.data import action_statistics, throughput_bars
from diffrl.figures.gaps import gap_plot
from diffrl.figures.heat import quality_changes, quality_heatmap, success_differences
from diffrl.figures.learning import contact_sheet, learning_curves, mean_curves, mean_learning
from diffrl.figures.quality import (
    end_effector_paths,
    path_table,
    phase_curves,
    phase_profiles,
    shared_start_state,
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
from diffrl.figures.success import (
    dumbbells,
    scaling_curve,
    share_strips,
    success_forest,
    task_names,
)
from diffrl.figures.work import STATE_COLOURS, work_heatmap

__all__ = [
    "COLOURS",
    "LABELS",
    "STATE_COLOURS",
    "action_statistics",
    "arm_label",
    "arm_order",
    "arm_style",
    "contact_sheet",
    "dumbbells",
    "end_effector_paths",
    "error_bar",
    "gap_plot",
    "learning_curves",
    "mean_curves",
    "mean_learning",
    "path_table",
    "phase_curves",
    "phase_profiles",
    "quality_changes",
    "quality_heatmap",
    "save_figure",
    "scaling_curve",
    "share_strips",
    "shared_start_state",
    "style",
    "success_differences",
    "success_forest",
    "task_names",
    "throughput_bars",
    "work_heatmap",
]
