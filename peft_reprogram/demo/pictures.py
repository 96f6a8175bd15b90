"""Pictures with captions, generated: what the demo's model is pre-trained on."""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .data import CLASS_NAMES
from .glyphs import PRETRAINING_FONTS, SHAPES, draw_character, draw_shape, warp


COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "red": (215, 35, 35),
    "green": (40, 160, 50),
    "blue": (40, 70, 215),
    "yellow": (240, 220, 40),
    "orange": (245, 140, 25),
    "purple": (130, 40, 160),
    "pink": (245, 130, 185),
    "brown": (120, 70, 30),
    "cyan": (50, 205, 215),
}

_DIGITS = tuple(string.digits)
_LETTERS = tuple(string.ascii_lowercase)
SUBJECTS: tuple[str, ...] = _DIGITS + _LETTERS + SHAPES
"""What a picture can show; a picture's `subject` is an index into it."""

CASES: tuple[str, ...] = ("small", "capital")
STYLES: tuple[str, ...] = ("printed", "handwritten", "bold", "italic", "blurry", "noisy", "tilted", "large", "tiny")

_PREFIXES = (
    "a photo of a",
    "a picture of a",
    "an image of a",
    "a drawing of a",
    "a scan of a",
    "a close-up of a",
    "a photo of the",
    "this is a",
    "the",
    "a",
)
_PREFIX_WEIGHTS = np.array([8, 2, 2, 1, 1, 1, 1, 1, 1, 2]) / 20


@dataclass(frozen=True)
class Pictures:
    """
    Pictures and what there is to say about each; `-1` stands for nothing to say.

    Args:
        pixels (`numpy.ndarray`):
            uint8, (N, 32, 32, 3).
        subject (`numpy.ndarray`):
            int, (N,): index into `SUBJECTS`.
        case (`numpy.ndarray`):
            int, (N,): index into `CASES`; -1 for what is no letter.
        colour (`numpy.ndarray`):
            int, (N,): index into `COLOURS`, of the glyph.
        background (`numpy.ndarray`):
            int, (N,): index into `COLOURS`; -1 for a background of several colours.
        styles (`numpy.ndarray`):
            bool, (N, len(STYLES)): the styles that apply.
    """

    pixels: np.ndarray
    subject: np.ndarray
    case: np.ndarray
    colour: np.ndarray
    background: np.ndarray
    styles: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Caption:
    """A sentence about a picture, and the properties that it mentions (-1: not mentioned)."""

    text: str
    subject: int
    case: int = -1
    colour: int = -1
    background: int = -1
    style: int = -1


def generate_pictures(count: int, seed: int = 0) -> Pictures:
    """
    Draws pictures of digits, letters and shapes in many fonts, colours, sizes and styles.

    No font of [`~peft_reprogram.demo.glyphs.HELD_OUT_FONTS`] is used. Needs matplotlib for its fonts.

    Args:
        count (`int`):
            How many; each takes about half a millisecond.
        seed (`int`, *optional*, defaults to 0):
            The same seed gives the same pictures.

    Returns:
        [`Pictures`]
    """
    rng = np.random.default_rng(seed)
    subject = np.where(
        rng.random(count) < 0.4,
        rng.integers(0, len(_DIGITS), count),
        rng.integers(len(_DIGITS), len(SUBJECTS), count),
    )
    is_letter = (subject >= len(_DIGITS)) & (subject < len(_DIGITS) + len(_LETTERS))
    case = np.where(is_letter, rng.integers(0, 2, count), -1)
    styles = np.zeros((count, len(STYLES)), dtype=bool)
    masks = np.stack([_draw(SUBJECTS[subject[i]], case[i], styles[i], rng) for i in range(count)])
    pixels, colour, background = _paint(masks, rng)
    noisy = rng.random(count) < 0.15
    styles[:, STYLES.index("noisy")] = noisy
    deviation = np.where(noisy, rng.uniform(15, 45, count), rng.uniform(0, 6, count)).astype(np.float32)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * deviation[:, None, None, None]
    return Pictures(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), subject, case, colour, background, styles)


def _draw(subject: str, case: int, styles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One glyph as a uint8 mask (32, 32); writes the styles that it has into `styles`."""

    def style(name: str, probability: float) -> bool:
        styles[STYLES.index(name)] = chosen = rng.random() < probability
        return chosen

    handwritten = style("handwritten", 0.5)
    styles[STYLES.index("printed")] = not handwritten
    bold, tilted, blurry = style("bold", 0.3), style("tilted", 0.1), style("blurry", 0.35)
    size = rng.uniform(36, 62)
    styles[STYLES.index("large")], styles[STYLES.index("tiny")] = size > 56, size < 41
    if subject in SHAPES:
        glyph = draw_shape(
            subject, round(size * 0.85), line_width=int(rng.integers(8, 12) if bold else rng.integers(3, 7))
        )
    else:
        font = PRETRAINING_FONTS[int(rng.integers(len(PRETRAINING_FONTS)))]
        styles[STYLES.index("italic")] = "Oblique" in font or "Italic" in font
        glyph = draw_character(
            subject.upper() if case == CASES.index("capital") else subject,
            font,
            round(size),
            stroke_width=int(rng.integers(1, 4) if bold else 0),
        )
    glyph = warp(
        glyph,
        rng,
        rotation=rng.uniform(20, 40) * rng.choice((-1, 1)) if tilted else rng.uniform(-8, 8),
        shear=rng.uniform(-0.25, 0.3) if handwritten else 0.0,
        scale=(rng.uniform(0.75, 1.3), rng.uniform(0.85, 1.15)) if handwritten else (1.0, 1.0),
        shift=tuple(rng.uniform(-4, 4, 2)),
        wobble=rng.uniform(1.0, 3.5) if handwritten else 0.0,
    )
    if blurry:
        small = int(rng.integers(10, 17))
        glyph = glyph.resize((small, small), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(glyph)


def _paint(masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks (N, 32, 32) -> float32 pixels (N, 32, 32, 3) in [0, 255], colour (N,), background (N,)."""
    count, names = len(masks), list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], dtype=np.float32)
    luminance = palette @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    pairs = np.argwhere(np.abs(luminance[:, None] - luminance[None]) > 50)  # legible combinations only
    colour, background = pairs[rng.integers(0, len(pairs), count)].T
    # Ink on paper and chalk on a board are what most pictures of characters look like.
    plain = rng.random(count)
    black, white = names.index("black"), names.index("white")
    colour = np.where(plain < 0.25, black, np.where(plain < 0.5, white, colour))
    background = np.where(plain < 0.25, white, np.where(plain < 0.5, black, background))

    def shade(index: np.ndarray) -> np.ndarray:
        return np.clip(palette[index] + rng.normal(0, 12, (len(index), 3)), 0, 255).astype(np.float32)

    back = np.broadcast_to(shade(background)[:, None, None], (count, 32, 32, 3)).copy()
    # A tenth of the backgrounds are a gradient or soft clouds between two colours.
    mixed = np.flatnonzero(plain > 0.9)
    other = pairs[rng.integers(0, len(pairs), len(mixed)), 1]
    clouds = np.stack(
        [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).resize(
                    (32, 32), Image.Resampling.BICUBIC
                )
            )
            for _ in mixed
        ]
        or [np.zeros((32, 32), dtype=np.uint8)]
    )[: len(mixed)]
    weight = (clouds[..., None] / np.float32(510)).astype(np.float32)  # at most half, so that the glyph stays legible
    back[mixed] = (1 - weight) * back[mixed] + weight * shade(other)[:, None, None]
    alpha = masks[..., None].astype(np.float32) / 255
    pixels = alpha * shade(colour)[:, None, None] + (1 - alpha) * back
    background = background.copy()
    background[mixed] = -1
    return pixels, colour, background


def describe(pictures: Pictures, index: int, rng: np.random.Generator, detail: float = 1.0) -> Caption:
    """
    Writes one of the many true captions of a picture: "a photo of a seven", "a bold red capital letter b on a blue background".

    Args:
        pictures ([`Pictures`]):
            The pictures.
        index (`int`):
            Which of them.
        rng (`numpy.random.Generator`):
            Chooses the wording and what is mentioned.
        detail (`float`, *optional*, defaults to 1.0):
            In [0, 1]; scales how often anything but the subject is put into words. At 0 the caption is the subject alone.

    Returns:
        [`Caption`]
    """

    def sometimes(probability: float) -> bool:
        return rng.random() < detail * probability

    subject, case = int(pictures.subject[index]), -1
    name = SUBJECTS[subject]
    if name in _DIGITS:
        noun = CLASS_NAMES[subject] if rng.random() < 0.7 else name
        if sometimes(0.25):
            noun = f"{('digit', 'number')[int(rng.integers(2))]} {noun}"
    elif name in _LETTERS:
        noun = name if sometimes(0.2) else f"letter {name}"
        if sometimes(0.4):
            case = int(pictures.case[index])
            noun = f"{CASES[case]} {noun}"
    else:
        noun = name
    prefix = _PREFIXES[int(rng.choice(len(_PREFIXES), p=_PREFIX_WEIGHTS))] if sometimes(0.9) else ""
    colour = int(pictures.colour[index]) if sometimes(0.2) else -1
    background = int(pictures.background[index]) if sometimes(0.15) else -1
    style = int(rng.choice(np.flatnonzero(pictures.styles[index]))) if sometimes(0.2) else -1
    names = list(COLOURS)
    words = [prefix]
    words += [STYLES[style]] if style >= 0 else []
    words += [names[colour]] if colour >= 0 else []
    words.append(noun)
    if background >= 0:
        words.append(f"on {names[background]}" if rng.random() < 0.5 else f"on a {names[background]} background")
    return Caption(" ".join(words).strip(), subject, case, colour, background, style)


def matches(pictures: Pictures, index: np.ndarray, captions: list[Caption]) -> np.ndarray:
    """
    Tells which captions are true of which pictures, so that a contrastive loss need not call true pairs false.

    Args:
        pictures ([`Pictures`]):
            The pictures.
        index (`numpy.ndarray`):
            int, (B,): which of them.
        captions (`list[Caption]`):
            C captions.

    Returns:
        `numpy.ndarray`: bool, (B, C).
    """
    true = np.ones((len(index), len(captions)), dtype=bool)
    for field in ("subject", "case", "colour", "background"):
        mentioned = np.array([getattr(caption, field) for caption in captions])
        true &= (mentioned < 0) | (getattr(pictures, field)[index][:, None] == mentioned)
    style = np.array([caption.style for caption in captions])
    return true & ((style < 0) | pictures.styles[index][:, style])


def caption_words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    parts = (
        *SUBJECTS,
        *CLASS_NAMES,
        *COLOURS,
        *CASES,
        *STYLES,
        *_PREFIXES,
        "digit number letter on a background - up",
    )
    return sorted({word for part in parts for word in part.replace("-", " ").split()} | {"-"})
