from .corruptions import corrupt, corrupt_image, list_corruptions


__all__ = ["corrupt", "corrupt_image", "list_corruptions"]
