"""The bar chart of groups: sum and mean of each group on each set of queries, with their intervals."""

from typing import TYPE_CHECKING

from influence.groups.figure import (
    HEADING,
    INK,
    OPPOSES,
    PROMOTES,
    SMALL,
    SOFT,
    TEXT,
    Chart,
    chart_style,
    new_chart,
    shorten,
    signed_number,
)
from influence.groups.groups import GroupInfluence, GroupInfluences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_GROUPS = 30
"""Groups of a set that are drawn, those with the largest sums of either sign."""
MOST_SETS = 20
LABELS, PANEL, NUMBERS = 180, 190, 90
"""Pixels of the groups' names, of each measure's bars, and of its numbers."""
ROW, HEAD, GAP, FOOT = 24, 66, 30, 5 * 24
MARGIN, EDGE, LABEL_GAP = 20, 6, 12
BAR, CAP = 2 / 3, 1 / 3
"""Heights of a bar and of an interval's end, as shares of their row."""
HEADING_WIDTH = LABELS + 2 * (PANEL + NUMBERS)
MEASURES = {"sum": "sum over the group's rows", "mean": "mean of a row"}


@chart_style()
def group_bars(influences: GroupInfluences) -> Chart:
    """Draw every group's sum and mean; bars of one measure share one scale over all sets.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    lines = {name: _largest_groups(influences.of_set(name)) for name in influences.set_names[:MOST_SETS]}
    scales = {
        measure: _largest([line for of_set in lines.values() for line in of_set], measure) for measure in MEASURES
    }
    left_out = {name: len(influences.of_set(name)) - len(of_set) for name, of_set in lines.items()}
    heights = {name: HEAD + ROW * (len(of_set) + bool(left_out[name])) + GAP for name, of_set in lines.items()}
    width, height = 2 * MARGIN + HEADING_WIDTH, MARGIN + sum(heights.values()) + FOOT
    chart = new_chart(f"Influence by {influences.by}", _description(influences), width, height)
    y = MARGIN
    for name, of_set in lines.items():
        _head(chart, influences, name, y)
        for number, measure in enumerate(MEASURES):
            _panel(chart, of_set, measure, number, y + HEAD, scales[measure], influences.by)
        if left_out[name]:
            foot = y + HEAD + ROW * len(of_set)
            chart.text(MARGIN, foot + 14, f"and {left_out[name]:,} groups with smaller sums")
        y += heights[name]
    _foot(chart, influences, y, len(influences.set_names) - len(lines))
    return chart


def _largest_groups(lines: list[GroupInfluence]) -> list[GroupInfluence]:
    largest = {id(line) for line in sorted(lines, key=lambda line: -abs(line.sum))[:MOST_GROUPS]}
    return [line for line in lines if id(line) in largest]


def _group_name(name: str | None, column: str) -> str:
    return f"no {column}" if name is None else name


def _largest(lines: list[GroupInfluence], measure: str) -> float:
    ends = (getattr(line, measure + end) for line in lines for end in ("", "_low", "_high"))
    return max((abs(end) for end in ends if end is not None), default=0.0) or 1.0


def _head(chart: Chart, influences: GroupInfluences, name: str | None, y: float) -> None:
    queries = influences.of_set(name)[0].queries
    count = f"{queries:,} quer{'y' if queries == 1 else 'ies'}"
    title = f"Influence on {count}" if influences.sets is None else f"{_group_name(name, influences.sets)}: {count}"
    short = shorten(title, HEADING_WIDTH, scale=1.2)
    chart.tooltip(chart.text(MARGIN, y + 16, short, size=HEADING, color=INK), title)
    for number, heading in enumerate(MEASURES.values()):
        chart.text(_left(number) + PANEL / 2, y + 44, heading, anchor="center")


def _left(number: int) -> float:
    """Return where a measure's panel begins."""
    return MARGIN + LABELS + number * (PANEL + NUMBERS)


def _panel(
    chart: Chart, lines: list[GroupInfluence], measure: str, number: int, y: float, scale: float, column: str
) -> None:
    """Draw a measure's bars; zero is in the middle."""
    axes = chart.axes(_left(number), y, PANEL, ROW * len(lines))
    # In units of the largest bar, so that no number is too small or too large for the drawing.
    values = [getattr(line, measure) / scale for line in lines]
    bars = axes.barh(range(len(lines)), values, BAR, color=[PROMOTES if value >= 0 else OPPOSES for value in values])
    for row, (line, bar) in enumerate(zip(lines, bars, strict=True)):
        name = _group_name(line.group, column)
        value, low, high = (getattr(line, measure + end) for end in ("", "_low", "_high"))
        interval = ""
        if low is not None and high is not None:
            interval = f", from {signed_number(low)} to {signed_number(high)}"
            ends = [low / scale, high / scale]
            axes.plot(ends, [row, row], color=INK, linewidth=1.5, solid_capstyle="butt")
            axes.vlines(ends, row - CAP / 2, row + CAP / 2, color=INK, linewidth=1.5)
        chart.tooltip(bar, f"{name}: {signed_number(value)}{interval}" + (f" ({line.note})" if line.note else ""))
        right = (PANEL + NUMBERS - 14) / PANEL
        style = {"size": SMALL, "color": INK, "ha": "right", "va": "center_baseline"}
        axes.text(right, row, signed_number(value), style, transform=axes.get_yaxis_transform())
    axes.axvline(0, color=SOFT, linewidth=1, zorder=3)
    reach = PANEL / (PANEL - 2 * EDGE)
    axes.set(xlim=(-reach, reach), ylim=(len(lines) - 0.5, -0.5), xticks=[], yticks=[])
    if number == 0:
        _labels(chart, axes, lines, column)


def _labels(chart: Chart, axes: "Axes", lines: list[GroupInfluence], column: str) -> None:
    """Write the groups' names and their numbers of rows beside the bars."""
    for row, line in enumerate(lines):
        name, count = _group_name(line.group, column), f" ({line.rows:,})"
        style = {"size": TEXT, "color": INK, "ha": "right", "va": "center_baseline"}
        short = shorten(name, LABELS - LABEL_GAP, count)
        text = axes.text(-LABEL_GAP / PANEL, row, short, style, transform=axes.get_yaxis_transform())
        chart.tooltip(text, name + count)


def _foot(chart: Chart, influences: GroupInfluences, y: float, sets_left_out: int) -> None:
    first, _, second = influences.sign.partition(" Negative:")
    sentences = [f"In {influences.unit}.", first, f"Negative:{second}" if second else "", influences.intervals]
    if sets_left_out:
        sentences.append(f"{sets_left_out:,} more sets of queries are in the table.")
    for number, sentence in enumerate(sentences):
        chart.text(MARGIN, y + ROW * number, sentence)


def _description(influences: GroupInfluences) -> str:
    sentences = []
    for name in influences.set_names[:MOST_SETS]:
        lines = influences.of_set(name)
        best, worst = lines[0], lines[-1]
        on = "" if influences.sets is None else f" on {_group_name(name, influences.sets)}"
        sentences.append(
            f"Of {len(lines):,} groups, {_group_name(best.group, influences.by)} has the largest sum{on}, "
            f"{signed_number(best.sum)}, and {_group_name(worst.group, influences.by)} the smallest, "
            f"{signed_number(worst.sum)}."
        )
    return f"Bars of summed and mean influence by {influences.by}, in {influences.unit}. {' '.join(sentences)}"


__all__ = ["group_bars"]
