"""Storing trained changes as products of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from ..frozen_base import canonical_path
from .config import SurgicalConfig
from .layer import SurgicalLayer


@dataclass(frozen=True)
class CompressedModule:
    """
    What compression did to the weight of one module.

    Args:
        name (`str`): Path of the module.
        shape (`tuple[int, int]`): Of its weight as a matrix: outputs (or rows of an embedding) by everything else.
        rank (`int`, *optional*): Rank that is kept; `None` where factors would have been larger than the change itself, which
            then stays as it is.
        relative_error (`float`): Frobenius norm of what was dropped over that of the change, in [0, 1].
    """

    name: str
    shape: tuple[int, int]
    rank: Optional[int]
    relative_error: float

    @property
    def num_parameters(self) -> int:
        """Numbers stored for the weight."""
        rows, columns = self.shape
        return rows * columns if self.rank is None else self.rank * (rows + columns)


@dataclass(frozen=True)
class CompressionReport:
    """
    What [`compress`] did; printing it shows a table.

    Args:
        modules (`list[CompressedModule]`): Each module's weight.
        relative_error (`float`): Frobenius norm of everything that was dropped over that of all changes of weights.
        num_before (`int`): Numbers stored for weights before.
    """

    modules: list[CompressedModule]
    relative_error: float
    num_before: int

    @property
    def num_after(self) -> int:
        """Numbers stored for weights now."""
        return sum(module.num_parameters for module in self.modules)

    def __str__(self) -> str:
        width = max(len(module.name) for module in self.modules)
        lines = [f"{'module'.ljust(width)}  {'shape':>12}  {'rank':>5}  relative error"]
        for module in self.modules:
            shape, rank = f"{module.shape[0]}x{module.shape[1]}", "full" if module.rank is None else str(module.rank)
            lines.append(f"{module.name.ljust(width)}  {shape:>12}  {rank:>5}  {module.relative_error:.2e}")
        lines.append(
            f"{self.num_before:,} -> {self.num_after:,} numbers ({self.num_after / self.num_before:.1%}), relative error "
            f"{self.relative_error:.2e}"
        )
        return "\n".join(lines)


@torch.no_grad()
def compress(
    model: nn.Module,
    rank: Optional[int] = None,
    energy: Optional[float] = None,
    adapter_name: Optional[str] = None,
) -> CompressionReport:
    """
    Store the trained changes of weights as products of two matrices of low rank (truncated singular value decomposition).

    Convolutions count as matrices of outputs by everything else. Where factors would not be smaller, and for normalisations
    and biases, the change stays as it is. The adapter then acts, trains, merges, saves and loads in this form.

    Args:
        model (`torch.nn.Module`): A model with a trained surgical adapter.
        rank (`int`, *optional*): Rank to keep, at least 1.
        energy (`float`, *optional*): In (0, 1]: keep, in each weight, the least rank with this share of the squared
            Frobenius norm. Exactly one of `rank` and `energy` must be given.
        adapter_name (`str`, *optional*): The adapter; the active one if not given.

    Returns:
        [`CompressionReport`]: Ranks, sizes and errors, to be printed.

    Raises:
        ValueError: If the arguments don't fit, the model has no such adapter, or the adapter is merged or compressed already.
    """
    if (rank is None) == (energy is None):
        raise ValueError("Pass exactly one of `rank` and `energy`.")
    if rank is not None and rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"`energy` is a share of the squared norm and must be in (0, 1], got {energy}.")
    adapter_name = _find_adapter(model, adapter_name)
    layers = {
        # As the base model calls it, whatever is wrapped around that.
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SurgicalLayer) and module._has(adapter_name)
    }
    for name, layer in layers.items():
        if adapter_name in layer.merged_adapters:
            raise ValueError(
                f"The adapter {adapter_name!r} is merged. Call `unmerge_adapter()` before compressing it."
            )
        if adapter_name not in layer.surgical_weight:
            raise ValueError(f"The adapter {adapter_name!r} is compressed already ({name}).")

    # Everything is computed before anything is changed.
    modules, factors = [], {}
    dropped = total = 0.0
    for name, layer in layers.items():
        change = layer.surgical_weight[adapter_name]
        matrix = change.flatten(1).double() if change.ndim > 1 else change.double().unsqueeze(1)
        shape = (matrix.shape[0], matrix.shape[1])
        kept, squares = None, torch.zeros(1, dtype=torch.float64)
        if layer.kind.name in ("linear", "convolution", "embedding"):
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            squares = s.square()
            wanted = min(rank, len(s)) if rank is not None else _rank_of(squares, energy)  # type: ignore[arg-type]
            if wanted * sum(shape) < shape[0] * shape[1]:
                kept = wanted
                # Both factors get the same scale, which trains better than one that holds it all.
                root = s[:kept].sqrt()
                factors[name] = ((u[:, :kept] * root).to(change), (root[:, None] * v[:kept]).to(change))
        tail = 0.0 if kept is None else squares[kept:].sum().item()
        norm = matrix.square().sum().item()
        modules.append(CompressedModule(name, shape, kept, (tail / norm) ** 0.5 if norm else 0.0))
        dropped, total = dropped + tail, total + norm

    for name, (up, down) in factors.items():
        layer = layers[name]
        trained = layer.surgical_weight[adapter_name].requires_grad
        del layer.surgical_weight[adapter_name]
        layer.surgical_up[adapter_name] = nn.Parameter(up.contiguous(), requires_grad=trained)
        layer.surgical_down[adapter_name] = nn.Parameter(down.contiguous(), requires_grad=trained)
    config: SurgicalConfig = model.peft_config[adapter_name]  # type: ignore[index,assignment]
    config.ranks = {canonical_path(module.name): module.rank for module in modules if module.rank is not None}
    report_error = (dropped / total) ** 0.5 if total else 0.0
    return CompressionReport(modules, report_error, sum(module.shape[0] * module.shape[1] for module in modules))


def _rank_of(squares: torch.Tensor, energy: float) -> int:
    shares = squares.cumsum(0)
    if not shares[-1]:
        return 1
    return min(int((shares < energy * shares[-1]).sum()) + 1, len(squares))


def _find_adapter(model: nn.Module, adapter_name: Optional[str]) -> str:
    configs = getattr(model, "peft_config", {})
    names = [name for name, config in configs.items() if isinstance(config, SurgicalConfig)]
    if adapter_name is None and len(names) > 1:
        active = getattr(model, "active_adapter", None)
        adapter_name = active if isinstance(active, str) else None
    elif adapter_name is None and names:
        adapter_name = names[0]
    if adapter_name not in names:
        raise ValueError(
            f"The model has no surgical adapter {'' if adapter_name is None else repr(adapter_name) + ' '}to compress; its "
            f"adapters are { {name: str(config.peft_type) for name, config in configs.items()} }. Name one with "
            "`adapter_name`."
        )
    return adapter_name  # type: ignore[return-value]
