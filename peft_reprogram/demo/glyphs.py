"""Rendered glyphs: characters in the fonts that ship with matplotlib, and plain shapes, as distorted grey-scale masks."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


CANVAS = 64  # glyphs are drawn and distorted at twice the 32 px of the pictures, then shrunk: cheap anti-aliasing

PRETRAINING_FONTS: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
)
"""Fonts that the pre-training pictures are drawn in."""

HELD_OUT_FONTS: tuple[str, ...] = ("cmtt10", "cmb10", "STIXGeneralBolIta", "DejaVuSerif-BoldItalic")
"""Fonts that no pre-training picture uses; the out-of-distribution letters are drawn in them."""

SHAPES: tuple[str, ...] = (
    "circle",
    "ring",
    "square",
    "triangle",
    "diamond",
    "pentagon",
    "star",
    "cross",
    "heart",
    "moon",
    "arrow",
    "wave",
)
"""Names of the shapes that [`draw_shape`] knows."""


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        from matplotlib import get_data_path
    except ImportError as error:
        raise ImportError(
            "The demo draws glyphs in the fonts that ship with matplotlib, which is not installed. "
            "Install the demo's extra: pip install 'peft-reprogram[demo]'."
        ) from error
    # The basic layout engine gives the same pixels whether or not Pillow was built with Raqm.
    path = Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def draw_character(character: str, font: str, size: int = 46, stroke_width: int = 0) -> Image.Image:
    """
    Draws one character in white, centred on a black canvas.

    Args:
        character (`str`):
            The character to draw.
        font (`str`):
            A font of [`PRETRAINING_FONTS`] or [`HELD_OUT_FONTS`].
        size (`int`, *optional*, defaults to 46):
            Font size in pixels of the 64 px canvas.
        stroke_width (`int`, *optional*, defaults to 0):
            Pixels that the outline is widened by.

    Returns:
        `PIL.Image.Image`: mode `L`, 64 x 64.
    """
    face = _font(font, size)
    left, top, right, bottom = face.getbbox(character, stroke_width=stroke_width)
    canvas = Image.new("L", (CANVAS, CANVAS))
    corner = ((CANVAS - right - left) / 2, (CANVAS - bottom - top) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=face, stroke_width=stroke_width)
    return canvas


def draw_shape(name: str, size: int = 46, line_width: int = 6) -> Image.Image:
    """
    Draws one shape in white, centred on a black canvas.

    Args:
        name (`str`):
            One of [`SHAPES`].
        size (`int`, *optional*, defaults to 46):
            Diameter in pixels of the 64 px canvas.
        line_width (`int`, *optional*, defaults to 6):
            Width in pixels of the shapes that are lines (ring, wave).

    Returns:
        `PIL.Image.Image`: mode `L`, 64 x 64.
    """
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    centre, radius = CANVAS / 2, size / 2
    box = (centre - radius, centre - radius, centre + radius, centre + radius)
    if name == "circle":
        draw.ellipse(box, fill=255)
    elif name == "ring":
        draw.ellipse(box, outline=255, width=line_width)
    elif name == "moon":
        draw.ellipse(box, fill=255)
        draw.ellipse(
            (box[0] + 0.45 * radius, box[1] - 0.2 * radius, box[2] + 0.45 * radius, box[3] - 0.2 * radius), fill=0
        )
    elif name == "heart":
        angle = np.linspace(0, 2 * math.pi, 48)
        x = np.sin(angle) ** 3
        y = (13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 16
        draw.polygon([(centre + radius * u, centre - radius * v) for u, v in zip(x, y)], fill=255)
    elif name == "wave":
        x = np.linspace(-1, 1, 48)
        draw.line(
            [(centre + radius * u, centre + 0.4 * radius * math.sin(1.5 * math.pi * u)) for u in x],
            fill=255,
            width=line_width,
            joint="curve",
        )
    elif name in _POLYGONS:
        draw.polygon([(centre + radius * u, centre + radius * v) for u, v in _POLYGONS[name]], fill=255)
    else:
        raise ValueError(f"Unknown shape {name!r}: expected one of {', '.join(SHAPES)}.")
    return canvas


def _regular(corners: int, turn: float = -math.pi / 2, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon on the unit circle; with `inner`, of a star whose inner corners lie at that radius."""
    count = corners if inner is None else 2 * corners
    radii = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [turn + 2 * math.pi * i / count for i in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": _regular(4, turn=math.pi / 4),
    "triangle": _regular(3),
    "diamond": [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)],
    "pentagon": _regular(5),
    "star": _regular(5, inner=0.42),
    "cross": [(u * 0.3, v * 0.3) for u, v in [(-1, -3.3), (1, -3.3), (1, -1), (3.3, -1), (3.3, 1), (1, 1)]]
    + [(u * 0.3, v * 0.3) for u, v in [(1, 3.3), (-1, 3.3), (-1, 1), (-3.3, 1), (-3.3, -1), (-1, -1)]],
    "arrow": [(1, 0), (0.2, -0.7), (0.2, -0.25), (-1, -0.25), (-1, 0.25), (0.2, 0.25), (0.2, 0.7)],
}


def warp(
    glyph: Image.Image,
    rng: np.random.Generator,
    *,
    rotation: float = 0.0,
    shear: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: tuple[float, float] = (0.0, 0.0),
    wobble: float = 0.0,
    size: int = 32,
) -> Image.Image:
    """
    Applies an affine map and, on top of it, a smooth random distortion, then shrinks the glyph to its final size.

    The distortion moves the corners of a 4 x 4 mesh, so that neighbouring parts of a stroke move together: what makes a
    printed glyph look drawn by hand.

    Args:
        glyph (`PIL.Image.Image`):
            Mode `L`, 64 x 64, from [`draw_character`] or [`draw_shape`].
        rng (`numpy.random.Generator`):
            Source of the random mesh; untouched when `wobble` is 0.
        rotation (`float`, *optional*, defaults to 0.0):
            Degrees, counter-clockwise.
        shear (`float`, *optional*, defaults to 0.0):
            Horizontal shift per pixel of height; positive leans to the right.
        scale (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Width and height factors.
        shift (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.0)`):
            Displacement in canvas pixels (right, down).
        wobble (`float`, *optional*, defaults to 0.0):
            Standard deviation in canvas pixels of the mesh corners' displacement.
        size (`int`, *optional*, defaults to 32):
            Side of the result in pixels.

    Returns:
        `PIL.Image.Image`: mode `L`, `size` x `size`.
    """
    cells = 4
    ticks = np.linspace(0, CANVAS, cells + 1)
    corners = np.stack(np.meshgrid(ticks, ticks, indexing="xy"), axis=-1)  # (row, column, xy) in the output
    angle = math.radians(rotation)
    forward = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    forward = forward @ np.array([[1.0, -shear], [0.0, 1.0]]) @ np.diag(scale)
    centre = CANVAS / 2
    source = (corners - centre - np.asarray(shift)) @ np.linalg.inv(forward).T + centre
    if wobble > 0:
        source = source + rng.normal(0.0, wobble, source.shape)
    mesh = []
    for row in range(cells):
        for column in range(cells):
            left, top = (int(v) for v in corners[row, column])
            right, bottom = (int(v) for v in corners[row + 1, column + 1])
            # Pillow's order of a quad's corners: upper left, lower left, lower right, upper right
            quad = np.concatenate(
                [source[row, column], source[row + 1, column], source[row + 1, column + 1], source[row, column + 1]]
            )
            mesh.append(((left, top, right, bottom), tuple(float(v) for v in quad)))
    warped = glyph.transform((CANVAS, CANVAS), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return warped.resize((size, size), Image.Resampling.BOX)
