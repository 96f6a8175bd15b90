"""From class names and templates to prompts, tokens and the embedding rows that they use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import torch


def check_class_names(class_names: Any) -> list[str]:
    """
    Returns the class names as a list.

    Raises:
        ValueError: If they are missing, empty, not strings or not distinct.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or len(class_names) == 0:
        raise ValueError(
            "`class_names` must be a non-empty list of strings in label order, e.g. ['cat', 'dog']; "
            f"got {_short(class_names)}."
        )
    bad = [name for name in class_names if not isinstance(name, str) or not name.strip()]
    if bad:
        raise ValueError(f"`class_names` must be non-empty strings; these are not: {_short(bad)}.")
    seen: set[str] = set()
    duplicated = sorted({name for name in class_names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    if duplicated:
        raise ValueError(
            f"`class_names` holds duplicates: {_short(duplicated)}. Two classes with one prompt can't be told apart; "
            "rename one of each pair."
        )
    return list(class_names)


def check_templates(template: Union[str, Sequence[str]]) -> list[str]:
    """
    Returns the templates as a list.

    Raises:
        ValueError: If there is none, or one has not exactly one `{}`.
    """
    templates = [template] if isinstance(template, str) else list(template) if isinstance(template, Sequence) else []
    if not templates:
        raise ValueError(f"`template` must be a string or a non-empty list of strings, got {_short(template)}.")
    for text in templates:
        if not isinstance(text, str) or text.count("{}") != 1:
            raise ValueError(
                f"A `template` must contain `{{}}` exactly once, where the class name goes, as in 'a photo of a {{}}'; "
                f"got {_short(text)}."
            )
    return templates


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts, class by class: `[t0 of c0, t1 of c0, ..., t0 of c1, ...]`."""
    # Not str.format: a template may come from a downloaded file, and format specifiers can reach into objects.
    return [template.replace("{}", name) for name in class_names for template in templates]


def tokenize_prompts(tokenizer: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """
    Token ids of the prompts, padded to the longest of them.

    Tokenizers that give no attention mask (SigLIP) belong to text towers which see and pool the padding, and which were
    trained at full length; their prompts are padded to it.

    Args:
        tokenizer: A transformers tokenizer.
        prompts (`Sequence[str]`): The prompts.

    Returns:
        `dict[str, torch.Tensor]`: The text tower's inputs, each `(len(prompts), length)`.
    """
    pads_to_full_length = "attention_mask" not in tokenizer.model_input_names
    encoded = tokenizer(
        list(prompts), padding="max_length" if pads_to_full_length else True, truncation=True, return_tensors="pt"
    )
    return dict(encoded)


def prompt_rows(tokenizer: Any, class_names: Sequence[str], templates: Sequence[str]) -> tuple[list[int], int]:
    """
    Which embedding rows the class prompts use.

    Args:
        tokenizer: A transformers tokenizer.
        class_names (`Sequence[str]`): Names of the classes.
        templates (`Sequence[str]`): Prompt templates.

    Returns:
        `tuple[list[int], int]`: The sorted token ids that occur (padding that is masked out excepted), and the length in
        tokens of the longest prompt.
    """
    encoded = tokenize_prompts(tokenizer, class_prompts(class_names, templates))
    ids = encoded["input_ids"]
    mask = encoded.get("attention_mask", torch.ones_like(ids)).bool()
    return torch.unique(ids[mask]).tolist(), ids.shape[1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " ..."
