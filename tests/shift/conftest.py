import numpy as np
import pytest
from PIL import Image


def _natural_image(size: int, seed: int = 0) -> np.ndarray:
    """Smooth areas, edges and fine texture, as photographs have."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(40, 216, (6, 6, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int64)
    rows, columns = np.indices((size, size))
    for _ in range(6):
        y, x, radius = generator.uniform((0, 0, size / 12), (size, size, size / 5))
        picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = generator.integers(20, 236, 3)
    return np.clip(picture + generator.integers(-8, 9, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session", params=[32, 224])
def images(request) -> np.ndarray:
    """A small batch `(B, H, W, 3)` at the two sizes that have parameters of their own."""
    return np.stack([_natural_image(request.param, seed) for seed in range(6 if request.param == 32 else 3)])


@pytest.fixture(scope="session")
def small_images() -> np.ndarray:
    return np.stack([_natural_image(32, seed) for seed in range(6)])


@pytest.fixture(scope="session")
def natural_image():
    """`natural_image(size, seed=0)` draws a picture `(size, size, 3)`."""
    return _natural_image
