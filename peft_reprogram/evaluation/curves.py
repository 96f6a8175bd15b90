"""What pictures need of the scores, in a size that fits into a results file."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..metrics import ScoreCounts


HISTOGRAM_BINS = 40
# False positive rates at which a ROC curve is kept.
ROC_GRID = np.linspace(0, 1, 101)


def score_curves(id_scores: np.ndarray, ood_scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """
    Histograms and ROC curves of one score.

    Args:
        id_scores (`np.ndarray`): In-distribution scores, `(n_id,)`.
        ood_scores (`dict[str, np.ndarray]`): Set -> scores, `(n_ood,)`.

    Returns:
        `dict`: `range` of the histograms (lowest and highest edge, of the central 99.8 % of all scores; what lies outside
        counts in the outer bins), `id` (counts) and for each set in `ood` its `counts` and `tpr` at `ROC_GRID`.
    """
    everything = np.concatenate([id_scores, *ood_scores.values()])
    low, high = (float(value) for value in np.quantile(everything, [0.001, 0.999]))
    if low == high:
        low, high = low - 0.5, high + 0.5

    def counts(scores: np.ndarray) -> list[int]:
        return np.histogram(np.clip(scores, low, high), bins=HISTOGRAM_BINS, range=(low, high))[0].tolist()

    return {
        "range": [low, high],
        "id": counts(id_scores),
        "ood": {
            name: {"counts": counts(scores), "tpr": roc_curve(id_scores, scores).round(5).tolist()}
            for name, scores in ood_scores.items()
        },
    }


def roc_curve(id_scores: np.ndarray, ood_scores: np.ndarray) -> np.ndarray:
    """
    True positive rate, ID positive, at the false positive rates of `ROC_GRID`.

    Between the points of the empirical curve it is interpolated linearly, as the trapezoid rule of the AUROC does.
    """
    counts = ScoreCounts.from_scores(id_scores, ood_scores)
    tpr = np.concatenate([[0], np.cumsum(counts.id_counts[::-1]) / counts.n_id])
    fpr = np.concatenate([[0], np.cumsum(counts.ood_counts[::-1]) / counts.n_ood])
    # Of the points with one false positive rate the highest counts.
    last = np.append(fpr[1:] != fpr[:-1], True)
    return np.interp(ROC_GRID, fpr[last], tpr[last])
