"""How two runs over the same rows disagree about the same queries: two checkpoints, two recipes, a recipe and BM25.

Scores of two recipes have two units, so only ranks are compared: Spearman's rank correlation over all rows, what the
two lists of best rows share, and which rows of one list the other ranks lowest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.stats import rankdata

from index.neighbours import best
from influence.data.example import Example
from influence.data.queries import Query, QueryForm, read_queries
from influence.engine.progress import Progress, Report
from influence.errors import QueryError
from influence.query.attribute import named
from influence.recipes import Magnitudes, Recipe, rank_only_queries, sign_rule
from influence.store.manifest import Manifest
from influence.store.reader import Store

if TYPE_CHECKING:
    from pandas import DataFrame

    from influence.query.scores import Scores

BATCH_BYTES = 2**28
"""Scores of both runs that are held at a time."""
SHOWN = 5
"""Rows that rose or fell, a query and direction."""


class Scored(Protocol):
    """A run, and how it scores every row for some queries."""

    @property
    def path(self) -> Path:
        """The run directory."""
        ...

    @property
    def store(self) -> Store:
        """Its rows."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What they are."""
        ...

    @property
    def rows(self) -> int:
        """How many there are."""
        ...

    @property
    def recipe(self) -> Recipe:
        """How they are scored."""
        ...

    @property
    def query_form(self) -> QueryForm:
        """How queries are read."""
        ...

    def score(self, queries: Sequence[Query]) -> "Scores":
        """Score every row for every query."""
        ...


@dataclass(frozen=True)
class Move:
    """A row that one run puts among the best and the other further down.

    Attributes:
        row: Its number; `id` its id.
        ranks: From 1, most promoting first, in either run; equal scores share the mean of their ranks.
        scores: In either run, each in its own unit.
    """

    row: int
    id: str
    ranks: tuple[float, float]
    scores: tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """What two runs make of one query.

    Attributes:
        query: Its id.
        correlation: Spearman's, over all rows; None where a run scores all rows equally, and there is none.
        promoting: The share of the k most promoting rows that both have.
        opposing: The share of the k most opposing rows that both have; None of a baseline, which has none.
        rose: Rows among the second run's best k, those first that the first run ranks lowest.
        fell: Rows among the first run's best k, those first that the second run ranks lowest.
        magnitudes: How either run's scores can be read.
    """

    query: str
    correlation: float | None
    promoting: float
    opposing: float | None
    rose: tuple[Move, ...]
    fell: tuple[Move, ...]
    magnitudes: tuple[Magnitudes, Magnitudes]


@dataclass(frozen=True)
class Comparison:
    """How two runs disagree.

    Attributes:
        runs: Their directories.
        recipes: What each is, in words.
        units: Of the scores of each.
        signs: What their signs mean.
        k: Rows of a list of best ones.
        rows: Rows ranked.
        queries: One agreement a query, in the order asked.
    """

    runs: tuple[str, str]
    recipes: tuple[str, str]
    units: tuple[str, str]
    signs: tuple[str, str]
    k: int
    rows: int
    queries: tuple[Agreement, ...]

    @property
    def cautions(self) -> tuple[str | None, str | None]:
        """What to say beside the scores of either run where some are a rank only."""
        first, second = (rank_only_queries([query.magnitudes[side] for query in self.queries]) for side in (0, 1))
        return first, second

    @property
    def correlation(self) -> float | None:
        """The mean of the queries' correlations; None where no query has one."""
        found = [query.correlation for query in self.queries if query.correlation is not None]
        return sum(found) / len(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "correlation": self.correlation, "cautions": list(self.cautions)}

    def to_pandas(self) -> "DataFrame":
        """Return a line a query; the runs' units, signs and cautions stand in `attrs`.

        Columns: query, correlation, promoting, opposing, ids of the rows that rose, and that fell, and how the scores
        of either run can be read.
        """
        from pandas import DataFrame

        lines = [
            {
                "query": query.query,
                "correlation": query.correlation,
                "promoting": query.promoting,
                "opposing": query.opposing,
                "rose": [move.id for move in query.rose],
                "fell": [move.id for move in query.fell],
                "magnitudes": list(query.magnitudes),
            }
            for query in self.queries
        ]
        frame = DataFrame(lines)
        frame.attrs |= {"units": self.units, "signs": self.signs, "cautions": self.cautions}
        return frame


def compare(
    first: "Scored", second: "Scored", queries: Sequence[Query], *, k: int = 10, progress: Report | None = None
) -> Comparison:
    """Ask two runs over the same rows the same queries. Every row is scored by both; two rankings are held at a time.

    Args:
        first: The run that rows rise and fell from.
        second: The run that they rise and fall to.
        queries: What both are asked.
        k: Rows of a list of best ones.
        progress: Hears of every batch of queries.

    Raises:
        QueryError: The runs are of other data, there are no queries, or k isn't 1 to the number of rows.
    """
    _check(first, second, queries, k)
    examples = named(list(read_queries(queries, first.query_form)))
    size = max(1, BATCH_BYTES // (8 * max(1, first.rows)))
    stage = Progress("comparing", -(-len(examples) // size), progress)
    found: list[Agreement] = []
    for start in range(0, len(examples), size):
        batch = examples[start : start + size]
        scores = first.score(batch), second.score(batch)
        ranked = first.recipe.baseline is None and second.recipe.baseline is None
        kinds = zip(*(each.magnitudes for each in scores), strict=True)
        pairs = zip(*(np.asarray(each) for each in scores), strict=True)
        found += [
            _agreement(first, example, pair, k, kind, opposed=ranked)
            for example, pair, kind in zip(batch, pairs, kinds, strict=True)
        ]
        stage.finished()
    runs = (first, second)
    return Comparison(
        runs=(str(first.path), str(second.path)),
        recipes=(first.recipe.summary, second.recipe.summary),
        units=tuple(run.recipe.unit_under(run.manifest.reduction) for run in runs),  # type: ignore[arg-type]
        signs=tuple(sign_rule(run.recipe.baseline) for run in runs),  # type: ignore[arg-type]
        k=k,
        rows=first.rows,
        queries=tuple(found),
    )


def _check(first: "Scored", second: "Scored", queries: Sequence[Query], k: int) -> None:
    if not isinstance(second, type(first)):
        raise QueryError(f"Found {second!r:.80} to compare with. Expected a run, as influence.open(path) gives.")
    if isinstance(queries, str | Path | Mapping):
        raise QueryError(f"The queries are {queries!r:.80}. Expected a list of queries, as query_many takes them.")
    if not queries:
        raise QueryError("There are no queries. Give a file with one query a line.")
    data = [(run.manifest.fingerprint_parts["data"], run.rows) for run in (first, second)]
    if data[0] != data[1]:
        raise QueryError(
            f"{first.path} and {second.path} are runs over other rows: {data[0][1]:,} rows of the data "
            f"{str(data[0][0])[:12]}… there, {data[1][1]:,} of {str(data[1][0])[:12]}… here. Ranks of rows can be "
            "compared where both runs were built from the same data: build one of them again from the other's."
        )
    if not 1 <= k <= first.rows:
        raise QueryError(f"k is {k}, but the runs have {first.rows} rows: set k from 1 to {first.rows}.")


def _agreement(
    run: Scored,
    query: Example,
    scores: tuple[np.ndarray, np.ndarray],
    k: int,
    magnitudes: tuple[Magnitudes, Magnitudes],
    *,
    opposed: bool,
) -> Agreement:
    rows = np.arange(run.rows)
    ranks = [rankdata(-found) for found in scores]
    tops = [rows[best(found, rows, k)] for found in scores]
    bottoms = [rows[best(-found, rows, k)] for found in scores]
    spread = [float(rank.std()) for rank in ranks]
    correlation = float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if min(spread) > 0 else None
    moves = []
    for own, other in ((1, 0), (0, 1)):
        lowest = tops[own][np.argsort(-ranks[other][tops[own]], kind="stable")]
        moved = [row for row in lowest if ranks[other][row] > ranks[own][row]][:SHOWN]
        names = run.store.meta(moved, ("id",)) if moved else []
        moves.append(
            tuple(
                Move(
                    int(row),
                    name["id"],
                    (float(ranks[0][row]), float(ranks[1][row])),
                    (float(scores[0][row]), float(scores[1][row])),
                )
                for row, name in zip(moved, names, strict=True)
            )
        )
    return Agreement(
        query=query.id,
        correlation=correlation,
        promoting=len(np.intersect1d(tops[0], tops[1])) / k,
        opposing=len(np.intersect1d(bottoms[0], bottoms[1])) / k if opposed else None,
        rose=moves[0],
        fell=moves[1],
        magnitudes=magnitudes,
    )


__all__ = ["Agreement", "Comparison", "Move", "compare"]
