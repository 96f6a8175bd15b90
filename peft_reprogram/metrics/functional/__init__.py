"""The definitions: pure functions in numpy and float64, which the `evaluate` modules beside them only wrap."""

from .calibration import (
    brier_score,
    calibration_metrics,
    expected_calibration_error,
    log_softmax,
    negative_log_likelihood,
    reliability_bins,
)
from .intervals import Interval, MeanStd, bootstrap_interval, mean_and_std
from .ood import (
    PRESETS,
    aupr,
    auroc,
    autc,
    detection_error,
    fpr_at_tpr,
    ood_bounds,
    ood_metrics,
    split_scores,
)
from .score_counts import ScoreCounts
from .seen_unseen import SeenUnseenCurve, ausuc, ncm_accuracy, seen_unseen_curve, seen_unseen_metrics
from .shift import (
    ALEXNET_ERRORS,
    RobustnessBaseline,
    accuracy,
    balanced_accuracy,
    effective_robustness,
    group_accuracies,
    mean_corruption_error,
    relative_robustness,
    shift_metrics,
    summarize_shifts,
    worst_group_accuracy,
)


__all__ = [
    "ALEXNET_ERRORS",
    "PRESETS",
    "Interval",
    "MeanStd",
    "RobustnessBaseline",
    "ScoreCounts",
    "SeenUnseenCurve",
    "accuracy",
    "aupr",
    "auroc",
    "ausuc",
    "autc",
    "balanced_accuracy",
    "bootstrap_interval",
    "brier_score",
    "calibration_metrics",
    "detection_error",
    "effective_robustness",
    "expected_calibration_error",
    "fpr_at_tpr",
    "group_accuracies",
    "log_softmax",
    "mean_and_std",
    "mean_corruption_error",
    "ncm_accuracy",
    "negative_log_likelihood",
    "ood_bounds",
    "ood_metrics",
    "relative_robustness",
    "reliability_bins",
    "seen_unseen_curve",
    "seen_unseen_metrics",
    "shift_metrics",
    "split_scores",
    "summarize_shifts",
    "worst_group_accuracy",
]
