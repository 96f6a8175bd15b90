"""Temperature scaling: the one number that makes a classifier's confidence match its accuracy."""

from __future__ import annotations

import numpy as np

from ..metrics import log_softmax, negative_log_likelihood


def fit_temperature(logits: np.ndarray, labels: np.ndarray, tolerance: float = 1e-10) -> float:
    """
    The temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    The problem is convex in the inverse temperature, so Newton's method, kept inside a bracket, finds the minimum.

    Args:
        logits (`np.ndarray`): Of held-out samples, `(N, C)`.
        labels (`np.ndarray`): Their classes, `(N,)`.
        tolerance (`float`, *optional*, defaults to 1e-10): Relative precision of the inverse temperature.

    Returns:
        `float`: Divide logits by it. Within [1e-4, 1e4]: the ends mean that no finite temperature is best.

    Raises:
        ValueError: If shapes, ranges or types do not fit.
    """
    negative_log_likelihood(logits, labels)  # checks
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    true = logits[np.arange(len(labels)), labels]
    low, high = 1e-4, 1e4
    inverse = 1.0
    for _ in range(200):
        p = np.exp(log_softmax(logits, 1 / inverse))
        mean = np.sum(p * logits, axis=1)
        slope = float(np.mean(mean - true))
        curvature = float(np.mean(np.sum(p * logits**2, axis=1) - mean**2))
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else np.inf
        # Where Newton leaves the bracket, halve it on the logarithmic scale.
        following = step if low < step < high else float(np.sqrt(low * high))
        if abs(following - inverse) <= tolerance * inverse:
            break
        inverse = following
    return 1 / inverse
