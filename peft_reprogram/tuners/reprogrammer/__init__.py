from ...registration import register_tuner
from .config import ReprogrammerConfig, ResidualReprogrammerConfig
from .model import ReprogrammerModel, ResidualReprogrammerModel, set_residual_alpha


__all__ = [
    "ReprogrammerConfig",
    "ReprogrammerModel",
    "ResidualReprogrammerConfig",
    "ResidualReprogrammerModel",
    "set_residual_alpha",
]

register_tuner("REPROGRAMMER", ReprogrammerConfig, ReprogrammerModel)
register_tuner("RESIDUAL_REPROGRAMMER", ResidualReprogrammerConfig, ResidualReprogrammerModel)
