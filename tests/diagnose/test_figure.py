"""Charts: names of any length and script fit, equal scores lie in the middle, and equal numbers give equal bytes."""

from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from influence.groups.bars import LABEL_GAP, LABELS, group_bars
from influence.groups.figure import CAPITAL, LETTER, PROMOTES, WIDE, render, shorten
from influence.groups.groups import GroupInfluences, GroupSettings, summed
from influence.select.less import Selected
from influence.select.plot import BOTTOM, HEIGHT, MOST_TICKS, TOP, selection_plot
from influence.store.columns import Categories

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("a" * 300, "数据来源" * 20, "W" * 90, "<b>&\"' \x00\x1b[31m\u202e", "e\u0301" * 60, "$x_1$ and $y$")


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


def parsed(chart):
    return ElementTree.fromstring(render(chart).encode())


def texts(root):
    """Return the x of each line of text; a line of a paragraph has none of its own."""
    return {text.text: float(text.get("x", "nan")) for text in root.iter(f"{SVG}text")}


def dots(root, name):
    group = next(group for group in root.iter(f"{SVG}g") if group.get("id") == name)
    return [(float(dot.get("x")), float(dot.get("y"))) for dot in group.iter(f"{SVG}use")]


@pytest.mark.parametrize(("letter", "width"), [("a", LETTER), ("数", WIDE), ("W", CAPITAL), ("e\u0301", LETTER)])
def test_a_name_is_cut_by_the_width_of_its_letters_and_its_end_stays(letter, width):
    line = shorten(letter * 100, 200, " (7)")
    assert line.endswith("… (7)")
    letters = line.count(letter)
    assert 200 - 2 * width < letters * width + 4 * LETTER + CAPITAL <= 200
    assert shorten(letter * 3, 200, " (7)") == letter * 3 + " (7)"


def test_every_label_of_a_group_fits_beside_its_bars_and_its_tooltip_has_the_whole_name():
    root = parsed(group_bars(bars(NAMES)))
    labels = [text for text in texts(root) if text.endswith(" (4)")]
    assert len(labels) == len(NAMES)
    assert all(shorten(label, LABELS - LABEL_GAP) == label for label in labels)
    assert "a" * 300 + " (4)" in {title.text for title in root.iter(f"{SVG}title")}
    assert "$x_1$ and $y$ (4)" in labels


def test_controls_and_marks_of_direction_in_a_name_are_written_as_symbols():
    drawing = render(group_bars(bars(NAMES)))
    assert "&lt;b&gt;&amp;" in drawing
    assert "⟨U+202E⟩ (4)</title>" in drawing
    assert not set(drawing) & set("\x00\x1b\u202e")


def test_a_bar_to_the_right_is_blue_and_one_to_the_left_orange_and_each_tells_its_numbers():
    influences = bars(["one", "two", "three"])
    root = parsed(group_bars(influences))
    for line in influences.lines:
        bar = next(
            group
            for group in root.iter(f"{SVG}g")
            if (group.findtext(f"{SVG}title") or "").startswith(f"{line.group}: ")
        )
        assert (PROMOTES in bar.find(f"{SVG}path").get("style")) == (line.sum >= 0)
        assert f"{line.sum:+.3g}".replace("-", "−") + ", from " in bar.findtext(f"{SVG}title")


def test_two_hundred_groups_are_drawn_as_the_largest_and_a_count_of_the_others():
    lines = texts(parsed(group_bars(bars([f"group {number}" for number in range(200)]))))
    assert sum(line.endswith(" (4)") for line in lines) == 30
    assert "and 170 groups with smaller sums" in lines


def test_equal_scores_are_drawn_on_one_line_in_the_middle():
    root = parsed(selection_plot(selected(np.zeros(5), np.full(5, 7))))
    places = dots(root, "chosen-rows") + dots(root, "other-rows")
    assert len(places) == 5
    assert {y for _, y in places} == {(TOP + HEIGHT - BOTTOM) / 2}
    assert [text.text for text in root.iter(f"{SVG}text")].count("+0") == 1


@pytest.mark.parametrize("longest", [1, 30, 2**15, 2**30])
def test_lengths_are_written_apart_however_long_the_longest_is(longest):
    lengths = np.minimum(2 ** np.arange(31), longest)
    lines = texts(parsed(selection_plot(selected(np.arange(31.0), lengths))))
    places = [x for line, x in lines.items() if line.replace(",", "").isdigit()]
    assert 2 <= len(places) <= MOST_TICKS + 1
    assert min(np.diff(places)) > 70


def test_bytes_depend_on_the_numbers_alone_not_on_the_readers_settings_or_the_date():
    plain = render(selection_plot(selected(np.arange(9.0), np.arange(9))))
    with mpl.rc_context({"svg.fonttype": "path", "font.size": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert render(selection_plot(selected(np.arange(9.0), np.arange(9)))) == plain
        assert mpl.rcParams["font.size"] == 30
    assert "<metadata" not in plain
