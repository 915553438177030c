"""A row that fails alone is set aside by name; the rest of the run is built, and says that it isn't whole."""

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import influence
from influence.capture import captured
from influence.engine.quarantine import without_failing_rows
from influence.errors import CaptureError, DataError, Incomplete
from influence.stages.build import build_run
from influence.stages.status import status
from influence.store.manifest import Manifest

GOOD = ["The river was named.", "A list keeps its items.", "A set.", "Sort the list in place.", "In winter it freezes."]
EKFAC = ("recipe.exact.kind=ekfac", "recipe.factors.rows=12", "recipe.exact.candidates=4", "recipe.exact.lexical=true")


def attempts(bad, error=ValueError):
    """An attempt that fails while one of the bad positions is among those tried, and what it was tried with."""
    tried = []

    def attempt(positions):
        tried.append(tuple(positions))
        hit = [position for position in positions if position in bad]
        if hit:
            raise error(f"row {hit[0]} is poisoned")
        return sum(positions)

    return attempt, tried


@pytest.mark.parametrize("bad", [{0}, {7}, {3, 4}, {0, 5, 9}, set()])
def test_rows_that_fail_alone_are_found_and_the_rest_is_done(bad):
    attempt, tried = attempts(bad)
    done, failed = without_failing_rows(attempt, range(10), most=3)
    assert set(failed) == bad
    assert done == sum(set(range(10)) - bad)
    assert all(failed[row] == f"ValueError: row {row} is poisoned" for row in bad)
    assert all(tried.count((row,)) == 2 for row in bad)


def test_rows_that_an_error_names_are_tried_first_and_no_others():
    def attempt(positions):
        tried.append(tuple(positions))
        if 6 in positions:
            raise CaptureError("row 6 is not finite", [6])

    tried = []
    assert without_failing_rows(attempt, range(10), most=3)[1] == {6: "row 6 is not finite"}
    assert tried == [tuple(range(10)), (6,), (6,), (0, 1, 2, 3, 4, 5, 7, 8, 9)]


def test_more_failing_rows_than_may_be_set_aside_end_the_task_with_its_own_error():
    attempt, tried = attempts(set(range(10)))
    with pytest.raises(ValueError, match="row 0 is poisoned"):
        without_failing_rows(attempt, range(10), most=3)
    assert len(tried) < 20


def test_a_task_that_fails_now_and_then_without_a_row_to_blame_is_tried_again_and_then_given_up():
    calls = []

    def sometimes(positions):
        calls.append(positions)
        if len(calls) == 1:
            raise RuntimeError("a hiccup")
        return "done"

    def always(positions):
        if len(positions) > 1:
            raise RuntimeError("only together")

    assert without_failing_rows(sometimes, range(4), most=1) == ("done", {})
    with pytest.raises(RuntimeError, match="only together"):
        without_failing_rows(always, range(4), most=1)


@pytest.mark.parametrize("error", [DataError("line 3 is malformed"), OSError("the disk is gone"), MemoryError()])
def test_what_no_row_is_to_blame_for_is_passed_on_at_once(error):
    calls = []

    def attempt(positions):
        calls.append(positions)
        raise error

    with pytest.raises(type(error)):
        without_failing_rows(attempt, range(4), most=2)
    assert len(calls) == 1


@pytest.fixture
def poisoned_model(model_folder, tokenizer, tmp_path):
    """A model whose embedding of `~` overflows when it is squared: every text with one poisons its own row alone."""
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tokenizer.encode("~")[-1]] = 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def poisoned(configured, written, poisoned_model):
    def make(texts, *overrides, name="rows"):
        data = written(*({"text": text, "id": f"text-{n}"} for n, text in enumerate(texts)), name=name)
        model = f"model.path={poisoned_model}"
        return configured("index.kind=exact", "store.rows_per_shard=8", model, *overrides, data=data)

    return make


def test_a_poisoned_row_is_listed_with_its_error_and_the_rest_can_be_asked(poisoned, in_process, tmp_path):
    texts = [*GOOD * 4]
    texts[13] = "A poisoned ~ text."
    run_dir, healthy = tmp_path / "run", tmp_path / "healthy"
    with pytest.raises(
        Incomplete, match=r"1 of 20 rows could not be captured(.|\n)*row 13 \(text-13\): The gradient of"
    ):
        build_run(poisoned(texts, *EKFAC), run_dir)
    listed = Manifest.load(run_dir).quarantined
    assert [(row.row, row.id) for row in listed] == [(13, "text-13")]
    assert [row["row"] for row in status(run_dir)["quarantined"]] == [13]
    texts[13] = "~"  # No scored token: nothing to fail on.
    build_run(poisoned(texts, *EKFAC, name="healthy-rows"), healthy)
    with influence.open(run_dir, device="cpu") as run, influence.open(healthy, device="cpu") as other:
        assert not run.vectors([13]).any()
        rest = [row for row in range(20) if row != 13]
        assert np.array_equal(run.vectors(rest), other.vectors(rest))
        # BM25 proposes the poisoned row, whose gradient can't be computed again.
        hits = run.query("A poisoned", " text.", k=2)
        assert 13 not in [hit.row for hit in (*hits.promoting, *hits.opposing)]
        assert all(np.isfinite(hit.score) for hit in hits.promoting)


def test_the_same_build_tries_quarantined_rows_again_and_makes_anew_what_stood_on_their_zeros(
    configured, in_process, tmp_path, monkeypatch, contents
):
    run_dir, whole, failing = tmp_path / "run", captured.capture_rows, {"row-13"}

    def capture_rows(session, codec, examples, parts):
        bad = sorted({part.position for part in parts if examples[part.position].id in failing})
        if bad:
            raise CaptureError("it overflows on this device", bad)
        return whole(session, codec, examples, parts)

    monkeypatch.setattr(captured, "capture_rows", capture_rows)
    for _ in range(2):
        with pytest.raises(Incomplete, match=r"row 13 \(row-13\): it overflows on this device"):
            build_run(configured(), run_dir)
    index = (run_dir / "index" / "index.json").read_text()
    failing.clear()
    build_run(configured(), run_dir)
    build_run(configured(), tmp_path / "healthy")
    assert Manifest.load(run_dir).quarantined == ()
    assert (run_dir / "index" / "index.json").read_text() != index
    assert contents(run_dir) == contents(tmp_path / "healthy")


def test_with_no_quarantine_the_first_poisoned_row_ends_the_build(poisoned, in_process, tmp_path):
    texts = [*GOOD * 4]
    texts[13] = "A poisoned ~ text."
    with pytest.raises(CaptureError, match="Row 13"):
        build_run(poisoned(texts, "data.quarantine=0"), tmp_path / "run")


def test_more_poisoned_rows_than_allowed_end_the_build(poisoned, in_process, tmp_path):
    texts = [*GOOD * 6]
    for row in (9, 17, 25):
        texts[row] = "A poisoned ~ text."
    with pytest.raises(CaptureError, match=r"3 rows failed, more than data.quarantine allows \(2\)"):
        build_run(poisoned(texts, "data.quarantine=2"), tmp_path / "run")


def test_a_model_that_fails_on_every_row_is_refused_before_anything_is_written(poisoned, in_process, tmp_path):
    with pytest.raises(CaptureError, match="not finite"):
        build_run(poisoned(["A poisoned ~ text."] * 9), tmp_path / "run")
    assert not (tmp_path / "run").exists()
