"""How sure a number is: bootstrap confidence intervals over samples, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import as_fraction, as_scores


class Interval(NamedTuple):
    """
    A value with its confidence interval.

    Attributes:
        value (`float`): The statistic of the samples themselves.
        low (`float`), high (`float`): Ends of the interval.
        confidence (`float`): Of (0, 1).
    """

    value: float
    low: float
    high: float
    confidence: float


class MeanStd(NamedTuple):
    """
    Mean and spread over runs.

    Attributes:
        mean (`float`): Mean.
        std (`float`, *optional*): Sample standard deviation (divided by n - 1); `None` of a single run.
        n (`int`): Number of runs.
    """

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.std is None else f"{self.mean:.4g} ± {self.std:.2g} (n = {self.n})"


def bootstrap_interval(
    statistic: Callable[..., Any],
    *samples: Any,
    paired: bool = False,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Any:
    """
    Percentile bootstrap confidence interval (Efron 1979).

    ```py
    bootstrap_interval(auroc, id_scores, ood_scores)
    bootstrap_interval(accuracy, predictions, labels, paired=True)
    bootstrap_interval(ood_metrics, id_scores, ood_scores)["fpr"]
    ```

    Args:
        statistic (`Callable`): Maps arrays like `samples` to a number, or to a dict of numbers and other entries.
        samples (array-like): One or more arrays; each is drawn from with replacement along its first dimension.
        paired (`bool`, *optional*, defaults to `False`): Whether row i of all arrays is one sample (predictions and
            labels); otherwise each array is drawn on its own (ID and OOD scores).
        resamples (`int`, *optional*, defaults to 1000): Number of draws, at least 2.
        confidence (`float`, *optional*, defaults to 0.95): Of (0, 1).
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        [`Interval`], or a dict of them for each entry of the statistic's dict that is a float.

    Raises:
        ValueError: If there is no sample, paired arrays differ in length, or a number is out of range.
    """
    arrays = [np.asarray(values) for values in samples]
    if not arrays or any(array.ndim == 0 or len(array) == 0 for array in arrays):
        raise ValueError("`samples` must be one or more arrays of at least one sample each.")
    lengths = [len(array) for array in arrays]
    if paired and len(set(lengths)) > 1:
        raise ValueError(f"`samples` must have the same length where `paired=True`, got {lengths}.")
    if resamples < 2:
        raise ValueError(f"`resamples` must be at least 2, got {resamples}.")
    confidence = as_fraction("confidence", confidence, open_ends=True)
    rng = np.random.default_rng(seed)
    observed = statistic(*arrays)
    several = isinstance(observed, Mapping)
    value = {k: v for k, v in observed.items() if isinstance(v, float)} if several else {"": float(observed)}
    draws = np.empty((resamples, len(value)))
    for draw in draws:
        rows = [rng.integers(n, size=n) for n in (lengths[:1] if paired else lengths)] * (len(arrays) if paired else 1)
        result = statistic(*(array[index] for array, index in zip(arrays, rows)))
        draw[:] = [result[key] for key in value] if several else result
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    intervals = {key: Interval(value[key], float(low[i]), float(high[i]), confidence) for i, key in enumerate(value)}
    return intervals if several else intervals[""]


def mean_and_std(values: Sequence[float]) -> MeanStd:
    """
    Mean and sample standard deviation over the runs of different seeds.

    Args:
        values (sequence of `float`): One number of each run, finite.

    Returns:
        [`MeanStd`]: Prints as "mean ± std (n = ...)".

    Raises:
        ValueError: If there is no run, or a value is not finite.
    """
    array = as_scores("values", values)
    return MeanStd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))
