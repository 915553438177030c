"""The bar chart of groups: sum and mean of each group on each set of queries, with their intervals."""

from typing import TYPE_CHECKING, Any

from influence.groups.figure import (
    HEADING,
    INK,
    OPPOSES,
    PROMOTES,
    SOFT,
    TEXT,
    Chart,
    chart_style,
    new_figure,
    shorten,
    signed_number,
)
from influence.groups.groups import GroupInfluence, GroupInfluences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

MOST_GROUPS = 30
"""Groups of a set that are drawn, those with the largest sums of either sign."""
MOST_SETS = 20
LABELS, PANEL, NUMBERS = 180, 190, 90
"""Pixels of the groups' names, of each measure's bars, and of its numbers."""
ROW, HEAD, GAP, FOOT, MARGIN = 24, 86, 96, 150, 20
LABEL_GAP, NUMBER_GAP = 12, 14
BAR, CAP = 2 / 3, 1 / 3
"""Heights of a bar and of an interval's end, as shares of their row."""
WIDTH = 2 * MARGIN + LABELS + 2 * (PANEL + NUMBERS)
MEASURES = {"sum": "sum over the group's rows", "mean": "mean of a row"}


@chart_style()
def group_bars(influences: GroupInfluences) -> Chart:
    """Draw every group's sum and mean; bars of one measure share one scale over all sets.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    sets = {name: _largest_groups(influences.of_set(name)) for name in influences.set_names[:MOST_SETS]}
    counts = [len(lines) for lines in sets.values()]
    height = HEAD + ROW * sum(counts) + GAP * (len(sets) - 1) + FOOT
    figure = new_figure(WIDTH, height, left=MARGIN + LABELS, right=MARGIN + NUMBERS, top=HEAD, bottom=FOOT)
    chart = Chart(f"Influence by {influences.by}", _description(influences), figure)
    spaces = {"wspace": NUMBERS / PANEL, "hspace": GAP * len(sets) / (ROW * sum(counts)), "height_ratios": counts}
    panels = figure.subplots(len(sets), 2, squeeze=False, sharex="col", gridspec_kw=spaces)
    for axes, (name, lines) in zip(panels, sets.items(), strict=True):
        for panel, (measure, heading) in zip(axes, MEASURES.items(), strict=True):
            _bars(chart, panel, lines, measure, influences.by)
            _write(panel, heading, (0.5, -0.5), (0, 22), "center")
        _names(chart, axes[0], lines, influences, name)
    for panel in panels[0]:
        reach = max(map(abs, panel.get_xlim()))
        panel.set_xlim(-reach, reach)
    foot = "\n".join(_foot(influences, len(influences.set_names) - len(sets)))
    figure.text(MARGIN / WIDTH, (FOOT - 32) / height, foot, va="top", linespacing=1.8)
    return chart


def _largest_groups(lines: list[GroupInfluence]) -> list[GroupInfluence]:
    largest = {id(line) for line in sorted(lines, key=lambda line: -abs(line.sum))[:MOST_GROUPS]}
    return [line for line in lines if id(line) in largest]


def _group_name(name: str | None, column: str) -> str:
    return f"no {column}" if name is None else name


def _bars(chart: Chart, axes: "Axes", lines: list[GroupInfluence], measure: str, column: str) -> None:
    """Draw a measure's bars, their intervals and their numbers."""
    values = [getattr(line, measure) for line in lines]
    bars = axes.barh(range(len(lines)), values, BAR, color=[PROMOTES if value >= 0 else OPPOSES for value in values])
    for row, (line, value, bar) in enumerate(zip(lines, values, bars, strict=True)):
        low, high = getattr(line, f"{measure}_low"), getattr(line, f"{measure}_high")
        interval = ""
        if low is not None and high is not None:
            interval = f", from {signed_number(low)} to {signed_number(high)}"
            axes.plot([low, high], [row, row], color=INK)
            axes.vlines([low, high], row - CAP / 2, row + CAP / 2, color=INK)
        note = f" ({line.note})" if line.note else ""
        chart.tooltip(bar, f"{_group_name(line.group, column)}: {signed_number(value)}{interval}{note}")
        _write(axes, signed_number(value), (1, row), (NUMBERS - NUMBER_GAP, -4), "right", color=INK)
    axes.axvline(0, color=SOFT, linewidth=1, zorder=3)
    axes.set(ylim=(len(lines) - 0.5, -0.5), xticks=[], yticks=[])


def _names(
    chart: Chart, axes: "Axes", lines: list[GroupInfluence], influences: GroupInfluences, name: str | None
) -> None:
    """Write a set's heading, its groups' names with their numbers of rows, and how many groups are left out."""
    every_line = influences.of_set(name)
    count = f"{every_line[0].queries:,} quer{'y' if every_line[0].queries == 1 else 'ies'}"
    title = f"Influence on {count}" if influences.sets is None else f"{_group_name(name, influences.sets)}: {count}"
    short = shorten(title, WIDTH - 2 * MARGIN, scale=1.2)
    heading = _write(axes, short, (0, -0.5), (-LABELS, 50), color=INK, size=HEADING, weight="bold")
    chart.tooltip(heading, title)
    for row, line in enumerate(lines):
        group, rows = _group_name(line.group, influences.by), f" ({line.rows:,})"
        short = shorten(group, LABELS - LABEL_GAP, rows)
        label = _write(axes, short, (0, row), (-LABEL_GAP, -4), "right", color=INK, size=TEXT)
        chart.tooltip(label, group + rows)
    if len(every_line) > len(lines):
        left_out = f"and {len(every_line) - len(lines):,} groups with smaller sums"
        _write(axes, left_out, (0, len(lines) - 0.5), (-LABELS, -14))


def _write(
    axes: "Axes", text: str, at: tuple[float, float], offset: tuple[int, int], anchor: str = "left", **style: Any
) -> "Annotation":
    """Write beside the bars: `at` is (share of the panel's width, row), `offset` is in pixels from there."""
    coordinates = axes.get_yaxis_transform()
    return axes.annotate(text, at, offset, coordinates, "offset points", ha=anchor, va="baseline", **style)


def _foot(influences: GroupInfluences, sets_left_out: int) -> list[str]:
    first, _, second = influences.sign.partition(" Negative:")
    sentences = [f"In {influences.unit}.", first, f"Negative:{second}" if second else "", influences.intervals]
    return sentences + [f"{sets_left_out:,} more sets of queries are in the table."] * bool(sets_left_out)


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
