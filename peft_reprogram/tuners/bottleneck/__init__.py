from ...registration import register_tuner
from .config import BottleneckConfig, CompacterConfig
from .model import BottleneckModel, CompacterModel


__all__ = ["BottleneckConfig", "BottleneckModel", "CompacterConfig", "CompacterModel"]

register_tuner("BOTTLENECK", BottleneckConfig, BottleneckModel)
register_tuner("COMPACTER", CompacterConfig, CompacterModel)
