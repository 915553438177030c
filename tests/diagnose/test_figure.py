"""Pictures: names of any length and script stay on the sheet, and what is all the same is drawn in its middle."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from influence.groups.bars import LABELS, group_bars
from influence.groups.figure import CAPITAL, LETTER, WIDE, fitted, render
from influence.groups.groups import GroupInfluences, GroupSettings, summed
from influence.select.less import Selected
from influence.select.plot import BOTTOM, HEIGHT, LABELLED, TOP, selection_plot
from influence.store.columns import Categories

NAMES = ("a" * 300, "数据来源" * 20, "W" * 90, "<b>&\"' \x00\x1b[31m\u202e", "e\u0301" * 60, "plain")


def bars(names):
    rows = 4 * len(names)
    groups = Categories((np.arange(rows) % len(names)).astype(np.int32), tuple(names))
    sets = Categories(np.zeros(3, dtype=np.int32), ("all",))
    scores = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    settings = GroupSettings(replicates=100)
    lines = summed(iter([(0, scores)]), groups, sets, settings)
    return GroupInfluences("source", None, "nats", "Positive: more. Negative: less.", "logra", "run", settings, lines)


def selected(scores, lengths):
    rows = len(scores)
    return Selected(
        out=Path("x"),
        rows=rows,
        chosen=np.argsort(-scores, kind="stable")[:2],
        scores=scores.astype(np.float32),
        unit="nats",
        sign="",
        recipe="",
        run="",
        by="source",
        groups={},
        sets={},
        random=0.0,
        expected=2 / rows,
        words=None,
        length=None,
        lengths=lengths.astype(np.int32),
        length_of="characters",
        leaked=(0, 0),
        warnings=(),
    )


@pytest.mark.parametrize(("letter", "width"), [("a", LETTER), ("数", WIDE), ("W", CAPITAL), ("e\u0301", LETTER)])
def test_a_name_is_cut_by_the_width_of_its_letters_and_its_end_stays(letter, width):
    found = fitted(letter * 100, 200, " (7)")
    assert found.endswith("… (7)")
    shown = found.count(letter)
    assert 200 - 2 * width < shown * width + 4 * LETTER + CAPITAL <= 200
    assert fitted(letter * 3, 200, " (7)") == letter * 3 + " (7)"


def test_no_label_of_a_group_is_wider_than_its_place_and_the_whole_name_is_told():
    drawing = group_bars(bars(NAMES))
    labels = [mark for mark in drawing.marks if mark.kind == "text" and mark.text.endswith(" (4)")]
    assert len(labels) == len(NAMES)
    assert all(fitted(mark.text, LABELS - 12) == mark.text for mark in labels)
    assert any(mark.full == "a" * 300 + " (4)" for mark in labels)
    assert ElementTree.fromstring(render(drawing).encode()) is not None


def test_two_hundred_groups_are_drawn_as_the_largest_and_a_count_of_the_others():
    texts = [mark.text for mark in group_bars(bars([f"group {number}" for number in range(200)])).marks]
    assert sum(text.endswith(" (4)") for text in texts) == 30
    assert "and 170 groups with smaller sums" in texts


def test_scores_that_are_all_the_same_are_drawn_on_one_line_in_the_middle():
    marks = selection_plot(selected(np.zeros(5), np.full(5, 7))).marks
    assert {mark.y for mark in marks if mark.kind == "dot"} == {(TOP + HEIGHT - BOTTOM) / 2}
    assert [mark.text for mark in marks].count("+0") == 1


@pytest.mark.parametrize("longest", [1, 30, 2**15, 2**30])
def test_lengths_are_written_apart_however_long_the_longest_is(longest):
    lengths = np.minimum(2 ** np.arange(31), longest)
    marks = selection_plot(selected(np.arange(31.0), lengths)).marks
    places = [mark.x for mark in marks if mark.anchor == "middle" and mark.text.replace(",", "").isdigit()]
    assert 2 <= len(places) <= LABELLED + 1
    assert min(np.diff(places)) > 70
