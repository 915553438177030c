import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.approximate.reduction import Sketch
from index.rotation import turn, turned_width, widest_turned


def slowly_turned(row, signs):
    """The real Fourier transform as a matrix with orthonormal columns, in float64."""
    width = len(row)
    places, waves = np.arange(width), np.arange(width // 2 + 1)
    angles = 2 * np.pi * np.outer(places, waves) / width
    scale = np.sqrt(np.where((waves == 0) | (waves == width // 2), 1, 2) / width)
    cosines, sines = np.cos(angles) * scale, -np.sin(angles) * scale
    matrix = np.concatenate([cosines[:, :-1], cosines[:, -1:], sines[:, 1:-1]], axis=1)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(width), atol=1e-12)
    return (row.astype("f8") * signs) @ matrix


def drawn_signs(width):
    return np.random.default_rng(1).choice(np.array([-1, 1], "f4"), width)


@given(st.integers(1, 60), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_a_turned_row_is_the_orthonormal_transform_of_its_signed_columns(eighths, rows):
    width = turned_width(8 * eighths)
    vectors, signs = np.random.default_rng(0).standard_normal((rows, width)).astype("f4"), drawn_signs(width)
    expected = np.array([slowly_turned(row, signs) for row in vectors]).reshape(rows, width)
    np.testing.assert_allclose(turn(vectors, signs), expected, atol=1e-5)


@pytest.mark.parametrize("dims", [5000, 5040, 4999])
def test_inner_products_of_turned_rows_are_those_of_the_rows(dims):
    rows = np.random.default_rng(0).standard_normal((12, dims)).astype("f4")
    turned = Sketch(dims, turned_width(dims), 7, turned=True).apply(rows)
    np.testing.assert_allclose(turned @ turned.T, rows @ rows.T, atol=0.02)


def test_a_row_gets_the_same_bits_beside_any_others():
    rows = np.random.default_rng(0).standard_normal((700, 5040)).astype("f4")
    sketch = Sketch(5040, 4800, 7, turned=True)
    whole = sketch.apply(rows)
    for first, stop in ((0, 1), (3, 4), (500, 700)):
        np.testing.assert_array_equal(sketch.apply(rows[first:stop]), whole[first:stop])


def test_one_large_coordinate_is_spread_over_all():
    row = np.zeros((1, 960), "f4")
    row[0, 123] = 1
    assert np.abs(turn(row, drawn_signs(960))).max() <= np.sqrt(2 / 960) + 1e-6


@given(st.integers(1, 100_000))
def test_widths_that_are_fast_to_turn_are_near_and_on_the_right_side(columns):
    above, below = turned_width(columns), widest_turned(columns)
    assert columns <= above <= 1.1 * columns + 8
    assert below <= max(8, columns)
    assert below >= 0.9 * columns - 8
    assert above % 8 == below % 8 == 0


def test_a_row_wider_than_what_it_is_turned_in_is_added_up_first_and_keeps_its_inner_products_on_average():
    rows = np.random.default_rng(0).standard_normal((40, 9000)).astype("f4")
    turned = Sketch(9000, 4500, 7, turned=True).apply(rows)
    off = (turned @ turned.T - rows @ rows.T)[np.triu_indices(40, 1)]
    assert abs(off.mean()) < 10
    assert off.std() < 2 * 9000 / np.sqrt(4500)
