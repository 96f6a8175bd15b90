from ...registration import register_tuner
from .blocks import Block, BlockTable, describe_blocks
from .compression import CompressedModule, CompressionReport, compress
from .config import SurgicalConfig
from .model import SurgicalModel
from .selection import (
    BlockScores,
    SubTuning,
    TensorWeights,
    auto_rgn,
    auto_snr,
    cross_validated,
    defrosting,
    profile,
    subtuning,
)


__all__ = [
    "Block",
    "BlockScores",
    "BlockTable",
    "CompressedModule",
    "CompressionReport",
    "SubTuning",
    "SurgicalConfig",
    "SurgicalModel",
    "TensorWeights",
    "auto_rgn",
    "auto_snr",
    "compress",
    "cross_validated",
    "defrosting",
    "describe_blocks",
    "profile",
    "subtuning",
]

register_tuner("SURGICAL", SurgicalConfig, SurgicalModel)
