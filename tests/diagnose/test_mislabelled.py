"""Wrong labels: what neighbours at both ends say is counted as a plain loop counts it, and a classifier's are found."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import influence.api as runs
from influence.cli.main import main
from influence.config import parse_config
from influence.errors import QueryError
from influence.issues.checks import mislabelled
from influence.issues.checks.mislabelled import MislabelledSettings
from influence.issues.checks.registry import IssueSettings
from influence.issues.issues import examine
from influence.issues.neighbors import Near
from influence.issues.subject import Subject
from influence.query.evaluation import read_evaluation
from influence.store.columns import Categories

LABELS = ("mail", "web", "files")


def subject_of(
    near, codes, losses, itself, *, norms=None, examples=None, labels=(), kind="sequence_classification"
) -> Any:
    """A subject of known neighbours: (alike rows, cosines, opposed rows, cosines), each [rows, k].

    `examples` are scores [rows, examples] of an evaluation set with these labels.
    """
    near = Near(*(np.asarray(array) for array in near))
    rows = len(codes)

    def blocks(size):
        for first in range(0, rows, 3):
            yield first, of(np.arange(first, min(rows, first + 3)))

    def of(asked):
        return Near(*(getattr(near, name)[asked] for name in ("alike", "alike_cosines", "opposed", "opposed_cosines")))

    found = SimpleNamespace(
        rows=rows,
        labels=Categories(np.asarray(codes, np.int32), LABELS),
        labelled=bool((np.asarray(codes) >= 0).any()),
        losses=np.asarray(losses, np.float32),
        norms=np.ones(rows, np.float32) if norms is None else np.asarray(norms, np.float32),
        self_influence=np.asarray(itself, np.float32),
        graph=SimpleNamespace(blocks=blocks, of=of),
        ids=lambda asked: [f"row-{row}" for row in asked],
        run=SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(kind=kind))),
        check_self_influence=lambda: None,
        evaluation=None,
    )
    if examples is not None:
        scores = np.asarray(examples, np.float32)
        found.evaluation = SimpleNamespace(
            labels=list(labels), ids=[f"eval:{number}" for number in range(scores.shape[1])]
        )
        found.evaluation_scores = lambda: iter([(0, scores[:2]), (2, scores[2:])])
        found.evaluation_scales = Subject.evaluation_scales.func(found)
    return found


def seven(**changes) -> Any:
    """Row 6 says `mail`, and four trusted rows of `web` oppose it; row 5 is opposed by it and by nobody else."""
    given = {
        "near": (
            [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [0, -1]],
            [[0.9, 0.8], [0.9, 0.7], [0.8, 0.7], [0.9, 0.8], [0.9, 0.6], [0.8, 0.6], [0.2, 0]],
            [[6, -1], [-1, -1], [-1, -1], [6, -1], [6, -1], [6, 0], [3, 4]],
            [[-0.1, 0], [0, 0], [0, 0], [-0.8, 0], [-0.7, 0], [-0.6, -0.1], [-0.8, -0.7]],
        ),
        "codes": [0, 0, 0, 1, 1, 1, 0],
        "losses": [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 3.0],
        "itself": [1, 1, 1, 2, 2, 2, 9],
    }
    return subject_of(**{**given, **changes})


def test_a_row_that_trusted_rows_of_another_label_oppose_is_flagged_with_their_label():
    finding = mislabelled.check(seven(), MislabelledSettings())
    assert list(finding.cases) == [6]
    case = finding.cases[6]
    assert (case.action, case.label, case.suggestion) == ("relabel", "web", "relabel to 'web'")
    assert case.evidence == ("row-3", "row-4")
    assert finding.scores[6] == 1
    assert finding.rule == "Flagged from 0.5 on: the nearest rows and the model say five to one against."
    assert np.nanmax(np.delete(finding.scores, 6)) < 0.5


def test_a_row_whose_label_the_model_has_learnt_is_not_flagged_whatever_its_neighbours_say():
    finding = mislabelled.check(seven(losses=[0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.02]), MislabelledSettings())
    assert finding.cases == {}


def test_a_row_that_the_model_finds_unlikely_is_not_flagged_where_its_neighbours_speak_for_it():
    finding = mislabelled.check(seven(losses=[9.0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.01]), MislabelledSettings())
    assert finding.cases == {}
    assert finding.scores[0] < 0.5


def test_rows_that_a_wrong_row_opposes_are_not_outvoted_because_nobody_trusts_it():
    assert list(mislabelled.check(seven(), MislabelledSettings()).cases) == [6]
    trusted = mislabelled.check(seven(losses=[3, 3, 3, 3, 3, 3, 0.001]), MislabelledSettings())
    assert {3, 4, 5} <= set(trusted.cases)


def test_neighbours_that_have_several_labels_suggest_none():
    codes = [0, 0, 2, 1, 2, 1, 0]
    near = seven().graph.of(np.arange(7))
    opposed, cosines = near.opposed.copy(), near.opposed_cosines.copy()
    opposed[6], cosines[6] = [3, 4], [-0.7, -0.7]
    changed = (near.alike, near.alike_cosines, opposed, cosines)
    case = mislabelled.check(seven(codes=codes, near=changed), MislabelledSettings()).cases[6]
    assert (case.action, case.label) == ("review", None)
    assert case.suggestion.startswith("review: the label may be")


@given(seed=st.integers(0, 50), k=st.integers(1, 4))
def test_scores_and_flags_are_those_of_a_plain_loop_in_float64(seed, k):
    chance = np.random.default_rng(seed)
    rows, examples = 12, 5
    near = (
        chance.integers(-1, rows, (rows, k)),
        chance.random((rows, k)),
        chance.integers(-1, rows, (rows, k)),
        chance.uniform(-1, 0.1, (rows, k)),
    )
    codes, losses = chance.integers(0, 3, rows), chance.exponential(size=rows)
    itself, scores = chance.random(rows), chance.standard_normal((rows, examples)).astype(np.float32)
    subject = subject_of(near, codes, losses, itself, examples=scores, labels=["web"] * examples)
    finding = mislabelled.check(subject, MislabelledSettings(examples=2))
    scaled = scores.astype(np.float64) / np.sqrt((scores.astype(np.float64) ** 2).mean(axis=0))
    con, pro = np.zeros((2, 2, rows))
    for row in range(rows):
        for place in range(k):
            if near[0][row, place] >= 0:
                pro[0, row] += max(0.0, near[1][row, place]) ** 2 * np.exp(-losses[near[0][row, place]])
            if near[2][row, place] >= 0:
                con[0, row] += max(0.0, -near[3][row, place]) ** 2 * np.exp(-losses[near[2][row, place]])
        line = sorted(scaled[row])
        pro[1, row], con[1, row] = (
            sum(max(0.0, sign * one) for one in part) for sign, part in ((1, line[-2:]), (-1, line[:2]))
        )
    odds = np.ones(rows)
    for jury in range(2):
        heard = (con[jury] + pro[jury]).mean() / 100
        odds *= (con[jury] + heard) / (pro[jury] + heard)
    chance_of_own = np.exp(-losses)
    flagged = (odds > 1) & (odds * (1 - chance_of_own) / chance_of_own >= 5)
    ranks = [
        [sum(other < one for other in line) + (sum(other == one for other in line) + 1) / 2 for one in line]
        for line in (losses, itself, odds.round(6))
    ]
    np.testing.assert_allclose(finding.scores, (np.mean(ranks, axis=0) / rows + flagged) / 2, rtol=1e-4)
    assert set(finding.cases) == set(np.flatnonzero(flagged).tolist())


def test_an_evaluation_set_that_shares_the_label_saves_a_row_and_one_that_does_not_is_evidence():
    near = np.full((7, 3), 0.01)
    for row, code in enumerate([0, 0, 0, 1, 1, 1, 0]):
        near[row] = (1, -0.2, 0.1) if code == 0 else (-0.2, 1, 0.1)
    losses = [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.8]
    assert list(mislabelled.check(seven(losses=losses), MislabelledSettings()).cases) == [6]
    saved = mislabelled.check(seven(examples=near, labels=LABELS, losses=losses), MislabelledSettings())
    assert saved.cases == {}
    near[6] = -0.1, -3, 0.1
    told = mislabelled.check(seven(examples=near, labels=LABELS, losses=losses), MislabelledSettings(evidence=3))
    case = told.cases[6]
    assert (case.action, case.label) == ("relabel", "web")
    assert case.evidence == ("eval:1", "row-3", "row-4")


def test_a_threshold_that_is_set_is_used_and_rows_nobody_speaks_of_are_reviewed():
    finding = mislabelled.check(seven(), MislabelledSettings(threshold=0.3))
    assert set(finding.cases) == set(np.flatnonzero(finding.scores >= 0.3).tolist())
    assert finding.rule == "Flagged from 0.3 on: as set."
    assert {case.action for row, case in finding.cases.items() if row != 6} <= {"relabel", "review"}
    assert {6} < set(finding.cases)
    alone = mislabelled.check(seven(), MislabelledSettings(threshold=0)).cases[1]
    assert (alone.action, alone.evidence) == ("review", ())


def test_nothing_is_said_of_rows_without_a_label_or_a_gradient():
    norms = [1, 1, 0, 1, 1, 1, 1]
    finding = mislabelled.check(seven(codes=[0, -1, 0, 1, 1, 1, 0], norms=norms), MislabelledSettings())
    assert np.flatnonzero(np.isnan(finding.scores)).tolist() == [1, 2]
    assert list(finding.cases) == [6]


def test_it_needs_labels_and_a_model_that_reads_them():
    assert mislabelled.lacks(seven()) is None
    assert mislabelled.lacks(seven(codes=[-1] * 7)) == "the rows have no labels."
    told = mislabelled.lacks(seven(kind="causal_lm"))
    assert told is not None
    assert told.startswith("the model is no classifier: its gradients don't depend on the labels")


@pytest.fixture(scope="module")
def classifier(model_folder, corpus_file, tmp_path_factory, client):
    """A run of forty rows of three classes; row 3 is far longer than the model has positions."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    records[3]["text"] = "The harbour freezes. " * 400
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model_folder("bert")), "kind": "sequence_classification", "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 32},
        "recipe": {"name": "graddot", "projection": {"p": 6, "q": 6}},
        "store": {"rows_per_shard": 16, "codec": "float16"},
        "cluster": {"token_budget": 256, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("runs") / "x"), data


def test_evaluation_examples_are_cut_where_rows_are(classifier, tmp_path):
    run, data = classifier
    (scores,) = [found for _, found in read_evaluation(run, data).scores(tmp_path)]
    norms = np.concatenate([found for _, found in run.store.norms()])
    np.testing.assert_allclose(scores.diagonal(), norms**2, rtol=5e-3)


def test_a_classifier_is_examined_from_the_command_line_with_an_evaluation_set(classifier, tmp_path, capsysbinary):
    run, data = classifier
    out = tmp_path / "issues.parquet"
    argv = ["issues", run.path, "--checks", "mislabelled,harmful", "--eval", data, "--out", out, "--format", "json"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    printed = capsysbinary.readouterr()
    assert ended.value.code in (0, None), printed.err.decode()
    told = json.loads(printed.out)
    assert [issue["issue"] for issue in told["issues"]] == ["mislabelled", "harmful"]
    table = pq.read_table(out)
    scores = np.array(table.column("mislabelled_score").to_pylist())
    assert ((scores > 0) & (scores <= 1)).all()
    flagged = [line for line in table.to_pylist() if line["is_mislabelled"]]
    assert len(flagged) == told["issues"][0]["flagged"]
    assert all(line["suggested_label"] in (None, "0", "1", "2") for line in flagged)


def test_an_evaluation_file_with_other_columns_ends_with_both_named(classifier, tmp_path, capsysbinary):
    run, _ = classifier
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"sentence": "The harbour freezes.", "class": 1}) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["issues", str(run.path), "--eval", str(other), "--out", str(tmp_path / "issues.parquet")])
    told = " ".join(capsysbinary.readouterr().err.decode().replace("│", " ").split())
    assert ended.value.code == 2
    for named in ("other.jsonl", "sentence", "class", "text"):
        assert named in told
    assert not (tmp_path / "issues.parquet").exists()


def test_unlabelled_data_asked_for_it_by_name_ends_with_the_checks_that_apply(
    model_folder, corpus_file, tmp_path, client
):
    data = tmp_path / "rows.jsonl"
    lines = [json.loads(line) for line in corpus_file.read_text().splitlines()[:12]]
    data.write_text("".join(json.dumps({"text": line["text"], "id": line["id"]}) + "\n" for line in lines))
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 32},
        "recipe": {"name": "graddot", "projection": {"p": 4, "q": 4}},
        "cluster": {"token_budget": 256, "workers": 1, "device": "cpu"},
    }
    run = runs.build(parse_config(settings, ()), tmp_path / "run")
    told = r"mislabelled doesn't apply to .*run: the rows have no labels\. Checks that do apply: .*empty, zero_gradient"
    with pytest.raises(QueryError, match=told):
        examine(run, tmp_path / "issues.parquet", IssueSettings(), checks=["mislabelled"])
