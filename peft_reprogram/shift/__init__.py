"""Distribution shift: corruptions made here, and the shifted and out-of-distribution data sets of the literature."""

from .corrupted_dataset import with_corruption
from .corruptions import corrupt, corrupt_image, list_corruptions
from .labels import imagenet_wnids, map_labels
from .registry import ShiftDataset, get_shift, list_shifts


__all__ = [
    "ShiftDataset",
    "corrupt",
    "corrupt_image",
    "get_shift",
    "imagenet_wnids",
    "list_corruptions",
    "list_shifts",
    "map_labels",
    "with_corruption",
]
