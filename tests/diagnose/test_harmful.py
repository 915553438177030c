"""Harmful rows: the bootstrap is a plain loop's, the verdict a slow procedure's, and chance or trifles flag nothing."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from influence.errors import QueryError
from influence.issues.checks import harmful
from influence.issues.checks.bootstrap import bootstrap_mean, replicate_weights
from influence.issues.checks.harmful import HarmfulSettings
from influence.issues.subject import Subject

QUICK = HarmfulSettings(replicates=400)


def subject_of(scores, norms=None, block=7) -> Any:
    """A subject whose rows have these scores, [rows, examples], handed out a few rows at a time."""
    rows, examples = scores.shape

    def blocks():
        for first in range(0, rows, block):
            yield first, scores[first : first + block].astype(np.float32)

    found = SimpleNamespace(
        rows=rows,
        norms=np.ones(rows, np.float32) if norms is None else norms,
        evaluation=SimpleNamespace(
            examples=range(examples), ids=[f"eval:{number}" for number in range(examples)], place="dev.jsonl"
        ),
        evaluation_scores=blocks,
    )
    found.evaluation_scales = Subject.evaluation_scales.func(found)
    return found


def noise(rows=300, examples=60, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, examples))


@given(
    scores=arrays.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-9, 9, width=16)
    ),
    seed=st.integers(0, 3),
)
def test_the_bootstrap_is_that_of_a_plain_loop_over_drawn_examples(scores, seed):
    examples, replicates = scores.shape[1], 25
    means, errors, low, high = bootstrap_mean(scores, replicate_weights(examples, replicates, seed), 0.9)
    chance = np.random.Generator(np.random.Philox(seed))
    draws = [chance.integers(0, examples, size=examples) for _ in range(replicates)]
    for row, line in enumerate(scores):
        again = np.array([np.mean([line[place] for place in drawn]) for drawn in draws])
        assert means[row] == pytest.approx(sum(line) / examples, rel=1e-12, abs=1e-12)
        assert errors[row] == pytest.approx(again.std(ddof=1), rel=1e-4, abs=1e-5)
        assert (low[row], high[row]) == pytest.approx(tuple(np.quantile(again, (0.05, 0.95))), rel=1e-4, abs=1e-5)


def test_replicates_weigh_all_examples_to_one_and_are_drawn_alike_every_time():
    weights = replicate_weights(30, 200, 3)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights, replicate_weights(30, 200, 3))
    assert (weights != replicate_weights(30, 200, 4)).any()


def test_rows_that_oppose_the_examples_consistently_are_flagged_and_no_others():
    scores = noise()
    scores[[5, 40]] -= 1.5
    finding = harmful.check(subject_of(scores), QUICK)
    assert set(finding.cases) == {5, 40}
    assert {case.action for case in finding.cases.values()} == {"drop"}
    assert finding.scores[5] > 1
    assert finding.issue == "harmful"


def test_the_verdict_is_that_of_a_slow_procedure_in_float64():
    scores = noise(seed=2) * np.linspace(0.5, 30, 60)
    scores[:25] -= np.linspace(0, 1.2, 25)[:, None] * np.linspace(0.5, 30, 60)
    finding = harmful.check(subject_of(scores), QUICK)
    chance = np.random.Generator(np.random.Philox(0))
    draws = [chance.integers(0, 60, size=60) for _ in range(400)]
    scaled = scores / np.sqrt((scores**2).mean(axis=0))
    again = np.array([[line[drawn].mean() for drawn in draws] for line in scaled])
    means = scaled.mean(axis=1)
    chances = stats.t.cdf(means / again.std(axis=1, ddof=1), 59)
    order = np.argsort(chances)
    passing = [place for place in range(300) if chances[order[place]] <= 0.05 * (place + 1) / 300]
    discovered = set(order[: max(passing) + 1].tolist())
    expected = {
        row for row in discovered if np.quantile(again[row], 0.975) < 0 and -means[row] >= np.median(np.abs(means))
    }
    assert 3 < len(expected) < 25
    assert set(finding.cases) == expected
    np.testing.assert_allclose(finding.scores, -means, rtol=1e-4, atol=1e-6)


def test_chance_alone_flags_nothing():
    assert harmful.check(subject_of(noise(1000)), QUICK).cases == {}


def test_a_certain_harm_too_small_to_matter_is_flagged_only_where_any_harm_is_to_be():
    scores = 0.3 + noise()
    scores[9] = -0.02 + 0.001 * noise(1)[0]
    subject = subject_of(scores)
    assert 9 not in harmful.check(subject, QUICK).cases
    finding = harmful.check(subject, HarmfulSettings(replicates=400, effect=0))
    assert 9 in finding.cases
    assert "harm is at least 0, as set" in finding.rule


def test_a_few_examples_with_large_gradients_do_not_decide():
    scores = noise()
    scores[7] -= 1.5
    loud = scores.copy()
    loud[:, :3] *= 1000
    assert set(harmful.check(subject_of(loud), QUICK).cases) == {7}


def test_the_evidence_is_the_examples_that_a_row_opposes_most():
    scores = noise(seed=4)
    scores[11] -= 1.5
    scores[11, [3, 50]] = -30, -20
    case = harmful.check(subject_of(scores), HarmfulSettings(replicates=400, evidence=2)).cases[11]
    assert case.evidence == ("eval:3", "eval:50")
    assert case.suggestion.startswith(f"{case.action}: opposes the evaluation set (harm ")


def test_blocks_of_any_size_come_to_the_same():
    scores = noise(seed=5)
    scores[:4] -= 1
    one, other = (harmful.check(subject_of(scores, block=block), QUICK) for block in (1, 300))
    assert one.cases == other.cases
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-7)


def test_nothing_is_said_of_a_row_without_a_gradient():
    scores, norms = noise(40), np.ones(40, np.float32)
    scores[6], norms[6] = 0, 0
    finding = harmful.check(subject_of(scores, norms), QUICK)
    assert np.flatnonzero(np.isnan(finding.scores)).tolist() == [6]


def test_an_evaluation_set_on_which_no_row_has_influence_flags_nothing():
    finding = harmful.check(subject_of(np.zeros((20, 12))), QUICK)
    assert (finding.cases, np.isnan(finding.scores).all()) == ({}, True)
    assert finding.rule.startswith("Nothing is flagged")


def test_replicates_that_would_not_fit_into_memory_are_refused_with_how_many_do():
    told = r"100,000 replicates of 3,000 evaluation examples would take 1\.1 GiB.*harmful\.replicates to 89,478 or less"
    with pytest.raises(QueryError, match=told):
        harmful.check(subject_of(noise(1, 3000)), HarmfulSettings(replicates=100_000))


def test_it_needs_an_evaluation_set_and_ten_examples_of_it():
    without: Any = SimpleNamespace(evaluation=None)
    assert harmful.lacks(without) == "no evaluation set is given (--eval FILE)."
    told = harmful.lacks(subject_of(noise(5, 9)))
    assert told == "dev.jsonl holds 9 examples, and it takes 10 to tell harm from chance."
    assert harmful.lacks(subject_of(noise(5, 10))) is None
