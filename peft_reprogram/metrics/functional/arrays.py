"""What the metrics accept: arrays checked once at the door, so that the formulas behind it need not doubt them."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_scores(name: str, values: Any, *, ndim: int = 1, allow_empty: bool = False) -> np.ndarray:
    """
    Turns `values` into a finite float64 array; a torch tensor on any device and of any float type is taken too.

    Args:
        name (`str`): What the caller calls the argument; every message begins with it.
        values (array-like): Numbers of `ndim` dimensions.
        ndim (`int`, *optional*, defaults to 1): The number of dimensions that is expected.
        allow_empty (`bool`, *optional*, defaults to `False`): Whether no number at all is fine.

    Raises:
        ValueError: If the values are not numbers, have another shape, are empty, or hold NaN or infinity.
    """
    if hasattr(values, "detach"):  # a torch tensor: numpy knows neither its device nor bfloat16
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{name}` must be an array of numbers, but its rows have different lengths.") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must hold real numbers, got values of type {array.dtype}.")
    array = array.astype(np.float64, copy=False)
    if array.size == 0 and not allow_empty:
        raise ValueError(f"`{name}` is empty: at least one value is needed.")
    if array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} dimension(s), got an array of shape {array.shape}.")
    finite = np.isfinite(array)
    if not finite.all():
        n_nan = int(np.isnan(array).sum())
        n_inf = int(array.size - finite.sum()) - n_nan
        where = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"`{name}` must be finite, but holds {n_nan} NaN and {n_inf} infinite value(s), the first at index "
            f"{where[0] if ndim == 1 else tuple(where)}. A score in the log domain or in a wider float type avoids them."
        )
    return array


def as_labels(name: str, values: Any, *, length: int, of: str, num_classes: int | None = None) -> np.ndarray:
    """
    Turns `values` into an int64 array of class indices, one for each entry of the argument `of`.

    Args:
        name (`str`): What the caller calls the argument.
        values (array-like of `int`): Shape `(N,)`.
        length (`int`): N, the number of entries of `of`.
        of (`str`): Name of the argument that the labels belong to.
        num_classes (`int`, *optional*): If given, labels must lie in `0 .. num_classes - 1`.

    Raises:
        ValueError: If the labels are not integers, are too many or too few, or out of range.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "iub" and array.size:
        raise ValueError(f"`{name}` must hold integers (class indices), got values of type {array.dtype}.")
    array = array.astype(np.int64, copy=False)
    if array.ndim != 1:
        raise ValueError(f"`{name}` must have 1 dimension, got an array of shape {array.shape}.")
    if len(array) != length:
        raise ValueError(f"`{name}` and `{of}` must have the same length, got {len(array)} and {length}.")
    if num_classes is not None and array.size and (array.min() < 0 or array.max() >= num_classes):
        raise ValueError(
            f"`{name}` must lie in 0 .. {num_classes - 1} (`{of}` has {num_classes} classes), "
            f"got values from {array.min()} to {array.max()}."
        )
    return array


def as_predictions(predictions: Any, labels: Any, *, name: str = "predictions", of: str = "labels") -> tuple:
    """Returns predicted and true class indices as two int64 arrays of the same length N > 0."""
    n = len(predictions)
    if n == 0:
        raise ValueError(f"`{name}` is empty: at least one prediction is needed.")
    return as_labels(name, predictions, length=n, of=name), as_labels(of, labels, length=n, of=name)


def as_logits(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns finite float64 logits of shape `(N, C)`, C >= 2, and int64 labels of shape `(N,)` within C."""
    array = as_scores("logits", logits, ndim=2)
    if array.shape[1] < 2:
        raise ValueError(f"`logits` must have one column for each of 2 or more classes, got shape {array.shape}.")
    return array, as_labels("labels", labels, length=len(array), of="logits", num_classes=array.shape[1])


def as_fraction(name: str, value: float, *, open_ends: bool = False) -> float:
    """Returns `value` as a float of [0, 1], or of the open interval where both ends make no sense."""
    value = float(value)
    if not (0 < value < 1 if open_ends else 0 <= value <= 1):
        interval = "strictly between 0 and 1" if open_ends else "between 0 and 1"
        raise ValueError(f"`{name}` must be a fraction {interval}, got {value:g}. Divide a percentage by 100.")
    return value
