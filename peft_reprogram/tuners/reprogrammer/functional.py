"""The arithmetic of visual reprogramming, free of PEFT and of any model (arXiv 2403.10800)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class FrameGeometry:
    """
    Where the trainable frame lies on the model's input.

    The image, resized to `up_resolution`, stands in the centre of a canvas of `image_size`; the frame is everything
    outside the centred `frame_inner` rectangle. Where a difference is odd, the extra pixel is at the bottom or right.

    Args:
        image_size (`tuple[int, int]`): Height and width in pixels of what the model takes.
        frame_inner (`tuple[int, int]`): Height and width in pixels of the untouched centre.
        up_resolution (`tuple[int, int]`): Height and width in pixels of the image on the canvas.
    """

    image_size: tuple[int, int]
    frame_inner: tuple[int, int]
    up_resolution: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("image_size", "frame_inner", "up_resolution"):
            value = getattr(self, name)
            if len(value) != 2 or not all(isinstance(side, int) and side >= 0 for side in value):
                raise ValueError(f"`{name}` must be (height, width) in whole pixels, got {value!r}.")
        if min(self.image_size) < 1 or min(self.up_resolution) < 1:
            raise ValueError(f"`image_size` and `up_resolution` must be positive, got {self}.")
        for name in ("frame_inner", "up_resolution"):
            if any(side > limit for side, limit in zip(getattr(self, name), self.image_size)):
                raise ValueError(
                    f"`{name}` {getattr(self, name)} is larger than the model's input {self.image_size}. "
                    f"Choose a `{name}` that fits into it."
                )
        if self.frame_inner == self.image_size:
            raise ValueError(
                f"`frame_inner` {self.frame_inner} fills the whole input, which leaves no frame to train. Choose a "
                "smaller `frame_inner`, or `reprogram_image=False` to train the text rows alone."
            )

    @property
    def borders(self) -> tuple[int, int, int, int]:
        """Widths in pixels of the frame's top, bottom, left and right."""
        return _borders(self.image_size, self.frame_inner)

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the frame."""
        return self.image_size[0] * self.image_size[1] - self.frame_inner[0] * self.frame_inner[1]


def _borders(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int, int, int]:
    top, left = (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
    return top, outer[0] - inner[0] - top, left, outer[1] - inner[1] - left


def default_frame_inner(image_size: tuple[int, int]) -> tuple[int, int]:
    """The paper's frame of 16 pixels on 224, in proportion for other sizes and at least one pixel wide."""
    height, width = (side - 2 * max(1, round(side / 14)) for side in image_size)
    return max(height, 0), max(width, 0)


def frame_mask(geometry: FrameGeometry) -> torch.Tensor:
    """Boolean mask of shape `image_size`, true on the frame. A packed frame is `W[:, frame_mask(geometry)]`."""
    top, bottom, left, right = geometry.borders
    height, width = geometry.image_size
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[top : height - bottom, left : width - right] = False
    return mask


def unpack_frame(frame: torch.Tensor, geometry: FrameGeometry) -> torch.Tensor:
    """
    The frame as a picture.

    Args:
        frame (`torch.Tensor`): Packed frame of shape `(3, geometry.num_pixels)`.
        geometry (`FrameGeometry`): Its geometry.

    Returns:
        `torch.Tensor`: Shape `(3, height, width)`, zero inside the frame.
    """
    canvas = frame.new_zeros(frame.shape[0], *geometry.image_size)
    canvas[:, frame_mask(geometry).to(frame.device)] = frame
    return canvas


def place(
    pixel_values: torch.Tensor, geometry: FrameGeometry, image_mean: torch.Tensor, image_std: torch.Tensor
) -> torch.Tensor:
    """
    Put normalised images in the centre of a (normalised) zero canvas.

    Args:
        pixel_values (`torch.Tensor`): Normalised images `(B, 3, height, width)`, already of size `up_resolution` or of
            size `image_size`, in which case they are resized (bicubic, antialiased).
        geometry (`FrameGeometry`): Sizes.
        image_mean (`torch.Tensor`): Normalisation mean, shape `(3, 1, 1)`.
        image_std (`torch.Tensor`): Normalisation standard deviation, shape `(3, 1, 1)`.

    Returns:
        `torch.Tensor`: Shape `(B, 3, *image_size)`.

    Raises:
        ValueError: If the images have another number of channels or another size.
    """
    size = tuple(pixel_values.shape[-2:])
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(
            f"A reprogrammer takes RGB images of shape (batch, 3, height, width), got {tuple(pixel_values.shape)}. "
            'Convert grey or RGBA images with `image.convert("RGB")` before the image processor.'
        )
    if size != geometry.image_size and size != geometry.up_resolution:
        raise ValueError(
            f"This adapter's frame was made for images of {_by(geometry.image_size)} pixels, got {_by(size)}. Resize the "
            "images with the image processor, or create the adapter with `image_size=(height, width)` of what you feed "
            "(for a ViT also call the model with `interpolate_pos_encoding=True`)."
        )
    if geometry.up_resolution == geometry.image_size:
        return pixel_values
    if size != geometry.up_resolution:
        pixel_values = F.interpolate(
            pixel_values, size=geometry.up_resolution, mode="bicubic", align_corners=False, antialias=True
        )
    top, bottom, left, right = _borders(geometry.image_size, geometry.up_resolution)
    height, width = geometry.image_size
    black = -image_mean / image_std
    canvas = black.expand(len(pixel_values), 3, height, width).clone()
    canvas[:, :, top : height - bottom, left : width - right] = pixel_values
    return canvas


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def reprogram_pixels(
    pixel_values: torch.Tensor,
    frame: torch.Tensor,
    geometry: FrameGeometry,
    image_mean: torch.Tensor,
    image_std: torch.Tensor,
    dropout: float = 0.0,
    training: bool = False,
) -> torch.Tensor:
    r"""
    Reprogram images: \\( N(\mathrm{clamp}(x_{can} + \mathrm{dropout}(\tanh W), 0, 1)) \\), changed on the frame only.

    The change is added to the normalised pixels instead of normalising anew, so that a zero frame on a full-size image
    is the identity bit for bit and the centre is never touched.

    Args:
        pixel_values (`torch.Tensor`): Images normalised by `image_mean` and `image_std`, shape `(B, 3, height, width)`.
        frame (`torch.Tensor`): Packed frame W before the tanh, shape `(3, geometry.num_pixels)`.
        geometry (`FrameGeometry`): Where the frame lies.
        image_mean (`torch.Tensor`): Normalisation mean, shape `(3, 1, 1)`.
        image_std (`torch.Tensor`): Normalisation standard deviation, shape `(3, 1, 1)`.
        dropout (`float`, *optional*, defaults to `0.0`): Probability with which an entry of tanh W is dropped.
        training (`bool`, *optional*, defaults to `False`): Whether dropout is on.

    Returns:
        `torch.Tensor`: float32, shape `(B, 3, *geometry.image_size)`.
    """
    pixels = place(pixel_values.float(), geometry, image_mean, image_std)
    program = torch.tanh(frame.float())
    if dropout and training:
        program = F.dropout(program, dropout)

    top, bottom, left, right = geometry.borders
    height, width = geometry.image_size
    inner_height = geometry.frame_inner[0]
    head, sides, tail = program.split([top * width, inner_height * (left + right), bottom * width], dim=1)
    sides = sides.reshape(3, inner_height, left + right)

    def paint(area: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        # Clamped first: a pixel that rounding carried out of [0, 1] must not count as a change of a zero frame.
        intensity = (area * image_std + image_mean).clamp(0, 1)
        return area + ((intensity + change).clamp(0, 1) - intensity) / image_std

    middle = pixels[:, :, top : height - bottom]
    middle = torch.cat(
        [
            paint(middle[..., :left], sides[..., :left]),
            middle[..., left : width - right],
            paint(middle[..., width - right :], sides[..., left:]),
        ],
        dim=3,
    )
    return torch.cat(
        [
            paint(pixels[:, :, :top], head.reshape(3, top, width)),
            middle,
            paint(pixels[:, :, height - bottom :], tail.reshape(3, bottom, width)),
        ],
        dim=2,
    )


def row_deltas(ids: torch.Tensor, row_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    What the trained rows add to a look-up.

    Args:
        ids (`torch.Tensor`): Integer tensor of any shape: the rows that are looked up.
        row_ids (`torch.Tensor`): Sorted integer tensor `(R,)`: which rows are trained.
        rows (`torch.Tensor`): Their deltas, shape `(R, dim)`.

    Returns:
        `torch.Tensor`: Shape `(*ids.shape, dim)`, zero for all rows that are not trained.
    """
    position = torch.searchsorted(row_ids, ids).clamp(max=row_ids.numel() - 1)
    trained = row_ids[position] == ids
    return torch.where(trained.unsqueeze(-1), F.embedding(position, rows), rows.new_zeros(()))
