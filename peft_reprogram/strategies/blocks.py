"""Which block of the network is trained: what the strategies that ask this have in common."""

from __future__ import annotations

from typing import Any, Optional

from torch import nn

from ..training import TrainingConfig
from ..tuners.surgical import SurgicalConfig
from ..tuners.surgical.blocks import find_blocks, get_base_model


# The parts of an image classifier in the order of depth. None overlaps another.
WHOLE = ("embedding", "first", "middle", "last", "head")


def adapt_blocks(classifier: nn.Module, blocks: tuple[str, ...]) -> nn.Module:
    """
    A classifier with an adapter on some blocks, all else frozen.

    Args:
        classifier (`torch.nn.Module`): A [`LinearHeadClassifier`], of which the head is trained with the block `"head"`, or a
            transformers `...ForImageClassification`.
        blocks (`tuple[str, ...]`): Names of blocks of the image tower, see [`~tuners.surgical.describe_blocks`].

    Returns:
        `torch.nn.Module`: The classifier, its model wrapped by PEFT.
    """
    from peft import get_peft_model

    head: Optional[nn.Module] = getattr(classifier, "head", None)
    if head is None:
        return get_peft_model(classifier, SurgicalConfig(blocks=list(blocks)))  # type: ignore[arg-type]
    model: Any = classifier.model
    model.requires_grad_(False)
    head.requires_grad_("head" in blocks)
    # Some towers have no projection of their own, so that the linear head is all of the block.
    own = [block for block in blocks if block != "head" or "head" in find_blocks(model)]
    if own:
        classifier.model = get_peft_model(model, SurgicalConfig(blocks=own))
    return classifier


def tensor_groups(classifier: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """One parameter group a trained tensor, as [`~tuners.surgical.selection.TensorWeights`] expects them."""
    return [
        {"tensor": name, "params": [parameter], "lr": config.lr, "weight_decay": config.weight_decay}
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad
    ]


def parameters_by_block(classifier: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """
    The trained parameters of each of the five parts, in the order of depth.

    Args:
        classifier (`torch.nn.Module`): What [`adapt_blocks`] made.
    """
    blocks = find_blocks(get_base_model(getattr(classifier, "model", classifier)))
    leaves = {leaf.name: block for block in WHOLE if block in blocks for leaf in blocks[block].leaves}
    result: dict[str, dict[str, nn.Parameter]] = {block: {} for block in WHOLE}
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            # A linear head is no module of the tower.
            block = next((block for leaf, block in leaves.items() if f".{leaf}." in f".{name}"), "head")
            result[block][name] = parameter
    return {block: parameters for block, parameters in result.items() if parameters}
