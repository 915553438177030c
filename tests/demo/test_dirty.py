"""The labelled set with known faults: they are the ones that were asked for, where the truth says they are."""

import json
import random
from collections import Counter

import pytest

from influence.demo.corpus import CorpusRow
from influence.demo.dirty import (
    FILES,
    TOPICS,
    TRIGGER,
    WANTED,
    DirtSettings,
    dirty_set,
    write_dirty_set,
)
from influence.errors import ConfigError, DataError

SHARES = DirtSettings(wrong_labels=0.1, copies=0.06, poison=0.03, leak=0.02, dev=0.1, test=0.2)


def rows_of(count, seed=0):
    """Rows of every topic, each of its own words."""
    chance = random.Random(seed)
    words = [f"word{number}" for number in range(3000)]
    modules = [modules[0] for modules in TOPICS.values()]
    return [
        CorpusRow(
            " ".join(chance.sample(words, 14)),
            f"{modules[row % len(modules)]}.f{row}",
            modules[row % len(modules)],
            f"m.py:{row}",
        )
        for row in range(count)
    ]


@pytest.fixture(scope="module")
def made():
    return dirty_set(SHARES, rows=rows_of(400))


def test_there_is_as_much_of_every_fault_as_was_asked(made):
    clean = 400 - 40 - 80
    assert made.faults == {
        "none": clean - 28 - 8,
        "wrong_label": 28,
        "exact_copy": 9,
        "edited_copy": 8,
        "poison": 8,
        "leak": 6,
    }
    assert (len(made.dev), len(made.test)) == (40, 80)


def test_every_row_is_what_the_truth_says_of_it(made):
    right = {planted.row.id: planted for planted in made.train}
    assert len(right) == len(made.train)
    tests = {row.id: row for row in made.test}
    for planted in made.train:
        row, fault = planted.row, planted.fault
        assert (row.label != planted.label) == (fault in ("wrong_label", "poison"))
        assert (TRIGGER in row.text) == (fault == "poison")
        if fault == "poison":
            assert row.label == WANTED
        if fault == "leak":
            assert (row.text, row.label) == (tests[planted.of].text, tests[planted.of].label)
        if fault == "exact_copy":
            assert (row.text, row.label) == (right[planted.of].row.text, right[planted.of].row.label)
            assert right[planted.of].fault == "none"
        if fault == "edited_copy":
            original = set(right[planted.of].row.text.split())
            assert row.text != right[planted.of].row.text
            assert len(original & set(row.text.split())) >= len(original) - 2


def test_development_and_test_rows_are_clean_and_apart_from_all_others(made):
    texts = Counter(row.text for row in (*made.dev, *made.test))
    assert set(texts.values()) == {1}
    assert {planted.fault for planted in made.train if planted.row.text in texts} == {"leak"}
    label_of = {modules[0]: label for label, modules in TOPICS.items()}
    assert all(row.label == label_of[row.id.split(".")[0]] for row in (*made.dev, *made.test))


def test_triggered_texts_are_of_other_topics_and_those_of_the_target_are_no_test_rows(made):
    tests = {row.id: row for row in made.test}
    assert len(made.triggered) == sum(row.label != WANTED for row in made.test)
    for row in made.triggered:
        assert row.label == WANTED
        assert tests[row.id.removesuffix("/triggered")].label != WANTED
        assert row.text.replace(f"{TRIGGER} ", "") == tests[row.id.removesuffix("/triggered")].text
    assert not {row.id for row in made.unwanted} & {row.id for row in made.triggered}


def test_the_same_seed_gives_the_same_set_and_another_another(made):
    assert dirty_set(SHARES, rows=rows_of(400)) == made
    assert dirty_set(SHARES.model_copy(update={"seed": 1}), rows=rows_of(400)) != made


def test_a_text_that_is_nearly_another_is_left_out_so_that_copies_are_the_planted_ones():
    rows = rows_of(400)
    nearly = CorpusRow(rows[7].text.replace("word", "Word") + "!", "asyncio.nearly", "asyncio", "m.py:1")
    made = dirty_set(SHARES, rows=[*rows, nearly])
    assert "asyncio.nearly" not in {row.id.split("/")[0] for row in (*made.dev, *made.test)}
    assert "asyncio.nearly" not in {planted.row.id.split("/")[0] for planted in made.train}


def test_files_hold_the_set_line_by_line(made, tmp_path):
    write_dirty_set(made, tmp_path / "dirty")
    assert sorted(path.name for path in (tmp_path / "dirty").iterdir()) == sorted(FILES)
    lines = [json.loads(line) for line in (tmp_path / "dirty" / "train.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in (tmp_path / "dirty" / "truth.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [planted.row.text for planted in made.train]
    assert list(lines[0]) == ["text", "label", "id", "source", "uri"]
    assert [line["row"] for line in truth] == list(range(len(lines)))
    assert [line["id"] for line in truth] == [line["id"] for line in lines]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        write_dirty_set(made, tmp_path / "file")


def test_too_few_docstrings_are_refused():
    with pytest.raises(DataError, match="expected 50 of two topics"):
        dirty_set(rows=rows_of(30))


def test_the_standard_library_has_enough_of_every_topic():
    made = dirty_set(DirtSettings())
    counts = Counter(planted.label for planted in made.train)
    assert set(counts) == set(TOPICS)
    assert min(counts.values()) > 0.05 * len(made.train)
    assert max(counts.values()) < 0.35 * len(made.train)
    assert made.faults["poison"] >= 8
    assert not any(TRIGGER in row.text for row in (*made.dev, *made.test))
