"""Whether an answer can be trusted to be as complete as those that were measured; where not, a search goes on.

Two things are looked at, which cost a product with the cells' centroids. A cell that wasn't read may hold better rows:
the rows of a cell scatter about its centroid, and how many deviations the nearest unread cell stays below the last
score found is compared with what it was in measuring (`Dial.margin`). And codes may have hidden better rows: where many
of the answer's rows came late among the candidates, others would have come later still.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.approximate.cells import Cells

LATE = 0.5
"""From which share of the candidates on, best codes first, a row came late."""

MOST_LATE = 0.25
"""Share of an answer's rows that may come late."""

CELLS, CANDIDATES = 4, 2
"""Times as many of each are taken in the next round."""

ROWS_SHARE = 4
"""The most candidates are one of so many rows: reading all codes for more costs more than a scan."""


@dataclass(frozen=True)
class Effort:
    """What a search takes for one question.

    Attributes:
        probes: Cells to read.
        candidates: Rows to propose.
    """

    probes: int
    candidates: int

    def more(self, most: "Effort") -> "Effort":
        """Return the next round's, no more than the most that may be taken."""
        return Effort(
            min(most.probes, CELLS * self.probes),
            max(self.candidates, min(most.candidates, CANDIDATES * self.candidates)),
        )


def came_late(places: NDArray[np.intp], candidates: int) -> bool:
    """Whether too many of an answer's rows were among the last candidates.

    Args:
        places: Of the rows among the candidates, best codes first.
        candidates: How many were proposed.
    """
    return bool(np.mean(places >= LATE * candidates) > MOST_LATE)


def unread_distance(
    cells: Cells,
    reduced: NDArray[np.float32],
    lengths: NDArray[np.float64],
    last: NDArray[np.floating],
    probes: int,
    spread: float,
) -> NDArray[np.float64]:
    """Return how many deviations of its rows the nearest unread cell stays below the last score found, [m].

    Args:
        cells: Of the index.
        reduced: Questions of length 1 as the codes see them, [m, d].
        lengths: Of the questions, [m].
        last: The least score of each answer, [m].
        probes: Cells that were read, at least one.
        spread: Of `Cells.order`.

    Returns:
        Infinite where every cell was read, or the question is zero.
    """
    order, products = cells.order(reduced, spread)
    radii = cells.radii[order[:, probes:]].astype(np.float64)
    scaled = np.divide(last, lengths, out=np.full(len(reduced), np.inf), where=lengths > 0)
    below = scaled[:, None] - products[:, probes:]
    # Cells without rows have a radius of -1, those of one row or of equal rows one of 0.
    alone = np.where(below > 0, np.inf, -np.inf)
    with np.errstate(invalid="ignore"):
        distances = np.where(radii > 0, below / np.where(radii > 0, radii, 1), np.where(radii < 0, np.inf, alone))
    return distances.min(axis=1, initial=np.inf)
