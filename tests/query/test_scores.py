"""An array of scores says its unit and whether the outputs' probabilities allow its magnitudes."""

import pickle

import numpy as np
import pytest

from influence.query.scores import Scores
from influence.recipes import SIGN_RULE, joint_magnitudes

COPY = "nats per extra copy of the row"


def scores(unit=COPY, contrasted=(False, False, True)):
    values = np.array([[0.5, -3.0], [1.5, 0.2], [9.0, 1.0]], dtype=np.float32)
    return Scores.of(values, unit, SIGN_RULE, np.array([-1.0, -1.0, -1.0]), contrasted)


def test_each_query_is_held_to_its_own_probability_and_a_contrast_to_none():
    found = scores()
    assert found.magnitudes == ("nats", "rank_only", "unchecked")
    assert found.caution.startswith("For 1 of 3 queries the largest score is more than the output's log-likelihood can")
    assert "a rank, not a number of nats" in repr(found)
    assert (found.unit, found.sign) == (COPY, SIGN_RULE)


def test_scores_that_only_oppose_exceed_nothing():
    found = Scores.of(np.full((1, 3), -5.0, dtype=np.float32), COPY, SIGN_RULE, np.array([0.0]), [False])
    assert (found.magnitudes, found.caution) == (("nats",), None)


def test_a_cosine_has_no_unit_and_no_caution():
    found = scores("cosine (no unit)")
    assert (set(found.magnitudes), found.caution) == ({"no_unit"}, None)


def test_what_is_computed_from_scores_makes_no_statement_of_them():
    found = scores()
    for part in (found[1], found.mean(0), found * 2, pickle.loads(pickle.dumps(found))):
        assert (part.unit, part.magnitudes, part.caution) == ("", (), None)
    np.testing.assert_array_equal(found * 2, 2 * np.asarray(found))


@pytest.mark.parametrize(
    ("queries", "joint"),
    [
        (["nats", "nats"], "nats"),
        (["nats", "unchecked"], "unchecked"),
        (["unchecked", "rank_only", "nats"], "rank_only"),
        (["no_unit", "no_unit"], "no_unit"),
    ],
)
def test_a_mean_over_queries_is_read_as_the_most_doubtful_of_them(queries, joint):
    assert joint_magnitudes(queries) == joint
