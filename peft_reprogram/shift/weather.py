"""The weather corruptions of ImageNet-C, and spatter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import filtering
from .filtering import Floats
from .noise import Generators, Images, draw


# ITU-R BT.601 luma, as OpenCV and PIL turn RGB into grey.
LUMA = np.array([0.299, 0.587, 0.114])

# Mean and standard deviation, per channel, of the five photographs of frost that the published code chooses from.
FROST_STYLES = np.array(
    [
        [[78, 149, 166], [27, 16, 15]],
        [[201, 205, 214], [21, 22, 23]],
        [[201, 205, 214], [21, 22, 23]],
        [[138, 153, 165], [28, 28, 30]],
        [[112, 123, 135], [44, 43, 42]],
    ],
    dtype=np.float64,
)

# A rim of water looks no different beyond this many pixels from the edge of the drop.
RIM = 20


def snow(
    images: Images,
    generators: Generators,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Floats:
    """Streaks of snow over a whitened picture."""
    pixels = images / 255.0
    flakes = mean + scale * draw(generators, lambda g: g.standard_normal((*images.shape[1:3], 1)))
    flakes = filtering.clipped_zoom(flakes, zoom)
    flakes[flakes < threshold] = 0
    angles = [float(generator.uniform(-135, -45)) for generator in generators]
    streaks = filtering.motion_blur(np.floor(np.clip(flakes, 0, 1) * 255), radius, sigma, angles)
    streaks = np.rint(streaks) / 255
    grey = (pixels @ LUMA)[..., None]
    whitened = keep * pixels + (1 - keep) * np.maximum(pixels, grey * 1.5 + 0.5)
    return whitened + streaks + streaks[:, ::-1, ::-1]


def smooth_noise(generator: np.random.Generator, height: int, width: int, cell: int) -> Floats:
    """Random values on a grid of `cell` pixels, with smooth transitions."""
    grid = generator.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64)


def heading(angle: Floats) -> Floats:
    """Unit vectors `(..., 2)`, as (x, y), of angles in radians."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def ice_crystals(generator: np.random.Generator, height: int, width: int) -> Floats:
    """Feathers of ice: straight stems with barbs on both sides that get shorter towards the tip."""
    stems = max(4, height * width // 700)
    start = generator.uniform((0, 0), (width, height), size=(stems, 2))
    angle = generator.uniform(0, 2 * np.pi, size=stems)
    length = generator.uniform(12, 60, size=stems)
    brightness = generator.integers(110, 255, size=stems)
    spread = generator.uniform(0.5, 0.9, size=stems)
    # The barbs of all stems at once: every three pixels along its stem, one on either side.
    barbs = np.ceil((length - 2) / 3).astype(np.int64)
    stem = np.repeat(np.arange(stems), barbs)
    along = 2 + 3.0 * (np.arange(len(stem)) - np.repeat(np.cumsum(barbs) - barbs, barbs))
    roots = start[stem] + along[:, None] * heading(angle[stem])
    reach = (0.35 * (length[stem] - along))[:, None]
    left, right = (roots + reach * heading(angle[stem] + side * spread[stem]) for side in (-1, 1))
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for line, level in zip(np.hstack([left, roots, right]).tolist(), brightness[stem].tolist()):
        pen.line(line, fill=level * 3 // 4)
    for line, level in zip(np.hstack([start, start + length[:, None] * heading(angle)]).tolist(), brightness.tolist()):
        pen.line(line, fill=level)
    return np.asarray(canvas, dtype=np.float64) / 255


def frost_overlay(generator: np.random.Generator, height: int, width: int) -> Floats:
    """A procedural picture of a frozen window pane, `(height, width, 3)` in 0..255."""
    mean, deviation = FROST_STYLES[generator.integers(len(FROST_STYLES))]
    texture = sum(smooth_noise(generator, height, width, cell) * cell**0.5 for cell in (48, 16, 6)) / 8
    texture = texture + 0.35 * generator.standard_normal((height, width)) + 3 * ice_crystals(generator, height, width)
    texture = (texture - texture.mean()) / texture.std()
    return np.clip(mean + deviation * texture[..., None], 0, 255)


def frost(images: Images, generators: Generators, keep: float, strength: float, shrink: int) -> Floats:
    """Lays a procedural picture of frost over the image; `shrink` is how much smaller than life the frost is shown."""
    height, width = images.shape[1:3]
    # Every shrink-th pixel, not their mean: the published code shrinks its photographs without anti-aliasing.
    middle = slice(shrink // 2, None, shrink)
    overlay = draw(generators, lambda g: frost_overlay(g, height * shrink, width * shrink)[middle, middle])
    return (keep * images + strength * overlay) / 255


def plasma(generators: Generators, size: int, decay: float) -> Floats:
    """Cloud-like height maps in 0..1 by the diamond-square algorithm on a torus; `size` is a power of two."""
    noise = draw(generators, lambda g: g.uniform(-1, 1, size * size))
    heights = np.zeros((len(generators), size, size))
    step, wobble, used = size, 100.0, 0

    def settle(rows: slice, columns: slice, total: Floats) -> None:
        nonlocal used
        count = total[0].size
        bumps = noise[:, used : used + count].reshape(total.shape)
        used += count
        heights[:, rows, columns] = total / 4 + wobble**2 * bumps

    while step >= 2:
        corners, middles = slice(0, None, step), slice(step // 2, None, step)
        corner = heights[:, corners, corners].copy()
        pairs = corner + np.roll(corner, -1, axis=1)
        settle(middles, middles, pairs + np.roll(pairs, -1, axis=2))
        middle = heights[:, middles, middles]
        settle(corners, middles, middle + np.roll(middle, 1, axis=1) + corner + np.roll(corner, -1, axis=2))
        settle(middles, corners, middle + np.roll(middle, 1, axis=2) + corner + np.roll(corner, -1, axis=1))
        step, wobble = step // 2, wobble / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


def fog(images: Images, generators: Generators, density: float, decay: float) -> Floats:
    height, width = images.shape[1:3]
    clouds = plasma(generators, 1 << (max(height, width) - 1).bit_length(), decay)[:, :height, :width, None]
    pixels = images / 255.0
    brightest = pixels.max(axis=(1, 2, 3), keepdims=True)
    return (pixels + density * clouds) * brightest / (brightest + density)


def shifted(planes: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """`shifted(p, dy, dx)[:, y, x]` is `p[:, y + dy, x + dx]`, and zero (or False) outside."""
    height, width = planes.shape[1:3]
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def canny(planes: NDArray[np.int64], low: int, high: int) -> np.ndarray:
    """Canny's edges of `(B, H, W)` grey images with 3 x 3 Sobel gradients and the L1 norm, as OpenCV finds them."""
    height, width = planes.shape[1:3]
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    window = {(i, j): padded[:, 1 + i : 1 + i + height, 1 + j : 1 + j + width] for i in (-1, 0, 1) for j in (-1, 0, 1)}
    dx = sum((2 - abs(i)) * (window[i, 1] - window[i, -1]) for i in (-1, 0, 1))
    dy = sum((2 - abs(j)) * (window[1, j] - window[-1, j]) for j in (-1, 0, 1))
    magnitude = np.abs(dx) + np.abs(dy)
    flat = np.abs(dy) < np.abs(dx) * np.tan(np.pi / 8)
    steep = np.abs(dy) > np.abs(dx) * np.tan(3 * np.pi / 8)
    rising = (dx ^ dy) < 0
    # Thin lines: an edge pixel is the greatest along its gradient; of two equal ones, the first is dropped.
    slanted = np.where(
        rising,
        (magnitude > shifted(magnitude, -1, 1)) & (magnitude > shifted(magnitude, 1, -1)),
        (magnitude > shifted(magnitude, -1, -1)) & (magnitude > shifted(magnitude, 1, 1)),
    )
    upright = (magnitude > shifted(magnitude, -1, 0)) & (magnitude >= shifted(magnitude, 1, 0))
    level = (magnitude > shifted(magnitude, 0, -1)) & (magnitude >= shifted(magnitude, 0, 1))
    weak = (magnitude > low) & np.where(flat, level, np.where(steep, upright, slanted))
    edges = weak & (magnitude > high)
    while True:
        rows = edges | shifted(edges, -1, 0) | shifted(edges, 1, 0)
        grown = weak & (rows | shifted(rows, 0, -1) | shifted(rows, 0, 1))
        if np.array_equal(grown, edges):
            return edges
        edges = grown


def distance_to(marks: np.ndarray, limit: int) -> Floats:
    """Euclidean distance of every pixel to the nearest mark of its `(B, H, W)` plane, in pixels, at most `limit`."""
    far = float(limit**2)
    squared = np.where(marks, 0.0, far)
    for axis in (1, 2):
        nearest = squared.copy()
        for offset in range(1, min(limit, squared.shape[axis])):
            ahead = (slice(None),) * axis + (slice(offset, None),)
            behind = (slice(None),) * axis + (slice(None, -offset),)
            np.minimum(nearest[behind], squared[ahead] + offset**2, out=nearest[behind])
            np.minimum(nearest[ahead], squared[behind] + offset**2, out=nearest[ahead])
        squared = nearest
    return np.sqrt(np.minimum(squared, far))


def equalize(planes: NDArray[np.int64]) -> Floats:
    """Spreads the histogram of each `(B, H, W)` plane of values 0..255 evenly."""
    spread = np.empty(planes.shape)
    for plane, out in zip(planes, spread):
        cumulative = np.cumsum(np.bincount(plane.ravel(), minlength=256))
        lowest = cumulative[cumulative > 0][0]
        if lowest == plane.size:
            out[...] = plane
        else:
            out[...] = np.rint((cumulative - lowest) * (255 / (plane.size - lowest)))[plane]
    return spread


def spatter(
    images: Images,
    generators: Generators,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: int,
) -> Floats:
    """Drops of water on the lens, or splashes of mud at the higher severities."""
    pixels = images / 255.0
    liquid = mean + scale * draw(generators, lambda g: g.standard_normal((*images.shape[1:3], 1)))
    liquid = filtering.gaussian(liquid, sigma)
    if mud:
        cover = filtering.gaussian((liquid > threshold).astype(np.float64), strength)
        cover[cover < 0.8] = 0
        return pixels * (1 - cover) + cover * (np.array([63, 42, 20]) / 255)
    liquid[liquid < threshold] = 0
    level = np.minimum(liquid[..., 0] * 255, 255).astype(np.int64)
    box = np.full((3, 3), 1 / 9)

    def smooth(planes: Floats) -> Floats:
        return filtering.correlate(planes[..., None], box)[..., 0]

    rim = np.floor(smooth(distance_to(canny(level, 50, 150), RIM)) + 1e-6).astype(np.int64)
    # The relief lights the drops from one corner.
    relief = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    lit = np.clip(np.rint(filtering.correlate(equalize(rim)[..., None], relief)[..., 0]), 0, 255)
    drops = level * np.rint(smooth(lit))
    brightest = drops.max(axis=(1, 2), keepdims=True)
    light = strength * drops / np.where(brightest > 0, brightest, 1)
    return pixels + light[..., None] * (np.array([175, 238, 238]) / 255)
