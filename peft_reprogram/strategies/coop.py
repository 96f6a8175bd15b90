"""Learned context tokens in place of a prompt template."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Union

import torch
from torch import nn

from ..classifier import ZeroShotClassifier
from ..training import TrainingConfig
from ..tuners.reprogrammer.architectures import find_architecture
from .linear_head import load_trained, save_trained
from .registry import register
from .strategy import Strategy, Task


CLASSIFIER_FILE = "context_classifier.json"
# The standard deviation of the paper's initial context.
_INITIAL_SCALE = 0.02


class ContextEmbedding(nn.Module):
    """
    A token embedding with learned rows for the ids below zero: id `-1 - i` stands for context token `i`.

    Ids below zero, since a text tower may pool at the largest id.

    Args:
        embedding (`torch.nn.Embedding`): The pre-trained rows.
        count (`int`): Number of learned rows.
    """

    def __init__(self, embedding: nn.Embedding, count: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.context = nn.Parameter(torch.randn(count, embedding.embedding_dim).to(embedding.weight) * _INITIAL_SCALE)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        is_context = input_ids < 0
        learned = self.context[(-1 - input_ids).clamp(min=0)]
        return torch.where(is_context[..., None], learned, self.embedding(input_ids.clamp(min=0)))


class ContextClassifier(ZeroShotClassifier):
    """
    A [`ZeroShotClassifier`] whose prompts are learned context tokens, the same for all classes, and the class name
    (arXiv 2109.01134). Only the context is trained.

    Args:
        model (`torch.nn.Module`): A plain text-image model; it is changed in place.
        tokenizer: Its transformers tokenizer.
        class_names (`Sequence[str]`): Names of the classes in label order.
        context_tokens (`int`): How many context tokens; fewer where the longest class name leaves fewer positions.

    Raises:
        ValueError: If the text tower's token embedding is not known, or the class names leave no position for a context.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, class_names: Sequence[str], context_tokens: int) -> None:
        super().__init__(model, tokenizer, class_names, "{}")
        architecture = find_architecture(model)
        if architecture is None or architecture.tokens is None or architecture.text is None:
            raise ValueError(
                f"the token embedding of a {type(model).__name__} is not known, so it can't be given a learned context. "
                "Take a model with a text tower out of `peft_reprogram.tuners.reprogrammer.architectures.TEXT_IMAGE_MODELS`."
            )
        if context_tokens < 1:
            raise ValueError(f"`context_tokens` must be at least 1, got {context_tokens}.")
        text_tower: Any = model.get_submodule(architecture.text.path)
        available = text_tower.config.max_position_embeddings
        self._text_inputs = _with_context(tokenizer, self.class_names, context_tokens, available)
        count = -int(self._text_inputs["input_ids"].min())
        model.requires_grad_(False)
        owner, _, leaf = architecture.tokens.rpartition(".")
        embedding: Any = model.get_submodule(architecture.tokens)
        self.embedding_path = architecture.tokens
        setattr(model.get_submodule(owner), leaf, ContextEmbedding(embedding, count))

    @property
    def context(self) -> nn.Parameter:
        """The context, shape `(tokens, width of the text tower)`."""
        return self.model.get_submodule(self.embedding_path).context

    def zero_shot_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Not available: without its context the model has no prompts."""
        raise NotImplementedError(
            "a learned context takes the place of the prompts that zero-shot logits need: train with an objective that "
            "has no reference, such as 'class'."
        )

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """Saves the context and the class names to a folder, which is created if needed."""
        content = {"base_model": getattr(self.config, "_name_or_path", None), "class_names": self.class_names}
        save_trained(self, save_directory, CLASSIFIER_FILE, content)

    def load_trained(self, directory: Union[str, os.PathLike]) -> ContextClassifier:
        """Loads what [`~ContextClassifier.save_pretrained`] wrote; a context serves other classes too."""
        load_trained(self, directory)
        return self


@register
@dataclass(frozen=True)
class CoOp(Strategy):
    """
    Learned context tokens before the class names, both towers frozen (arXiv 2109.01134), trained with SGD.

    Args:
        lr (`float`, *optional*, defaults to 2e-3): Learning rate of SGD.
        context_tokens (`int`, *optional*, defaults to 16): How many; fewer where the text tower has no positions for them.
    """

    name: ClassVar[str] = "coop"
    frozen_images: ClassVar[bool] = True
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 2e-3}, {"lr": 2e-2}, {"lr": 2e-1})

    lr: float = 2e-3
    context_tokens: int = 16

    def build(self, task: Task) -> nn.Module:
        return ContextClassifier(task.load_model(), task.load_tokenizer(), task.class_names, self.context_tokens)

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        return replace(
            config,
            objective="class",
            objective_options={},
            optimizer="sgd",
            lr=self.lr,
            weight_decay=5e-4,
        )


def _with_context(tokenizer: Any, class_names: list[str], count: int, available: int) -> dict[str, torch.Tensor]:
    """The text tower's inputs for each class: what the tokenizer puts first, the context, the name and the rest."""
    encoded = tokenizer(class_names, return_special_tokens_mask=True)
    special = encoded.pop("special_tokens_mask")[0]
    # Padding comes after the context is in.
    longest = max(len(ids) for ids in encoded["input_ids"])
    count = min(count, available - longest)
    if count < 1:
        raise ValueError(
            f"the longest class name fills {longest} of the text tower's {available} positions, which leaves none for a "
            "context: shorten the class names."
        )
    start = special.index(0)
    filler = {"input_ids": [-1 - i for i in range(count)], "attention_mask": [1] * count}
    rows = {
        name: [row[:start] + filler.get(name, [row[start]] * count) + row[start:] for row in encoded[name]]
        for name in encoded
    }
    # As in `tokenize_prompts`: towers without an attention mask were trained at full length.
    options: Any = (
        {"padding": True} if "attention_mask" in rows else {"padding": "max_length", "max_length": available}
    )
    return dict(tokenizer.pad(rows, return_tensors="pt", **options))
