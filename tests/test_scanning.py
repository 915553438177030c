"""Full scans: scores are those of the run, whatever is kept, filtered, killed or cut, and files say what they are."""

import json
import shutil
import threading
from contextlib import contextmanager

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client, LocalCluster

import influence.api as runs
from influence.artifacts.digest import seal
from influence.artifacts.lock import lock_folder
from influence.config import parse_config
from influence.engine import dispatch
from influence.engine.cluster import QUIET
from influence.engine.stage import Task
from influence.errors import Incomplete, QueryError, RunLocked, StoreError
from influence.scan import answer as scan_module
from influence.scan import plan as score_plan
from influence.scan import shortlist
from influence.scan import table as score_table
from influence.scan.shortlist import Shortlist
from influence.stages import build as build_module

QUERIES = [
    {"prompt": "The river was named after", "completion": " a cartographer who never saw it.", "id": "river"},
    {"prompt": "", "completion": "In winter the harbour freezes", "id": "winter"},
    {"prompt": "The river was", "completion": " frozen", "contrast": " named", "id": "rather"},
    {"text": "A list keeps its items", "id": "list"},
    {"prompt": "The harbour", "completion": " was named", "id": "named"},
]


@pytest.fixture(scope="module")
def client():
    with (
        dask.config.set(QUIET),
        LocalCluster(
            1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", silence_logs=False
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.MonkeyPatch.context() as patch,
    ):

        @contextmanager
        def connect(*_):
            yield client

        patch.setattr(build_module, "connect", connect)
        patch.setattr(dispatch, "connect", connect)
        patch.setattr(dispatch, "WORTH", 0)
        yield client


@pytest.fixture(scope="module")
def built(model_folder, corpus_file, tmp_path_factory, client):
    """`built(preset, *overrides)`: a run of 40 rows, each made once; rows 5 and 35 are copies of row 3."""
    made = {}
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = corpus_file.read_text().splitlines()[:40]
    records = [json.loads(line) for line in lines]
    for number, copied in ((5, 3), (35, 3)):
        records[number] = {**records[copied], "id": f"copy-{number}"}
    data.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(preset="logra", *overrides):
        key = (preset, *overrides)
        if key not in made:
            settings = {
                "model": {"path": str(model_folder("llama")), "dtype": "float32"},
                "data": {"path": str(data), "max_tokens": 64},
                "recipe": {"name": preset, "projection": {"p": 4, "q": 4}},
                "store": {"rows_per_shard": 16, "codec": "int8"},
                "index": {"kind": "flat"},
                "cluster": {"token_budget": 256, "device": "cpu"},
            }
            if preset == "repsim":
                del settings["recipe"]["projection"]
            made[key] = runs.build(parse_config(settings, overrides), tmp_path_factory.mktemp("runs") / "run")
        return made[key]

    return make


@pytest.fixture
def cut_small(monkeypatch):
    """Cut scans into blocks of 7 rows and batches of 2 queries."""
    monkeypatch.setattr(scan_module, "rows_of_block", lambda *_: 7)
    monkeypatch.setattr(scan_module, "batch_of", lambda *_: 2)
    monkeypatch.setattr(score_table, "GROUP_ROWS", 3)


both_slots = threading.Barrier(2)


def meet() -> None:
    both_slots.wait(60)


def let_finish(client) -> None:
    """Wait until the worker's two slots are free: what an attempt that failed had begun is over."""
    client.gather([client.submit(meet, pure=False) for _ in range(2)])


def matrix(path) -> np.ndarray:
    return np.array(pq.read_table(path)["scores"].to_pylist(), dtype=np.float32).T


def parts_of(out):
    return out.with_name(f"{out.name}.parts")


@pytest.mark.parametrize(
    "method",
    [("logra",), ("gradcos",), ("trackstar",), ("logra", "recipe.measurement=log_odds", "recipe.curvature.side=both")],
)
def test_all_scores_are_those_of_the_run_and_of_a_float64_product(built, cut_small, tmp_path, method):
    run = built(*method)
    asked = QUERIES if len(method) == 1 else [query for query in QUERIES if "contrast" not in query]
    done = run.score_to(asked, tmp_path / "s.parquet")
    found = matrix(done.out)
    largest = float(np.abs(run.score(asked)).max())
    np.testing.assert_allclose(found, run.score(asked), rtol=1e-4, atol=1e-5 * largest)
    comparison, captured = run.comparison, run.capture(asked)
    weights = torch.from_numpy(run.store.weights(np.arange(40))) if run.recipe.weighted else None
    rows = comparison.row_vectors(torch.from_numpy(run.vectors(range(40))), weights).double()
    slow = comparison.query_vectors(captured.gradients).double() @ rows.T
    np.testing.assert_allclose(found, slow.numpy(), rtol=1e-4, atol=1e-5 * largest)
    # Row 5 is in row 3's batch. Row 35 is in another one, and torch's products round by the shape of a batch.
    assert (found[:, 5] == found[:, 3]).all()
    np.testing.assert_allclose(found[:, 35], found[:, 3], rtol=1e-5, atol=1e-6 * largest)
    assert not parts_of(done.out).exists()


def test_an_answer_says_what_it_is_in_the_file_and_beside_it(built, cut_small, tmp_path):
    run = built()
    out = tmp_path / "s.parquet"
    run.score_to(QUERIES, out, where="row < 30")
    table = pq.read_table(out)
    assert table.column_names == ["row", "id", "scores"]
    assert table["row"].to_pylist() == list(range(30))
    assert table["id"].to_pylist() == [meta["id"] for meta in run.meta(range(30))]
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert told["unit"] == "nats per extra copy of the row"
    assert told["sign"].startswith("Positive: training more on this row raises")
    assert (told["where"], told["run"], told["keep"]) == ("row < 30", run.manifest.fingerprint, "all")
    assert json.loads(told["queries"]) == [query["id"] for query in QUERIES]
    lines = [json.loads(line) for line in (tmp_path / "s.queries.jsonl").read_text().splitlines()]
    assert [(line["query"], line["id"]) for line in lines] == list(enumerate(query["id"] for query in QUERIES))
    captured = run.capture(QUERIES)
    assert [line["log_likelihood"] for line in lines] == pytest.approx(captured.measured.tolist(), rel=1e-4)
    assert [line.get("contrast") is not None for line in lines] == [False, False, True, False, False]


@pytest.mark.parametrize("keep", ["all", "top", "rows"])
def test_the_file_of_queries_says_whose_largest_score_their_probability_rules_out(built, cut_small, tmp_path, keep):
    run = built()
    done = run.score_to(QUERIES, tmp_path / "s.parquet", keep=keep, k=3)
    lines = [json.loads(line) for line in (tmp_path / "s.queries.jsonl").read_text().splitlines()]
    largest = run.score(QUERIES).max(axis=1)
    assert [line["best"] for line in lines] == pytest.approx(largest.tolist(), rel=1e-3)
    beyond = (largest > [-line["log_likelihood"] for line in lines]).tolist()
    words = ["rank_only" if more else "nats" for more in beyond]
    expected = ["unchecked" if "contrast" in line else word for line, word in zip(lines, words, strict=True)]
    assert [line["magnitudes"] for line in lines] == expected
    assert list(done.magnitudes) == expected
    assert (done.caution is None) == ("rank_only" not in expected)
    assert run.score(QUERIES).magnitudes == done.magnitudes


@pytest.mark.parametrize("where", [None, "source = 'shelf-0' or row % 3 = 0"])
def test_the_top_rows_are_the_ends_of_the_sorted_matrix_and_ties_go_to_the_lower_row(built, cut_small, tmp_path, where):
    run = built()
    run.score_to(QUERIES, tmp_path / "all.parquet")
    scores = matrix(tmp_path / "all.parquet")
    run.score_to(QUERIES, tmp_path / "top.parquet", keep="top", k=6, where=where)
    hits = pq.read_table(tmp_path / "top.parquet").to_pylist()
    passing = [row for row in range(40) if where is None or row % 3 == 0 or run.meta([row])[0]["source"] == "shelf-0"]
    expected = []
    for number, query in enumerate(QUERIES):
        for side, sign in (("promoting", 1), ("opposing", -1)):
            order = sorted(passing, key=lambda row, n=number, s=sign: (-s * scores[n, row], row))[:6]
            kept = [row for row in order if sign * scores[number, row] > 0]
            expected += [(number, query["id"], side, rank, row) for rank, row in enumerate(kept, 1)]
    assert [(hit["query"], hit["query_id"], hit["side"], hit["rank"], hit["row"]) for hit in hits] == expected
    assert [hit["score"] for hit in hits] == [scores[hit["query"], hit["row"]] for hit in hits]
    assert [hit["id"] for hit in hits] == [run.meta([hit["row"]])[0]["id"] for hit in hits]


def test_rows_keep_the_mean_the_extremes_and_the_signs_of_their_scores(built, cut_small, tmp_path):
    run = built()
    run.score_to(QUERIES, tmp_path / "all.parquet")
    scores = matrix(tmp_path / "all.parquet").astype(np.float64)
    run.score_to(QUERIES, tmp_path / "rows.parquet", keep="rows", where="row <> 8")
    found = pq.read_table(tmp_path / "rows.parquet")
    kept = [row for row in range(40) if row != 8]
    assert found["row"].to_pylist() == kept
    for name, of in {"mean": np.mean, "sum": np.sum, "min": np.min, "max": np.max}.items():
        np.testing.assert_allclose(found[name].to_numpy(), of(scores, axis=0)[kept], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found["positive"].to_numpy(), (scores > 0).mean(axis=0)[kept])


def test_filtered_scores_are_the_full_ones_of_the_rows_that_pass(built, cut_small, tmp_path):
    run = built()
    run.score_to(QUERIES, tmp_path / "all.parquet")
    run.score_to(QUERIES, tmp_path / "some.parquet", where="tokens > 8 and id not like 'copy%'")
    some = pq.read_table(tmp_path / "some.parquet")
    rows = [meta["row"] for meta in run.meta(range(40)) if meta["tokens"] > 8 and not meta["id"].startswith("copy")]
    assert some["row"].to_pylist() == rows
    assert 0 < len(rows) < 40
    np.testing.assert_array_equal(matrix(tmp_path / "some.parquet"), matrix(tmp_path / "all.parquet")[:, rows])


def test_self_influence_is_the_diagonal_of_asking_about_every_row(built, cut_small, tmp_path):
    run = built("logra", "store.codec=float16")
    texts = [{"text": meta["text"]} for meta in run.meta(range(40))]
    diagonal = run.score(texts).diagonal()
    found = run.self_influence()
    assert (found > 0).all()
    np.testing.assert_allclose(found, diagonal, rtol=5e-3)
    done = run.self_influence_to(tmp_path / "self.parquet", where="row >= 10")
    table = pq.read_table(done.out)
    np.testing.assert_allclose(table["score"].to_numpy(), found[10:], rtol=1e-5)
    assert table.column_names == ["row", "id", "score"]
    assert (done.rows, done.queries, done.unit) == (30, 0, "nats per extra copy of the row")


@pytest.mark.parametrize(
    ("method", "codec"),
    [("graddot", "float16"), ("graddot", "int8"), ("whitened", "int4"), ("whitened", "factors"), ("tracin", "bits")],
)
def test_without_curvature_of_the_rows_self_influence_is_their_squared_length_under_every_codec(
    built, model_folder, method, codec
):
    rank = ["store.rank=2"] if codec == "factors" else []
    few = ["data.limit=12", f"store.codec={codec}", *rank]
    if method == "tracin":
        checkpoints = [{"path": str(model_folder("llama")), "weight": 0.5}]
        few.append(f"recipe.checkpoints={json.dumps(checkpoints)}")
    run = built(method, *few)
    lengths = run.store.lengths(np.arange(12)).astype(np.float64)
    factor = {"graddot": 1.0, "whitened": 1 / 12, "tracin": 0.5}[method]
    found = run.self_influence()
    np.testing.assert_allclose(found, factor * lengths**2, rtol=1e-6)
    diagonal = run.score([{"text": meta["text"]} for meta in run.meta(range(12))]).diagonal()
    # Rank 2 of 4 leaves out a share of a row; the others give a row its true inner product with itself.
    np.testing.assert_allclose(diagonal, found, rtol=0.25 if codec == "factors" else 5e-3)


def test_under_a_fisher_one_bit_turns_a_row_and_does_not_lengthen_it(built):
    exact, coarse = (built("logra", f"store.codec={codec}").self_influence() for codec in ("float16", "bits"))
    assert 0.6 < np.median(coarse / exact) < 1.6
    assert np.corrcoef(np.log(exact), np.log(coarse))[0, 1] > 0.8


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (("gradcos",), "is 1 by definition.*nearest is whitened, or logra"),
        (("repsim",), "is 1 by definition"),
        (("ekfac",), "from whole gradients.*nearest is whitened"),
    ],
)
def test_self_influence_that_means_nothing_is_refused_with_the_nearest_that_does(built, tmp_path, method, told):
    run = built(*method)
    with pytest.raises(QueryError, match=told):
        run.self_influence()
    with pytest.raises(QueryError, match=told):
        run.self_influence_to(tmp_path / "self.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", ["all", "top", "rows"])
def test_a_scan_that_is_killed_again_and_again_goes_on_to_the_same_bytes(
    built, client, cut_small, tmp_path, monkeypatch, keep
):
    run = built()
    run.score_to(QUERIES, tmp_path / "whole.parquet", keep=keep, k=4, where="row <> 8")
    done = []

    def dying(function, limit):
        def task(*given):
            if len(done) >= limit:
                raise StoreError("the power is cut")
            done.append(given)
            return function(*given)

        return task

    out = tmp_path / "killed.parquet"
    save, write = Task.save, score_table.write_whole
    for limit in (1, 4, 9):
        monkeypatch.setattr(Task, "save", dying(save, limit))
        with pytest.raises(StoreError, match="the power is cut"):
            run.score_to(QUERIES, out, keep=keep, k=4, where="row <> 8")
        let_finish(client)
        assert not out.exists()
    monkeypatch.setattr(Task, "save", save)
    monkeypatch.setattr(score_table, "write_whole", dying(write, 0))
    with pytest.raises(StoreError, match="the power is cut"):
        run.score_to(QUERIES, out, keep=keep, k=4, where="row <> 8")
    monkeypatch.setattr(score_table, "write_whole", write)
    steps = []
    run.score_to(QUERIES, out, keep=keep, k=4, where="row <> 8", progress=steps.append)
    first = next(step for step in steps if step.stage == "scores")
    assert first.done > 0
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("killed")) == [
        "killed.parquet",
        "killed.queries.jsonl",
    ]


def test_another_question_into_a_file_whose_parts_stand_is_refused_with_both_named(
    built, cut_small, tmp_path, monkeypatch
):
    run = built()
    out = tmp_path / "s.parquet"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "write_answer", stopped)
        with pytest.raises(Incomplete, match=r"Interrupted. Partial results are in .*s\.parquet\.parts"):
            run.score_to(QUERIES, out)
    with pytest.raises(QueryError, match=r"parts of another question: keep is 'all' there and 'rows' here"):
        run.score_to(QUERIES, out, keep="rows")
    with pytest.raises(
        QueryError, match=r"queries is '5 of digest .*' there and '1 of digest .*' here.*delete the folder"
    ):
        run.score_to(QUERIES[:1], out)
    assert parts_of(out).exists()


def test_a_question_that_came_to_nothing_does_not_stand_in_the_way_of_the_next(built, tmp_path):
    run = built()
    out = tmp_path / "s.parquet"
    with pytest.raises(QueryError, match="no scored token"):
        run.score_to([{"prompt": "a", "completion": ""}], out)
    assert not parts_of(out).exists()
    parts_of(out).mkdir()
    question = {"format_version": 1, "fingerprint": "another", "parts": {"keep": "rows"}}
    (parts_of(out) / "question.json").write_bytes(seal(question))
    assert run.score_to(QUERIES[:1], out).rows == 40


def test_a_file_that_is_there_is_kept_unless_it_may_be_overwritten(built, tmp_path):
    run = built()
    out = tmp_path / "s.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(QueryError, match=r"s\.parquet exists already\. Overwrite"):
        run.score_to(QUERIES[:1], out)
    assert out.read_bytes() == b"mine"
    run.score_to(QUERIES[:1], out, overwrite=True)
    with pytest.raises(QueryError, match=r"exist already\. It answers this very question"):
        run.score_to(QUERIES[:1], out)
    run.score_to(QUERIES[1:2], out, overwrite=True)
    assert json.loads((tmp_path / "s.queries.jsonl").read_text())["id"] == "winter"


def test_a_scan_killed_before_its_parts_were_removed_only_removes_them(built, tmp_path, monkeypatch):
    run = built()
    out = tmp_path / "s.parquet"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "_clear", stopped)
        with pytest.raises(Incomplete):
            run.score_to(QUERIES[:1], out)
    written = out.stat().st_mtime_ns
    for name in ("s.parquet.7-abc.partial", "s.queries.jsonl.7-abc.partial"):
        (tmp_path / name).write_bytes(b"half")
    run.score_to(QUERIES[:1], out)
    assert list(tmp_path.glob("*.partial")) == []
    assert out.stat().st_mtime_ns == written
    assert not parts_of(out).exists()


def test_two_scans_cannot_write_one_file(built, tmp_path):
    out = tmp_path / "s.parquet"
    with lock_folder(parts_of(out)), pytest.raises(RunLocked, match=r"s\.parquet is being written already"):
        built().score_to(QUERIES[:1], out)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": "some"}, "keep is 'some'; expected one of all, top, rows"),
        ({"keep": "top", "k": 0}, "k is 0, but"),
        ({"keep": "top", "k": 41}, "k is 41, but .* has 40 rows"),
        ({"where": "tokens > 100000"}, "none of the 40 rows"),
        ({"where": "sauce = 1"}, "no column 'sauce'"),
        ({"queries": []}, "There are no queries"),
        ({"queries": [{"prompt": "a", "completion": ""}]}, "no scored token"),
        ({"out": "s.csv"}, "its name must end in .parquet"),
        ({"out": "nowhere/s.parquet"}, "nowhere doesn't exist"),
    ],
)
def test_a_scan_that_cannot_be_says_why_and_leaves_nothing(built, tmp_path, options, told):
    given = {"queries": QUERIES[:1], "out": "s.parquet", **options}
    with pytest.raises(QueryError, match=told):
        built().score_to(given.pop("queries"), tmp_path / given.pop("out"), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_whole_gradients_or_of_words_has_no_rows_to_scan(built, tmp_path):
    with pytest.raises(QueryError, match="whole gradients, which no store keeps"):
        built("ekfac").score_to(QUERIES[:1], tmp_path / "s.parquet")


def test_an_answer_that_does_not_fit_on_the_disk_is_refused_before_it_is_begun(built, tmp_path, monkeypatch):
    monkeypatch.setattr(scan_module, "answer_bytes", lambda *_: 2**60)
    with pytest.raises(Incomplete, match=r"takes .* GB.*--keep top"):
        built().score_to(QUERIES[:1], tmp_path / "s.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_refused_by_name(built, cut_small, tmp_path, monkeypatch):
    run = built()
    out = tmp_path / "s.parquet"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "write_answer", stopped)
        with pytest.raises(Incomplete):
            run.score_to(QUERIES, out)
    part = sorted(parts_of(out).glob("scores-*.safetensors"))[3]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{part.name} has sha256 .*run the same command again"):
        run.score_to(QUERIES, out)
    part.with_suffix(".json").unlink()
    run.score_to(QUERIES, out)
    assert matrix(out).shape == (5, 40)


def test_no_task_keeps_more_than_its_block_and_batch(built, cut_small, tmp_path, monkeypatch):
    held = []
    save = Task.save
    monkeypatch.setattr(Task, "save", lambda task, tensors: held.append(tensors) or save(task, tensors))
    built().score_to(QUERIES, tmp_path / "s.parquet")
    shapes = [tuple(tensors["scores"].shape) for tensors in held if "scores" in tensors]
    assert sorted(set(shapes)) == [(5, 1), (5, 2), (7, 1), (7, 2)]
    assert len(shapes) == 6 * 3


@pytest.mark.parametrize(("rows", "queries"), [(10**6, 50_000), (10**8, 10), (10**8, 50_000), (40, 1)])
@pytest.mark.parametrize("keep", ["all", "top", "rows"])
def test_tasks_stay_small_whatever_the_scan(rows, queries, keep):
    batch = min(queries, score_plan.batch_of(86_016))
    step = score_plan.rows_of_block(rows, 86_016, batch, keep)
    assert batch * 4 * 86_016 <= score_plan.BATCH_BYTES
    assert keep != "all" or 4 * step * batch <= score_plan.TILE_BYTES
    assert 1 <= step <= max(rows, score_plan.FEWEST)


@pytest.mark.parametrize("waiting", [1, 50, shortlist.WAITING])
def test_a_shortlist_is_the_end_of_the_sorted_scores_however_they_are_cut(waiting, monkeypatch):
    monkeypatch.setattr(shortlist, "WAITING", waiting)
    random = np.random.default_rng(0)
    scores = random.integers(-5, 5, (4, 100)).astype(np.float32)
    scores[:, ::3] *= -1  # Zeros of both signs, which are equal, and ties everywhere.
    for cut in (1, 7, 100):
        whole, halves = Shortlist(4, 9), [Shortlist(4, 9), Shortlist(4, 9)]
        for start in range(0, 100, cut):
            rows = np.arange(start, min(100, start + cut))
            whole.offer(scores[:, rows], rows)
            halves[start >= 50].offer(scores[:, rows], rows)
        halves[0].merge(halves[1].scores, halves[1].rows)
        expected = [np.lexsort((np.arange(100), -line))[:9] for line in scores]
        np.testing.assert_array_equal(whole.rows, expected)
        np.testing.assert_array_equal(whole.scores, np.take_along_axis(scores, np.array(expected), axis=1))
        np.testing.assert_array_equal(halves[0].rows, expected)
    few = Shortlist(4, 9)
    few.offer(scores[:, :2], np.arange(2))
    assert (few.rows[:, 2:] == -1).all()


CONDITION = "source = 'shelf-1' or row % 7 = 2"


def meets(meta) -> bool:
    return meta["source"] == "shelf-1" or meta["row"] % 7 == 2


@pytest.mark.parametrize("kind", ["flat", "exact"])
def test_a_filtered_query_finds_the_best_of_the_rows_that_pass(built, kind):
    run = built("logra", f"index.kind={kind}")
    passing = [meta["row"] for meta in run.meta(range(40)) if meets(meta)]
    assert 5 < len(passing) < 35
    scores = run.score(QUERIES)
    for hits, row in zip(run.query_many(QUERIES, k=5, where=CONDITION), scores, strict=True):
        down = sorted(passing, key=lambda place, s=row: (-s[place], place))[:5]
        up = sorted(passing, key=lambda place, s=row: (s[place], place))[:5]
        assert [hit.row for hit in hits.promoting] == [place for place in down if row[place] > 0]
        assert [hit.row for hit in hits.opposing] == [place for place in up if row[place] < 0]


def test_a_filtered_exact_query_decides_among_candidates_that_pass(built):
    labels = "recipe.factors.labels=empirical"
    run = built("whitened", labels, "recipe.exact.kind=ekfac", "recipe.exact.candidates=40")
    whole = built("ekfac", labels, "recipe.curvature.damping.value=0.01")
    passing = {meta["row"] for meta in run.meta(range(40)) if meets(meta)}
    everyone = whole.query_many(QUERIES[:2], k=40)
    for found in (
        run.query_many(QUERIES[:2], k=6, where=CONDITION),
        whole.query_many(QUERIES[:2], k=6, where=CONDITION),
    ):
        for hits, all_hits in zip(found, everyone, strict=True):
            assert [hit.row for hit in hits.promoting] == [hit.row for hit in all_hits.promoting if hit.row in passing][
                :6
            ]
            assert [hit.row for hit in hits.opposing] == [hit.row for hit in all_hits.opposing if hit.row in passing][
                :6
            ]


def test_a_filtered_query_of_words_ranks_rows_that_pass(built, model_folder, corpus_file, tmp_path):
    settings = {
        "model": {"path": str(model_folder("llama"))},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        "recipe": {"name": "bm25"},
    }
    run = runs.build(parse_config(settings), tmp_path / "words")
    everyone = run.query("The river was named", " after a harbour", k=run.rows).promoting
    some = run.query("The river was named", " after a harbour", k=3, where="row % 2 = 1").promoting
    assert [hit.row for hit in some] == [hit.row for hit in everyone if hit.row % 2 == 1][:3]
    with pytest.raises(QueryError, match="bm25 keeps words and no rows"):
        run.score_to(QUERIES[:1], tmp_path / "s.parquet")


def test_where_fewer_rows_pass_than_are_asked_for_a_note_says_so(built, caplog):
    hits = built().query("The river was", " named", k=10, where="row < 3")
    assert {hit.row for hit in (*hits.promoting, *hits.opposing)} <= {0, 1, 2}
    assert "k is 10 rows on each side, and only 3 rows meet 'row < 3'" in caplog.text


def test_a_filter_that_nothing_passes_is_refused_before_the_model_is_asked(built, monkeypatch):
    run = built()
    run.close()
    with pytest.raises(QueryError, match=r"none of the 40 rows .* passes.*Columns: row \(number\), id \(text\)"):
        run.query("The river was", " named", where="row > 100")
    assert "session" not in run.__dict__


def test_a_model_that_has_changed_is_refused_unless_only_rows_are_asked(built, tmp_path):
    run = built()
    there = shutil.copytree(run.path, tmp_path / "copy")
    model = shutil.copytree(run.config.model.path, tmp_path / "model")
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    config = (there / "config.yaml").read_text().replace(str(run.config.model.path), str(model))
    (there / "config.yaml").write_text(config)
    with pytest.raises(StoreError, match=r"The model of .* has changed since"):
        runs.open(there).score_to(QUERIES[:1], tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()
    runs.open(there).self_influence_to(tmp_path / "self.parquet")
