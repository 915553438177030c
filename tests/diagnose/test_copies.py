"""What counts as a copy of a text, and what a run's rows are told of it: `near_duplicate` and `leak`."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence.api as runs
from influence.config import parse_config
from influence.errors import QueryError
from influence.issues.checks.duplicates import NearDuplicateSettings, near_duplicate_sets
from influence.issues.checks.registry import IssueSettings, parse_settings
from influence.issues.issues import examine
from tests.diagnose.worded import LONG, WORDS, edited, shingles_of


def test_a_chain_of_copies_does_not_join_unlike_texts():
    words = [f"w{number}" for number in range(40)]
    chain = [" ".join(words[step : step + 20]) for step in range(0, 20, 2)]
    sets = near_duplicate_sets(chain)
    ends = shingles_of(chain[0]) & shingles_of(chain[-1])
    assert len(ends) < 20
    assert len(set(sets.representative.tolist())) > 1
    for row, kept in enumerate(sets.representative):
        one, other = shingles_of(chain[row]), shingles_of(chain[kept])
        assert len(one & other) / len(one | other) >= 0.65


def test_the_one_with_the_most_copies_stands_for_its_set_then_the_longest_then_the_lowest_row():
    copies = [edited(edited(LONG, first), first + 2) for first in (1, 5, 9)]
    assert near_duplicate_sets([*copies, LONG]).representative.tolist() == [3, 3, 3, 3]
    assert near_duplicate_sets(copies).representative.tolist() == [0, 1, 2]
    assert near_duplicate_sets([LONG, f"{LONG} long"]).representative.tolist() == [1, 1]
    for place in range(12):
        assert near_duplicate_sets([LONG, edited(LONG, place)]).representative.tolist() == [0, 0]
        assert near_duplicate_sets([edited(LONG, place), LONG]).representative.tolist() == [0, 0]
    assert near_duplicate_sets(["b c", LONG, LONG.upper(), "b c!", LONG]).representative.tolist() == [0, 1, 1, 0, 1]


def test_a_preferred_text_stands_for_its_set():
    texts = [LONG, LONG, edited(LONG, 4), "x"]
    found = near_duplicate_sets(texts, preferred=np.array([0.0, 2.0, 3.0, 1.0]))
    assert found.representative.tolist() == [2, 2, 2, 3]
    found = near_duplicate_sets(texts, preferred=np.array([0.0, 3.0, 2.0, 1.0]))
    assert found.representative.tolist() == [1, 1, 1, 3]


def test_texts_with_different_labels_are_no_copies():
    copy = edited(LONG, 4)
    found = near_duplicate_sets([LONG, LONG, copy, LONG, copy], labels=np.array([0, 1, 1, 0, -1]))
    assert found.representative.tolist() == [0, 1, 1, 0, 4]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The  River,\nwas: named!", "the river was named", True),
        ("Ｆｕｌｌ ﬁle", "full file", True),
        ("naïve café", "NAÏVE CAFÉ", True),
        ("don't", "don t", True),
        ("what is 3 - 4", "what is 3 + 4", False),
        ("what is 3 − 4", "what is 3 - 4", True),
        ("3.5", "35", False),
        ("the cat sat", "cat the sat", False),
        ("return self", "return cls", False),
        ("你好世界", "你好,世界", True),
        ("你好世界", "你好世", False),
        ("!!!", "???", False),
        ("👍", " 👍\n", True),
        ("👍", "👎", False),
        ("नमस्ते दुनिया", "नमसत दनय", False),
    ],
)
def test_what_of_a_text_is_ignored_and_what_is_not(one, other, same):
    assert (near_duplicate_sets([one, other]).representative[1] == 0) == same


def test_a_short_text_is_a_copy_only_to_the_word_and_one_that_can_be_edited_is_not():
    nine, ten = LONG.split()[:9], LONG.split()[:10]
    for words, found in ((nine, [0, 1]), (ten, [0, 0])):
        changed = [*words[:4], "other", *words[5:]]
        sets = near_duplicate_sets([" ".join(words), " ".join(changed)])
        assert (len(set(sets.representative.tolist())) == 1) == (found == [0, 0])


def test_words_of_scripts_without_spaces_are_letters():
    text = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    assert len(set(near_duplicate_sets([text, text.replace("月", "星"), text[::-1]]).representative.tolist())) == 2


def test_no_texts_and_one_text_are_their_own_sets():
    assert near_duplicate_sets([]).representative.tolist() == []
    assert near_duplicate_sets(["", "a"]).representative.tolist() == [0, 1]


@pytest.fixture(scope="module")
def records():
    """Thirty rows without ids, so that equal texts share one; rows 20 to 25 are copies."""
    chance = random.Random(2)
    found = [{"text": " ".join(chance.choices(WORDS, k=16)), "label": row % 2} for row in range(20)]
    texts = [record["text"] for record in found]
    copies = [
        texts[3],
        texts[3].upper() + "!",
        " ".join(texts[5].split()[:-2]),
        edited(texts[7], 4),
        texts[9],
        "",
    ]
    labels = [1, 1, 1, 1, 0, 0]
    found += [{"text": text, "label": label} for text, label in zip(copies, labels, strict=True)]
    return [*found, *({"text": " ".join(chance.choices(WORDS, k=4)), "label": 0} for _ in range(4))]


def build(folder, records, model, kind):
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model), "kind": kind, "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 128},
        "recipe": {"name": "logra", "projection": {"p": 4, "q": 4}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 512, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), folder / "run")


@pytest.fixture(scope="module")
def run(model_folder, records, tmp_path_factory, client):
    return build(tmp_path_factory.mktemp("copies"), records, model_folder("llama"), "causal_lm")


@pytest.fixture(scope="module")
def classified(model_folder, records, tmp_path_factory, client):
    return build(tmp_path_factory.mktemp("classes"), records, model_folder("bert"), "sequence_classification")


def examined(run, folder, *checks, settings=(), **given):
    examine(run, folder / "issues.parquet", parse_settings(settings), checks=checks, **given)
    return pq.read_table(folder / "issues.parquet").to_pylist()


def test_a_flagged_row_names_the_row_it_is_a_copy_of_though_ids_repeat(run, tmp_path):
    lines = examined(run, tmp_path, "near_duplicate")
    flagged = {line["row"]: line for line in lines if line["is_near_duplicate"]}
    assert sorted(flagged) == [20, 21, 22, 23, 24]
    assert flagged[20]["suggestion"] == f"drop: a copy of {lines[3]['id']} (row 3)"
    assert flagged[20]["id"] == lines[3]["id"]
    assert flagged[21]["evidence"]["near_duplicate"][0] == lines[3]["id"]
    assert flagged[22]["suggestion"].startswith("drop: nearly a copy (0.")
    assert flagged[22]["suggestion"].endswith("(row 5)")
    assert {line["action"] for line in flagged.values()} == {"drop"}
    assert flagged[21]["near_duplicate_score"] == 1
    assert 0.65 <= flagged[23]["near_duplicate_score"] < 1
    assert (lines[3]["near_duplicate_score"], lines[25]["near_duplicate_score"]) == (0, None)


def test_in_a_classifiers_data_a_copy_has_the_same_label(classified, tmp_path):
    lines = examined(classified, tmp_path, "near_duplicate")
    assert [line["row"] for line in lines if line["is_near_duplicate"]] == [20, 21, 22, 23]


def test_a_threshold_is_a_setting_and_is_told(run, tmp_path):
    lines = examined(run, tmp_path, "near_duplicate", settings=["near_duplicate.jaccard=0.95"])
    assert [line["row"] for line in lines if line["is_near_duplicate"]] == [20, 21, 24]
    frame = run.issues(["near_duplicate"], settings=["near_duplicate.jaccard=0.95"])
    assert "at least 0.95 of the words and word pairs" in frame.attrs["rules"]["near_duplicate"]


def test_texts_that_differ_in_a_few_words_are_copies_only_where_their_gradients_agree(run, tmp_path):
    vectors = run.vectors(range(30)).astype(np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    cosines = {22: unit[22] @ unit[5], 23: unit[23] @ unit[7]}
    assert abs(cosines[22] - cosines[23]) > 1e-3
    between = (cosines[22] + cosines[23]) / 2
    for least, expected in ((-1, [22, 23]), (1, []), (between, [max(cosines, key=lambda row: cosines[row])])):
        folder = tmp_path / f"at {least}"
        folder.mkdir()
        lines = examined(run, folder, "near_duplicate", settings=[f"near_duplicate.cosine={least}"])
        assert [line["row"] for line in lines if line["is_near_duplicate"]] == sorted([20, 21, 24, *expected])


def test_an_evaluation_example_among_the_rows_is_a_leak(run, records, tmp_path):
    held = [
        {"text": "nothing like any of the rows is to be found in here at all", "id": "clean"},
        {"text": records[5]["text"].upper(), "id": "copied"},
        {"text": edited(records[8]["text"], 3), "id": "edited"},
        {"text": " ", "id": "empty"},
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in held))
    from influence.query.evaluation import read_evaluation

    lines = examined(run, tmp_path, "leak", evaluation=read_evaluation(run, path))
    flagged = {line["row"]: line for line in lines if line["is_leak"]}
    assert sorted(flagged) == [5, 8, 22]
    assert flagged[5]["evidence"]["leak"] == ["eval:copied"]
    assert flagged[5]["suggestion"] == "drop: is in the evaluation set as eval:copied (example 1)"
    assert flagged[8]["suggestion"].startswith("drop: is nearly (0.")
    assert (flagged[5]["leak_score"], lines[0]["leak_score"], lines[25]["leak_score"]) == (1, 0, None)


def test_a_leak_can_only_be_looked_for_in_an_evaluation_set(run, tmp_path):
    with pytest.raises(QueryError, match=r"leak doesn't apply.*give a file of them \(--eval\)"):
        examined(run, tmp_path, "leak")


@pytest.mark.parametrize("setting", ["near_duplicate.jaccard=1.1", "leak.words=0", "conflict.cosine=-2"])
def test_a_threshold_that_can_not_be_is_refused(setting):
    from influence.errors import ConfigError

    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        parse_settings([setting])


def test_the_defaults_are_those_that_are_argued_for():
    assert IssueSettings().near_duplicate == NearDuplicateSettings(jaccard=0.65, words=10)


def test_ids_of_an_evaluation_file_are_its_own_unless_the_run_has_none_and_they_repeat(run, records, tmp_path):
    from influence.query.evaluation import read_evaluation

    assert run.config.data.columns.id is None
    path = tmp_path / "dev.jsonl"
    for ids, found in ((["a", "b"], ["a", "b"]), (["a", "a"], None)):
        held = [{"text": records[row]["text"], "id": name} for row, name in enumerate(ids)]
        path.write_text("".join(json.dumps(record) + "\n" for record in held))
        read = [example.id for example in read_evaluation(run, path).examples]
        assert read == found if found else len({*read, "a"}) == 3
