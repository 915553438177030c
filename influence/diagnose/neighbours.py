"""Every row's nearest rows, by the cosine of their stored gradients: those most alike, and those most opposed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from index.exact import exact_search_scores
from influence.pipeline.progress import Report, Stage

if TYPE_CHECKING:
    from influence.run import Run

NOBODY = -1


class NeighbourSettings(BaseModel):
    """How near rows are looked for.

    Attributes:
        k: Neighbours of each row at each end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=10, ge=1, le=1000)


@dataclass(frozen=True)
class Near:
    """The nearest rows of b rows, best first; where fewer than k were found, −1 with a cosine of 0.

    Attributes:
        alike: Rows with the largest cosines, int64 [b, k].
        alike_cosines: float32 [b, k], descending.
        opposed: Rows with the smallest cosines, int64 [b, k].
        opposed_cosines: float32 [b, k], ascending.
    """

    alike: np.ndarray
    alike_cosines: np.ndarray
    opposed: np.ndarray
    opposed_cosines: np.ndarray


class NeighbourGraph:
    """The nearest rows of every row; never the row itself, and a zero row has none.

    Attributes:
        rows: N.
        k: Neighbours at each end; fewer than asked where there are fewer rows.
        summary: How they were found, in a sentence.
    """

    def __init__(self, near: Near, summary: str) -> None:
        self._near = near
        self.rows, self.k = near.alike.shape
        self.summary = summary

    def blocks(self, size: int = 4096) -> Iterator[tuple[int, Near]]:
        """Yield (first row, neighbours) of all rows in order."""
        for first in range(0, self.rows, size):
            yield first, self.of(np.arange(first, min(self.rows, first + size)))

    def of(self, rows: np.ndarray) -> Near:
        """Return the neighbours of some rows, in the order asked."""
        near = self._near
        return Near(near.alike[rows], near.alike_cosines[rows], near.opposed[rows], near.opposed_cosines[rows])


def neighbour_graph(
    run: "Run", settings: NeighbourSettings, overrides: Sequence[str] = (), progress: Report | None = None
) -> NeighbourGraph:
    """Return the nearest rows of every row of a run."""
    store, rows = run.store, run.rows
    k = min(settings.k, rows - 1)
    near = Near(*(np.zeros((rows, k), kind) for kind in (np.int64, np.float32, np.int64, np.float32)))
    norms = np.concatenate([found for _, found in store.norms()])
    stage = Stage("neighbours", -(-rows // 256), progress)
    for first in range(0, rows, 256):
        asked = np.arange(first, min(rows, first + 256))
        vectors = store.vectors(asked)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        found = exact_search_scores(store.scores(unit, unit=True), len(asked), k + 1)
        for side, name in ((found.largest, "alike"), (found.smallest, "opposed")):
            for place, row in enumerate(asked):
                kept = (side.rows[place] != row) & (norms[side.rows[place]] > 0)
                lines, cosines = side.rows[place][kept][:k], side.scores[place][kept][:k]
                if norms[row] == 0:
                    lines, cosines = lines[:0], cosines[:0]
                getattr(near, name)[row] = np.pad(lines, (0, k - len(lines)), constant_values=NOBODY)
                getattr(near, f"{name}_cosines")[row] = np.pad(cosines, (0, k - len(lines)))
        stage.finished()
    return NeighbourGraph(near, f"The {k} nearest rows at each end, by an exact search over all pairs.")


__all__ = ["NOBODY", "Near", "NeighbourGraph", "NeighbourSettings", "neighbour_graph"]
