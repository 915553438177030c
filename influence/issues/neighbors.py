"""Every row's nearest rows, by the cosine of their stored gradients: those most alike, and those most opposed.

They are found once, on the run's cluster, and kept in the run's folder `neighbours/`; whoever asks reads files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from influence.engine.progress import Report
from influence.neighbors.files import NAMES, read_near
from influence.neighbors.nearest import NOBODY
from influence.neighbors.plan import GraphPlan, plan_graph
from influence.neighbors.stage import build_graph
from influence.run_dir import RunDir
from influence.stages.record import overridden


class NeighbourSettings(BaseModel):
    """How near rows are looked for.

    Attributes:
        k: Neighbours of each row at each end.
        kind: `exact` compares all pairs of rows, in time that grows with their square. `approximate` compares each row
            with the rows of the cells where its neighbours most likely are, in time that grows with the rows; what that
            misses is measured and told. `auto`: exact up to `exact_rows`.
        exact_rows: The most rows whose pairs `auto` compares all.
        compared: How many rows an approximate graph compares each row with, half of them for each end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=10, ge=1, le=1000)
    kind: Literal["auto", "exact", "approximate"] = "auto"
    exact_rows: int = Field(default=50_000, ge=0)
    compared: int = Field(default=25_000, ge=2)

    def compared_of(self, rows: int) -> int | None:
        """Return how many rows each of so many is compared with; None: with all, as where there are no more."""
        exact = rows <= self.exact_rows if self.kind == "auto" else self.kind == "exact"
        return None if exact or self.compared >= rows else self.compared


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
    """The nearest rows of every row; never the row itself, and a zero row has none and is nobody's.

    Equal cosines go to the lower row. What is held in memory is what is asked for.

    Attributes:
        rows: N.
        k: Neighbours at each end; fewer than asked where there are fewer rows.
        summary: How they were found, in a sentence.
    """

    def __init__(self, plan: GraphPlan) -> None:
        self._plan = plan
        self.rows, self.k = plan.rows, plan.k
        self.summary = _summary(plan)

    def blocks(self, size: int = 4096) -> Iterator[tuple[int, Near]]:
        """Yield (first row, neighbours) of all rows in order."""
        for first in range(0, self.rows, size):
            yield first, self.of(np.arange(first, min(self.rows, first + size)))

    def of(self, rows: np.ndarray) -> Near:
        """Return the neighbours of some rows, in the order asked.

        Raises:
            DigestMismatch: A file of the graph isn't the one that was saved.
        """
        found = read_near(self._plan, np.asarray(rows, dtype=np.int64))
        return Near(*(found[name] for name in NAMES))


def neighbour_graph(
    run: RunDir, settings: NeighbourSettings, overrides: Sequence[str] = (), progress: Report | None = None
) -> NeighbourGraph:
    """Return the nearest rows of every row of a run, finding what of them isn't in its folder yet.

    Args:
        run: The run.
        settings: How they are looked for.
        overrides: `key=value` each, of the cluster section.
        progress: Hears of every task.

    Raises:
        QueryError: The run is in a bucket and too large for an exact graph.
        RunLocked: Another process is finding them.
    """
    config = overridden(run.config, overrides)
    plan = plan_graph(run.store, settings.k, settings.compared_of(run.rows))
    build_graph(config, run.store, plan, progress)
    return NeighbourGraph(plan)


def _summary(plan: GraphPlan) -> str:
    if plan.compared is None:
        return f"The {plan.k} nearest rows at each end, by an exact search over all pairs."
    alike, opposed = plan.recalls
    return (
        f"The {plan.k} nearest rows at each end, approximately: among about {plan.compared:,} rows that each row was "
        f"compared with, of {plan.rows:,}. Measured on {plan.measured:,} rows, they have {alike:.1%} of the true "
        f"nearest rows and {opposed:.1%} of the most opposed ones. neighbours.compared compares more, "
        "neighbours.kind=exact all."
    )


__all__ = ["NOBODY", "Near", "NeighbourGraph", "NeighbourSettings", "neighbour_graph"]
