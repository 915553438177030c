"""What cleanlab's Datalab says of a run, by the graph and the probabilities that we hand it; tried on the real one."""

import importlib.util
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_matrix, load_npz
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import influence.api as runs
from influence.capture import model_pass
from influence.capture import probabilities as probability_stage
from influence.cli.main import main
from influence.config import parse_config
from influence.errors import MissingExtra, QueryError
from influence.issues.checks import datalab
from influence.issues.checks.registry import parse_settings
from influence.issues.issues import examine
from influence.issues.knn_graph import knn_matrix, save_knn_graph
from influence.issues.neighbors import Near

MADE = "cleanlab_label", "cleanlab_outlier", "cleanlab_near_duplicate"


@pytest.fixture(scope="module")
def classified(model_folder, corpus_file, tmp_path_factory, client):
    """Forty rows of three classes; row 5 has row 3's text and label."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    records[5] = {**records[3], "id": "copy"}
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model_folder("bert")), "kind": "sequence_classification", "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": {"name": "graddot", "projection": {"p": 8, "q": 8}},
        "store": {"rows_per_shard": 16, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("runs") / "x")


def datalab_of(labels=None, rows=40):
    from cleanlab import Datalab

    given = labels if labels is not None else [row % 2 for row in range(rows)]
    return Datalab(data={"label": given}, label_name="label", verbosity=0)


def test_the_exported_graph_is_scipys_csr_and_cleanlab_takes_it(classified, tmp_path, capsys):
    graph = classified.neighbours(settings=["k=6"])
    save_knn_graph(graph, tmp_path / "graph.npz")
    found = load_npz(tmp_path / "graph.npz")
    assert isinstance(found, csr_matrix)
    assert (found.shape, found.nnz) == ((40, 40), 240)
    near = graph.of(np.arange(40))
    np.testing.assert_array_equal(found.indices.reshape(40, 6)[:, 0], near.alike[:, 0])
    np.testing.assert_allclose(found.data.reshape(40, 6), np.clip(1 - near.alike_cosines, 0, 2), atol=1e-6)
    assert (np.diff(found.data.reshape(40, 6), axis=1) >= 0).all()
    np.testing.assert_array_equal(found.indptr, 6 * np.arange(41))
    whole = knn_matrix(graph)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(whole, part), getattr(found, part))
    lab = datalab_of()
    lab.find_issues(knn_graph=found, issue_types={"outlier": {"k": 6}, "near_duplicate": {"k": 6}})
    table = lab.get_issues()
    assert {"outlier_score", "near_duplicate_score"} <= set(table.columns)
    assert table["is_near_duplicate_issue"].to_numpy()[[3, 5]].all()
    assert "Error" not in capsys.readouterr().out


def test_rows_without_neighbours_get_stand_ins_once_each_at_the_distance_of_no_likeness():
    alike = np.array([[1, 2, -1], [-1, -1, -1], [0, 1, 3], [2, -1, -1]])
    cosines = np.where(alike >= 0, [[0.9, -0.5, 0], [0, 0, 0], [0.8, 0.7, 0.6], [0.1, 0, 0]], 0).astype(np.float32)

    class Few:
        rows, k = 4, 3

        def blocks(self):
            yield 0, Near(alike, cosines, alike, cosines)

    found = knn_matrix(Few())
    assert (np.diff(found.indptr) == 3).all()
    for row in range(4):
        line = found.indices[3 * row : 3 * row + 3].tolist()
        assert sorted(line) == [other for other in range(4) if other != row]
    np.testing.assert_allclose(found[0].toarray()[0], [0, 0.1, 1.5, 1], atol=1e-6)
    np.testing.assert_allclose(found.data[3:6], [1, 1, 1])
    assert found.data.reshape(4, 3)[0].tolist() == pytest.approx([0.1, 1, 1.5])


def test_the_command_keeps_the_graph_beside_the_table(classified, tmp_path, capsys):
    out, graph = tmp_path / "i.parquet", tmp_path / "g.npz"
    command = ["issues", str(classified.path), "--out", str(out), "--graph", str(graph), "--checks", "empty"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--set", "neighbours.k=4"])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    assert "4 nearest rows at each end, by an exact search" in told.err
    assert load_npz(graph).nnz == 160
    with pytest.raises(SystemExit) as ended:
        main([*command[:3], str(tmp_path / "j.parquet"), *command[4:]])
    assert ended.value.code == 2
    assert "g.npz exists already" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit) as ended:
        main([*command[:3], str(tmp_path / "j.parquet"), "--graph", str(tmp_path / "g.csv")])
    assert ended.value.code == 2
    assert "must end in .npz" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "j.parquet").exists()


def test_probabilities_are_those_of_the_model_asked_row_by_row_and_killed_blocks_go_on(
    classified, tmp_path, monkeypatch
):
    monkeypatch.setattr(model_pass, "ROWS", 16)
    model = AutoModelForSequenceClassification.from_pretrained(classified.config.model.path).eval()
    tokeniser = AutoTokenizer.from_pretrained(classified.config.model.path)
    expected = []
    for meta in classified.meta(range(40)):
        with torch.no_grad():
            expected.append(torch.softmax(model(**tokeniser(meta["text"], return_tensors="pt")).logits[0], 0).numpy())
    steps = []
    found = list(probability_stage.class_probabilities(classified.config, classified.store, tmp_path, steps.append))
    assert [first for first, _, _ in found] == [0, 16, 32]
    np.testing.assert_allclose(np.concatenate([part for _, part, _ in found]), expected, atol=1e-5)
    labels = [int(meta["label"]) for meta in classified.meta(range(40))]
    assert np.concatenate([part for _, _, part in found]).tolist() == labels
    (tmp_path / "probabilities-000000000016.json").unlink()
    steps.clear()
    again = list(probability_stage.class_probabilities(classified.config, classified.store, tmp_path, steps.append))
    assert (steps[0].done, steps[0].total) == (2, 3)
    np.testing.assert_array_equal(again[1][1], found[1][1])
    # The session's hooks are set anew by whoever captures next.
    assert classified.score([{"text": "A set.", "label": 1}]).shape == (1, 40)


def test_the_checks_say_what_cleanlab_says_turned_round(classified, tmp_path):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    found = examine(classified, tmp_path / "i.parquet", parse_settings(["neighbours.k=6"]), checks=MADE)
    table = pq.read_table(tmp_path / "i.parquet").to_pandas()
    blocks = list(probability_stage.class_probabilities(classified.config, classified.store, tmp_path))
    probabilities = np.concatenate([part for _, part, _ in blocks])
    labels = np.concatenate([part for _, _, part in blocks])
    quality = get_label_quality_scores(labels, probabilities)
    np.testing.assert_allclose(table["cleanlab_label_score"], 1 - quality, atol=1e-6)
    flagged = find_label_issues(labels, probabilities, min_examples_per_class=10)
    np.testing.assert_array_equal(table["is_cleanlab_label"], flagged)
    lab = datalab_of()
    lab.find_issues(knn_graph=knn_matrix(classified.neighbours(settings=["k=6"])), issue_types={"outlier": {"k": 6}})
    issues = lab.get_issues()
    np.testing.assert_allclose(table["cleanlab_outlier_score"], 1 - issues["outlier_score"], atol=1e-6)
    np.testing.assert_array_equal(table["is_cleanlab_outlier"], issues["is_outlier_issue"])
    assert table["is_cleanlab_near_duplicate"][[3, 5]].all()
    assert table["cleanlab_near_duplicate_score"][5] == 1
    copy = table["evidence"][5]["cleanlab_near_duplicate"]
    assert copy[0] == "row-3"
    assert set(table["action"].dropna()) <= {"review"}
    rules = {finding.issue: finding.rule for finding in found.findings}
    assert all("cleanlab 2." in rule for rule in rules.values())


def test_rows_without_a_class_in_the_data_or_without_a_token_leave_the_others_as_they_are(
    classified, tmp_path, monkeypatch
):
    from influence.issues.neighbors import NeighbourSettings
    from influence.issues.subject import Subject

    subject = Subject(classified, tmp_path, NeighbourSettings())
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([1, 1, 1, 1], 40).astype(np.float32)
    classes = np.array([int(meta["label"]) for meta in classified.meta(range(40))])
    probabilities[4] = np.nan
    monkeypatch.setattr(datalab, "_probabilities", lambda subject: (probabilities, classes))
    finding = datalab.check_label(subject, datalab.LabelSettings())
    assert np.isnan(finding.scores[4])
    assert 4 not in finding.cases
    own = probabilities[:, :3] / probabilities[:, :3].sum(axis=1, keepdims=True)
    expected = 1 - own[np.arange(40), classes]
    np.testing.assert_allclose(np.delete(finding.scores, 4), np.delete(expected, 4), atol=1e-6)
    for row, case in finding.cases.items():
        assert case.suggestion == f"review: the model expects '{np.argmax(own[row])}' (cleanlab)"


def test_they_are_made_only_where_they_are_named_also_beside_all_others(classified, tmp_path):
    settings = parse_settings(["neighbours.k=6"])
    usual = examine(classified, tmp_path / "usual.parquet", settings)
    assert not {finding.issue for finding in usual.findings} & set(MADE)
    assert usual.skipped["cleanlab_outlier"] == "Made only where it is named: --checks all,cleanlab_outlier."
    more = examine(classified, tmp_path / "more.parquet", settings, checks=["all", "cleanlab_outlier"])
    names = [finding.issue for finding in usual.findings]
    assert [finding.issue for finding in more.findings] == [*names, "cleanlab_outlier"]
    assert "cleanlab_outlier" not in more.skipped


def test_without_cleanlab_they_do_not_apply_and_named_they_name_the_extra(classified, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(datalab, "find_spec", lambda name: None if name == "cleanlab" else find(name))
    usual = examine(classified, tmp_path / "usual.parquet", parse_settings(["neighbours.k=6"]))
    assert usual.skipped["cleanlab_label"] == "It needs cleanlab: pip install 'influence[cleanlab]'."
    with pytest.raises(MissingExtra, match=r"cleanlab_label can't be made.*influence\[cleanlab\]"):
        examine(classified, tmp_path / "i.parquet", parse_settings(()), checks=["cleanlab_label"])


def test_labels_of_a_language_model_are_not_for_cleanlab_to_judge(model_folder, corpus_file, tmp_path, client):
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        "recipe": {"name": "graddot", "projection": {"p": 4, "q": 4}},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    run = runs.build(parse_config(settings, ()), tmp_path / "run")
    with pytest.raises(QueryError, match="needs a classifier"):
        examine(run, tmp_path / "i.parquet", parse_settings(()), checks=["cleanlab_label"])
