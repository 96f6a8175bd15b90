import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_reprogram.tuners.reprogrammer.functional import (
    FrameGeometry,
    default_frame_inner,
    frame_mask,
    reprogram_pixels,
    row_deltas,
    unpack_frame,
)


MEAN = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
STD = torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)


@st.composite
def geometries(draw):
    height, width = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    inner = draw(st.tuples(st.integers(0, height), st.integers(0, width)).filter(lambda size: size != (height, width)))
    return FrameGeometry((height, width), inner, (height, width))


@settings(max_examples=60)
@given(geometries(), st.integers(0, 2**31))
def test_only_the_frame_changes_and_by_the_formula(geometry, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, *geometry.image_size, generator=generator)
    frame = torch.randn(3, geometry.num_pixels, generator=generator)
    program = torch.zeros(3, *geometry.image_size)
    mask = frame_mask(geometry)
    program[:, mask] = frame
    expected = ((x + torch.tanh(program)).clamp(0, 1) - MEAN) / STD
    normalized = (x - MEAN) / STD
    actual = reprogram_pixels(normalized, frame, geometry, MEAN, STD)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)
    assert torch.equal(actual[:, :, ~mask], normalized[:, :, ~mask])
    assert torch.equal(unpack_frame(frame, geometry), program)


@settings(max_examples=40)
@given(geometries(), st.integers(0, 2**31))
def test_a_zero_frame_is_the_identity(geometry, seed):
    x = torch.randn(2, 3, *geometry.image_size, generator=torch.Generator().manual_seed(seed)) * 3
    assert torch.equal(reprogram_pixels(x, torch.zeros(3, geometry.num_pixels), geometry, MEAN, STD), x)


def test_gradient_of_the_frame_is_the_finite_difference():
    geometry = FrameGeometry((6, 6), (2, 2), (6, 6))
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(2, 3, 6, 6, generator=generator) - MEAN) / STD
    frame = (torch.randn(3, geometry.num_pixels, generator=generator) * 0.3).requires_grad_(True)
    weights = torch.randn(2, 3, 6, 6, generator=generator)
    (reprogram_pixels(x, frame, geometry, MEAN, STD) * weights).sum().backward()
    step = 1e-2
    for index in [(0, 0), (1, 7), (2, geometry.num_pixels - 1)]:
        shift = torch.zeros_like(frame)
        shift[index] = step
        with torch.no_grad():
            up = (reprogram_pixels(x, frame + shift, geometry, MEAN, STD) * weights).sum()
            down = (reprogram_pixels(x, frame - shift, geometry, MEAN, STD) * weights).sum()
        assert frame.grad[index].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=2e-2)


def test_dropout_acts_on_the_program_in_training_only():
    geometry = FrameGeometry((8, 8), (4, 4), (8, 8))
    x = (torch.full((1, 3, 8, 8), 0.5) - MEAN) / STD
    frame = torch.full((3, geometry.num_pixels), 0.1)
    still = reprogram_pixels(x, frame, geometry, MEAN, STD, dropout=0.5, training=False)
    assert torch.equal(still, reprogram_pixels(x, frame, geometry, MEAN, STD))
    torch.manual_seed(0)
    dropped = reprogram_pixels(x, frame, geometry, MEAN, STD, dropout=0.5, training=True)
    unchanged = (dropped == x)[0, :, frame_mask(geometry)].float().mean()
    assert 0.3 < unchanged < 0.7


def test_default_frame_is_the_papers():
    assert default_frame_inner((224, 224)) == (192, 192)
    assert default_frame_inner((32, 32)) == (28, 28)
    assert default_frame_inner((336, 224)) == (288, 192)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((8, 8), (9, 4), (8, 8)), "frame_inner.*larger than the model's input"),
        (((8, 8), (4, 4), (8, 9)), "up_resolution.*larger than the model's input"),
        (((8, 8), (8, 8), (8, 8)), "leaves no frame to train"),
        (((8, -8), (4, 4), (8, 8)), "image_size"),
    ],
)
def test_geometry_that_does_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        FrameGeometry(*sizes)


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 1, 8, 8), "RGB"), ((2, 3, 8, 9), "made for images of 8x8 pixels, got 8x9")]
)
def test_images_that_do_not_fit(shape, message):
    geometry = FrameGeometry((8, 8), (4, 4), (8, 8))
    with pytest.raises(ValueError, match=message):
        reprogram_pixels(torch.zeros(shape), torch.zeros(3, geometry.num_pixels), geometry, MEAN, STD)


@settings(max_examples=40)
@given(st.sets(st.integers(0, 30), min_size=1, max_size=10), st.lists(st.integers(0, 30), min_size=1, max_size=20))
def test_row_deltas_are_a_table_look_up(trained, ids):
    row_ids = torch.tensor(sorted(trained))
    rows = torch.randn(len(trained), 4)
    table = torch.zeros(31, 4)
    table[row_ids] = rows
    assert torch.equal(row_deltas(torch.tensor([ids]), row_ids, rows), table[torch.tensor([ids])])
