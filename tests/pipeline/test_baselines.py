"""`bm25` and `repsim` through run file, build, store, index and query."""

import json
import shutil

import numpy as np
import pytest
import torch

from influence.api import open as open_run
from influence.baselines import bm25
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.batch import collate
from influence.errors import (
    ConfigError,
    DataError,
    DigestMismatch,
    FingerprintMismatch,
    QueryError,
    StoreError,
)
from influence.query.pairwise import pairwise
from influence.stages import build as build_module
from influence.stages import lexical_stage
from influence.stages.build import build_run
from influence.store.reader import Store
from influence.task import task_for

ASKED = [{"prompt": "The river was named after", "completion": " a cartographer"}, {"text": "A list keeps its items"}]
LONG = "The river was named after a cartographer who never saw it. " * 3


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def no_model(monkeypatch):
    """Neither a cluster nor a session may be opened."""
    monkeypatch.setattr(build_module, "connect", None)
    monkeypatch.setattr(Session, "__init__", None)


def in_memory(config, asked):
    """What `pairwise` makes of the rows and queries of a run, one example a batch."""
    session = Session(CaptureSpec.of(config))
    session.close()
    rows, queries = list(session.rows.examples()), asked
    batches = [
        [collate([part], session.pad) for part in session.tokenise(examples, whole=whole)]
        for examples, whole in ((rows, False), (queries, True))
    ]
    task = task_for(config.model.kind, config.task)
    return pairwise(session.model, task, *batches, recipe="repsim").numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "lora"])
def test_a_run_of_repsim_scores_as_pairwise_does(configured, in_process, run_dir, family):
    config = configured("data.limit=12", family=family, recipe="repsim")
    build_run(config, run_dir)
    asked = [{"text": "A list keeps its items", "label": 1}] if family == "bert" else ASKED
    with open_run(run_dir, device="cpu") as run:
        found, queries = run.score(asked), run.capture(asked).examples
        assert [module.name for module in run.store.modules] == ["last hidden state"]
    np.testing.assert_allclose(found, in_memory(config, queries), atol=1e-3)


def test_the_norm_of_a_row_is_that_of_its_mean_hidden_state_and_its_loss_is_measured_too(
    configured, in_process, run_dir, tmp_path
):
    build_run(configured("data.limit=12", recipe="repsim"), run_dir)
    build_run(configured("data.limit=12"), tmp_path / "logra")
    session = Session(CaptureSpec.of(configured("data.limit=12", recipe="repsim")))
    part = session.tokenise([session.rows.example(3)])[0]
    with torch.no_grad():
        hidden = session.model.model(input_ids=torch.tensor(part.input_ids[None])).last_hidden_state
    row, other = Store(run_dir).meta([3])[0], Store(tmp_path / "logra").meta([3])[0]
    assert row["norm"] == pytest.approx(float(hidden[0].mean(dim=0).norm()), rel=1e-5)
    assert (row["loss"], row["tokens"]) == (pytest.approx(other["loss"], rel=1e-5), other["tokens"])


def test_a_split_row_is_the_mean_over_the_tokens_of_its_parts(configured, in_process, run_dir, written):
    data = written({"text": LONG}, {"text": "The list keeps its items."})
    config = configured("data.long_rows=split", "data.max_tokens=16", "index.kind=exact", recipe="repsim", data=data)
    build_run(config, run_dir)
    session = Session(CaptureSpec.of(config))
    parts = session.tokenise([session.rows.example(0)])
    assert len(parts) > 2
    with torch.no_grad():
        read = [session.model.model(input_ids=torch.tensor(part.input_ids[None])).last_hidden_state for part in parts]
    slow = torch.cat(read, dim=1)[0].mean(dim=0)
    np.testing.assert_allclose(Store(run_dir).vectors([0])[0], slow, rtol=2e-3, atol=2e-3)


def test_a_row_of_one_token_has_a_representation_and_an_empty_one_scores_zero(
    configured, in_process, run_dir, written, caplog
):
    data = written({"text": "A"}, {"text": ""}, {"text": "The river was named"})
    build_run(configured(recipe="repsim", data=data), run_dir)
    assert "1 of 3 rows have no token and score 0: rows 1." in caplog.text
    with open_run(run_dir, device="cpu") as run:
        scores = run.score([{"text": "The river was named"}])[0]
    assert scores[1] == 0
    assert scores[2] == pytest.approx(1, abs=1e-3)
    assert 0 < abs(scores[0]) < 1


@pytest.mark.parametrize("codec", ["float16", "bits"])
def test_the_flat_index_of_repsim_answers_as_the_exact_scan_with_no_opposing_side(
    configured, in_process, run_dir, codec
):
    settings = ("data.limit=12", f"store.codec={codec}")
    answers = []
    for kind in ("flat", "exact"):
        build_run(configured(*settings, f"index.kind={kind}", recipe="repsim"), run_dir / kind)
        with open_run(run_dir / kind, device="cpu") as run:
            answers.append(run.query_many(ASKED, k=3))
    for flat, exact in zip(*answers, strict=True):
        # Of rows with equal codes either may come first: a scale differs by torch's rounding from batch to batch.
        assert [hit.score for hit in flat.promoting] == pytest.approx([hit.score for hit in exact.promoting], rel=1e-4)
        assert len(flat.promoting) == 3
        assert flat.opposing == exact.opposing == ()
        assert "A baseline, no influence" in flat.sign
        assert flat.unit == "cosine (no unit)"
        assert flat.query.log_likelihood < 0


@pytest.mark.parametrize("name", ["bm25", "repsim"])
def test_a_build_run_again_makes_what_is_missing_to_the_same_bytes(
    configured, in_process, run_dir, tmp_path, contents, name
):
    config = configured(recipe=name)
    build_run(config, run_dir)
    before = contents(run_dir)
    (run_dir / "rows" / "shard-00001.json").unlink()
    (record,) = (run_dir / "index").glob("*.json")
    record.unlink()
    (run_dir / "index" / "bm25.partial").mkdir()
    (run_dir / "index" / "bm25.partial" / "left").write_text("by a killed build")
    if name == "repsim":
        shutil.rmtree(run_dir / "index" / "bm25.partial")
    build_run(config, run_dir)
    build_run(config, tmp_path / "again")
    assert contents(run_dir) == contents(tmp_path / "again") == before


@pytest.mark.usefixtures("no_model")
def test_a_run_of_bm25_loads_no_model_and_scores_as_bm25_over_the_texts(configured, run_dir, corpus_file):
    config = configured("model.path=/nowhere", "index.kind=flat", recipe="bm25")
    build_run(config, run_dir)
    texts = [json.loads(line)["text"] for line in corpus_file.read_text().splitlines()]
    fitted = bm25.fit(texts)
    with open_run(run_dir) as run:
        found, answers = run.score(ASKED), run.query_many(ASKED, k=5)
        assert run.status()["complete"]
        assert run.status()["index"] == "done"
        assert [meta["tokens"] for meta in run.meta([3])] == [len(bm25._words(texts[3:4])[0])]
    for text, scores, answer in zip(
        ("The river was named after a cartographer", "A list keeps its items"), found, answers, strict=True
    ):
        np.testing.assert_array_equal(scores, fitted.scores(text))
        assert [hit.row for hit in answer.promoting] == fitted.top(text, 5).tolist()
        assert [hit.score for hit in answer.promoting] == fitted.scores(text)[fitted.top(text, 5)].tolist()
        assert answer.opposing == ()
        assert answer.query.log_likelihood is None
        assert answer.sign.startswith("Higher: more and rarer words in common")
        assert json.loads(answer.to_json())["query"]["log_likelihood"] is None


@pytest.mark.usefixtures("no_model")
def test_blocks_of_bm25_scores_are_the_scores(configured, run_dir, monkeypatch):
    build_run(configured(recipe="bm25"), run_dir)
    monkeypatch.setattr("influence.query.baseline.SCORED_ROWS", 7)
    with open_run(run_dir) as run:
        blocks = dict(run.score_blocks(ASKED))
        assert list(blocks) == list(range(0, 40, 7))
        np.testing.assert_array_equal(np.concatenate(list(blocks.values()), axis=1), run.score(ASKED))


def test_rows_given_as_tokens_are_looked_up_by_what_they_read(configured, run_dir, written, tokenizer):
    texts = ["The river was named", "A list keeps its items"]
    data = written(*({"input_ids": tokenizer(text)["input_ids"]} for text in texts))
    build_run(configured(recipe="bm25", data=data), run_dir)
    with open_run(run_dir) as run:
        assert [meta["text"] for meta in run.meta([0, 1])] == texts
        assert [hit.row for hit in run.query_many(ASKED[1:])[0].promoting] == [1]


@pytest.mark.usefixtures("no_model")
def test_a_damaged_file_of_the_word_index_is_refused_and_a_damaged_record_builds_it_again(
    configured, run_dir, contents, caplog
):
    config = configured(recipe="bm25")
    build_run(config, run_dir)
    before = contents(run_dir)
    path = run_dir / "index" / "bm25" / "data.csc.index.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with open_run(run_dir) as run, pytest.raises(DigestMismatch, match=r"data\.csc.*Delete .*bm25\.json and run"):
        run.query(completion="river")
    record = run_dir / "index" / "bm25.json"
    record.write_text(record.read_text().replace('"rows": 40', '"rows": 41'))
    build_run(config, run_dir)
    assert "The index is built again" in caplog.text
    assert contents(run_dir) == before


@pytest.mark.usefixtures("no_model")
def test_an_index_of_other_texts_is_refused(configured, run_dir, tmp_path):
    build_run(configured(recipe="bm25"), run_dir)
    build_run(configured("data.limit=20", recipe="bm25"), tmp_path / "other")
    with open_run(run_dir) as run:
        shutil.rmtree(run_dir / "index")
        shutil.copytree(tmp_path / "other" / "index", run_dir / "index")
        with pytest.raises(FingerprintMismatch, match="these texts are of"):
            run.query(completion="river")


def test_a_directory_of_one_recipe_is_no_other_recipes(configured, in_process, run_dir):
    build_run(configured(recipe="bm25"), run_dir)
    with pytest.raises(FingerprintMismatch, match=r"recipe\.baseline is 'bm25' there and 'repsim' in this run"):
        build_run(configured(recipe="repsim"), run_dir)
    with pytest.raises(FingerprintMismatch, match=r"recipe\.baseline is 'bm25' there and absent in this run"):
        build_run(configured(), run_dir)


@pytest.mark.parametrize("name", ["bm25", "repsim"])
def test_what_a_baseline_cannot_be_asked_is_refused_with_what_can(configured, in_process, run_dir, name):
    build_run(configured("data.limit=12", recipe=name), run_dir)
    with open_run(run_dir, device="cpu") as run:
        for asked in ({"exact": True}, {"candidates": 3}):
            with pytest.raises(QueryError, match=f"baseline {name}, which has no gradients .* such as whitened"):
                run.query(completion="The river", **asked)
        for ask in (run.query_many, run.score):
            with pytest.raises(QueryError, match=r"one completion rather than another.*measure each separately"):
                ask([{**ASKED[0], "contrast": " a queen"}])
        if name == "bm25":
            with pytest.raises(QueryError, match="captures nothing"):
                run.capture(ASKED)
            with pytest.raises(StoreError, match="texts without vectors"):
                run.vectors([0])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("recipe.exact.kind=ekfac", "has no exact: leave them out. The nearest that can be: bm25 alone"),
        ("recipe.damping=0.2", "has no curvature"),
        ("recipe.checkpoints=[{path: a}]", "has no checkpoints: .* or a recipe of gradients, such as gradcos"),
        ("recipe.comparison=cosine", "has no comparison"),
        ("recipe.measurement=log_odds", "has no measurement"),
    ],
)
def test_parts_of_gradients_are_refused_beside_a_baseline(configured, setting, told):
    with pytest.raises(ConfigError, match=told):
        configured(setting, recipe={"name": "bm25"})


@pytest.mark.usefixtures("no_model")
def test_too_many_texts_and_texts_without_a_word_are_refused(configured, run_dir, written, monkeypatch):
    with pytest.raises(DataError, match="None of the 1 texts has a word"):
        build_run(configured(recipe="bm25", data=written({"text": "?!"})), run_dir / "mute")
    monkeypatch.setattr(lexical_stage, "MOST_ROWS", 39)
    with pytest.raises(DataError, match=r"BM25 over 40 texts .* \(at most 39 rows\).*gradcos or repsim"):
        build_run(configured(recipe="bm25"), run_dir / "many")
    assert not (run_dir / "many").exists()
