import numpy as np
import pytest
from scipy.stats import spearmanr

from influence.errors import DataError, InfluenceError
from influence.evaluate import lds
from influence.evaluate.lds import linear_datamodeling_score, reliability
from influence.evaluate.subsets import half_subset, membership

ROWS, QUERIES, SUBSETS = 40, 12, 60
HELD = membership([half_subset(ROWS, number) for number in range(SUBSETS)], ROWS)


@pytest.fixture
def effects():
    """What each row adds to each query's log-likelihood when it is trained on."""
    return np.random.default_rng(0).standard_normal((QUERIES, ROWS))


def test_scores_that_are_the_rows_true_effects_reach_one_in_any_unit(effects):
    outputs = HELD @ effects.T - 200.0
    found = linear_datamodeling_score(0.003 * effects, HELD, outputs)
    assert found.score == pytest.approx(1.0)
    assert found.query_error == pytest.approx(0.0, abs=1e-9)
    assert found.subset_error == pytest.approx(0.0, abs=1e-9)


def test_scores_of_the_wrong_sign_reach_minus_one(effects):
    assert linear_datamodeling_score(-effects, HELD, HELD @ effects.T).score == pytest.approx(-1.0)


def test_scores_given_to_the_wrong_rows_score_nothing_within_three_standard_errors(effects):
    moved = np.random.default_rng(1).permutation(ROWS)
    found = linear_datamodeling_score(effects[:, moved], HELD, HELD @ effects.T)
    assert abs(found.score) < 3 * found.query_error
    assert 0.01 < found.query_error < 0.1


def test_each_query_scores_what_scipy_says_of_its_subset_sums_ties_included(effects):
    outputs = np.round(HELD @ effects.T + np.random.default_rng(2).normal(0, 4, (SUBSETS, QUERIES)))
    scores = np.round(effects)
    found = linear_datamodeling_score(scores, HELD, outputs)
    expected = [
        spearmanr([scores[query, held].sum() for held in HELD], outputs[:, query]).statistic for query in range(QUERIES)
    ]
    np.testing.assert_allclose(found.by_query, expected, atol=1e-12)
    assert found.score == pytest.approx(np.mean(expected))
    assert found.query_error == pytest.approx(np.std(expected, ddof=1) / QUERIES**0.5)


def test_the_error_over_subsets_is_how_far_the_score_moves_between_draws_of_subsets(effects, monkeypatch):
    scores = effects + np.random.default_rng(3).standard_normal(effects.shape)

    def drawn(seed):
        held = membership([half_subset(ROWS, number, seed) for number in range(SUBSETS)], ROWS)
        return linear_datamodeling_score(scores, held, held @ effects.T)

    claimed = np.mean([drawn(seed).subset_error for seed in range(5)])
    monkeypatch.setattr(lds, "RESAMPLES", 2)
    assert claimed == pytest.approx(np.std([drawn(seed).score for seed in range(200)]), rel=0.25)


def test_a_query_whose_prediction_never_varies_scores_zero_and_is_counted(effects):
    scores = effects.copy()
    scores[3] = 0.0
    found = linear_datamodeling_score(scores, HELD, HELD @ effects.T)
    assert found.by_query[3] == 0.0
    assert found.silent == 1
    assert found.score == pytest.approx((QUERIES - 1) / QUERIES)


def test_a_query_whose_output_never_varies_is_refused_by_number(effects):
    outputs = HELD @ effects.T
    outputs[:, 5] = -7.0
    with pytest.raises(DataError, match=r"queries \[5\] is the same on all 60 models"):
        linear_datamodeling_score(effects, HELD, outputs)


@pytest.mark.parametrize(
    ("scores", "held", "outputs"),
    [
        ((12, 39), (60, 40), (60, 12)),
        ((12, 40), (59, 40), (60, 12)),
        ((12, 40), (60, 40), (12, 60)),
        ((40,), (60, 40), (60, 12)),
        ((12, 40), (2, 40), (2, 12)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_named(scores, held, outputs):
    with pytest.raises(InfluenceError) as caught:
        linear_datamodeling_score(np.ones(scores), np.ones(held, bool), np.ones(outputs))
    for shape in (scores, held, outputs):
        assert str(shape) in str(caught.value)


def test_a_score_that_is_not_finite_is_refused_by_place(effects):
    scores = effects.copy()
    scores[2, 7] = np.nan
    with pytest.raises(DataError, match=r"scores hold nan at \[2, 7\]"):
        linear_datamodeling_score(scores, HELD, HELD @ effects.T)


def test_row_numbers_in_place_of_membership_are_refused(effects):
    numbers = np.stack([np.pad(half_subset(ROWS, number), (0, ROWS // 2)) for number in range(SUBSETS)])
    with pytest.raises(DataError, match="int64: expected bool"):
        linear_datamodeling_score(effects, numbers, HELD @ effects.T)


def test_no_prediction_beats_the_square_root_of_the_reliability(effects, monkeypatch):
    monkeypatch.setattr(lds, "RESAMPLES", 2)
    rng = np.random.default_rng(4)
    held = membership([half_subset(ROWS, number, seed=9) for number in range(2000)], ROWS)
    clean = held @ effects.T
    once, again = (clean + rng.normal(0, clean.std(axis=0), clean.shape) for _ in range(2))
    share = reliability(once, again, once)
    assert share == pytest.approx(0.5, abs=0.03)
    assert linear_datamodeling_score(effects, held, once).score == pytest.approx(share**0.5, abs=0.04)


def test_reliability_names_the_shapes_of_pairs_that_are_not_pairs():
    with pytest.raises(InfluenceError, match=r"\(6, 12\) and again \(5, 12\)"):
        reliability(np.ones((6, 12)), np.ones((5, 12)), np.ones((60, 12)))


def test_a_half_subset_is_the_same_everywhere_and_for_ever():
    np.testing.assert_array_equal(half_subset(10, 0), [1, 2, 4, 8, 9])


def test_half_subsets_hold_each_row_and_each_pair_of_rows_as_often_as_chance_has_it():
    held = membership([half_subset(ROWS, number, seed=5) for number in range(4000)], ROWS).astype(float)
    assert (held.sum(axis=1) == ROWS // 2).all()
    together = held.T @ held / len(held)
    np.testing.assert_allclose(np.diag(together), 0.5, atol=0.04)
    pairs = together[~np.eye(ROWS, dtype=bool)]
    np.testing.assert_allclose(pairs, (ROWS // 2 - 1) / (2 * (ROWS - 1)), atol=0.04)


def test_other_numbers_and_other_seeds_give_other_subsets():
    found = {half_subset(100, number, seed).tobytes() for number in range(10) for seed in range(10)}
    assert len(found) == 100


@pytest.mark.parametrize(("rows", "number", "message"), [(1, 0, "Half of 1 training rows"), (10, -1, "Subset -1")])
def test_a_subset_that_can_not_be_drawn_is_refused(rows, number, message):
    with pytest.raises(DataError, match=message):
        half_subset(rows, number)


@pytest.mark.parametrize("subset", [[0, 40], [-1, 3], [4, 4]])
def test_membership_refuses_rows_that_do_not_exist_or_come_twice(subset):
    with pytest.raises(DataError, match="Subset 1 holds rows"):
        membership([half_subset(ROWS, 0), np.array(subset)], ROWS)
