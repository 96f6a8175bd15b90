from ...registration import register_tuner
from .blocks import Block, BlockTable, describe_blocks
from .compression import CompressedModule, CompressionReport, compress
from .config import SurgicalConfig
from .model import SurgicalModel


__all__ = [
    "Block",
    "BlockTable",
    "CompressedModule",
    "CompressionReport",
    "SurgicalConfig",
    "SurgicalModel",
    "compress",
    "describe_blocks",
]

register_tuner("SURGICAL", SurgicalConfig, SurgicalModel)
