"""One function per figure: arrays, tables and texts in, `Figure` out.  Nothing is computed, saved or read.

Every figure has axis labels with units and the text `cohort` (a study's `title`, which says where the cohort is
synthetic); one that shows a statistic also carries its n and interval.  Input of another shape, or a table that
lacks a column or a value, raises ValueError.
"""

from her2core.report.figures.curves import (
    age_by_status,
    calibration_curve,
    clipping,
    decision_curve,
    kinetics_by_class,
    learning_curves,
    real_lesions,
    roc,
    scores,
)
from her2core.report.figures.forests import by_subgroup, differences, expected_widths, forest, populations
from her2core.report.figures.images import bias_correction, failures, phases, whole_breast, windowed, windows
from her2core.report.figures.network import attention_check, channel_gates, through_the_network
from her2core.report.figures.phantom import kinetic_curves, phantom_gallery, twins
from her2core.report.figures.style import save
from her2core.report.figures.words import run_name, window_name
