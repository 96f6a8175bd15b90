"""Choosing what to train: by gradients of a few mini-batches, or by training each block and comparing.

What trains and scores a block is a callable of the caller, so that nothing here depends on a training loop.
"""

from .auto_rgn import auto_rgn
from .auto_snr import auto_snr
from .block_scores import BlockScores, cross_validated, profile
from .defrosting import defrosting
from .subtuning import SubTuning, subtuning
from .tensor_weights import TensorWeights


__all__ = [
    "BlockScores",
    "SubTuning",
    "TensorWeights",
    "auto_rgn",
    "auto_snr",
    "cross_validated",
    "defrosting",
    "profile",
    "subtuning",
]
