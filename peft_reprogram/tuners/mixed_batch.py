"""Batches in which each sample names its adapter (PEFT's `adapter_names=`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Optional, Protocol

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


BASE = "__base__"


class MixedBatchLayer(Protocol):
    """A tuner layer that can send each sample of a batch through an adapter of its own."""

    @property
    def merged(self) -> bool: ...

    def per_sample(self, adapter_names: Sequence[str]) -> AbstractContextManager[None]: ...


@contextmanager
def mixed_batch(
    tuner: BaseTuner, layers: Sequence[MixedBatchLayer], adapter_names: Optional[Sequence[str]]
) -> Iterator[None]:
    """
    Within this context each sample of a batch goes through the adapter named for it.

    Args:
        tuner (`BaseTuner`): The tuner that owns the layers.
        layers (`Sequence`): Its tuner layers.
        adapter_names (`Sequence[str]`, *optional*): One name a sample, `"__base__"` for the base model; `None` changes
            nothing.

    Raises:
        ValueError: In training mode, with merged adapters, or for names that don't exist.
    """
    if adapter_names is None:
        yield
        return
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if any(layer.merged for layer in layers):
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    unknown = sorted(set(adapter_names) - set(tuner.peft_config) - {BASE})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. This model has "
            f"{sorted(tuner.peft_config)}, and '{BASE}' names the base model."
        )
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.per_sample(adapter_names))
        for module in tuner.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                hook = partial(_add_adapter_names, adapter_names=adapter_names)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _add_adapter_names(
    module: nn.Module, args: tuple, kwargs: dict, adapter_names: Sequence[str]
) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": adapter_names}
