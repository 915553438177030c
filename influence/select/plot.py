"""The plot of a selection: every row's score against its length, the chosen ones marked."""

import numpy as np

from influence.groups.figure import Drawing, Mark, written
from influence.select.less import Selected

DOTS = 2_000
"""Of the chosen and of the other rows, evenly spread."""
WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 50, 120
LABELLED = 8
"""Lengths that are written along the axis, at most."""
OUTSIDE = 0.001
"""Share of rows on either side whose scores are drawn at the edge."""


def selection_plot(found: Selected) -> Drawing:
    """Draw score against length; the lengths' axis is logarithmic."""
    lengths = np.maximum(found.lengths, 1)
    is_chosen = np.zeros(found.rows, dtype=bool)
    is_chosen[found.chosen] = True
    lowest = float(found.scores[found.chosen[-1]])
    low, high = (float(end) for end in np.quantile(found.scores, (OUTSIDE, 1 - OUTSIDE)))
    low, high = min(low, lowest), max(high, lowest)
    span = high - low
    widest = max(1.0, float(np.log2(lengths.max())))

    def x(tokens: float) -> float:
        return round(LEFT + np.log2(tokens) / widest * (WIDTH - LEFT - RIGHT), 1)

    def y(score: float) -> float:
        share = (min(max(score, low), high) - low) / span if span else 0.5
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    marks = [Mark("text", LEFT, 24, "heading", text=f"{len(found.chosen):,} of {found.rows:,} rows chosen")]
    for power in range(0, int(widest) + 1, 1 + int(widest) // LABELLED):
        place = x(2.0**power)
        marks.append(Mark("line", place, TOP, "grid", to_x=place, to_y=HEIGHT - BOTTOM))
        marks.append(
            Mark("text", place, HEIGHT - BOTTOM + 18, "soft small number", text=f"{2**power:,}", anchor="middle")
        )
    for score in dict.fromkeys((low, (low + high) / 2, high)):
        marks.append(Mark("line", LEFT, y(score), "grid", to_x=WIDTH - RIGHT, to_y=y(score)))
        marks.append(Mark("text", LEFT - 8, y(score) + 4, "soft small number", text=written(score), anchor="end"))
    for rows, look, radius in ((np.flatnonzero(~is_chosen), "rest", 2.0), (np.flatnonzero(is_chosen), "for", 2.5)):
        for row in rows[:: max(1, -(-len(rows) // DOTS))].tolist():
            marks.append(Mark("dot", x(float(lengths[row])), y(float(found.scores[row])), look, radius))
    marks.append(Mark("line", LEFT, y(lowest), "limit", to_x=WIDTH - RIGHT, to_y=y(lowest)))
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(Mark("text", middle, HEIGHT - BOTTOM + 38, "soft small", text=found.length_of, anchor="middle"))
    unit, said = f"Score in {found.unit}.", "Coloured dots are chosen; the dashed line is the lowest score among them."
    for number, line in enumerate((unit, said, length_told(found))):
        marks.append(Mark("text", LEFT, HEIGHT - 46 + 18 * number, "soft small", text=line))
    about = (
        f"Each dot is a row; its score for the target against its length. {unit} {said} {length_told(found)} "
        f"Scores from {written(low)} to {written(high)}, the lowest chosen {written(lowest)}."
    )
    return Drawing("Score against length", about, WIDTH, HEIGHT, marks)


def length_told(found: Selected) -> str:
    """Say how score and length go together."""
    if found.length is None:
        return "Scores or lengths are all the same: there is no correlation."
    return f"Rank correlation of score and length ({found.length_of}): {written(found.length)}."


__all__ = ["length_told", "selection_plot"]
