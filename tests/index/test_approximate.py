import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.approximate.merge import open_parts
from index.approximate.operating_points import Dial, Measured, dialled
from index.approximate.search import propose, search
from index.errors import VectorIndexError
from index.exact import exact_search
from index.neighbours import merge_neighbours
from index.rerank import scored_by
from tests.index.gradient_rows import blocks_of, gradients, merged, unmerged

faiss = pytest.importorskip("faiss")

FACTORIES = {
    "sq8": {"kind": "sq8"},
    "sq4": {"kind": "sq4"},
    "rabitq": {"kind": "rabitq"},
    "ivf_flat": {"kind": "ivf_flat"},
    "ivf_sq8": {"kind": "ivf_sq8"},
    "ivf_sq4": {"kind": "ivf_sq4"},
    "ivf_rabitq": {"kind": "ivf_rabitq"},
    "ivf_rabitq2": {"kind": "ivf_rabitq2"},
    "ivf_pq": {"kind": "ivf_pq"},
    "Flat": {"kind": "factory", "factory": "Flat"},
    "OPQ": {"kind": "factory", "factory": "OPQ4_16,IVF4,PQ4x4"},
    "PCA": {"kind": "factory", "factory": "PCA16,IVF8,SQfp16"},
    "RaBitQ4": {"kind": "factory", "factory": "RR24,IVF8,RaBitQ4"},
    "sketched": {"kind": "ivf_rabitq2", "reduce": 16},
}
ROWS = gradients(600, 24)
EVERYTHING = {"probes": 10_000, "candidates": 600}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    made = {}

    def make(name, sigma=0.8):
        if (name, sigma) not in made:
            rows = gradients(600, 24, sigma=sigma)
            made[name, sigma] = merged(tmp_path_factory.mktemp("index"), rows, 250, **FACTORIES[name])
        return made[name, sigma]

    return make


def fetch(rows):
    return scored_by(lambda which: rows[which])


def assert_same(found, expected):
    for end in ("largest", "smallest"):
        np.testing.assert_array_equal(getattr(found, end).rows, getattr(expected, end).rows)
        np.testing.assert_array_equal(getattr(found, end).scores, getattr(expected, end).scores)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("comparison", ["dot", "cosine"])
def test_with_every_cell_and_every_row_proposed_each_factory_equals_exact_search(indexes, factory, comparison):
    sigma = 0.8 if comparison == "dot" else 0.0
    rows, queries = gradients(600, 24, sigma=sigma), gradients(4, 24, 5)
    found = search(indexes(factory, sigma), queries, 10, fetch(rows), probes=10_000, candidates=599)
    expected = exact_search(queries, blocks_of(rows), 10)
    # One row of 600 may be left out, and copies tie; what comes back still has its true score, in order.
    for end in ("largest", "smallest"):
        got, true = getattr(found, end), getattr(expected, end)
        np.testing.assert_array_equal(got.scores, true.scores)
        np.testing.assert_array_equal(got.rows, true.rows)


@pytest.mark.parametrize("factory", FACTORIES)
def test_few_candidates_find_most_of_the_best_rows_at_both_ends(indexes, factory):
    queries = gradients(30, 24, 6)
    found = search(indexes(factory), queries, 10, fetch(ROWS), probes=10_000, candidates=120)
    expected = exact_search(queries, blocks_of(ROWS), 10)
    for end in ("largest", "smallest"):
        pairs = zip(getattr(found, end).rows, getattr(expected, end).rows, strict=True)
        # Adding up 24 columns to 16 loses what no code can bring back.
        least = 0.7 if factory == "sketched" else 0.9
        assert np.mean([np.isin(true, got).mean() for got, true in pairs]) > least


@pytest.mark.parametrize("factory", ["ivf_sq8", "ivf_rabitq", "OPQ"])
def test_faiss_pads_with_minus_one_and_no_such_row_comes_back(indexes, factory):
    index = indexes(factory)
    for rows in propose(index, gradients(5, 24, 7).astype("f8"), probes=1, count=600, spread=1.0):
        assert rows.size < 600
        assert rows.min() >= 0
        assert np.unique(rows).size == rows.size


def test_fewer_rows_in_the_cells_that_are_read_than_k_reads_all_cells(indexes):
    found = search(indexes("ivf_sq8"), gradients(3, 24, 8), 400, fetch(ROWS), probes=1, candidates=500)
    assert found.largest.rows.shape == found.smallest.rows.shape == (3, 400)
    assert found.largest.rows.min() >= 0


def test_k_above_the_number_of_rows_returns_every_row_once(indexes):
    queries = gradients(2, 24, 9)
    found = search(indexes("ivf_rabitq2"), queries, 1000, fetch(ROWS), **EVERYTHING)
    assert_same(found, exact_search(queries, blocks_of(ROWS), 1000))


def test_rows_of_very_different_lengths_are_found_by_fewer_codes_than_a_quarter(indexes):
    rows, queries = gradients(600, 24, sigma=2.0), gradients(20, 24, 10)
    found = search(indexes("ivf_sq8", 2.0), queries, 10, fetch(rows), probes=8, candidates=60)
    expected = exact_search(queries, blocks_of(rows), 10)
    for end in ("largest", "smallest"):
        pairs = zip(getattr(found, end).rows, getattr(expected, end).rows, strict=True)
        assert np.mean([np.isin(true, got).mean() for got, true in pairs]) > 0.9


def test_a_query_asked_beside_others_gets_the_answer_it_gets_alone(indexes):
    index, queries = indexes("ivf_rabitq2"), gradients(6, 24, 11)
    together = search(index, queries, 5, fetch(ROWS), probes=4, candidates=30)
    for i in range(6):
        alone = search(index, queries[i : i + 1], 5, fetch(ROWS), probes=4, candidates=30)
        np.testing.assert_array_equal(alone.smallest.rows[0], together.smallest.rows[i])
        np.testing.assert_array_equal(alone.largest.scores[0], together.largest.scores[i])


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_the_length_of_a_query_changes_scores_and_no_row(indexes, scale):
    index, queries = indexes("ivf_rabitq"), gradients(4, 24, 12).astype("f8")
    small = search(index, queries * scale, 5, fetch(ROWS), probes=4, candidates=30)
    plain = search(index, queries, 5, fetch(ROWS), probes=4, candidates=30)
    np.testing.assert_array_equal(small.largest.rows, plain.largest.rows)
    np.testing.assert_array_equal(small.smallest.rows, plain.smallest.rows)


def test_a_zero_query_scores_zero_everywhere(indexes):
    found = search(indexes("ivf_rabitq2"), np.zeros((1, 24), "f4"), 5, fetch(ROWS), probes=4, candidates=30)
    assert found.largest.scores.tolist() == found.smallest.scores.tolist() == [[0.0] * 5]
    assert not np.signbit(found.smallest.scores).any()


@given(st.sets(st.integers(0, 599), max_size=400), st.integers(1, 20))
@settings(deadline=None, max_examples=25)
def test_a_filter_gives_the_best_rows_that_pass(indexes, chosen, k):
    index, queries = indexes("ivf_sq8"), gradients(2, 24, 13)
    allowed = np.array(sorted(chosen), dtype=np.int64)
    found = search(index, queries, k, fetch(ROWS), allowed, probes=1, candidates=200)
    passing = [(int(row), ROWS[row : row + 1]) for row in allowed]
    expected = exact_search(queries, passing, k)
    for end in ("largest", "smallest"):
        np.testing.assert_array_equal(getattr(found, end).rows, getattr(expected, end).rows)


def test_a_bitmap_filters_as_the_same_rows_by_number_do(indexes):
    index, queries = indexes("ivf_rabitq2"), gradients(2, 24, 14)
    mask = np.random.default_rng(0).random(600) < 0.5
    by_mask = search(index, queries, 10, fetch(ROWS), mask, probes=2, candidates=40)
    by_number = search(index, queries, 10, fetch(ROWS), np.flatnonzero(mask), probes=2, candidates=40)
    assert_same(by_mask, by_number)
    assert mask[by_mask.largest.rows].all()
    assert mask[by_mask.smallest.rows].all()


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (np.array([3, 2]), "has row 2 after row 3"),
        (np.array([2, 2]), "has row 2 after row 2"),
        (np.array([5, 600]), "rows from 5 to 600; the index has rows 0 to 599"),
        (np.array([-1, 4]), "rows from -1 to 4"),
        (np.ones(10, bool), r"of the shape \[10\]; one for each of 600 rows"),
        (np.array([0.5]), "array of float64"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(indexes, allowed, message):
    with pytest.raises(VectorIndexError, match=message):
        search(indexes("sq8"), ROWS[:1], 3, fetch(ROWS), allowed, **EVERYTHING)


def test_parts_searched_together_answer_as_the_merged_index(tmp_path, indexes):
    parts = unmerged(tmp_path, ROWS, 250, kind="ivf_rabitq2")
    assert len(parts.parts) == 3
    queries = gradients(4, 24, 15)
    ask = {"score": fetch(ROWS), "probes": 6, "candidates": 50}
    assert_same(search(parts, queries, 10, **ask), search(indexes("ivf_rabitq2"), queries, 10, **ask))


def test_answers_of_single_parts_merge_into_the_answer_of_the_whole(tmp_path):
    whole = unmerged(tmp_path, ROWS, 250, kind="ivf_sq8")
    queries, ask = gradients(4, 24, 16), {"score": fetch(ROWS), **EVERYTHING}
    single = [search(open_parts(tmp_path, "f", [number]), queries, 10, **ask) for number in range(3)]
    assert [one.largest.rows.min() // 250 for one in single] == [0, 1, 2]
    assert_same(merge_neighbours(single, 10), search(whole, queries, 10, **ask))
    assert_same(merge_neighbours(single, 10), exact_search(queries, blocks_of(ROWS), 10))


def test_merging_neighbours_gives_ties_to_the_lower_row_and_short_sets_whole():
    rows = np.array([[1.0], [0.0], [1.0], [0.0], [-3.0]], "f4")
    query = np.ones((1, 1), "f4")
    pieces = [exact_search(query, [(3, rows[3:])], 4), exact_search(query, [(0, rows[:3])], 4)]
    assert_same(merge_neighbours(pieces, 4), exact_search(query, [(0, rows)], 4))


def test_an_index_of_no_rows_finds_nothing(tmp_path):
    empty = np.empty((0, 24), "f4")
    found = search(merged(tmp_path, empty, kind="ivf_rabitq2"), ROWS[:2], 3, fetch(empty), **EVERYTHING)
    assert found.largest.rows.shape == found.smallest.scores.shape == (2, 0)


def test_an_index_that_nobody_measured_needs_to_be_told_how_much_to_read(indexes):
    with pytest.raises(VectorIndexError, match="was not measured"):
        search(indexes("sq8"), ROWS[:1], 3, fetch(ROWS))


def test_fewer_candidates_than_neighbours_are_refused(indexes):
    with pytest.raises(VectorIndexError, match=r"index.candidates is 5 and k is 9.*Set 9 or more"):
        search(indexes("sq8"), ROWS[:1], 9, fetch(ROWS), probes=1, candidates=5)


def test_queries_of_another_width_are_refused_with_both_widths(indexes):
    with pytest.raises(VectorIndexError, match="queries have 3 columns and the index has 24"):
        search(indexes("sq8"), np.ones((1, 3)), 1, fetch(ROWS), **EVERYTHING)


def test_the_process_keeps_its_number_of_faiss_threads(indexes):
    before = faiss.omp_get_max_threads()
    search(indexes("ivf_sq8"), ROWS[:2], 3, fetch(ROWS), probes=2, candidates=20)
    assert faiss.omp_get_max_threads() == before


def test_a_deeper_search_than_was_measured_reads_and_proposes_in_proportion():
    dials = tuple(
        Dial(end=end, depth=depth, probes=depth, candidates=5 * depth, recall=1.0)
        for end in ("largest", "smallest")
        for depth in (10, 20)
    )
    measured = Measured(target=0.9, reached=True, queries=1, spread=2.0, dials=dials, curve=())
    assert dialled(measured, "largest", 7, 100, None, None) == (10, 50, 2.0)
    assert dialled(measured, "smallest", 11, 100, None, None) == (20, 100, 2.0)
    assert dialled(measured, "smallest", 60, 50, None, None) == (50, 300, 2.0)
    assert dialled(measured, "largest", 7, 100, 3, 9) == (3, 9, 2.0)
