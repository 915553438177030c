import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import search as search_module
from index.build import FlatIndex, build
from index.errors import FaissMissing, GpuMissing, IndexMismatch, VectorIndexError
from index.exact import exact_search
from index.factory import IndexSettings, bytes_needed
from index.search import search

faiss = pytest.importorskip("faiss")
FLAT = IndexSettings(kind="flat")


def flat_index(rows, sizes=()):
    def blocks():
        start = 0
        for size in (*sizes, len(rows)):
            yield start, rows[start : start + size]
            start = min(start + size, len(rows))

    return build(FLAT, blocks(), rows=len(rows), dims=rows.shape[1])


def assert_same(found, expected):
    for end in ("largest", "smallest"):
        np.testing.assert_array_equal(getattr(found, end).rows, getattr(expected, end).rows)
        np.testing.assert_array_equal(getattr(found, end).scores, getattr(expected, end).scores)


@pytest.mark.parametrize("comparison", ["dot", "cosine"])
@pytest.mark.parametrize("queries", [1, 25])  # FAISS sums differently from 20 queries on
def test_flat_search_equals_exact_search_bit_for_bit(comparison, queries):
    rng = np.random.default_rng(0)
    rows, asked = rng.standard_normal((300, 33)).astype("f4"), rng.standard_normal((queries, 33)).astype("f4")
    rows[[0, 5]] = 0
    if comparison == "cosine":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    assert_same(search(flat_index(rows, [7, 100]), asked, 10), exact_search(asked, [(0, rows)], 10))


@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=120),
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=2),
    st.integers(1, 40),
)
@settings(deadline=None, max_examples=60)
def test_more_tied_rows_than_faiss_was_asked_for_still_come_by_lower_row(rows, queries, k):
    rows, queries = np.array(rows, "f4"), np.array(queries, "f4")
    assert_same(search(flat_index(rows), queries, k), exact_search(queries, [(0, rows)], k))


def test_hundreds_of_copies_of_one_document_come_by_lower_row():
    rng = np.random.default_rng(3)
    rows = np.tile(rng.standard_normal(37).astype("f4"), (500, 1))
    rows[499] *= 2
    rows[498] *= -1
    found = search(flat_index(rows), rows[:1], 3)
    assert found.largest.rows.tolist() == [[499, 0, 1]]
    assert found.smallest.rows.tolist() == [[498, 0, 1]]


def test_k_above_the_number_of_rows_returns_every_row_and_never_minus_one():
    rows = np.array([[3.0], [-1.0], [0.0]], "f4")
    found = search(flat_index(rows), np.ones((1, 1), "f4"), 50)
    assert found.largest.rows.tolist() == [[0, 2, 1]]
    assert found.smallest.rows.tolist() == [[1, 2, 0]]


def test_the_padding_of_a_short_answer_is_dropped_before_anything_reads_it():
    rows = np.array([[1.0], [2.0], [3.0]], "f4")
    real = flat_index(rows)

    def padded(queries, count):
        scores, found = real.faiss.search(queries, count)
        return np.append(scores, np.full((len(queries), 1), 1e30, "f4"), 1), np.append(
            found, np.full((len(queries), 1), -1), 1
        )

    fake = SimpleNamespace(
        search=padded, reconstruct_batch=real.faiss.reconstruct_batch, reconstruct_n=real.faiss.reconstruct_n
    )
    found = search(FlatIndex(fake, 3, 1, 3.0, "cpu"), np.ones((1, 1), "f4"), 2)
    assert found.largest.rows.tolist() == [[2, 1]]


def test_faiss_is_asked_once_for_both_signs_of_all_queries():
    rows = np.eye(4, dtype="f4")
    real = flat_index(rows)
    calls = []

    def counted(queries, count):
        calls.append(queries.copy())
        return real.faiss.search(queries, count)

    fake = SimpleNamespace(search=counted, reconstruct_batch=real.faiss.reconstruct_batch)
    found = search(FlatIndex(fake, 4, 4, 1.0, "cpu"), rows[:2], 1)
    assert [call.tolist() for call in calls] == [np.concatenate([rows[:2], -rows[:2]]).tolist()]
    assert found.largest.rows.tolist() == [[0], [1]]


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_refused(k):
    with pytest.raises(VectorIndexError, match="1 or more"):
        search(flat_index(np.eye(2, dtype="f4")), np.ones((1, 2), "f4"), k)


def test_queries_of_another_width_are_refused_with_both_widths():
    with pytest.raises(VectorIndexError, match="queries have 3 columns and the index has 2"):
        search(flat_index(np.eye(2, dtype="f4")), np.ones((1, 3), "f4"), 1)


def test_an_index_of_no_rows_finds_nothing():
    found = search(flat_index(np.empty((0, 3), "f4")), np.ones((2, 3), "f4"), 4)
    assert found.largest.rows.shape == found.smallest.rows.shape == (2, 0)


def test_a_row_that_is_not_finite_is_refused_by_its_number():
    rows = np.ones((9, 2), "f4")
    rows[6, 1] = np.nan
    with pytest.raises(VectorIndexError, match="row 6 holds 1 values that are NaN"):
        flat_index(rows, [4])


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 4], "rows 4 to 5 came where row 2 of 4 was due"),
        ([0, 0], "rows 0 to 1 came where row 2 of 4 was due"),
        ([0], "ended after 2 of 4 rows"),
        ([0, 2, 4], "rows 4 to 5 came where row 4 of 4 was due"),
    ],
)
def test_missing_repeated_or_surplus_rows_are_refused(starts, message):
    with pytest.raises(IndexMismatch, match=message):
        build(FLAT, ((start, np.ones((2, 3), "f4")) for start in starts), rows=4, dims=3)


def test_half_precision_blocks_are_held_as_float32_and_cost_what_was_announced():
    rows = np.random.default_rng(0).standard_normal((20, 6)).astype("f2")
    built = flat_index(rows)
    np.testing.assert_array_equal(built.faiss.reconstruct_n(0, 20), rows.astype("f4"))
    assert built.faiss.codes.size() == bytes_needed(FLAT, 20, 6)
    assert bytes_needed(IndexSettings(kind="exact"), 20, 6) == 0


def test_the_process_keeps_its_number_of_faiss_threads():
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        search(flat_index(np.eye(5, dtype="f4")), np.eye(5, dtype="f4"), 2)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_without_faiss_the_message_names_the_extra_to_install(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FaissMissing, match=rf"pip install 'influence\[{device}\]'"):
        build(IndexSettings(kind="flat", device=device), [], rows=0, dims=2)


def test_the_package_and_exact_search_work_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = exact_search(np.ones((1, 1), "f4"), [(0, np.ones((1, 1), "f4"))], 1)
    assert found.largest.rows.tolist() == [[0]]


def test_a_gpu_asked_of_a_cpu_only_faiss_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(__version__="1.15.1"))
    with pytest.raises(GpuMissing, match="built for the CPU only"):
        build(IndexSettings(kind="flat", device="gpu"), [], rows=0, dims=2)


def test_a_gpu_asked_of_a_machine_without_one_is_refused(monkeypatch):
    without = SimpleNamespace(StandardGpuResources=object, get_num_gpus=lambda: 0)
    monkeypatch.setitem(sys.modules, "faiss", without)
    with pytest.raises(GpuMissing, match="finds no GPU on this machine"):
        build(IndexSettings(kind="flat", device="gpu"), [], rows=0, dims=2)


def test_more_neighbours_than_a_gpu_returns_are_refused_with_the_largest_k():
    on_gpu = FlatIndex(None, 10_000, 2, 1.0, "gpu")
    with pytest.raises(VectorIndexError, match="k = 992 or fewer"):
        search(on_gpu, np.ones((1, 2), "f4"), 993)
    assert search_module.candidates_for(992, 10_000) == search_module.GPU_LIMIT


def test_building_the_exact_kind_is_refused_because_it_keeps_no_index():
    with pytest.raises(VectorIndexError, match="no flat index is built"):
        build(IndexSettings(kind="exact"), [], rows=0, dims=2)


def test_an_exact_index_on_a_gpu_is_a_contradiction():
    with pytest.raises(ValueError, match="for a GPU set kind: flat"):
        IndexSettings(kind="exact", device="gpu")
