import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import exact
from index.errors import VectorIndexError
from index.exact import exact_search, exact_search_scores
from index.gemm.dots import row_dots


def brute_force(queries, rows, k):
    """Every score by one matrix product, sorted; ties by the lower row."""
    scores = (queries.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    numbers = np.arange(len(rows))
    largest = np.stack([np.lexsort((numbers, -line))[:k] for line in scores])
    smallest = np.stack([np.lexsort((numbers, line))[:k] for line in scores])
    return largest, np.take_along_axis(scores, largest, 1), smallest, np.take_along_axis(scores, smallest, 1)


def blocks_of(rows, sizes):
    start = 0
    for size in sizes:
        yield start, rows[start : start + size]
        start += size
    if start < len(rows):
        yield start, rows[start:]


def unit(vectors):
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


@pytest.mark.parametrize("comparison", ["dot", "cosine"])
def test_exact_search_equals_sorting_the_whole_matrix_product(comparison):
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((50, 12)).astype("f4"), rng.standard_normal((3, 12)).astype("f4")
    rows *= rng.uniform(0.1, 10, (50, 1)).astype("f4")
    rows[[7, 8, 30]] = 0
    if comparison == "cosine":
        rows, queries = unit(rows), unit(queries)
    found = exact_search(queries, blocks_of(rows, [20, 20]), 6)
    largest, high, smallest, low = brute_force(queries, rows, 6)
    np.testing.assert_array_equal(found.largest.rows, largest)
    np.testing.assert_array_equal(found.smallest.rows, smallest)
    np.testing.assert_allclose(found.largest.scores, high, rtol=1e-6)
    np.testing.assert_allclose(found.smallest.scores, low, rtol=1e-6)


small_integers = st.integers(-2, 2)


@given(
    st.lists(st.lists(small_integers, min_size=3, max_size=3), min_size=1, max_size=25),
    st.lists(st.lists(small_integers, min_size=3, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(0, 6), max_size=8),
    st.integers(1, 30),
)
@settings(deadline=None, max_examples=80)
def test_any_cut_into_blocks_gives_the_same_neighbours_and_ties_go_to_the_lower_row(rows, queries, sizes, k):
    rows, queries = np.array(rows, "f4"), np.array(queries, "f4")  # small integers: many exact ties, zero rows too
    found = exact_search(queries, blocks_of(rows, sizes), k)
    largest, high, smallest, low = brute_force(queries, rows, k)
    np.testing.assert_array_equal(found.largest.rows, largest)
    np.testing.assert_array_equal(found.largest.scores, high)
    np.testing.assert_array_equal(found.smallest.rows, smallest)
    np.testing.assert_array_equal(found.smallest.scores, low)


def test_copies_of_one_document_score_bit_for_bit_alike_wherever_they_stand():
    rng = np.random.default_rng(1)
    query = rng.standard_normal((1, 9000)).astype("f4")
    rows = np.tile(rng.standard_normal(9000).astype("f4"), (40, 1))
    found = exact_search(query, blocks_of(rows, [1, 2, 3, 17]), 40)
    assert np.unique(found.largest.scores).size == 1
    assert found.largest.rows[0].tolist() == list(range(40))
    assert found.smallest.rows[0].tolist() == list(range(40))


def test_blocks_in_any_order_give_the_same_neighbours():
    rows = np.array([[1.0], [0.0], [1.0], [0.0], [-3.0]], "f4")
    shuffled = [(3, rows[3:]), (0, rows[:1]), (1, rows[1:3])]
    found = exact_search(np.ones((1, 1), "f4"), shuffled, 4)
    assert found.largest.rows.tolist() == [[0, 2, 1, 3]]
    assert found.smallest.rows.tolist() == [[4, 1, 3, 0]]


def test_a_zero_row_scores_zero_without_a_minus_sign_and_is_still_found():
    rows = np.array([[0.0, 0.0], [1.0, 0.0]], "f4")
    found = exact_search(np.array([[-1.0, 0.0]], "f4"), [(0, rows)], 5)
    assert found.largest.rows.tolist() == [[0, 1]]
    assert not np.signbit(found.largest.scores[0, 0])
    assert not np.signbit(found.smallest.scores[0, 1])


def test_k_above_the_number_of_rows_returns_every_row_once():
    found = exact_search(np.ones((2, 1), "f4"), [(0, np.arange(3, dtype="f4")[:, None])], 1000)
    assert found.largest.rows.tolist() == [[2, 1, 0]] * 2
    assert found.smallest.rows.tolist() == [[0, 1, 2]] * 2


def test_no_rows_at_all_give_empty_answers():
    found = exact_search(np.ones((2, 4), "f4"), [], 3)
    assert found.largest.rows.shape == found.smallest.scores.shape == (2, 0)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "10"])
def test_a_k_that_is_not_a_positive_whole_number_is_refused(k):
    with pytest.raises(VectorIndexError, match="k must be a whole number, 1 or more"):
        exact_search(np.ones((1, 2), "f4"), [], k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused_by_its_number_in_the_whole_store(value):
    rows = np.ones((10, 4), "f2")
    rows[7, 2] = value
    with pytest.raises(VectorIndexError, match="row 107 holds 1 values that are NaN or infinite"):
        exact_search(np.ones((1, 4), "f4"), [(0, np.ones((100, 4))), (100, rows)], 2)


def test_a_finite_row_too_long_for_float32_scores_is_refused():
    with pytest.raises(VectorIndexError, match=r"row 0 holds values up to 1e\+30"):
        exact_search(np.ones((1, 1), "f4"), [(0, np.array([[1e30]], "f4"))], 1)


def test_a_query_that_is_not_finite_is_refused_by_its_number():
    queries = np.ones((3, 2), "f4")
    queries[1, 0] = np.nan
    with pytest.raises(VectorIndexError, match="query 1 holds 1 values"):
        exact_search(queries, [], 1)


def test_rows_of_another_width_are_refused_with_both_widths():
    with pytest.raises(VectorIndexError, match=r"row 5 has the shape \[2, 3\]; expected \[rows, 4\]"):
        exact_search(np.ones((1, 4), "f4"), [(5, np.ones((2, 3), "f4"))], 1)


def test_a_single_vector_is_refused_as_queries():
    with pytest.raises(VectorIndexError, match=r"must be a matrix \[queries, dims\]"):
        exact_search(np.ones(4, "f4"), [], 1)


def test_a_block_is_scored_in_slices_without_changing_the_answer(monkeypatch):
    rows = np.random.default_rng(2).standard_normal((101, 8)).astype("f4")
    whole = exact_search(rows[:2], [(0, rows)], 9)
    monkeypatch.setattr(exact, "SLICE_BYTES", 8 * 8 * 10)
    sliced = exact_search(rows[:2], [(0, rows)], 9)
    np.testing.assert_array_equal(whole.largest.rows, sliced.largest.rows)
    np.testing.assert_array_equal(whole.smallest.scores, sliced.smallest.scores)


def test_memory_does_not_grow_with_the_number_of_rows(monkeypatch):
    monkeypatch.setattr(exact, "SLICE_BYTES", 2**16)
    query = np.ones((1, 64), "f4")

    def peak(blocks):
        tracemalloc.start()
        exact_search(query, ((i * 500, np.full((500, 64), i, "f2")) for i in range(blocks)), 5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = peak(4), peak(64)
    assert many < 1.2 * few


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=25),
    st.lists(st.integers(0, 6), max_size=8),
    st.integers(1, 30),
)
@settings(deadline=None, max_examples=80)
def test_searching_scores_in_any_blocks_equals_sorting_them_with_ties_to_the_lower_row(rows, sizes, k):
    scores = np.array(rows, "f4")
    found = exact_search_scores(((start, block.T) for start, block in blocks_of(scores, sizes)), 2, k)
    largest, high, smallest, low = brute_force(np.eye(2), scores, k)
    np.testing.assert_array_equal(found.largest.rows, largest)
    np.testing.assert_array_equal(found.largest.scores, high)
    np.testing.assert_array_equal(found.smallest.rows, smallest)
    np.testing.assert_array_equal(found.smallest.scores, low)


def test_searching_no_scores_at_all_gives_empty_answers():
    found = exact_search_scores([], 2, 3)
    assert found.largest.rows.shape == found.smallest.scores.shape == (2, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_by_its_row_and_query(value):
    scores = np.zeros((2, 5), "f4")
    scores[1, 3] = value
    with pytest.raises(VectorIndexError, match=rf"Row 103 scores {value} with query 1"):
        exact_search_scores([(0, np.zeros((2, 100), "f4")), (100, scores)], 2, 1)


def test_scores_of_another_number_of_queries_are_refused():
    with pytest.raises(VectorIndexError, match=r"start at row 4 have the shape \[3, 5\]; expected \[2, rows\]"):
        exact_search_scores([(4, np.zeros((3, 5), "f4"))], 2, 1)


@pytest.mark.parametrize("dims", [1, 8192, 8193, 21_504])
def test_a_wide_row_is_summed_as_if_it_stood_alone(dims):
    random = np.random.default_rng(0)
    rows, query = random.standard_normal((7, dims)), random.standard_normal(dims)
    found = row_dots(rows, query)
    np.testing.assert_allclose(found, [sum(map(float, row * query)) for row in rows], rtol=1e-9, atol=1e-9)
    for place, row in enumerate(rows):
        assert row_dots(row[None], query)[0] == found[place]
