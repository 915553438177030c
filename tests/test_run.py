"""A run answers queries as the definition says, and refuses what it can't answer."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from psutil import Process
from safetensors.torch import load_file, save_file

import influence.api as runs
from influence.config import parse_config, save_config
from influence.data.batch import collate
from influence.data.example import Example
from influence.engine.cluster import QUIET
from influence.errors import DataError, FingerprintMismatch, Incomplete, QueryError, StoreError
from influence.query.pairwise import pairwise
from influence.stages import build as build_module
from influence.task import CausalLM

NARROW = {"trak": {"dims": 12, "block": 6}}
QUERIES = [
    {"prompt": "The river was named after", "completion": " a cartographer who never saw it.", "id": "river"},
    {"prompt": "", "completion": "In winter the harbour freezes"},
]


@pytest.fixture(scope="module")
def built(model_folder, corpus_file, tmp_path_factory):
    """`built(preset, *overrides)`: a run of 40 rows, each made once."""
    made = {}

    @contextmanager
    def connect(*_):
        yield client

    def make(preset="logra", *overrides):
        key = (preset, *overrides)
        if key not in made:
            settings = {
                "model": {"path": str(model_folder("llama")), "dtype": "float32"},
                "data": {"path": str(corpus_file), "max_tokens": 64},
                "recipe": {"name": preset, "projection": NARROW.get(preset, {"p": 4, "q": 4})},
                "store": {"rows_per_shard": 16, "codec": "float16"},
                "index": {"kind": "flat"},
                "cluster": {"token_budget": 256, "device": "cpu"},
            }
            folder = tmp_path_factory.mktemp("runs") / "run"
            made[key] = runs.build(parse_config(settings, overrides), folder)
        return made[key]

    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set(QUIET),
        LocalCluster(
            1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", silence_logs=False
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        patch.setattr(build_module, "connect", connect)
        yield make


@pytest.fixture(scope="module")
def trained(model_folder, tiny_model, ragged_batch, tmp_path_factory):
    """Two checkpoints of a training, `first` and `second`, each with its optimiser's state; `first` is the model."""
    found, model = {}, tiny_model("llama", torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for name in ("first", "second"):
        folder = shutil.copytree(model_folder("llama"), tmp_path_factory.mktemp("checkpoints") / name)
        model.save_pretrained(folder)
        CausalLM().example_loss(model, ragged_batch).sum().backward()
        optimiser.step()
        torch.save(optimiser.state_dict(), folder / "optimizer.pt")
        found[name] = folder
    return found


def defined(run) -> np.ndarray:
    """The scores of QUERIES by definition, from in-memory gradients of the same model."""
    session = run.session
    rows = session.tokenise(list(session.rows.examples()))
    asked = session.tokenise([runs.as_example(query) for query in QUERIES], whole=True)
    batches = [[collate([part], 0) for part in parts] for parts in (rows, asked)]
    session.close()
    try:
        folders = [Path(checkpoint.path) for checkpoint in run.recipe.checkpoints]
        states = [load_file(folder / "model.safetensors") for folder in folders] or None
        found = pairwise(session.model, CausalLM(), *batches, recipe=run.recipe, checkpoints=states)
    finally:
        run.close()
    return found.numpy()


# Labels that are drawn depend on how rows fall into batches; the data's own don't.
EMPIRICAL = "recipe.factors.labels=empirical"


BOTH = "recipe.checkpoints=[{{path: {first}}}, {{path: {second}}}]"
RATES = "recipe.checkpoints=[{{path: {first}, weight: 0.1}}, {{path: {second}, weight: 0.02}}]"
STATES = "recipe.checkpoints=[{{path: {first}, state: {first}}}, {{path: {second}, state: {second}}}]"
METHODS = {
    **{name: (name,) for name in ("graddot", "gradcos", "logra", "trackstar", "whitened", "kfac", "ekfac", "trak")},
    "less": ("less", "recipe.gradient.state={first}"),
    "logra of log-odds": ("logra", "recipe.curvature.side=both", "recipe.measurement=log_odds"),
    "tracin": ("tracin", RATES),
    "gradcos of two": ("gradcos", RATES),
    "trackstar of two": ("trackstar", BOTH),
    "less of two": ("less", STATES),
    "trak of two, rescaled": ("trak", BOTH, "recipe.curvature.rescale=true", "recipe.curvature.damping.value=0.1"),
}


@pytest.fixture
def method(built, trained):
    """`method(name, *overrides)`: the run of one of METHODS."""

    def make(name, *overrides):
        preset, *own = METHODS[name]
        return built(preset, EMPIRICAL, *(override.format(**trained) for override in own), *overrides)

    return make


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_the_definition(method, name):
    run = method(name)
    found, expected = run.score(QUERIES), defined(run)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=2e-2, abs=2e-3 * float(np.abs(expected).max()))
    if run.recipe.decision.kind == "none":
        assert [hits.promoting[0].row for hits in run.query_many(QUERIES, k=1)] == found.argmax(axis=1).tolist()


@pytest.mark.parametrize("preset", ["graddot", "gradcos", "logra"])
def test_hits_are_the_ends_of_the_ranking_of_all_scores(built, preset):
    run = built(preset)
    scores = run.score(QUERIES)
    for hits, row in zip(run.query_many(QUERIES, k=5), scores, strict=True):
        down, up = np.lexsort((np.arange(40), -row)), np.lexsort((np.arange(40), row))
        assert [hit.row for hit in hits.promoting] == [place for place in down[:5] if row[place] > 0]
        assert [hit.row for hit in hits.opposing] == [place for place in up[:5] if row[place] < 0]
        assert [hit.score for hit in hits.promoting] == pytest.approx([row[hit.row] for hit in hits.promoting])
        assert [hit.rank for hit in hits.promoting] == list(range(1, len(hits.promoting) + 1))


@pytest.fixture
def deciding(built):
    """A whitened run whose proposals EK-FAC decides."""
    decision = ("recipe.exact.kind=ekfac", "recipe.exact.candidates=6", "recipe.exact.damping.value=0.01")
    return built("whitened", EMPIRICAL, *decision)


def test_exact_hits_are_the_proposals_in_the_order_of_ekfac(deciding, built):
    everyone = built("ekfac", EMPIRICAL, "recipe.curvature.damping.value=0.01").score(QUERIES)
    for hits, row in zip(deciding.query_many(QUERIES, k=4), everyone, strict=True):
        for side, sign in ((hits.promoting, 1), (hits.opposing, -1)):
            assert [hit.score for hit in side] == pytest.approx([row[hit.row] for hit in side], rel=1e-3)
            assert [hit.score for hit in side] == sorted((hit.score for hit in side), key=lambda score: -sign * score)
            assert all(hit.exact and sign * hit.score > 0 for hit in side)
        assert hits.unit == "nats per extra copy of the row"
        assert "exact EK-FAC over the best 6 of each side and of BM25" in hits.recipe


def test_with_every_row_a_candidate_exact_hits_are_the_ends_of_ekfacs_ranking(deciding, built):
    everyone = built("ekfac", EMPIRICAL, "recipe.curvature.damping.value=0.01").query_many(QUERIES, k=5)
    for found, expected in zip(deciding.query_many(QUERIES, k=5, candidates=40), everyone, strict=True):
        assert [hit.row for hit in found.promoting] == [hit.row for hit in expected.promoting]
        assert [hit.row for hit in found.opposing] == [hit.row for hit in expected.opposing]


def test_exact_scores_do_not_depend_on_how_many_queries_gradients_are_held_at_once(deciding, monkeypatch):
    contrasted = [{**query, "contrast": " none at all."} for query in QUERIES]
    asked = [*QUERIES, *contrasted]
    together = deciding.query_many(asked, k=4, candidates=10)
    monkeypatch.setattr("influence.capture.exact.QUERY_BYTES", 1)
    for one, other in zip(deciding.query_many(asked, k=4, candidates=10), together, strict=True):
        assert [hit.row for hit in one.promoting] == [hit.row for hit in other.promoting]
        scores = [[hit.score for hit in found.promoting] for found in (one, other)]
        np.testing.assert_allclose(*scores, rtol=1e-4)


def test_queries_of_several_threads_have_the_answers_they_have_alone(deciding):
    def ask(number):
        return deciding.query(**QUERIES[number % 2], k=5, candidates=10)

    alone = [ask(number) for number in range(2)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(12)))
    for number, hits in enumerate(together):
        assert hits.promoting == alone[number % 2].promoting
        assert hits.opposing == alone[number % 2].opposing


def test_an_exact_answer_does_not_depend_on_the_queries_beside_it(deciding):
    together = deciding.query_many(QUERIES, k=3)
    alone = [deciding.query_many([query], k=3)[0] for query in QUERIES]
    for one, other in zip(together, alone, strict=True):
        assert [hit.row for hit in one.promoting] == [hit.row for hit in other.promoting]
        assert [hit.score for hit in one.promoting] == pytest.approx([hit.score for hit in other.promoting], rel=1e-4)


def test_without_exact_the_stored_rows_decide(deciding):
    scores = deciding.score(QUERIES)
    for hits, row in zip(deciding.query_many(QUERIES, k=4, exact=False), scores, strict=True):
        assert [hit.score for hit in hits.promoting] == pytest.approx([row[hit.row] for hit in hits.promoting])
        assert not any(hit.exact for hit in (*hits.promoting, *hits.opposing))


def test_full_rank_matrices_decide_as_whole_ones(built, deciding):
    low = built("whitened", EMPIRICAL, "recipe.exact.kind=ekfac", "recipe.exact.rank=64")
    whole, compressed = (run.query_many(QUERIES, k=4, candidates=40) for run in (deciding, low))
    for one, other in zip(whole, compressed, strict=True):
        assert [hit.score for hit in one.promoting] == pytest.approx([hit.score for hit in other.promoting], rel=1e-3)


def test_a_contrast_scores_the_difference(built):
    run = built("whitened", EMPIRICAL)
    prompt, said, instead = "The river was named after", " a cartographer", " the harbour"
    rather = run.score([{"prompt": prompt, "completion": said, "contrast": instead}])
    each = run.score([{"prompt": prompt, "completion": text} for text in (said, instead)])
    assert rather[0] == pytest.approx(each[0] - each[1], abs=1e-5 * float(np.abs(each).max()))
    hits = run.query(prompt, said, contrast=instead, k=3)
    apart = [run.query(prompt, text, k=1).query.log_likelihood for text in (said, instead)]
    assert [hits.query.log_likelihood, hits.query.contrast_log_likelihood] == pytest.approx(apart, rel=1e-4)
    assert hits.query.contrast == instead


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"exact": True}, r"no Kronecker factors.*--set recipe\.exact\.kind=ekfac"),
        ({"candidates": 20}, r"add --exact"),
    ],
)
def test_exact_scores_without_factors_are_refused(built, asked, told):
    with pytest.raises(QueryError, match=told):
        built().query("The river", " was named", **asked)


def test_fewer_candidates_than_hits_are_refused(deciding):
    with pytest.raises(QueryError, match=r"k is 7, and exact scores are for 6 candidates.*--candidates 7"):
        deciding.query("The river", " was named", k=7)


def test_a_row_promotes_its_own_text_most(built):
    run = built("gradcos")
    text = run.meta([3])[0]["text"]
    hits = run.query(completion=text, k=1)
    assert (hits.promoting[0].row, hits.promoting[0].id) == (3, "row-3")
    assert hits.promoting[0].score == pytest.approx(1, abs=1e-3)
    assert hits.promoting[0].source == "shelf-0"
    assert hits.promoting[0].snippet == text


def test_a_scan_and_an_index_give_the_same_hits(built):
    flat, scan = built("logra"), built("logra", "index.kind=exact")
    assert not (scan.path / "index").exists()
    for one, other in zip(flat.query_many(QUERIES, k=7), scan.query_many(QUERIES, k=7), strict=True):
        assert one.promoting == other.promoting
        assert one.opposing == other.opposing


def test_an_answer_says_what_was_asked_how_and_in_which_unit(built):
    hits = built("logra").query("The river was named after", " a cartographer", k=2, id="q7")
    told = json.loads(hits.to_json())
    assert told["query"]["id"] == "q7"
    assert told["query"]["log_likelihood"] < 0
    assert told["unit"] == "nats per extra copy of the row"
    assert told["recipe"].startswith("logra")
    assert told["fingerprint"] == built("logra").manifest.fingerprint


@pytest.mark.parametrize("k", [0, 41, True, 2.5])
def test_k_beyond_the_data_names_both(built, k):
    with pytest.raises(QueryError, match=rf"k is {k}, but .* has 40 rows"):
        built().query(completion="The river", k=k)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"prompt": "The river"}, "prompt and completion, or text alone"),
        ({"text": "a", "completion": "b"}, "prompt and completion, or text alone"),
        ({"promt": "a", "completion": "b"}, "'promt'"),
        ("The river", "found 'str'"),
        ({"prompt": "The river", "completion": ""}, "no scored token"),
    ],
)
def test_a_query_that_cannot_be_asked_says_why(built, query, told):
    with pytest.raises(QueryError, match=told):
        built().query_many([query], k=1)


def test_no_queries_and_a_completion_that_is_no_text_are_refused(built):
    with pytest.raises(QueryError, match="There are no queries"):
        built().query_many([], k=1)
    with pytest.raises(DataError, match="completion is int"):
        built().query_many([{"prompt": "a", "completion": 3}], k=1)


def test_a_text_alone_is_scored_after_its_first_token(built):
    run = built()
    text, completion = run.query_many([{"text": "The river was"}, {"prompt": "", "completion": "The river was"}], k=1)
    assert text.query.log_likelihood == pytest.approx(completion.query.log_likelihood, rel=1e-4)


def test_queries_may_be_examples(built):
    run = built()
    examples = [Example.query(query["prompt"], query["completion"]) for query in QUERIES]
    assert np.array_equal(run.score(examples), run.score(QUERIES))


def test_status_counts_what_stands(built):
    status = built().status()
    assert (status["complete"], status["shards"], status["shards_done"], status["rows_done"]) == (True, 3, 3, 40)
    assert (status["curvature"], status["index"], status["zero_rows"]) == ("done", "done", 0)
    json.dumps(status)


def copy_of(run, folder: Path) -> Path:
    shutil.copytree(run.path, folder / "copy")
    return folder / "copy"


def test_an_unfinished_run_cannot_be_opened_but_has_a_status(built, tmp_path):
    there = copy_of(built(), tmp_path)
    (there / "index" / "index.json").unlink()
    with pytest.raises(Incomplete, match="lacks its index"):
        runs.open(there)
    (there / "rows" / "shard-00001.json").unlink()
    with pytest.raises(Incomplete, match="1 of 3 shards"):
        runs.open(there)
    status = runs.status(there)
    assert (status["complete"], status["shards_done"], status["index"]) == (False, 2, "missing")


def test_a_damaged_index_or_curvature_is_refused_at_the_first_query(built, tmp_path):
    there = copy_of(built(), tmp_path)
    vectors = there / "index" / "index.faiss"
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"index\.faiss: found sha256"):
        runs.open(there).query(completion="The river was", k=1)
    factors = there / "curvature" / "fisher.safetensors"
    content = bytearray(factors.read_bytes())
    content[-1] ^= 1
    factors.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"fisher\.safetensors has sha256"):
        runs.open(there).query(completion="The river was", k=1)


def test_a_model_that_has_changed_since_is_refused(built, model_folder, tmp_path):
    there = copy_of(built(), tmp_path)
    model = shutil.copytree(model_folder("llama"), tmp_path / "model")
    run = runs.open(there)
    moved = run.config.model_copy(update={"model": run.config.model.model_copy(update={"path": str(model)})})
    save_config(moved, there / "config.yaml")
    assert runs.open(there).query(completion="The river was", k=1)
    weights = load_file(model / "model.safetensors")
    save_file({name: weight + torch.ones(()) for name, weight in weights.items()}, model / "model.safetensors")
    with pytest.raises(FingerprintMismatch, match=r"The model of .* has changed"):
        runs.open(there).query(completion="The river was", k=1)


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        runs.open(tmp_path)
    with pytest.raises(StoreError, match="holds no run"):
        runs.status(tmp_path)


@pytest.mark.slow
def test_a_plan_measures_in_this_process_and_writes_nothing(built, tmp_path, monkeypatch):
    run = built()
    monkeypatch.chdir(tmp_path)
    ours, started, over = Process(), set(), threading.Event()

    def watch():
        while not over.wait(0.02):
            started.update(child.pid for child in ours.children())

    before = {child.pid for child in ours.children()}
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        plan = runs.plan(run.config)
    finally:
        over.set()
        watching.join()
    assert started <= before
    assert (plan.estimate.rows, plan.estimate.dims, plan.workers) == (40, run.store.dims, plan.workers)
    assert plan.probed.tokens_per_second
    assert 0 < plan.hours() < 1
    assert list(tmp_path.iterdir()) == []
