"""Ways to fine-tune, each in a file of its own, behind one interface."""

from . import (  # noqa: F401  registers the strategies
    auto_rgn,
    auto_snr,
    bi_tuning,
    bitfit,
    bottleneck_adapter,
    compacter,
    coop,
    flyp,
    full,
    gradual_unfreezing,
    ia3,
    l2_sp,
    linear_probe,
    ln_tuning,
    lora,
    lp_ft,
    reprogrammer,
    reprogrammer_anchored,
    reprogrammer_image,
    reprogrammer_text,
    side_tuning,
    subtuning,
    surgical,
    wise_ft,
    zero_shot,
)
from .registry import get_strategy, list_strategies, register
from .strategy import Strategy, Task


__all__ = ["Strategy", "Task", "get_strategy", "list_strategies", "register"]
