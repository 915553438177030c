"""Conflicts are rows with nearly the same input, another answer and opposed gradients."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence.api as runs
from influence.config import parse_config
from influence.errors import QueryError
from influence.issues.checks.registry import parse_settings
from influence.issues.issues import examine

WORDS = [f"{start}{end}" for start in ("ba", "ke", "li", "mo", "nu", "ra", "so", "ti") for end in ("bel", "dan", "kor")]


def edited(text, place):
    """Return a text with another word at a place."""
    words = text.split()
    return " ".join([*words[:place], "other", *words[place + 1 :]])


def build(folder, records, model, kind="causal_lm"):
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model), "kind": kind, "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 256},
        "recipe": {"name": "logra", "projection": {"p": 8, "q": 8}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 512, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), folder / "run")


def examined(run, folder, *checks, settings=()):
    examine(run, folder / "issues.parquet", parse_settings(settings), checks=checks)
    return pq.read_table(folder / "issues.parquet").to_pylist()


def flagged(lines, check="conflict"):
    return {line["row"]: line for line in lines if line[f"is_{check}"]}


@pytest.fixture(scope="module")
def labelled():
    """Rows 0 to 11 have nothing in common. Of the others:

    12, 13: one text, two labels; 14, 15: nearly one text, two labels; 16 to 19: one text, label 1 but for row 18;
    20, 21: one text, one label; 22, 23: empty, two labels.
    """
    chance = random.Random(4)
    texts = [" ".join(chance.choices(WORDS, k=14)) for _ in range(16)]
    rows = [(text, number % 3) for number, text in enumerate(texts[:12])]
    rows += [(texts[12], 0), (f"{texts[12]}!", 2), (texts[13], 0), (edited(texts[13], 6), 1)]
    rows += [(texts[14], label) for label in (1, 1, 2, 1)]
    rows += [(texts[15], 0), (texts[15], 0), ("", 0), ("", 1)]
    return [{"text": text, "label": label, "id": f"r{number}"} for number, (text, label) in enumerate(rows)]


@pytest.fixture(scope="module")
def classified(model_folder, labelled, tmp_path_factory, client):
    return build(tmp_path_factory.mktemp("classes"), labelled, model_folder("bert"), "sequence_classification")


def test_scores_are_minus_the_smallest_cosine_to_a_row_of_the_same_text_and_another_label(classified, tmp_path):
    lines = examined(classified, tmp_path, "conflict")
    vectors = classified.vectors(range(24)).astype(np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    others = {12: [13], 13: [12], 14: [15], 15: [14], 16: [18], 17: [18], 18: [16, 17, 19], 19: [18]}
    for row, line in enumerate(lines):
        expected = max((-unit[row] @ unit[other] for other in others.get(row, ())), default=None)
        assert line["conflict_score"] == (None if expected is None else pytest.approx(expected, abs=1e-5))


def test_both_rows_are_reviewed_unless_most_copies_agree_and_then_the_odd_one_gets_their_label(classified, tmp_path):
    lines = examined(classified, tmp_path, "conflict", settings=["conflict.cosine=0"])
    found = flagged(lines)
    assert sorted(found) == [12, 13, 14, 15, 18]
    assert found[12]["evidence"]["conflict"] == ["r13"]
    assert found[12]["suggestion"] == "review: r13 (row 13) has nearly the same input and the label '2'"
    assert found[15]["action"] == "review"
    assert (found[18]["action"], found[18]["suggested_label"]) == ("relabel", "1")
    assert found[18]["suggestion"] == "relabel to '1': most rows with nearly this text have it, as r16 (row 16)"


def test_rows_that_are_not_opposed_enough_are_scored_and_not_flagged(classified, tmp_path):
    lines = examined(classified, tmp_path, "conflict", settings=["conflict.cosine=-0.999"])
    assert flagged(lines) == {}
    assert lines[12]["conflict_score"] is not None
    frame = classified.issues(["conflict"])
    assert f"{-3 / np.sqrt(classified.store.dims):.3f} or less" in frame.attrs["rules"]["conflict"]


def test_copies_with_one_label_are_duplicates_and_those_with_two_are_conflicts(classified, tmp_path):
    lines = examined(classified, tmp_path, "near_duplicate", "conflict")
    assert sorted(flagged(lines, "near_duplicate")) == [17, 19, 21]
    assert not set(flagged(lines, "near_duplicate")) & set(flagged(lines))


def test_cosines_are_the_same_in_blocks_of_any_size(classified, tmp_path, monkeypatch):
    from influence.issues.checks import pair_cosines

    examine(classified, tmp_path / "whole.parquet", parse_settings([]), checks=["conflict"])
    monkeypatch.setattr(pair_cosines, "HELD_COLUMNS", 1)
    examine(classified, tmp_path / "cut.parquet", parse_settings([]), checks=["conflict"])
    whole, cut = (pq.read_table(tmp_path / f"{name}.parquet")["conflict_score"] for name in ("whole", "cut"))
    assert whole.to_pylist() == pytest.approx(cut.to_pylist())


@pytest.fixture(scope="module")
def prompts():
    """Rows 0 to 7 have nothing in common. Of the others:

    8, 9: one prompt, two completions; 10, 11: one prompt, one completion, written otherwise;
    12, 13: nearly one prompt, two completions; 14, 15: one long prompt, and completions nearly the same;
    16 to 27: one prompt, twelve completions.
    """
    chance = random.Random(5)

    def said(length):
        return " ".join(chance.choices(WORDS, k=length))

    rows = [(said(12), said(3)) for _ in range(8)]
    one, other, near, long, many = said(12), said(12), said(14), said(12), said(12)
    answer = said(14)
    rows += [(one, said(3)), (one, said(3)), (other, "kebel modan"), (f"{other}!", "Kebel, modan.")]
    rows += [(near, said(3)), (edited(near, 5), said(3))]
    rows += [(long, answer), (long, edited(answer, 7))]
    rows += [(many, said(4)) for _ in range(12)]
    return [
        {"prompt": prompt, "completion": f" {completion}", "id": f"p{number}"}
        for number, (prompt, completion) in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def answered(model_folder, prompts, tmp_path_factory, client):
    return build(tmp_path_factory.mktemp("prompts"), prompts, model_folder("llama"))


def test_completions_are_compared_apart_from_their_prompts(answered, tmp_path):
    lines = examined(answered, tmp_path, "near_duplicate", "conflict", settings=["conflict.cosine=1"])
    assert sorted(flagged(lines)) == [8, 9, 12, 13, *range(16, 28)]
    copies = sorted(flagged(lines, "near_duplicate"))
    assert [row // 2 for row in copies] == [5, 7]
    assert lines[8]["suggestion"] == "review: p9 (row 9) has nearly the same input and another completion"
    assert {line["action"] for line in flagged(lines).values()} == {"review"}
    evidence = [line["evidence"]["conflict"] for row, line in flagged(lines).items() if row >= 16]
    assert {len(found) for found in evidence} == {5}
    assert set().union(*evidence) <= {f"p{row}" for row in range(16, 28)}


def test_only_opposed_completions_are_in_conflict(answered, tmp_path):
    lines = examined(answered, tmp_path, "conflict", settings=["conflict.cosine=0"])
    vectors = answered.vectors(range(28)).astype(np.float64)
    for one, other in ((8, 9), (12, 13)):
        cosine = vectors[one] @ vectors[other] / np.linalg.norm(vectors[one]) / np.linalg.norm(vectors[other])
        assert lines[one]["conflict_score"] == pytest.approx(-cosine, abs=1e-5)
        assert lines[one]["is_conflict"] == (cosine <= 0)


def test_a_data_set_that_has_changed_since_is_named_and_not_read(answered, tmp_path):
    path = answered.path.parent / "rows.jsonl"
    content = path.read_text()
    try:
        path.write_text(content.replace("kebel", "kedan"))
        fresh = runs.open(answered.path)
        with pytest.raises(QueryError, match=r"rows.jsonl has changed since .*its digest is .*Checks that do apply"):
            examined(fresh, tmp_path, "conflict")
        found = examine(fresh, tmp_path / "rest.parquet", parse_settings([]), checks=None)
        assert {"conflict", "mismatched", "near_duplicate"} <= set(found.skipped)
    finally:
        path.write_text(content)


def test_plain_texts_have_no_answers_that_could_conflict(model_folder, corpus_file, tmp_path, client):
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()[:9]]
    run = build(tmp_path, records, model_folder("llama"))
    with pytest.raises(QueryError, match=r"conflict doesn't apply.*compares the answers to the same input"):
        examined(run, tmp_path, "conflict")


def test_of_a_conversation_the_last_turn_is_the_answer(model_folder, tmp_path, client):
    def talk(asked, answer):
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}

    records = [
        talk("which colour is the lighthouse at velmora painted in and why", "green"),
        talk("Which colour is the lighthouse at Velmora painted in, and why?", "blue"),
        talk("which colour is the lighthouse at velmora painted in and why", "green"),
        talk("how many bytes were read", "zero"),
        talk("how many bytes were read", "zero!"),
    ]
    run = build(tmp_path, records, model_folder("llama"))
    lines = examined(run, tmp_path, "near_duplicate", "conflict", settings=["conflict.cosine=1"])
    assert sorted(flagged(lines)) == [0, 1, 2]
    assert sorted(flagged(lines, "near_duplicate")) == [2, 4]
