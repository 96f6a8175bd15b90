"""
Times the OOD metrics of this package against scikit-learn's on the same scores, side by side in one run.

    OMP_NUM_THREADS=1 python scripts/benchmark_metrics.py --sizes 1e5 1e6 1e7

Both sides take turns and the least time of each counts, so that a busy machine slows both alike. Values must agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics as sk

from peft_reprogram.metrics import aupr, auroc, detection_error, fpr_at_tpr, ood_metrics


TPR = 0.95


def sklearn_fpr(labels: np.ndarray, scores: np.ndarray) -> float:
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= TPR)])


def sklearn_detection_error(labels: np.ndarray, scores: np.ndarray) -> float:
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    return float(np.min(1 - tpr + fpr) / 2)


def sklearn_all(labels: np.ndarray, scores: np.ndarray) -> list[float]:
    """All metrics with no more curves than needed: one for each side serves all that can be read from it."""
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    fpr_ood, tpr_ood, _ = sk.roc_curve(1 - labels, -scores, drop_intermediate=False)
    return [
        float(sk.auc(fpr, tpr)),
        float(sk.average_precision_score(labels, scores)),
        float(sk.average_precision_score(1 - labels, -scores)),
        float(fpr[np.argmax(tpr >= TPR)]),
        float(fpr_ood[np.argmax(tpr_ood >= TPR)]),
        float(np.min(1 - tpr + fpr) / 2),
    ]


def our_all(id_scores: np.ndarray, ood_scores: np.ndarray) -> list[float]:
    values = ood_metrics(id_scores, ood_scores, tpr=TPR)
    return [values[k] for k in ("auroc", "aupr_in", "aupr_out", "fpr", "fpr_ood_positive", "detection_error")]


# Name -> (ours of ID and OOD scores, scikit-learn's of labels and scores)
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "auroc": (auroc, sk.roc_auc_score),
    "aupr_in": (aupr, sk.average_precision_score),
    "aupr_out": (lambda i, o: aupr(i, o, positive="ood"), lambda y, s: sk.average_precision_score(1 - y, -s)),
    "fpr": (lambda i, o: fpr_at_tpr(i, o, tpr=TPR), sklearn_fpr),
    "fpr_ood_positive": (
        lambda i, o: fpr_at_tpr(i, o, tpr=TPR, positive="ood"),
        lambda y, s: sklearn_fpr(1 - y, -s),
    ),
    "detection_error": (detection_error, sklearn_detection_error),
    "all six": (our_all, sklearn_all),
}


def make_scores(size: int, tied: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping normal distributions, two thirds ID; rounded to three decimals if `tied`."""
    rng = np.random.default_rng(seed)
    n_id = 2 * size // 3
    id_scores, ood_scores = rng.normal(1, 1, n_id), rng.normal(-1, 1.5, size - n_id)
    return (id_scores.round(3), ood_scores.round(3)) if tied else (id_scores, ood_scores)


def timed(function: Callable[..., Any], *arguments: np.ndarray) -> tuple[float, Any]:
    start = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7], help="numbers of scores, both sides"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; the least time counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    print(f"{'scores':>10}  {'values':<8}  {'metric':<17}{'ours [s]':>10}{'sklearn [s]':>13}{'sklearn/ours':>14}")
    slowest, slowest_all = np.inf, np.inf
    for size in (int(size) for size in options.sizes):
        for tied in (False, True):
            id_scores, ood_scores = make_scores(size, tied, options.seed)
            labels = np.concatenate([np.ones(len(id_scores), int), np.zeros(len(ood_scores), int)])
            scores = np.concatenate([id_scores, ood_scores])
            for name, (ours, theirs) in PAIRS.items():
                our_time, their_time = np.inf, np.inf
                for _ in range(options.repeats):
                    seconds, our_value = timed(ours, id_scores, ood_scores)
                    our_time = min(our_time, seconds)
                    seconds, their_value = timed(theirs, labels, scores)
                    their_time = min(their_time, seconds)
                np.testing.assert_allclose(our_value, their_value, rtol=0, atol=1e-9, err_msg=name)
                ratio = their_time / our_time
                slowest = min(slowest, ratio)
                if name == "all six":
                    slowest_all = min(slowest_all, ratio)
                kind = "tied" if tied else "distinct"
                print(
                    f"{size:>10}  {kind:<8}  {name:<17}{our_time:>10.4f}{their_time:>13.4f}{ratio:>13.1f}x", flush=True
                )
    print(f"values agree to 1e-9; least ratio of a metric {slowest:.1f}x, of all six together {slowest_all:.1f}x")


if __name__ == "__main__":
    main()
