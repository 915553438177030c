import logging
from dataclasses import replace

import numpy as np
import pytest

from index.approximate.merge import open_index, record_measured
from index.approximate.questions import NONE, questions
from index.approximate.recall import measure_recall, truth_depth
from index.approximate.search import search
from index.exact import exact_search
from index.rerank import scored_by
from tests.index.gradient_rows import blocks_of, gradients, merged

pytest.importorskip("faiss")
ROWS = gradients(3000, 32)


def measure(index, rows, target, count=60):
    own = questions(len(rows), count)
    asked = own.vectors(lambda which: rows[which])
    truth = exact_search(asked, blocks_of(rows), truth_depth(len(rows)))
    return measure_recall(index, asked, own, truth, lambda which: rows[which], target)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    index = merged(folder, ROWS, 1000, kind="ivf_sq4")
    measured = measure(index, ROWS, 0.95)
    record_measured(folder, measured)
    return open_index(folder, "f"), measured


def test_searches_find_what_measuring_promised_for_queries_it_never_saw(built):
    index, measured = built
    assert measured.reached
    queries = gradients(60, 32, 77)
    for k in (10, 100):
        found = search(index, queries, k, scored_by(lambda rows: ROWS[rows]))
        true = exact_search(queries, blocks_of(ROWS), k)
        for end in ("largest", "smallest"):
            pairs = zip(getattr(found, end).rows, getattr(true, end).rows, strict=True)
            assert np.mean([np.isin(right, got).mean() for got, right in pairs]) > 0.9


def test_an_answer_says_where_its_recall_is_not_reached(built):
    index, measured = built
    queries, score = gradients(40, 32, 77), scored_by(lambda rows: ROWS[rows])
    ends = ("largest", "smallest")
    found = search(index, queries, 10, score)
    assert all(getattr(found, end).below_recall.mean() < 0.5 for end in ends)
    # Every candidate is an answer, so half of the answers are among the last half of the candidates.
    found = search(index, queries, 10, score, candidates=10)
    assert all(getattr(found, end).below_recall.all() for end in ends)
    dials = tuple(dial.model_copy(update={"recall": 0.9 if dial.end == "smallest" else 1.0}) for dial in measured.dials)
    short = replace(index, measured=measured.model_copy(update={"dials": dials, "reached": False}))
    found = search(short, queries, 10, score)
    assert found.smallest.below_recall.all()
    assert not found.largest.below_recall.all()
    # Every row that may be is compared.
    few = search(index, queries, 3, score, allowed=np.arange(5))
    assert few.largest.below_recall is few.smallest.below_recall is None


def test_a_chosen_dial_reads_less_than_all_cells_of_clustered_rows(built):
    index, measured = built
    assert min(dial.probes for dial in measured.dials) < index.trained.plan.cells / 2


def test_the_record_keeps_the_curve_that_the_dials_were_chosen_from(built):
    _, measured = built
    for dial in measured.dials:
        points = [p for p in measured.curve if (p.end, p.depth, p.probes) == (dial.end, dial.depth, dial.probes)]
        recalls = [point.recall for point in sorted(points, key=lambda point: point.candidates)]
        assert recalls == sorted(recalls)
        assert dial.recall >= 0.95
        assert dial.candidates >= min(point.candidates for point in points if point.recall >= 0.95)
        assert dial.candidates in {point.candidates for point in points}
        assert all(0 < point.rows_read <= 1 for point in points)


def test_both_ends_and_both_depths_are_measured(built):
    _, measured = built
    assert [(dial.end, dial.depth) for dial in measured.dials] == [
        (end, depth) for end in ("largest", "smallest") for depth in (10, 100)
    ]


def test_a_higher_target_reads_and_proposes_no_less(tmp_path):
    index = merged(tmp_path, ROWS, kind="ivf_sq4")
    low, high = (measure(index, ROWS, target) for target in (0.7, 0.98))
    assert sum(d.candidates for d in low.dials) < sum(d.candidates for d in high.dials)


def test_a_target_out_of_reach_is_recorded_and_warned_of(tmp_path, caplog):
    rows = gradients(3000, 64, sigma=0.0)
    index = merged(tmp_path, rows, kind="factory", factory="RR64,IVF4,RaBitQ", reduce=None)
    index = type(index)(index.trained, index.parts, index.ranges, None)
    with caplog.at_level(logging.WARNING):
        own = questions(3000, 18)
        asked = own.vectors(lambda which: rows[which])
        truth = exact_search(asked, blocks_of(rows), 102)
        far = np.flatnonzero(np.ones(3000))
        wrong = type(truth)(
            type(truth.largest)(far[None, -102:].repeat(18, 0), truth.largest.scores), truth.smallest
        )  # a truth that has nothing to do with the rows
        measured = measure_recall(index, asked, own, wrong, lambda which: rows[which], 0.99)
    assert not measured.reached
    assert "with every cell read" in caplog.text


def test_a_query_is_left_out_of_its_own_answer(tmp_path):
    rows = np.eye(40, dtype="f4") * 3
    index = merged(tmp_path, rows, kind="sq8")
    measured = measure(index, rows, 0.5, count=40)
    assert max(dial.depth for dial in measured.dials) == 38


def test_data_too_small_to_measure_is_read_whole(tmp_path):
    rows = np.ones((1, 8), "f4")
    measured = measure(merged(tmp_path, rows, kind="sq8"), rows, 0.9)
    assert {(dial.probes, dial.recall) for dial in measured.dials} == {(1, 1.0)}


def test_questions_are_rows_rows_negated_and_differences_of_two_and_the_same_every_time():
    rows, asked = np.arange(8000.0).reshape(1000, 8), questions(1000, 60)
    found = asked.vectors(lambda which: rows[which])
    plain, negated, contrasts = asked.kinds
    np.testing.assert_array_equal(found[plain], rows[asked.rows[plain]])
    np.testing.assert_array_equal(found[negated], -rows[asked.rows[negated]])
    np.testing.assert_array_equal(found[contrasts], rows[asked.rows[contrasts]] - rows[asked.against[contrasts]])
    assert all(np.unique(asked.rows[kind]).size == 20 for kind in asked.kinds)
    assert (asked.rows != asked.against).all()
    for name in ("rows", "against", "signs"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(questions(1000, 60), name))


@pytest.mark.parametrize(("rows", "kinds"), [(0, 0), (1, 2), (2, 3), (5, 3)])
def test_few_rows_make_few_questions(rows, kinds):
    asked = questions(rows, 60)
    assert len(asked.kinds) == kinds
    assert all(len(kind) == rows for kind in asked.kinds)
    assert ((asked.against < rows) & (asked.against >= NONE)).all()


def positive(count, seed):
    """Rows of positive entries: they share a mean, and one negated has a negative product with each of them."""
    return np.abs(gradients(count, 32, seed))


@pytest.mark.parametrize("kind", ["ivf_rabitq2", "ivf_sq4"])
def test_questions_unlike_the_rows_find_what_the_record_promises(tmp_path, kind):
    rows = positive(4000, 0)
    index = merged(tmp_path, rows, kind=kind)
    measured = measure(index, rows, 0.95, count=120)
    record_measured(tmp_path, measured)
    index, fresh, other = open_index(tmp_path, "f"), positive(40, 5), positive(40, 6)
    random = np.random.default_rng(1).standard_normal((40, 32))
    for asked in (fresh, -fresh, fresh - other, random, -np.abs(random)):
        found = search(index, asked, 10, scored_by(lambda which: rows[which]))
        true = exact_search(asked, blocks_of(rows), 10)
        for end in ("largest", "smallest"):
            pairs = zip(getattr(found, end).rows, getattr(true, end).rows, strict=True)
            assert np.mean([np.isin(right, got).mean() for got, right in pairs]) > 0.93
