from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Optional, Union

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.utils import PeftType


NON_LINEARITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass
class BottleneckConfig(PeftConfig):
    """
    This is the configuration class to store the configuration of a [`BottleneckModel`].

    A bottleneck adapter turns the output h of a module of the frozen model into h + up(f(down(h))): a projection to a few
    dimensions, a non-linearity, and a projection back. Described in https://huggingface.co/papers/1902.00751 (arXiv
    1902.00751).

    Args:
        reduction_factor (`int`):
            Width of the module's output over that of the bottleneck, at least 1. The bottleneck has at least one dimension.
        non_linearity (`Literal["relu", "gelu", "silu"]`):
            The function between the projections.
        dropout (`float`):
            Probability in [0, 1) with which an activation of the bottleneck is dropped in training.
        target_modules (`Optional[Union[List[str], str]]`):
            Names (or a regex) of the modules whose output is adapted: linear layers, convolutions, layer and batch
            normalisations. By default what ends each branch beside a skip connection: the output projections of attention
            and feed-forward layers (so in both towers of a text-image model), and in convolutional networks the last
            pointwise convolution of each block with its normalisation.
        exclude_modules (`Optional[Union[List[str], str]]`):
            Names (or a regex) of modules to leave out although they are chosen, e.g. `r"text_model\\..*"`.
        modules_to_save (`Optional[List[str]]`):
            Modules to train whole and to save with the adapter, such as a freshly initialised classification head.
        init_weights (`bool`):
            `True` starts from the base model, with an `up` of zeros. `False` draws `up` at random too, which serves only to
            test and debug.
    """

    reduction_factor: int = field(
        default=8, metadata={"help": "Width of the module's output over that of the bottleneck."}
    )
    non_linearity: Literal["relu", "gelu", "silu"] = field(
        default="gelu", metadata={"help": "The function between the projections: relu, gelu or silu."}
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Share of the bottleneck's activations dropped in training."}
    )
    target_modules: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={
            "help": "Names or regex of the modules whose output is adapted; by default the ends of the branches."
        },
    )
    exclude_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names or regex of modules to leave out although they are chosen."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Modules to train whole and save with the adapter, such as a classification head."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True: the base model. False: random weights, for tests only."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.reduction_factor < 1:
            raise ValueError(
                f"`reduction_factor` must be at least 1 (a bottleneck as wide as the output), got {self.reduction_factor}."
            )
        if self.non_linearity not in NON_LINEARITIES:
            raise ValueError(f"`non_linearity` must be one of {list(NON_LINEARITIES)}, got {self.non_linearity!r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` is a probability and must be in [0, 1), got {self.dropout}.")

    def bottleneck_width(self, width: int) -> int:
        """
        Dimensions of the bottleneck.

        Args:
            width (`int`): Those of the adapted output.

        Raises:
            ValueError: If the adapter can't have outputs of this width.
        """
        return max(1, width // self.reduction_factor)


@dataclass
class CompacterConfig(BottleneckConfig):
    """
    This is the configuration class to store the configuration of a [`CompacterModel`].

    A bottleneck adapter whose projections are sums of Kronecker products, sum_i A_i (x) (s_i t_i): a few n x n matrices A_i,
    the rule, and for each projection n pairs of thin factors. Described in https://huggingface.co/papers/2106.04647 (arXiv
    2106.04647). Takes the arguments of [`BottleneckConfig`] too.

    Args:
        reduction_factor (`int`):
            Width of the module's output over that of the bottleneck, at least 1. The bottleneck's width is rounded up to a
            multiple of `phm_dim`.
        phm_dim (`int`):
            The number n of Kronecker products in a projection, at least 1. It must divide the widths of all adapted outputs.
        phm_rank (`int`):
            Inner dimension of the factors s_i and t_i, at least 1.
        shared_phm_rule (`bool`):
            Whether all layers share one rule, as in the paper. It is then stored with the first adapted module, and the other
            layers read it there, which FSDP can't do if it shards layer by layer. `False` gives each layer a rule of its own
            for both of its projections.
    """

    reduction_factor: int = field(
        default=32, metadata={"help": "Width of the module's output over that of the bottleneck."}
    )
    phm_dim: int = field(default=4, metadata={"help": "The number of Kronecker products in a projection."})
    phm_rank: int = field(default=1, metadata={"help": "Inner dimension of the factors."})
    shared_phm_rule: bool = field(default=True, metadata={"help": "Whether all layers share one rule."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["COMPACTER"]
        for name in ("phm_dim", "phm_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def bottleneck_width(self, width: int) -> int:
        if width % self.phm_dim:
            raise ValueError(
                f"`phm_dim={self.phm_dim}` does not divide the {width} features of this output. Choose a `phm_dim` that "
                "divides the widths of all adapted outputs, or leave this one out with `exclude_modules`."
            )
        products = -(-super().bottleneck_width(width) // self.phm_dim)
        return products * self.phm_dim
