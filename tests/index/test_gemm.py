"""Products of our own have one order of summation: bits that no BLAS promises."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.gemm import packed, product
from index.gemm.dots import PIECE, row_dots
from index.gemm.kernel import DEPTH, PANEL, TILE


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rounded(value: Fraction) -> np.float32:
    """The nearest float32, of two equally near ones the even one."""
    guess = np.float32(float(value))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(np.uint32)) & 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2 * DEPTH + 3), st.integers(1, 2 * PANEL + 3), st.integers(0, 2**32 - 1))
def test_a_product_of_any_shape_is_that_of_float64_to_rounding(rows, width, columns, seed):
    left, right = normal(rows, width, seed=seed), normal(width, columns, seed=seed + 1)
    found = product(left, right)
    assert (found.shape, found.dtype) == ((rows, columns), np.float32)
    largest = np.abs(left).astype(np.float64) @ np.abs(right).astype(np.float64)
    assert (np.abs(found - left.astype(np.float64) @ right.astype(np.float64)) <= 2.0**-20 * largest).all()


def test_an_entry_is_summed_column_after_column_each_product_added_with_one_rounding():
    left, right = normal(3, 9, seed=1), normal(9, 2, seed=2)
    found = product(left, right)
    for i in range(3):
        for j in range(2):
            total = np.float32(0)
            for c in range(9):
                total = rounded(Fraction(float(left[i, c])) * Fraction(float(right[c, j])) + Fraction(float(total)))
            assert found[i, j] == total


@pytest.mark.parametrize("width", [1, 5, 16, 33, DEPTH, DEPTH + 1, 3 * DEPTH])
def test_an_entry_does_not_depend_on_where_its_row_and_column_stand_nor_on_the_shape(width):
    left, right = normal(3 * TILE[0] + 5, width, seed=3), normal(width, 2 * PANEL + 3, seed=4)
    found, laid = product(left, right), packed(right)
    for row in (0, 1, TILE[0] - 1, TILE[0], len(left) - 1):
        np.testing.assert_array_equal(product(left[row : row + 1], laid), found[row : row + 1])
        np.testing.assert_array_equal(product(np.roll(left, 7, axis=0), laid), np.roll(found, 7, axis=0))
    for column in (0, 1, PANEL - 1, PANEL, 2 * PANEL + 2):
        np.testing.assert_array_equal(product(left, right[:, column : column + 1]), found[:, column : column + 1])


def test_a_product_with_another_width_is_refused():
    with pytest.raises(ValueError, match=r"left is \[2, 3\], right has 4 rows"):
        product(normal(2, 3), normal(4, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, 63, 64, 65, PIECE + 70])
def test_a_row_has_the_same_inner_product_at_any_address_beside_any_rows(dtype, width):
    rows, query = normal(9, width, seed=5, dtype=dtype), normal(width, seed=6, dtype=dtype)
    found = row_dots(rows, query)
    exact = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in rows]
    largest = np.abs(rows).astype(np.float64) @ np.abs(query).astype(np.float64)
    assert (np.abs(found - exact) <= (2.0**-20 if dtype == np.float32 else 2.0**-49) * largest).all()
    for row in range(9):
        for shift in (0, 1, 3):
            held = np.empty(width + shift, dtype)[shift:]
            held[:] = rows[row]
            assert row_dots(held[None], query)[0] == found[row]
    np.testing.assert_array_equal(row_dots(rows, np.tile(query, (9, 1))), found)


def test_halves_and_mixed_types_are_summed_in_float64():
    rows, query = normal(4, 65, seed=7).astype(np.float16), normal(65, seed=8)
    np.testing.assert_allclose(row_dots(rows, query), rows.astype(np.float64) @ query.astype(np.float64), rtol=1e-14)
