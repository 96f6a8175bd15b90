"""Images as people have them (paths, addresses, arrays, rows of `datasets`) as PIL images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import UnreadableImageError


if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 100 * 2**20
TIMEOUT = 30  # seconds without an answer


def is_single_image(images: Any) -> bool:
    """Whether this is one image rather than many of them."""
    from PIL import Image

    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, (str, Path, Image.Image, dict)) or not isinstance(images, Iterable)


def open_images(images: Iterable[Any]) -> Iterator[Image]:
    """
    Open images one after the other.

    Args:
        images (`Iterable`): Paths, http(s) addresses, PIL images, arrays (see [`open_image`]) or values of an image column.

    Returns:
        `Iterator[PIL.Image.Image]`

    Raises:
        UnreadableImageError: With the position of the image.
    """
    for index, image in enumerate(images):
        try:
            yield open_image(image)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"image {index}: {error}") from error


def open_image(image: Any) -> Image:
    """
    Open one image.

    Args:
        image: A path, an http(s) address, a PIL image, a value of an undecoded image column (`{"bytes": ..., "path": ...}`),
            or an array of shape `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`: `uint8`, or floats in [0, 1].

    Returns:
        `PIL.Image.Image`: Decoded, in the mode it has.

    Raises:
        UnreadableImageError: If there is no such image or it cannot be decoded.
        TypeError: If this is no image at all.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, dict) and (image.get("bytes") is not None or image.get("path") is not None):
        source: Any = image["path"] if image.get("bytes") is None else io.BytesIO(image["bytes"])
        return _decode(source, image.get("path") or "the bytes")
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return _decode(io.BytesIO(_download(image)), image)
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise UnreadableImageError(f"there is no file {image}.")
        return _decode(image, image)
    raise TypeError(
        f"an image is a path, an http(s) address, a PIL image or an array, got {type(image).__name__}. Give a list for "
        "several images; decode tensors of pixels with `.numpy()` in the order (height, width, channels)."
    )


def _from_array(array: np.ndarray) -> Image:
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise UnreadableImageError(
            f"an array of shape {array.shape} is no image; it must be (height, width) or (height, width, 1, 3 or 4)."
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UnreadableImageError(
                "an array of floats must lie in [0, 1]; give whole numbers from 0 to 255 as `uint8`."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImageError(f"an array must be `uint8` (0 to 255) or float (0 to 1), got {array.dtype}.")
    return Image.fromarray(array)


def _download(url: str) -> bytes:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=TIMEOUT) as response:  # its redirects stay with http, https and ftp
            content = response.read(MAX_BYTES + 1)
    except (URLError, OSError, ValueError) as error:
        raise UnreadableImageError(f"{url} cannot be downloaded: {error}.") from error
    if len(content) > MAX_BYTES:
        raise UnreadableImageError(f"{url} is larger than {MAX_BYTES:,} bytes, so it was not downloaded to the end.")
    return content


def _decode(source: Any, name: Any) -> Image:
    from PIL import Image

    try:
        image = Image.open(source)
        image.load()
        return image
    except Exception as error:  # every decoder has its own kinds of error, down to SyntaxError for a broken PNG
        raise UnreadableImageError(f"{name} cannot be decoded: {error}.") from error
