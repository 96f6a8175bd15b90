"""Reading safetensors that strangers wrote: the header first, then one tensor after the other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open


MAX_TENSORS = 100_000
_FLOATING = {"F64", "F32", "F16", "BF16"}
# Batch normalisation counts its batches, and a fitted score spells its model's fingerprint; all else is floating point.
_INTEGERS = {"I64", "I32", "U8"}
_INTEGER_NAMES = ("num_batches_tracked", "position_ids", "identity")


class UnsafeAdapterError(ValueError):
    """An adapter that is broken or hostile; it was refused before anything of it was used."""


class TensorHeader(NamedTuple):
    """
    Args:
        shape (`tuple[int, ...]`): The shape.
        dtype (`str`): The dtype as safetensors writes it, such as `"F32"`.
    """

    shape: tuple[int, ...]
    dtype: str


def read_header(path: Path) -> dict[str, TensorHeader]:
    """
    Names, shapes and dtypes of the tensors in a file; no tensor is read.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `dict[str, TensorHeader]`: By name.

    Raises:
        UnsafeAdapterError: If it is no safetensors file, its header does not fit its size, it holds no tensors or too many,
            or one is not of floating point.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise UnsafeAdapterError(f"{path.name} holds {len(names):,} tensors; {MAX_TENSORS:,} are accepted.")
            slices = {name: file.get_slice(name) for name in names}
            tensors = {name: TensorHeader(tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}
    except (SafetensorError, OSError, OverflowError) as error:
        raise UnsafeAdapterError(
            f"{path.name} is no whole safetensors file ({error}). A pickle under this name, a truncated download or a forged "
            "header all look like that; nothing was read. Save or download it again."
        ) from error
    if not tensors:
        raise UnsafeAdapterError(f"{path.name} holds no tensors.")
    for name, tensor in tensors.items():
        counter = tensor.dtype in _INTEGERS and name.endswith(_INTEGER_NAMES)
        if tensor.dtype not in _FLOATING and not counter:
            raise UnsafeAdapterError(
                f"{path.name}: the tensor {name[:100]!r} has the dtype {tensor.dtype}; weights are {', '.join(sorted(_FLOATING))}."
            )
    return tensors


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a file whose header was checked.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `dict[str, torch.Tensor]`: By name.

    Raises:
        UnsafeAdapterError: If a value is NaN or infinite.
    """
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UnsafeAdapterError(
                    f"{path.name}: the tensor {name[:100]!r} holds NaN or infinite values, so every prediction would be "
                    "meaningless. The training diverged or the file is damaged."
                )
            tensors[name] = tensor
    return tensors
