import sys

import numpy as np
import pytest

from peft_reprogram.demo import glyphs
from peft_reprogram.demo.glyphs import (
    HELD_OUT_FONTS,
    PRETRAINING_FONTS,
    SHAPES,
    draw_character,
    draw_shape,
    warp,
)


def centre(image) -> np.ndarray:
    """Middle of the bounding box, (x, y)."""
    left, top, right, bottom = image.getbbox()
    return np.array([(left + right) / 2, (top + bottom) / 2])


@pytest.mark.parametrize("font", PRETRAINING_FONTS + HELD_OUT_FONTS)
def test_every_font_draws_different_characters_in_the_centre(font):
    drawn = [draw_character(character, font) for character in "0123456789AEFHKMNPRTUVWX"]
    assert len({image.tobytes() for image in drawn}) == len(drawn)
    for image in drawn:
        assert np.abs(centre(image) - 32).max() <= 3  # slanted glyphs stick out of their font's box


def test_no_font_is_both_trained_on_and_held_out():
    assert not set(PRETRAINING_FONTS) & set(HELD_OUT_FONTS)


def test_a_stroke_adds_ink():
    ink = [np.asarray(draw_character("7", "DejaVuSans", stroke_width=width)).sum() for width in (0, 1, 3)]
    assert ink[0] < ink[1] < ink[2]


def test_shapes_differ_and_fit():
    drawn = {name: np.asarray(draw_shape(name)) for name in SHAPES}
    assert len({image.tobytes() for image in drawn.values()}) == len(SHAPES)
    for name, image in drawn.items():
        assert image[:7].max() == 0, name
        assert image[-7:].max() == 0, name
        assert image[:, :7].max() == 0, name
        assert image[:, -7:].max() == 0, name
    area = np.pi * 23**2
    assert (drawn["circle"] > 0).sum() == pytest.approx(area, rel=0.05)


def test_unknown_shape_lists_the_known():
    with pytest.raises(ValueError, match="expected one of circle, ring"):
        draw_shape("dodecahedron")


def test_warp_without_arguments_only_shrinks():
    glyph = draw_character("R", "DejaVuSans")
    expected = np.asarray(glyph).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(warp(glyph, np.random.default_rng(0))), expected, atol=1)


def test_warp_turns_counter_clockwise_like_pillow():
    glyph = draw_character("R", "DejaVuSans")
    ours = np.asarray(warp(glyph, np.random.default_rng(0), rotation=30, size=64), dtype=float)
    reference = np.asarray(glyph.rotate(30, resample=2), dtype=float)
    assert np.corrcoef(ours.ravel(), reference.ravel())[0, 1] > 0.95


def test_warp_moves_and_scales():
    glyph, rng = draw_shape("square", size=20), np.random.default_rng(0)
    moved = centre(warp(glyph, rng, shift=(8, -4), size=64)) - centre(warp(glyph, rng, size=64))
    np.testing.assert_allclose(moved, (8, -4), atol=1)
    plain, wide = (np.asarray(warp(glyph, rng, scale=scale, size=64)) > 127 for scale in ((1, 1), (2, 1)))
    assert wide.any(axis=0).sum() == pytest.approx(2 * plain.any(axis=0).sum(), abs=2)
    assert wide.any(axis=1).sum() == pytest.approx(plain.any(axis=1).sum(), abs=1)


def test_positive_shear_leans_to_the_right():
    bar = draw_character("|", "DejaVuSans")
    leaning = np.asarray(warp(bar, np.random.default_rng(0), shear=0.3, size=64)) > 127
    rows = np.flatnonzero(leaning.any(axis=1))
    x = [np.flatnonzero(leaning[row]).mean() for row in (rows[3], rows[-4])]
    assert x[0] > x[1] + 5


def test_wobble_is_decided_by_the_generator():
    glyph = draw_character("R", "DejaVuSans")
    first, again, other = (np.asarray(warp(glyph, np.random.default_rng(seed), wobble=3)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_missing_matplotlib_is_explained(monkeypatch):
    glyphs._font.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"peft-reprogram\[demo\]"):
        draw_character("7", "DejaVuSans")
