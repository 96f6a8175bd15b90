import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from peft_reprogram.bench.pareto import frontier_area, pareto_front


# Few values, so that ties and duplicates are frequent.
GRID = st.integers(0, 4).map(lambda value: value / 4)


@st.composite
def clouds(draw, columns=None):
    shape = (draw(st.integers(0, 12)), columns or draw(st.integers(1, 4)))
    return draw(arrays(np.float64, shape, elements=GRID))


@given(clouds())
def test_the_front_is_what_no_other_point_dominates(points):
    expected = []
    for one in points.tolist():
        dominated = False
        for other in points.tolist():
            no_worse = all(b >= a for a, b in zip(one, other))
            dominated = dominated or (no_worse and other != one)
        expected.append(not dominated)
    assert pareto_front(points).tolist() == expected


def test_duplicates_stay_together():
    assert pareto_front([[1, 0], [0, 1], [1, 0], [0, 0], [0.5, 0.5]]).tolist() == [True, True, True, False, True]


@given(clouds(columns=2))
def test_the_area_is_that_of_the_dominated_cells(points):
    # All coordinates lie on a lattice of quarters, so the union of boxes is a number of its cells.
    centres = (np.arange(4) + 0.5) / 4
    covered = sum(any(x < p[0] and y < p[1] for p in points) for x in centres for y in centres)
    assert frontier_area(points, (0, 0), (1, 1)) == pytest.approx(covered / 16)


def test_the_area_knows_its_limits():
    points = [[0.5, 0.9], [0.8, 0.6], [0.2, 0.2]]
    assert frontier_area(points, (0, 0), (1, 1)) == pytest.approx(0.5 * 0.9 + 0.3 * 0.6)
    assert frontier_area(points, (0.4, 0.5), (0.7, 0.8)) == pytest.approx(0.1 * 0.3 + 0.2 * 0.1)
    assert frontier_area(points, (0.9, 0.9), (1, 1)) == 0
    assert frontier_area([[3, 3]], (0, 0), (2, 1)) == 2
    assert frontier_area(np.empty((0, 2)), (0, 0), (1, 1)) == 0


@pytest.mark.parametrize(
    ("points", "message"), [([1, 2], "one row a point"), ([[float("nan"), 1]], "finite"), (np.empty((2, 0)), "K >= 1")]
)
def test_bad_points_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        pareto_front(points)


def test_bad_limits_are_refused():
    with pytest.raises(ValueError, match="two columns"):
        frontier_area([[1, 2, 3]], (0, 0), (1, 1))
    with pytest.raises(ValueError, match="below that of `upper`"):
        frontier_area([[1, 2]], (0, 1), (1, 1))
