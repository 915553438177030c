"""Exact scores: candidates' whole gradients computed again and multiplied with queries under the full curvature.

A batch of queries shares the candidates' backward passes; nothing of a candidate is kept but its scores. The cost is
that of the candidates, however many rows there are.
"""

import logging
from collections.abc import Sequence

import numpy as np

from influence.capture.captured import whole_rows
from influence.capture.queries import query_gradients
from influence.capture.session import Session
from influence.curvature.kfac import KroneckerCurvature, preconditioned
from influence.data.example import Example, place_of
from influence.engine.progress import Progress, Report
from influence.gradients.capture import Capture
from influence.gradients.inner_products import InnerProducts, LowRank, compress
from influence.gradients.projection import Projection, ProjectionSettings

log = logging.getLogger(__name__)

EVERY_BYTES = 2**30
"""Queries' whole gradients that are held at once where every row is scored: more queries take another pass over all."""
QUERY_BYTES = 2**28
"""The same where each query has candidates of its own: another pass looks at other rows, and costs little."""
BLOCK_ROWS = 256
"""Candidates that are read and tokenised at a time."""


def queries_at_once(width: int, *, every_row: bool) -> int:
    """Return how many queries' whole gradients fit into memory together.

    Args:
        width: Numbers of one, those of what it is asked against included.
        every_row: Whether all rows are scored, and not each query's candidates.
    """
    return max(1, (EVERY_BYTES if every_row else QUERY_BYTES) // (4 * max(1, width)))


class ExactScorer:
    """Scores rows for queries from whole gradients."""

    def __init__(
        self,
        session: Session,
        curvature: KroneckerCurvature,
        rows: int,
        rank: int | None,
        report: Report | None = None,
        left_out: Sequence[int] = (),
    ) -> None:
        """Set up.

        Args:
            session: The run's model and data.
            curvature: K-FAC's or EK-FAC's, damped.
            rows: N, for the 1/N of a score in nats per extra copy.
            rank: What queries' matrices are compressed to; None keeps them whole.
            report: Hears of every block of rows.
            left_out: Rows that score 0 without being looked at: those that could not be captured.
        """
        self._report = report
        self._left_out = frozenset(left_out)
        self._session, self._curvature, self._rows, self._rank = session, curvature, rows, rank
        self._whole = Capture(session.model, session.layers, Projection(ProjectionSettings(kind="none")))

    def _groups(self, queries: Sequence[Example], *, every_row: bool) -> list[range]:
        """Return which queries' whole gradients are in memory together."""
        both = 1 + any(query.contrast is not None for query in queries)
        count = queries_at_once(both * self._whole.dims, every_row=every_row)
        return [range(first, min(first + count, len(queries))) for first in range(0, len(queries), count)]

    def candidates(self, queries: Sequence[Example], wanted: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score each query's own candidates.

        Args:
            queries: m queries.
            wanted: Each query's candidates, row numbers, any order, no repeats.

        Returns:
            For each query the scores of its candidates, float32, in nats per extra copy of the row; positive promotes.
        """
        found = [np.zeros(len(rows), dtype=np.float32) for rows in wanted]
        groups = self._groups(queries, every_row=False)
        unions = [np.unique(np.concatenate([wanted[number] for number in group])) for group in groups]
        stage = self._stage(sum(_blocks(len(union)) for union in unions))
        for group, union in zip(groups, unions, strict=True):
            scores = np.zeros((len(group), len(union)), dtype=np.float32)
            products = self._products([queries[number] for number in group])
            for place in range(0, len(union), BLOCK_ROWS):
                rows = union[place : place + BLOCK_ROWS]
                scores[:, place : place + len(rows)] = self._block(products, rows)
                stage.finished(rows=len(rows))
            for within, number in enumerate(group):
                found[number] = scores[within, np.searchsorted(union, wanted[number])]
        return found

    def every_row(self, queries: Sequence[Example]) -> np.ndarray:
        """Score every row for every query, [queries, rows] float32."""
        scores = np.zeros((len(queries), self._rows), dtype=np.float32)
        groups = self._groups(queries, every_row=True)
        stage = self._stage(_blocks(self._rows) * len(groups))
        for numbers in groups:
            group = slice(numbers.start, numbers.stop)
            products = self._products(queries[group])
            for start in range(0, self._rows, BLOCK_ROWS):
                rows = np.arange(start, min(start + BLOCK_ROWS, self._rows))
                scores[group, rows] = self._block(products, rows)
                stage.finished(rows=len(rows))
        return scores

    def _stage(self, blocks: int) -> Progress:
        return Progress("exact", blocks, self._report)

    def _products(self, queries: Sequence[Example]) -> InnerProducts:
        gradients, _, _ = query_gradients(self._session, queries, self._whole)
        matrices = preconditioned(gradients, self._whole.modules, self._curvature)
        if self._rank is None:
            return InnerProducts(self._session.model, self._session.layers, matrices)
        compressed: list[LowRank] = [compress(matrix, self._rank) for matrix in matrices]
        errors = [matrix.error for matrix in compressed]
        log.info(
            "The queries' matrices at rank %d: ‖H − H_r‖ / ‖H‖ is %.2g to %.2g over the %d layers.",
            *(self._rank, min(errors), max(errors), len(errors)),
        )
        return InnerProducts(self._session.model, self._session.layers, compressed)

    def _block(self, products: InnerProducts, rows: np.ndarray) -> np.ndarray:
        """Score some rows, [m, len(rows)]; a row without a scored token, or left out, scores 0."""
        session = self._session
        examples = [session.rows.example(int(row)) for row in rows]
        names = [place_of(example) for example in examples]
        healthy = [int(row) not in self._left_out for row in rows]
        parts = [part for part in session.tokenise(examples) if part.scored and healthy[part.position]]
        scores = np.zeros((len(rows), products.queries), dtype=np.float32)
        expected = np.bincount([part.position for part in parts], minlength=len(rows))
        pieces = session.capture(session.task.example_loss, parts, names, products)
        for positions, found, _ in whole_rows(pieces, expected):
            scores[positions] = found.float().numpy()
        return scores.T / self._rows


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK_ROWS)
