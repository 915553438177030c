"""The bar picture of groups: sum and mean of each group on each set of queries, with their intervals."""

from influence.groups.figure import Drawing, Mark, fitted, written
from influence.groups.groups import GroupInfluence, GroupInfluences

SHOWN = 30
"""Groups of a set that are drawn, those with the largest sums either way."""
MOST_SETS = 20
LABELS, PANEL, NUMBERS = 180, 190, 90
"""Pixels of the groups' names, of each measure's bars, and of its numbers."""
LINE, HEAD, GAP = 24, 66, 30
MARGIN = 20
HEADING_WIDTH = LABELS + 2 * (PANEL + NUMBERS)
MEASURES = ("sum", "mean")
HEADINGS = {"sum": "sum over the group's rows", "mean": "mean of a row"}


def group_bars(found: GroupInfluences) -> Drawing:
    """Draw every group's sum and mean; bars of one measure share one scale over all sets."""
    names = found.set_names[:MOST_SETS]
    shown = {name: _shown(found.of_set(name)) for name in names}
    largest = {measure: _largest([line for lines in shown.values() for line in lines], measure) for measure in MEASURES}
    marks, y = list[Mark](), MARGIN
    for name in names:
        marks += _head(found, name, y)
        for number, line in enumerate(shown[name]):
            marks += _bars(line, y + HEAD + number * LINE, largest, _named(line.group, found.by))
        marks += _zeros(y + HEAD, len(shown[name]))
        y += HEAD + LINE * len(shown[name])
        left_out = len(found.of_set(name)) - len(shown[name])
        if left_out:
            marks.append(Mark("text", MARGIN, y + 14, "soft small", text=f"and {left_out:,} groups with smaller sums"))
            y += LINE
        y += GAP
    marks += _foot(found, y, len(found.set_names) - len(names))
    width = 2 * MARGIN + LABELS + len(MEASURES) * (PANEL + NUMBERS)
    return Drawing(f"Influence by {found.by}", _about(found), width, y + 5 * LINE, marks)


def _shown(lines: list[GroupInfluence]) -> list[GroupInfluence]:
    kept = {id(line) for line in sorted(lines, key=lambda line: -abs(line.sum))[:SHOWN]}
    return [line for line in lines if id(line) in kept]


def _named(name: str | None, column: str) -> str:
    return f"no {column}" if name is None else name


def _largest(lines: list[GroupInfluence], measure: str) -> float:
    ends = (getattr(line, measure + end) for line in lines for end in ("", "_low", "_high"))
    return max((abs(end) for end in ends if end is not None), default=0.0) or 1.0


def _head(found: GroupInfluences, name: str | None, y: float) -> list[Mark]:
    queries = found.of_set(name)[0].queries
    counted = f"{queries:,} quer{'y' if queries == 1 else 'ies'}"
    title = f"Influence on {counted}" if found.sets is None else f"{_named(name, found.sets)}: {counted}"
    marks = [Mark("text", MARGIN, y + 16, "heading", text=fitted(title, HEADING_WIDTH, scale=1.2), full=title)]
    for number, measure in enumerate(MEASURES):
        marks.append(Mark("text", _middle(number), y + 44, "soft small", text=HEADINGS[measure], anchor="middle"))
    return marks


def _middle(number: int) -> float:
    """Return where zero is in a measure's panel."""
    return MARGIN + LABELS + number * (PANEL + NUMBERS) + PANEL / 2


def _bars(line: GroupInfluence, y: float, largest: dict[str, float], name: str) -> list[Mark]:
    count = f" ({line.rows:,})"
    label = fitted(name, LABELS - 12, count)
    marks = [
        Mark("text", MARGIN + LABELS - 12, y + 16, "", text=label, anchor="end", full=name + count),
    ]
    for number, measure in enumerate(MEASURES):
        value, low, high = (getattr(line, measure + end) for end in ("", "_low", "_high"))
        scale = (PANEL / 2 - 6) / largest[measure]
        middle = _middle(number)
        told = written(value) + (f", from {written(low)} to {written(high)}" if low is not None else "")
        told = f"{name}: {told}" + (f" ({line.note})" if line.note else "")
        x, width = middle + min(0.0, value * scale), max(0.5, abs(value) * scale)
        look = "for" if value >= 0 else "against"
        marks.append(Mark("bar", round(x, 2), y + 4, look, round(width, 2), LINE - 8, full=told))
        if low is not None and high is not None:
            ends = [round(middle + end * scale, 2) for end in (low, high)]
            marks.append(Mark("line", ends[0], y + LINE / 2, "whisker", to_x=ends[1], to_y=y + LINE / 2))
            marks += [Mark("line", end, y + 8, "whisker", to_x=end, to_y=y + LINE - 8) for end in ends]
        right = middle + PANEL / 2 + NUMBERS - 14
        marks.append(Mark("text", right, y + 16, "number small", text=written(value), anchor="end"))
    return marks


def _zeros(y: float, lines: int) -> list[Mark]:
    return [
        Mark("line", _middle(number), y, "zero", to_x=_middle(number), to_y=y + lines * LINE)
        for number in range(len(MEASURES))
    ]


def _foot(found: GroupInfluences, y: float, sets_left_out: int) -> list[Mark]:
    first, _, second = found.sign.partition(" Negative:")
    said = [f"In {found.unit}.", first, f"Negative:{second}" if second else "", found.intervals]
    if sets_left_out:
        said.append(f"{sets_left_out:,} more sets of queries are in the table.")
    return [Mark("text", MARGIN, y + LINE * number, "soft small", text=line) for number, line in enumerate(said)]


def _about(found: GroupInfluences) -> str:
    told = []
    for name in found.set_names[:MOST_SETS]:
        lines = found.of_set(name)
        best, worst = lines[0], lines[-1]
        on = "" if found.sets is None else f" on {_named(name, found.sets)}"
        told.append(
            f"Of {len(lines):,} groups, {_named(best.group, found.by)} has the largest sum{on}, {written(best.sum)}, "
            f"and {_named(worst.group, found.by)} the smallest, {written(worst.sum)}."
        )
    return f"Bars of summed and mean influence by {found.by}, in {found.unit}. {' '.join(told)}"


__all__ = ["group_bars"]
