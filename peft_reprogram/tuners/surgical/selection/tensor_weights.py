from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import nn

from ..config import SurgicalConfig
from .plotting import depth_figure


@dataclass(frozen=True)
class TensorWeights:
    """
    How much each trained tensor is to learn; printing it shows a table by block.

    Args:
        criterion (`str`): How the values were found.
        values (`dict[str, float]`): The criterion's value of each trained parameter, by name, in the order of depth.
        weights (`dict[str, float]`): Factor in [0, 1] on each parameter's learning rate.
        modules (`dict[str, str]`): Path of each parameter's module in the base model.
        blocks (`dict[str, str]`): Name of each parameter's block.
        num_batches (`int`): Mini-batches measured.
        cost (`str`): What the measurement cost.
    """

    criterion: str
    values: dict[str, float]
    weights: dict[str, float]
    modules: dict[str, str] = field(repr=False)
    blocks: dict[str, str] = field(repr=False)
    num_batches: int
    cost: str

    def by_block(self) -> dict[str, float]:
        """Mean weight of the tensors of each block, in the order of depth."""
        members: dict[str, list[float]] = {}
        for name, block in self.blocks.items():
            members.setdefault(block, []).append(self.weights[name])
        return {block: sum(weights) / len(weights) for block, weights in members.items()}

    def parameter_groups(self, model: nn.Module, lr: float, **options: Any) -> list[dict[str, Any]]:
        """
        One parameter group a tensor, for any optimiser of torch.

        Args:
            model (`torch.nn.Module`): The model that was measured.
            lr (`float`): Learning rate of a tensor of weight 1.
            **options: Further options of each group, such as `weight_decay`.

        Returns:
            `list[dict]`: Groups with the parameter's name as `tensor`. Tensors of weight 0 are among them, with a learning
            rate of 0, so that a later measurement can wake them.
        """
        parameters = dict(model.named_parameters())
        return [
            {"params": [parameters[name]], "lr": weight * lr, "tensor": name, **options}
            for name, weight in self.weights.items()
        ]

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        lr: float,
        *,
        reset_state: bool = False,
        scheduler: Optional[Any] = None,
    ) -> None:
        """
        Set the learning rates of an optimiser that was made from [`~TensorWeights.parameter_groups`].

        Args:
            optimizer (`torch.optim.Optimizer`): Its moments are kept.
            lr (`float`): Learning rate of a tensor of weight 1.
            reset_state (`bool`, *optional*, defaults to `False`): Whether to forget the optimiser's moments, as the released
                code of arXiv 2210.11466 does by making a new optimiser every epoch.
            scheduler (*optional*): A learning-rate scheduler that multiplies base rates (`LambdaLR`, and so all of
                `transformers.get_scheduler`), whose base rates then change too. The rates themselves follow with its next
                step.

        Raises:
            ValueError: If the optimiser's groups are not those of these tensors.
        """
        names = [group.get("tensor") for group in optimizer.param_groups]
        if set(names) != set(self.weights):
            raise ValueError(
                "The optimiser's parameter groups are not those of these tensors. Make it from "
                "`weights.parameter_groups(model, lr)` of the same model."
            )
        for index, (name, group) in enumerate(zip(names, optimizer.param_groups)):
            rate = self.weights[name] * lr  # type: ignore[index]
            if scheduler is None:
                group["lr"] = rate
            else:
                scheduler.base_lrs[index] = rate
            if "initial_lr" in group:
                group["initial_lr"] = rate
        if reset_state:
            optimizer.state.clear()

    def freeze(self, model: nn.Module) -> None:
        """Stop the gradients of all tensors of weight 0, which saves their time and memory."""
        for name, parameter in model.named_parameters():
            if self.weights.get(name) == 0:
                parameter.requires_grad_(False)

    def to_config(self, threshold: float = 0.5, **fields: Any) -> SurgicalConfig:
        """
        A configuration that trains the modules with a tensor of at least this weight.

        Args:
            threshold (`float`, *optional*, defaults to 0.5): In (0, 1].
            **fields: Further fields of the configuration.
        """
        chosen = sorted({self.modules[name] for name, weight in self.weights.items() if weight >= threshold})
        if not 0 < threshold <= 1 or not chosen:
            raise ValueError(f"`threshold` must be in (0, 1] and leave something to train, got {threshold}.")
        return SurgicalConfig(target_modules=chosen, **fields)

    def plot(self, path: Optional[Union[str, os.PathLike]] = None) -> Any:
        """
        The weights by depth: a point for each tensor, a line for the blocks' means.

        Args:
            path (`str` or `os.PathLike`, *optional*): File to write the figure to.

        Returns:
            `matplotlib.figure.Figure`
        """
        means = self.by_block()
        points = [(list(means).index(self.blocks[name]), weight) for name, weight in self.weights.items()]
        return depth_figure(
            means, ylabel="weight of the learning rate", title=self.criterion, points=points, path=path
        )

    def __str__(self) -> str:
        width = max(len("block"), *(len(block) for block in self.blocks.values()))
        lines = [f"{self.criterion}, {self.num_batches} mini-batches ({self.cost})"]
        lines.append(f"{'block'.ljust(width)}  tensors  mean weight   largest")
        for block, mean in self.by_block().items():
            weights = [self.weights[name] for name, other in self.blocks.items() if other == block]
            lines.append(f"{block.ljust(width)}  {len(weights):>7}  {mean:>11.3f}  {max(weights):>8.3f}")
        return "\n".join(lines)
