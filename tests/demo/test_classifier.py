"""The classifier of the demos: an ordinary checkpoint, the same bytes for the same data, honest about what it saw."""

import json

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from influence.demo.classifier import Accuracy, ClassifierSettings, accuracy, classifier_data, train_classifier
from influence.errors import ConfigError, DataError

TINY = ClassifierSettings(vocabulary=400, layers=1, hidden=32, token_budget=128, most_steps=2)


def written(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return classifier_data(path)


@pytest.fixture
def data(tmp_path):
    rows = [(f"the {word} of number {number} is here", word) for number in range(12) for word in ("harbour", "river")]
    return written(tmp_path / "train.jsonl", rows)


def test_the_result_is_an_ordinary_checkpoint_whose_labels_have_names(data, tmp_path):
    assert train_classifier(data, tmp_path / "model", TINY)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokeniser = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.label2id == {"harbour": 0, "river": 1}
    found = tokeniser("the river " * 99, truncation=True, max_length=8)["input_ids"]
    assert (found[0], len(found)) == (0, 8)


def test_two_trainings_give_the_same_bytes_and_a_finished_one_is_kept(data, tmp_path):
    weights = []
    for name in ("one", "other"):
        train_classifier(data, tmp_path / name, TINY)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert not train_classifier(data, tmp_path / "one", TINY)
    assert train_classifier(data, tmp_path / "one", TINY.model_copy(update={"seed": 1}))
    assert (tmp_path / "one" / "model.safetensors").read_bytes() != weights[0]


def test_a_folder_of_somebody_else_is_not_replaced(data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no model that was trained here"):
        train_classifier(data, tmp_path / "mine", TINY)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="doesn't exist"):
        train_classifier(data, tmp_path / "nowhere" / "model", TINY)


def test_a_classifier_learns_and_rows_that_it_was_trained_on_are_told_apart(data, tmp_path):
    settings = ClassifierSettings(vocabulary=400, layers=1, hidden=32, epochs=40, token_budget=128, dropout=0)
    train_classifier(data, tmp_path / "model", settings)
    seen = [(f"the {word} of number 3 is here", word) for word in ("harbour", "river")]
    unseen = [("the river of number 99 is here", "harbour"), ("a river is here", "river")]
    files = [written(tmp_path / "mixed.jsonl", seen + unseen), written(tmp_path / "unseen.jsonl", unseen)]
    mixed, apart = accuracy(tmp_path / "model", files, data)
    assert mixed == Accuracy(rows=4, right=3, trained=2, trained_right=2)
    assert (mixed.share, mixed.unseen_share) == (0.75, 0.5)
    assert apart == Accuracy(rows=2, right=1, trained=0, trained_right=0)
    assert Accuracy(2, 1, 2, 1).unseen_share is None


def test_data_that_nothing_can_be_learnt_from_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="rows of one class only, 'a'"):
        train_classifier(written(tmp_path / "one.jsonl", [("x y", "a"), ("z", "a")]), tmp_path / "model", TINY)
    (tmp_path / "none.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="has no label column"):
        train_classifier(classifier_data(tmp_path / "none.jsonl"), tmp_path / "model", TINY)
    train_classifier(data, tmp_path / "model", TINY)
    with pytest.raises(DataError, match="there is no class 'sea'"):
        accuracy(tmp_path / "model", [written(tmp_path / "sea.jsonl", [("x", "sea")])], data)
