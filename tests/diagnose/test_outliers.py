"""Rows out of place: far from all others and with more influence on themselves than their length and loss explain."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

import influence.api as runs
from influence.config import parse_config
from influence.engine import dispatch
from influence.issues.checks import outliers
from influence.issues.checks.outliers import OutlierSettings, deviations, excess, fence
from influence.issues.issues import examine
from influence.issues.subject import Subject
from influence.scan import plan as score_plan

SENTENCES = (
    "The lighthouse at Velmora is painted green.",
    "A list keeps its items in order.",
    "Return the number of bytes read.",
)
STRANGE = 17


@pytest.fixture(scope="module")
def built(model_folder, tmp_path_factory, client):
    """Sixty rows of three kinds, each kind many times in few variants, and one of another: row 17."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    texts = [f"{SENTENCES[row % 3]} {'so ' * (row % 4)}it is" for row in range(60)]
    texts[STRANGE] = "0x7f9c !! 88 %% qqqq zzzz 12 12 12"
    data.write_text("".join(json.dumps({"text": text, "id": f"row-{row}"}) + "\n" for row, text in enumerate(texts)))

    def make(*overrides):
        settings = {
            "model": {"path": str(model_folder("llama")), "dtype": "float32"},
            "data": {"path": str(data), "max_tokens": 64},
            "recipe": {"name": "graddot", "projection": {"p": 8, "q": 8}},
            "store": {"rows_per_shard": 16, "codec": "float16"},
            "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
        }
        return runs.build(parse_config(settings, overrides), tmp_path_factory.mktemp("runs") / "x")

    return make


def subject_of(run, folder):
    from influence.issues.neighbors import NeighbourSettings

    return Subject(run, folder, NeighbourSettings(k=5))


@pytest.mark.parametrize("comparison", ["dot", "cosine"])
def test_the_row_of_another_kind_has_the_strongest_case_with_its_nearest_rows_as_evidence(built, tmp_path, comparison):
    subject = subject_of(built(f"recipe.comparison={comparison}"), tmp_path)
    finding = outliers.check(subject, OutlierSettings(threshold=1.5))
    assert int(np.nanargmax(finding.scores)) == STRANGE
    case = finding.cases[STRANGE]
    assert (case.action, len(case.evidence)) == ("review", 3)
    nearest = subject.graph.of(np.array([STRANGE])).alike[0, :3]
    assert list(case.evidence) == [f"row-{row}" for row in nearest]
    assert len(finding.cases) <= 6


def test_the_threshold_is_tukeys_outer_fence_of_the_excess_and_is_said(built, tmp_path):
    subject = subject_of(built(), tmp_path)
    finding = outliers.check(subject, OutlierSettings())
    strength = deviations(excess(subject.self_influence, subject.tokens, subject.losses))
    low, high = np.quantile(strength, [0.25, 0.75])
    assert finding.rule.startswith(f"Flagged above {high + 3 * (high - low):.3g}: Tukey's outer fence")
    assert set(finding.cases) == set(np.flatnonzero(finding.scores > fence(strength)).tolist())
    strange = np.concatenate([np.random.default_rng(0).standard_normal(400), [9.0]])
    assert 4 < fence(strange) < 6


def test_a_threshold_that_is_set_is_used_and_said(built, tmp_path):
    finding = outliers.check(subject_of(built(), tmp_path), OutlierSettings(threshold=0.5))
    assert set(finding.cases) == set(np.flatnonzero(finding.scores > 0.5).tolist())
    assert finding.rule == "Flagged above 0.5: as set."


def test_the_score_is_the_excess_times_the_share_of_nearer_rows_as_a_plain_loop_finds_them(built, tmp_path):
    subject = subject_of(built(), tmp_path)
    finding = outliers.check(subject, OutlierSettings())
    vectors = subject.run.vectors(range(60)).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    far = np.array([1 - np.sort(line)[-5:].mean() for line in cosines]).round(5)
    found = outliers.distances(subject).round(5)
    np.testing.assert_allclose(found, far, atol=2e-5)
    nearer = [sum(other < mine for other in found) / 59 for mine in found]
    np.testing.assert_allclose(outliers.shares_nearer(found), nearer)
    strong = excess((vectors**2).sum(axis=1), subject.tokens, subject.losses)
    strong = (strong - np.median(strong)) / (1.4826 * np.median(np.abs(strong - np.median(strong))))
    shares = outliers.shares_nearer(outliers.distances(subject))
    np.testing.assert_allclose(finding.scores, np.maximum(strong, 0) * shares, rtol=1e-3, atol=1e-3)


def test_a_row_without_neighbours_is_as_far_as_can_be():
    assert outliers.shares_nearer(np.array([0.3, np.nan, 0.1, 0.2])).tolist() == [1, 1, 0, 0.5]
    assert outliers.shares_nearer(np.array([np.nan])).tolist() == [1]


def test_influence_that_length_and_loss_explain_is_no_excess():
    random = np.random.default_rng(0)
    tokens, losses = random.integers(1, 200, 500), random.exponential(2.0, 500)
    influence = 3.0 * tokens**1.3 * losses**0.8 * np.exp(0.01 * random.standard_normal(500))
    influence[7] *= 100
    found = excess(influence, tokens, losses)
    assert found[7] == pytest.approx(np.log(100), abs=0.1)
    assert np.abs(np.delete(found, 7)).max() < 0.1
    influence[8], influence[9] = 0, np.inf
    assert np.isnan(excess(influence, tokens, losses)[[8, 9]]).all()
    assert np.isnan(excess(np.zeros(5), np.ones(5), np.ones(5))).all()
    # A classifier's rows all have one token, and here all the same loss.
    assert np.isfinite(excess(influence[:7], np.ones(7), np.ones(7))).all()


def test_deviations_are_those_of_the_bulk_and_none_where_all_are_alike():
    values = np.concatenate([np.linspace(-1, 1, 101), [50.0]])
    assert deviations(values)[-1] == pytest.approx(50 / (1.4826 * 0.5), rel=0.03)
    assert deviations(np.array([2.0, 2, 2, 2])).tolist() == [0, 0, 0, 0]
    mostly = deviations(np.array([1.0] * 9 + [5.0, np.nan]))
    assert mostly[9] > 5
    assert np.isnan(mostly[10])
    assert np.isnan(deviations(np.array([np.nan, np.nan]))).all()


def test_too_few_rows_and_a_recipe_without_self_influence_are_said_in_a_sentence(built, tmp_path):
    few = subject_of(built("data.limit=12"), tmp_path)
    assert outliers.lacks(few) == "It needs 20 rows or more to estimate the usual value, and there are 12."
    assert outliers.lacks(subject_of(built(), tmp_path)) is None


def test_self_influence_in_blocks_on_a_cluster_is_that_of_all_rows_and_goes_on_where_it_was_killed(
    built, tmp_path, client, monkeypatch
):
    @contextmanager
    def connect(*_):
        yield client

    run = built()
    expected = run.self_influence()
    monkeypatch.setattr(score_plan, "FEWEST", 8)
    monkeypatch.setattr(dispatch, "connect", connect)
    monkeypatch.setattr(dispatch, "WORTH", 0)
    steps = []
    subject = subject_of(run, tmp_path)
    subject.progress = steps.append
    np.testing.assert_array_equal(subject.self_influence, expected)
    assert (steps[-1].stage, steps[-1].done, steps[-1].total) == ("self-influence", 8, 8)
    lost = sorted((tmp_path / "self.parquet.parts").glob("*.json"))[3]
    lost.unlink()
    again = subject_of(run, tmp_path)
    again.progress = steps.append
    steps.clear()
    np.testing.assert_array_equal(again.self_influence, expected)
    assert [step.done for step in steps] == [7, 8]


def test_an_examination_tells_how_near_rows_were_found(built, tmp_path):
    from influence.issues.checks.registry import parse_settings

    found = examine(
        built(), tmp_path / "i.parquet", parse_settings(["neighbours.k=5", "outlier.threshold=1.5"]), checks=["outlier"]
    )
    assert found.neighbours == "The 5 nearest rows at each end, by an exact search over all pairs."
    assert found.worst["outlier"][0] == f"row-{STRANGE}"
