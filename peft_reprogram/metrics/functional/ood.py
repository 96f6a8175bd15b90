"""Metrics of OOD detection, and the named conventions by which papers compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .arrays import as_labels, as_scores
from .score_counts import ScoreCounts


# A rule works on the curve of one side: cumulated true and false positives, from the most confident threshold to the
# least, one entry for each group of tied scores, as returned by `_curve`.
_FprRule = Callable[[np.ndarray, np.ndarray, float], int]


def _first_reaching(tp: np.ndarray, fp: np.ndarray, tpr: float) -> int:
    """False positives at the first point whose TPR is at least `tpr`."""
    return int(fp[np.searchsorted(tp / tp[-1], tpr)])


def _nearest_recall(tp: np.ndarray, fp: np.ndarray, tpr: float) -> int:
    """False positives at the point whose recall is nearest to `tpr`; the curve ends where the recall is complete, and
    among points of equal recall the one of the lowest threshold counts."""
    complete = int(np.searchsorted(tp, tp[-1]))
    recall = tp[complete::-1] / tp[-1]
    return int(fp[complete - np.argmin(np.abs(recall - tpr))])


def _order_statistic(tp: np.ndarray, fp: np.ndarray, tpr: float) -> int:
    """False positives strictly above the positive score of rank round((1 - tpr) n), counted from the lowest."""
    group = _group_of_rank(tp, tpr)
    return int(fp[group - 1]) if group else 0


def _group_of_rank(tp: np.ndarray, tpr: float) -> int:
    n = int(tp[-1])
    # In decimal, since (1 - 0.95) * 10 is not 0.5 in binary, and halves go to the even rank.
    rank = min(round((1 - Fraction(repr(tpr))) * n), n - 1)
    return int(np.searchsorted(tp, n - rank))


def _average_precision(tp: np.ndarray, fp: np.ndarray) -> float:
    return float(np.sum(np.diff(tp, prepend=0) * (tp / (tp + fp))) / tp[-1])


def _trapezoid(precision_at_zero: float) -> Callable[[np.ndarray, np.ndarray], float]:
    def area(tp: np.ndarray, fp: np.ndarray) -> float:
        precision = np.concatenate([[precision_at_zero], tp / (tp + fp)])
        return float(np.sum(np.diff(tp, prepend=0) * (precision[1:] + precision[:-1])) / (2 * tp[-1]))

    return area


@dataclass(frozen=True)
class Preset:
    """
    One convention for the metrics of OOD detection.

    Attributes:
        positive (`str`): The class that counts as positive for the FPR: `"id"` or `"ood"`.
        fpr_rule: Which point of the curve is "at TPR 95 %".
        aupr_rule: How the area under the precision-recall curve is integrated.
        detection_weights (`str`, *optional*): `"balanced"` weighs both error rates by one half, `"pooled"` divides the
            number of errors by the number of samples; `None` where the convention does not report a detection error.
        description (`str`): The convention in words.
    """

    positive: str
    fpr_rule: _FprRule
    aupr_rule: Callable[[np.ndarray, np.ndarray], float]
    detection_weights: str | None
    description: str


PRESETS: dict[str, Preset] = {
    "default": Preset(
        "id",
        _first_reaching,
        _average_precision,
        "balanced",
        "ID positive; first ROC point with TPR >= tpr; average precision; balanced detection error",
    ),
    "ibm": Preset(
        "id",
        _order_statistic,
        _trapezoid(0.0),
        "pooled",
        "ID positive; OOD strictly above the ID score of rank round((1 - tpr) n_id), so that a constant score has an "
        "FPR of 0; trapezoid from (recall 0, precision 0); pooled detection error",
    ),
    "openood": Preset(
        "ood",
        _first_reaching,
        _trapezoid(1.0),
        "balanced",
        "OOD positive; first ROC point with TPR >= tpr; trapezoid from (recall 0, precision 1); balanced detection "
        "error. The convention of OpenOOD and of pytorch-ood 0.4",
    ),
    "mcm": Preset(
        "id",
        _nearest_recall,
        _average_precision,
        None,
        "ID positive; the point whose recall is nearest to tpr; average precision; no detection error. The convention "
        "of MCM, GL-MCM and NegLabel",
    ),
}


def get_preset(name: str) -> Preset:
    """Returns the convention called `name`; a ValueError lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown `preset` {name!r}; known are {', '.join(map(repr, PRESETS))}.")
    return PRESETS[name]


def split_scores(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """
    Divides scores by label.

    Args:
        predictions (array-like): Confidence-like scores, shape `(N,)`.
        references (array-like of `int` or `bool`): 1 where the sample is in-distribution, 0 where it is not, `(N,)`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: ID scores and OOD scores, float64.

    Raises:
        ValueError: If lengths differ, scores are not finite, or labels are not both of 0 and 1.
    """
    scores = as_scores("predictions", predictions)
    labels = as_labels("references", references, length=len(scores), of="predictions")
    found = np.unique(labels).tolist()
    if found in ([0], [1]):
        side = "in-distribution" if found == [1] else "out-of-distribution"
        raise ValueError(f"`references` are all {found[0]} ({side}): both sides are needed, 1 = ID and 0 = OOD.")
    if found != [0, 1]:
        raise ValueError(f"`references` must be 1 (ID) or 0 (OOD), got the values {found[:5]}.")
    return scores[labels == 1], scores[labels == 0]


def auroc(id_scores: Any, ood_scores: Any = None) -> float:
    """
    Area under the ROC curve: the chance that a random ID score exceeds a random OOD score, ties counting half.

    Args:
        id_scores (array-like or `ScoreCounts`): Scores of ID samples, larger = more in-distribution, shape `(n_id,)`;
            or the counts of both sides.
        ood_scores (array-like, *optional*): Scores of OOD samples, shape `(n_ood,)`; left out if counts are given.

    Returns:
        `float`: Of [0, 1].

    Raises:
        ValueError: If a side is empty or not finite.
    """
    return _auroc(_as_counts(id_scores, ood_scores))


def aupr(id_scores: Any, ood_scores: Any = None, *, positive: str = "id", preset: str = "default") -> float:
    """
    Area under the precision-recall curve.

    Args:
        id_scores, ood_scores: As for [`auroc`].
        positive (`str`, *optional*, defaults to `"id"`): `"id"` gives AUPR-in, `"ood"` AUPR-out (scores are negated).
        preset (`str`, *optional*, defaults to `"default"`): The convention, see [`ood_metrics`].

    Returns:
        `float`: Of [0, 1].
    """
    return get_preset(preset).aupr_rule(*_curve(_as_counts(id_scores, ood_scores), positive))


def fpr_at_tpr(
    id_scores: Any, ood_scores: Any = None, *, tpr: float = 0.95, positive: str | None = None, preset: str = "default"
) -> float:
    """
    False positive rate at a true positive rate.

    Args:
        id_scores, ood_scores: As for [`auroc`].
        tpr (`float`, *optional*, defaults to 0.95): Of (0, 1].
        positive (`str`, *optional*): `"id"` or `"ood"`; the preset's own if left out.
        preset (`str`, *optional*, defaults to `"default"`): The convention, see [`ood_metrics`].

    Returns:
        `float`: Of [0, 1].
    """
    convention = get_preset(preset)
    tp, fp = _curve(_as_counts(id_scores, ood_scores), positive or convention.positive)
    return convention.fpr_rule(tp, fp, _as_tpr(tpr)) / int(fp[-1])


def detection_error(id_scores: Any, ood_scores: Any = None, *, preset: str = "default") -> float | None:
    """
    The least error of any threshold, those that accept or reject everything included.

    Args:
        id_scores, ood_scores: As for [`auroc`].
        preset (`str`, *optional*, defaults to `"default"`): The convention, see [`ood_metrics`].

    Returns:
        `float`: Of [0, 0.5]; `None` for a preset that does not define it (`"mcm"`).
    """
    weights = get_preset(preset).detection_weights
    counts = _as_counts(id_scores, ood_scores)
    return None if weights is None else _detection_error(*_curve(counts, "id"), weights)


def autc(id_scores: Any, ood_scores: Any = None) -> float:
    """
    Area under the threshold curve (arXiv 2306.14658): the mean of the areas under FPR and FNR as functions of a
    threshold that runs evenly through the range of all scores, ID and OOD together, scaled to [0, 1]. Other than the
    metrics of ranking it rewards a gap between both sides. The lower the better; 0.5 if both means agree.

    The scale is that of the very scores given, so values of different data sets are comparable only with care. The
    areas need no curve: they are the mean scaled OOD score and one minus the mean scaled ID score.

    Args:
        id_scores, ood_scores: As for [`auroc`]; counts must be exact.

    Returns:
        `float`: Of [0, 1].

    Raises:
        ValueError: Also if counts are binned, or if all scores are the same, which leaves no range to scale by.
    """
    counts = _as_counts(id_scores, ood_scores)
    if counts.resolution:
        raise ValueError("`id_scores` are binned counts; the threshold curve needs exact ones (`max_groups=None`).")
    low, high = counts.thresholds[0], counts.thresholds[-1]
    if low == high:
        raise ValueError(f"`id_scores` and `ood_scores` are all {low:g}: there is no range to scale thresholds by.")
    # Halves keep the range finite for scores near the ends of float64.
    scaled = (counts.thresholds / 2 - low / 2) / (high / 2 - low / 2)
    id_mean = np.sum(scaled * counts.id_counts) / counts.n_id
    ood_mean = np.sum(scaled * counts.ood_counts) / counts.n_ood
    return float((ood_mean + 1 - id_mean) / 2)


def ood_metrics(id_scores: Any, ood_scores: Any = None, preset: str = "default", tpr: float = 0.95) -> dict[str, Any]:
    """
    All metrics of OOD detection under one named convention. Scores are never transformed: any confidence-like score
    will do, in or out of [0, 1].

    Args:
        id_scores (array-like or [`ScoreCounts`]): Scores of ID samples, larger = more in-distribution, shape
            `(n_id,)`, finite; or the counts of both sides.
        ood_scores (array-like, *optional*): Scores of OOD samples, shape `(n_ood,)`; left out if counts are given.
        preset (`str`, *optional*, defaults to `"default"`): Whose convention to follow; `PRESETS` describes them.
            `"default"`: ID positive, first ROC point with TPR >= `tpr`, average precision, balanced detection error.
            `"ibm"`, `"openood"` (pytorch-ood 0.4 too) and `"mcm"` (MCM, GL-MCM, NegLabel) reproduce those codes.
        tpr (`float`, *optional*, defaults to 0.95): The TPR at which the FPR is taken, of (0, 1].

    Returns:
        `dict`: Fractions of [0, 1]: `auroc`, `aupr_in`, `aupr_out`, `fpr` (of the preset), `fpr_ood_positive` (OOD
        positive, first point with TPR >= `tpr`, whatever the preset), `detection_error` (`None` for `"mcm"`); and the
        convention: `preset`, `tpr`, `positive`, `n_id`, `n_ood`, `tied_fraction`, `resolution` (0.0 = exact).

    Raises:
        ValueError: If a side is empty, holds NaN or infinity or is not one-dimensional; if `preset` is not known or
            `tpr` is not of (0, 1].
    """
    convention, tpr = get_preset(preset), _as_tpr(tpr)
    counts = _as_counts(id_scores, ood_scores)
    curves = {"id": _curve(counts, "id"), "ood": _curve(counts, "ood")}
    weights = convention.detection_weights
    n_id, n_ood = counts.n_id, counts.n_ood
    negatives = {"id": n_ood, "ood": n_id}
    return {
        "auroc": _auroc(counts),
        "aupr_in": convention.aupr_rule(*curves["id"]),
        "aupr_out": convention.aupr_rule(*curves["ood"]),
        "fpr": convention.fpr_rule(*curves[convention.positive], tpr) / negatives[convention.positive],
        "fpr_ood_positive": _first_reaching(*curves["ood"], tpr) / negatives["ood"],
        "detection_error": None if weights is None else _detection_error(*curves["id"], weights),
        "preset": preset,
        "tpr": tpr,
        "positive": convention.positive,
        "n_id": n_id,
        "n_ood": n_ood,
        "tied_fraction": counts.tied_fraction,
        "resolution": counts.resolution,
    }


def ood_bounds(counts: ScoreCounts, preset: str = "default", tpr: float = 0.95) -> dict[str, tuple[float, float]]:
    """
    The interval in which each metric of the unbinned scores lies for certain, given binned counts. Within a bin the
    order of the scores is lost, and nothing else: AUROC is off by at most half of the share of (ID, OOD) pairs that
    share a bin, an FPR by at most the share of negatives in the bin of its threshold, and so on. For exact counts
    both ends are the metric itself.

    Args:
        counts ([`ScoreCounts`]): Counts of both sides.
        preset (`str`, *optional*, defaults to `"default"`): As for [`ood_metrics`].
        tpr (`float`, *optional*, defaults to 0.95): As for [`ood_metrics`].

    Returns:
        `dict[str, tuple[float, float]]`: Lowest and highest possible value of `auroc`, `aupr_in`, `aupr_out`, `fpr`,
        `fpr_ood_positive` and (if the preset defines it) `detection_error`.
    """
    metrics = ood_metrics(counts, preset=preset, tpr=tpr)
    convention = get_preset(preset)
    names = ["auroc", "aupr_in", "aupr_out", "fpr", "fpr_ood_positive", "detection_error"]
    values = {name: metrics[name] for name in names if metrics[name] is not None}
    if not counts.resolution:
        return {name: (value, value) for name, value in values.items()}
    sides = {"id": _curve(counts, "id"), "ood": _curve(counts, "ood")}
    within = float(np.sum(counts.id_counts / counts.n_id * (counts.ood_counts / counts.n_ood))) / 2
    bounds = {
        "auroc": (values["auroc"] - within, values["auroc"] + within),
        "aupr_in": _aupr_bounds(*sides["id"]),
        "aupr_out": _aupr_bounds(*sides["ood"]),
        "fpr": _fpr_bounds(*sides[convention.positive], tpr, convention.fpr_rule),
        "fpr_ood_positive": _fpr_bounds(*sides["ood"], tpr, _first_reaching),
    }
    if convention.detection_weights is not None:
        tp, fp = sides["id"]
        # Bin edges are points of the true curve too, so the truth can only be lower; at best a bin's ID scores all lie
        # above its OOD scores.
        best = _detection_error(tp, np.concatenate([[0], fp[:-1]]), convention.detection_weights, n_negative=fp[-1])
        bounds["detection_error"] = (best, values["detection_error"])
    return bounds


def _as_tpr(tpr: float) -> float:
    if not 0 < tpr <= 1:
        raise ValueError(f"`tpr` must be a fraction above 0 and at most 1, got {tpr:g}. Divide a percentage by 100.")
    return float(tpr)


def _as_counts(id_scores: Any, ood_scores: Any) -> ScoreCounts:
    if isinstance(id_scores, ScoreCounts):
        if ood_scores is not None:
            raise ValueError("`ood_scores` must be left out where `id_scores` are the counts of both sides.")
        counts = id_scores
    elif ood_scores is None:
        raise ValueError("`ood_scores` is missing: give the scores of both sides, or one `ScoreCounts`.")
    else:
        counts = ScoreCounts.from_scores(id_scores, ood_scores)
    for name, n in (("id_scores", counts.n_id), ("ood_scores", counts.n_ood)):
        if n == 0:
            raise ValueError(f"`{name}` is empty: OOD detection is measured on samples of both sides.")
    return counts


def _curve(counts: ScoreCounts, positive: str) -> tuple[np.ndarray, np.ndarray]:
    """Cumulated true and false positives, from the threshold of the surest positives on."""
    if positive == "id":
        return np.cumsum(counts.id_counts[::-1]), np.cumsum(counts.ood_counts[::-1])
    if positive == "ood":
        return np.cumsum(counts.ood_counts), np.cumsum(counts.id_counts)
    raise ValueError(f"`positive` must be 'id' or 'ood', got {positive!r}.")


def _auroc(counts: ScoreCounts) -> float:
    ood_not_above = np.cumsum(counts.ood_counts)
    wins = np.sum(counts.id_counts * (ood_not_above - counts.ood_counts / 2))
    return float(wins / counts.n_id / counts.n_ood)


def _detection_error(tp: np.ndarray, fp: np.ndarray, weights: str, n_negative: int | None = None) -> float:
    n_positive, n_negative = int(tp[-1]), int(fp[-1] if n_negative is None else n_negative)
    scale = (2 * n_positive, 2 * n_negative) if weights == "balanced" else (n_positive + n_negative,) * 2
    reject_everything = n_positive / scale[0]
    return float(min(reject_everything, np.min((n_positive - tp) / scale[0] + fp / scale[1])))


def _fpr_bounds(tp: np.ndarray, fp: np.ndarray, tpr: float, rule: _FprRule) -> tuple[float, float]:
    group = _group_of_rank(tp, tpr) if rule is _order_statistic else int(np.searchsorted(tp / tp[-1], tpr))
    last = group
    if rule is _nearest_recall and tp[group] < tp[-1]:
        # Negatives below the last positive of this bin leave the recall as it is, up to the bin of the next positive.
        last = int(np.searchsorted(tp, tp[group], side="right"))
    return (int(fp[group - 1]) if group else 0) / int(fp[-1]), int(fp[last]) / int(fp[-1])


def _aupr_bounds(tp: np.ndarray, fp: np.ndarray) -> tuple[float, float]:
    gained = np.diff(tp, prepend=0)
    before_tp, before_fp = tp - gained, np.concatenate([[0], fp[:-1]])
    # The precision of any point of the bin: at worst all its negatives come first, at best all its positives.
    lowest = before_tp / np.maximum(before_tp + fp, 1)
    highest = tp / np.maximum(tp + before_fp, 1)
    return float(np.sum(gained * lowest) / tp[-1]), float(np.sum(gained * highest) / tp[-1])
