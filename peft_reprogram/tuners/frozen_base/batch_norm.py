"""Batch normalisation inside a frozen base model: its running statistics must not move while an adapter trains."""

from __future__ import annotations

import torch
from torch import nn


def freeze_batch_norm(model: nn.Module) -> None:
    """
    Put batch-norm layers without trainable parameters into evaluation mode.

    Training mode would move their running statistics, i.e. change the base model that is to stay frozen.

    Args:
        model (`torch.nn.Module`): The base model.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()


def freeze_batch_norm_on_forward(model: nn.Module) -> None:
    """
    Do so before each forward pass in training mode.

    Models with an injected adapter (transformers' own integration) have no `train()` of ours that could do it.

    Args:
        model (`torch.nn.Module`): The base model.
    """
    detach_batch_norm_guard(model)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        model.register_forward_pre_hook(_BatchNormGuard())


def detach_batch_norm_guard(model: nn.Module) -> None:
    """Undo [`freeze_batch_norm_on_forward`]."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, _BatchNormGuard):
            del model._forward_pre_hooks[key]


class _BatchNormGuard:
    def __call__(self, module: nn.Module, args: tuple) -> None:
        if module.training and not torch.compiler.is_compiling():
            freeze_batch_norm(module)
