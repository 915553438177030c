"""Two runs over the same rows: ranks are those of a plain sort, a run agrees with itself, other data is refused."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

import influence.api as runs
from influence.cli.main import main
from influence.config import parse_config
from influence.errors import QueryError
from influence.recipes import sign_rule

QUERIES = [
    {"prompt": "The river was named after", "completion": " a cartographer who never saw it.", "id": "river"},
    {"text": "A list keeps its items", "id": "list"},
]


@pytest.fixture(scope="module")
def built(model_folder, corpus_file, tmp_path_factory, client):
    made = {}

    def build(name="logra", *overrides, data=corpus_file):
        key = (name, *overrides, data)
        if key not in made:
            settings = {
                "model": {"path": str(model_folder("llama")), "dtype": "float32"},
                "data": {"path": str(data), "max_tokens": 64},
                "recipe": {"name": name} if name == "bm25" else {"name": name, "projection": {"p": 2, "q": 3}},
                "store": {"rows_per_shard": 8, "codec": "float16"},
                "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
            }
            made[key] = runs.build(parse_config(settings, overrides), tmp_path_factory.mktemp("runs") / "x")
        return made[key]

    return build


def test_correlation_shared_rows_and_moves_are_those_of_a_plain_sort(built):
    first, second = built(), built("gradcos")
    found, back = first.compare(second, QUERIES, k=5), second.compare(first, QUERIES, k=5)
    scores = first.score(QUERIES), second.score(QUERIES)
    for number, query in enumerate(found.queries):
        a, b = scores[0][number], scores[1][number]
        assert query.correlation == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        order = [np.lexsort((np.arange(40), -line)) for line in (a, b)]
        assert query.promoting == len(set(order[0][:5]) & set(order[1][:5])) / 5
        rows = [move.row for move in query.rose]
        assert set(rows) <= set(order[1][:5].tolist())
        for move in query.rose:
            assert move.ranks[0] > move.ranks[1]
            assert move.ranks[0] == pytest.approx((a > a[move.row]).sum() + ((a == a[move.row]).sum() + 1) / 2)
            assert move.scores == (a[move.row], b[move.row])
            assert move.id == f"row-{move.row}"
        assert sorted((move.ranks[0] for move in query.rose), reverse=True) == [move.ranks[0] for move in query.rose]
        assert [move.row for move in query.fell] == [move.row for move in back.queries[number].rose]


def test_each_run_says_whether_its_own_scores_can_be_nats(built):
    impossible, cosine = built("whitened", "recipe.projection.damping=1e-9", "recipe.exact.kind=none"), built("gradcos")
    found = impossible.compare(cosine, QUERIES, k=5)
    scores = impossible.score(QUERIES)
    assert [query.magnitudes for query in found.queries] == [(kind, "no_unit") for kind in scores.magnitudes]
    assert "rank_only" in scores.magnitudes
    assert found.cautions == (scores.caution, None)
    assert found.to_pandas().attrs["cautions"] == found.cautions
    assert found.to_dict()["cautions"] == list(found.cautions)


def test_a_run_agrees_with_itself(built):
    found = built().compare(built(), QUERIES, k=5)
    assert found.correlation == pytest.approx(1)
    assert all((query.promoting, query.opposing, query.rose, query.fell) == (1, 1, (), ()) for query in found.queries)


def test_queries_in_batches_give_what_they_give_together(built, monkeypatch):
    from influence import compare

    whole = built().compare(built("gradcos"), QUERIES, k=5)
    monkeypatch.setattr(compare, "BATCH_BYTES", 1)
    apart = built().compare(built("gradcos"), QUERIES, k=5)
    assert [query.query for query in apart.queries] == [query.query for query in whole.queries]
    assert apart.correlation == pytest.approx(whole.correlation, abs=1e-6)


def test_a_baseline_has_no_opposing_rows_to_share(built):
    found = built().compare(built("bm25"), QUERIES, k=5)
    assert all(query.opposing is None for query in found.queries)
    assert found.signs == (sign_rule(None), sign_rule("bm25"))


def test_a_run_over_other_rows_is_refused(built, corpus_file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(QueryError, match="are runs over other rows: 40 rows"):
        built().compare(built(data=other), QUERIES)


@pytest.mark.parametrize("k", [0, 41])
def test_a_list_of_no_rows_or_of_more_than_there_are_is_refused(built, k):
    with pytest.raises(QueryError, match=f"k is {k}, but the runs have 40 rows"):
        built().compare(built("gradcos"), QUERIES, k=k)


def test_the_verb_prints_a_table_with_both_units_and_json(built, tmp_path, capsysbinary):
    queries = tmp_path / "q.jsonl"
    queries.write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    asked = ["compare", str(built().path), str(built("gradcos").path), "--queries", str(queries), "-k", "5"]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 0
    said = " ".join(capsysbinary.readouterr().out.decode().split())
    assert "nats per extra copy" in said
    assert "mean rank correlation" in said
    with pytest.raises(SystemExit):
        main([*asked, "--format", "json"])
    found = json.loads(capsysbinary.readouterr().out)
    assert [query["query"] for query in found["queries"]] == ["river", "list"]
    assert found["units"][0] != found["units"][1]
