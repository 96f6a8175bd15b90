from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Union

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class SurgicalConfig(PeftConfig):
    """
    This is the configuration class to store the configuration of a [`SurgicalModel`].

    Surgical fine-tuning trains one contiguous block of a network and freezes the rest, the statistics of batch
    normalisation included: early blocks for shifts of the input (corruptions), middle blocks for shifts of features, late
    blocks for shifts of the labels. Described in https://huggingface.co/papers/2210.11466 (arXiv 2210.11466). The change
    of each trained tensor is the adapter, so that it is stored alone, merges exactly, and several of them share a base
    model.

    Args:
        blocks (`Optional[Union[List[str], str]]`):
            Names of the blocks to train: `embedding`, `first`, `middle`, `last` (thirds of the layers), `block:3`,
            `blocks:0-2` (layers, both ends included), `stage:1` (where the layers form stages) and `head`, of the vision
            tower; with `text:` before it, of the text tower. [`describe_blocks`] lists those of a model.
        target_modules (`Optional[Union[List[str], str]]`):
            Names (or a regex) of the modules to train: within `blocks` if both are given, in the whole model otherwise.
        exclude_modules (`Optional[Union[List[str], str]]`):
            Names (or a regex) of modules to leave frozen although they are chosen.
        modules_to_save (`Optional[List[str]]`):
            Modules to train whole and to save with the adapter, such as a freshly initialised classification head, or the
            owner of a parameter that is not in a layer of its own (see [`describe_blocks`]).
        train_norm (`bool`):
            Whether to train the affine parameters of normalisation layers.
        train_bias (`bool`):
            Whether to train biases.
        ranks (`Optional[Dict[str, int]]`):
            Set by [`compress`]: the rank of each module's change that is stored as two factors.
        init_weights (`bool`):
            `True` starts from the base model. `False` draws the changes at random, which serves only to test and debug.
    """

    blocks: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={"help": "Names of the blocks to train: embedding, first, middle, last, block:3, stage:1, head ..."},
    )
    target_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names or regex of the modules to train, within the blocks if both are given."}
    )
    exclude_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names or regex of modules to leave frozen although they are chosen."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Modules to train whole and save with the adapter, such as a classification head."},
    )
    train_norm: bool = field(default=True, metadata={"help": "Whether to train affine parameters of normalisations."})
    train_bias: bool = field(default=True, metadata={"help": "Whether to train biases."})
    ranks: Optional[dict[str, int]] = field(
        default=None, metadata={"help": "Set by `compress`: ranks of the changes that are stored as two factors."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True: the base model. False: random changes, for tests only."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["SURGICAL"]
        if isinstance(self.blocks, str):
            self.blocks = [self.blocks]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.blocks is not None and not self.blocks:
            raise ValueError("`blocks` is empty, which leaves nothing to train. Name at least one, e.g. `['first']`.")
        if self.blocks is None and not self.target_modules:
            raise ValueError(
                "Nothing says what to train. Pass `blocks=[...]` (`describe_blocks(model)` lists those of a model), or "
                "`target_modules=[...]`."
            )
