"""The plot of a selection: every row's score against its length, the selected ones in colour."""

from typing import TYPE_CHECKING

import numpy as np

from influence.groups.figure import OPPOSES, OTHER, PROMOTES, Chart, chart_style, new_figure, signed_number
from influence.select.less import Selected

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS = 2_000
"""Of the selected and of the other rows, evenly spread."""
WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 50, 120
MOST_TICKS = 8
"""Of the lengths' axis; a ninth where they don't divide evenly."""
OUTSIDE = 0.001
"""Share of rows on either side whose scores are drawn at the edge."""


@chart_style()
def selection_plot(selected: Selected) -> Chart:
    """Draw score against length; the lengths' axis is logarithmic.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    threshold = float(selected.scores[selected.chosen[-1]])
    low, high = (float(end) for end in np.quantile(selected.scores, (OUTSIDE, 1 - OUTSIDE)))
    low, high = min(low, threshold), max(high, threshold)
    unit = f"Score in {selected.unit}."
    legend = "Coloured dots are chosen; the dashed line is the lowest score among them."
    description = (
        f"Each dot is a row; its score for the target against its length. {unit} {legend} {correlation(selected)} "
        f"Scores from {signed_number(low)} to {signed_number(high)}, the lowest chosen {signed_number(threshold)}."
    )
    figure = new_figure(WIDTH, HEIGHT, left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM)
    axes = figure.subplots()
    axes.set_title(f"{len(selected.chosen):,} of {selected.rows:,} rows chosen", pad=26)
    axes.set_xlabel(selected.length_of, labelpad=8)
    _scales(axes, int(selected.lengths.max()), low, high)
    _dots(axes, selected, low, high)
    axes.axhline(threshold, color=OPPOSES, dashes=(5 / 1.5, 4 / 1.5), zorder=3, clip_on=False)
    foot = f"{unit}\n{legend}\n{correlation(selected)}"
    figure.text(LEFT / WIDTH, 6 / HEIGHT, foot, va="bottom", linespacing=1.5)
    return Chart("Score against length", description, figure)


def _scales(axes: "Axes", longest: int, low: float, high: float) -> None:
    """Set limits, ticks and grid; scores that are all the same lie in the middle."""
    powers = max(1, int(np.log2(max(longest, 1))))
    ticks = [2**power for power in range(0, powers + 1, 1 + powers // MOST_TICKS)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(1, max(2, longest))
    scores = list(dict.fromkeys((low, (low + high) / 2, high)))
    axes.set_yticks(scores, [signed_number(score) for score in scores])
    room = 0 if high > low else abs(low) or 1
    axes.set_ylim(low - room, high + room)
    axes.grid(clip_on=False)
    axes.set_axisbelow(True)


def _dots(axes: "Axes", selected: Selected, low: float, high: float) -> None:
    """Draw the other rows, then the selected ones over them."""
    is_chosen = np.zeros(selected.rows, dtype=bool)
    is_chosen[selected.chosen] = True
    style = {"linestyle": "none", "marker": "o", "clip_on": False}
    for name, which, look in (
        ("other-rows", ~is_chosen, {"color": OTHER, "alpha": 0.55, "markersize": 4}),
        ("chosen-rows", is_chosen, {"color": PROMOTES, "markersize": 5}),
    ):
        rows = np.flatnonzero(which)
        rows = rows[:: max(1, -(-len(rows) // DOTS))]
        lengths, scores = (
            np.maximum(selected.lengths[rows], 1),
            np.clip(selected.scores[rows].astype(np.float64), low, high),
        )
        axes.plot(lengths, scores, gid=name, **style, **look)


def correlation(selected: Selected) -> str:
    """Say how score and length are correlated."""
    if selected.length is None:
        return "Scores or lengths are all the same: there is no correlation."
    return f"Rank correlation of score and length ({selected.length_of}): {signed_number(selected.length)}."


__all__ = ["correlation", "selection_plot"]
