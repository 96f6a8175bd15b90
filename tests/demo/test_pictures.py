import re

import numpy as np
import pytest

from peft_reprogram.demo.pictures import (
    CASES,
    COLOURS,
    STYLES,
    SUBJECTS,
    Caption,
    caption_words,
    describe,
    generate_pictures,
    matches,
)


@pytest.fixture(scope="module")
def pictures():
    return generate_pictures(1500, seed=0)


def test_pictures_have_what_is_said_about_them(pictures):
    assert pictures.pixels.shape == (1500, 32, 32, 3)
    assert pictures.pixels.dtype == np.uint8
    assert set(pictures.subject) == set(range(len(SUBJECTS)))
    letters = np.array([len(SUBJECTS[subject]) == 1 and SUBJECTS[subject].isalpha() for subject in pictures.subject])
    np.testing.assert_array_equal(letters, pictures.case >= 0)
    plain = (pictures.background >= 0) & ~pictures.styles[:, STYLES.index("noisy")]
    corners = pictures.pixels[plain][:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
    palette = np.array(list(COLOURS.values()))[pictures.background[plain]]
    # A large glyph may touch a corner, and every picture has a shade of its own.
    assert np.abs(np.median(corners, axis=1) - palette).max(axis=1).mean() < 25
    roughness = np.abs(np.diff(pictures.pixels[:, :3].astype(float), axis=2)).mean(axis=(1, 2, 3))
    noisy = pictures.styles[:, STYLES.index("noisy")]
    assert np.median(roughness[noisy]) > 4 * np.median(roughness[~noisy])


def test_glyphs_stand_out(pictures):
    assert (pictures.colour != pictures.background).all()
    grey = pictures.pixels[~pictures.styles[:, STYLES.index("noisy")]].mean(axis=-1)
    assert (np.ptp(grey, axis=(1, 2)) > 20).mean() > 0.99


def test_the_seed_decides(pictures):
    first, again, other = (generate_pictures(40, seed=seed) for seed in (3, 3, 4))
    for name in ("pixels", "subject", "case", "colour", "background", "styles"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.pixels != other.pixels).any()


def test_captions_are_true_of_their_picture_and_say_what_they_mention(pictures):
    rng = np.random.default_rng(0)
    index = np.arange(len(pictures))
    captions = [describe(pictures, int(i), rng) for i in index]
    assert matches(pictures, index, captions).diagonal().all()
    for caption in captions:
        words = re.findall(r"\w+", caption.text)
        for field, names in (("case", CASES), ("style", STYLES)):
            mentioned = getattr(caption, field)
            assert mentioned < 0 or names[mentioned] in words
        on_ground = re.search(r" on (?:a )?(\w+)", caption.text)
        assert (on_ground is not None) == (caption.background >= 0)
        if on_ground:
            assert on_ground.group(1) == list(COLOURS)[caption.background]
    mentioned = np.array([[c.case, c.colour, c.background, c.style] for c in captions]) >= 0
    assert (mentioned.mean(axis=0) > 0.05).all()


def test_without_detail_the_caption_is_the_subject(pictures):
    rng = np.random.default_rng(0)
    for i in range(200):
        caption = describe(pictures, i, rng, detail=0.0)
        assert len(caption.text.split()) == (2 if caption.text.startswith("letter ") else 1)
        assert (caption.case, caption.colour, caption.background, caption.style) == (-1, -1, -1, -1)


def test_matches_compares_only_what_is_mentioned(pictures):
    index = np.arange(300)
    subject, red = SUBJECTS.index("7"), list(COLOURS).index("red")
    seven, red_seven = Caption("seven", subject), Caption("red seven", subject, colour=red)
    bold_b = Caption("bold b", SUBJECTS.index("b"), style=STYLES.index("bold"))
    expected = np.stack(
        [
            pictures.subject[:300] == subject,
            (pictures.subject[:300] == subject) & (pictures.colour[:300] == red),
            (pictures.subject[:300] == SUBJECTS.index("b")) & pictures.styles[:300, STYLES.index("bold")],
        ],
        axis=1,
    )
    assert expected[:, 0].any()
    np.testing.assert_array_equal(matches(pictures, index, [seven, red_seven, bold_b]), expected)


def test_caption_words_cover_every_caption(pictures):
    rng, known = np.random.default_rng(1), set(caption_words())
    for i in range(len(pictures)):
        assert set(re.findall(r"\w+|-", describe(pictures, i, rng).text)) <= known
