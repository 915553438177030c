"""Score every row of a store, or those that pass a filter, block after block on several threads.

What limits a scan is memory traffic where one query is asked and multiplying where several are. Blocks are scored by
several threads, where they lie in the page cache or in buffers that each thread reads into, and handed out in order.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from influence.errors import StoreError
from influence.store.codec import Encoded
from influence.store.mapped import may_lend
from influence.store.products import MANY, tile_rows

if TYPE_CHECKING:
    from influence.store.reader import Store

SCORED_BYTES = 8 * 2**20
"""Codes that are scored at a time where they are read first, and scores that are made of them."""
SEVERAL = 256
"""Rows that are scored at a time, at least, where there are several queries and the rows fit into `MANY_BYTES`."""
MANY_BYTES = 4 * SCORED_BYTES
"""Codes of several queries' blocks, and of one query's where they are scored as they lie: finding them takes as long as
scoring two megabytes of them. And scores of many queries' at most."""
SHARE = 4
"""Blocks a thread has to do at least, so that none waits long for the others at the end."""
THREADS = 8
"""The most threads where nobody says how many; each holds a block."""
FEWEST = 8
"""Rows that a kernel scores together; where fewer are left, it takes as long."""
SPARSE = 16
"""Where fewer than one row in so many passes, rows are read one by one rather than with those between them."""


def scores(
    store: "Store",
    queries: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    *,
    unit: bool = False,
    many: bool = False,
    passing: np.ndarray | None = None,
    threads: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the inner products of queries with rows [start, stop), in order, straight from the codes.

    Equal rows have equal scores to the last bit, in blocks of any size and beside any other rows; see `products` for
    what the number of queries changes. Memory, for each thread: 8 MiB of codes with one query (32 where they are scored
    as they lie, which are the page cache's), 32 MiB with several, and as much of scores; with many the codes and scores
    of 512 rows or 8 and 32 MiB of them, and 4 MiB of rows; and once another copy of the queries.

    Args:
        store: Of the run.
        queries: [m, D], read as float32.
        start: The first row.
        stop: One past the last; all rows if None.
        unit: Score the rows' directions, at length 1 whatever the codec made of it, instead of their gradients.
        many: Score few queries as many are scored, see `Codec.scorer`.
        passing: Which of the rows [start, stop) are scored, bool; all if None.
        threads: How many; None takes one a core, at most `THREADS`. Scores don't depend on it.

    Yields:
        The block's first place among the rows that pass (the first row, without a filter), and scores [m, b].
    """
    many = many or len(queries) >= MANY
    size = block_rows(store, len(queries), many)
    blocks = store.span(size, start, stop)
    if passing is not None and passing.shape != (blocks.stop - start,):
        raise StoreError(
            f"A filter of {passing.shape} rows was given for rows {start} to {blocks.stop} of {store.run_dir}."
        )
    score = store.codec.scorer(queries, many=many)
    count = max(1, min(len(blocks), threads or _threads()))
    buffers: SimpleQueue[tuple[Encoded, np.ndarray]] = SimpleQueue()
    for _ in range(count):
        buffers.put(store.arrays(min(size, max(1, blocks.stop - start))))

    def scored(rows: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        # One buffer for all blocks of a thread: fresh memory costs as much as scoring what is read into it.
        buffer = buffers.get()
        try:
            encoded, norms = store.lent(rows, buffer)
            if mask is not None:
                encoded, norms = {name: array[mask] for name, array in encoded.items()}, norms[mask]
            return _measured(store, score(encoded), encoded, None if unit else norms)
        finally:
            buffers.put(buffer)

    selections = _selections(blocks, passing, start)
    if count == 1:
        for place, rows, passing_rows in selections:
            yield place, scored(rows, passing_rows)
        return
    ahead: deque[tuple[int, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(count, "scan")
    try:
        for place, rows, passing_rows in selections:
            ahead.append((place, pool.submit(scored, rows, passing_rows)))
            if len(ahead) > count:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def chosen_scores(store: "Store", queries: np.ndarray, rows: np.ndarray, *, unit: bool = False) -> np.ndarray:
    """Return the inner products of queries with some rows, float32 [m, n], to the last bit those of `scores`.

    Args:
        store: Of the run.
        queries: [m, D], read as float32.
        rows: int64, ascending, none twice.
        unit: As for `scores`.
    """
    size = block_rows(store, len(queries), len(queries) >= MANY)
    score, buffer = store.codec.scorer(queries), store.arrays(min(size, len(rows)))
    scores = np.empty((len(queries), len(rows)), dtype=np.float32)
    for first in range(0, len(rows), size):
        encoded, norms = store.encoded(rows[first : first + size], buffer)
        scores[:, first : first + size] = _measured(store, score(encoded), encoded, None if unit else norms)
    return scores


def _measured(store: "Store", scores: np.ndarray, encoded: Encoded, norms: np.ndarray | None) -> np.ndarray:
    """Multiply scores of directions [m, n] by norms [n]; without them, divide by what the codec made of length 1."""
    if norms is None:
        lengths = store.codec.lengths(encoded)
        return np.divide(scores, lengths, out=scores, where=lengths > 0)
    with np.errstate(over="ignore"):
        return np.multiply(scores, norms, out=scores)


def block_rows(store: "Store", queries: int, many: bool) -> int:
    """Return the rows of a block."""
    row = store.codec.row_bytes
    if many:
        # Whole tiles: what is short of one costs as much as one.
        tile = tile_rows(1)
        return max(1, min(MANY_BYTES // (8 * queries), SCORED_BYTES // row) // tile) * tile
    read = SCORED_BYTES // row
    if may_lend(store.run_dir):
        read = max(read, min(MANY_BYTES // row, store.rows // (SHARE * _threads())))
    rows = min(read, SCORED_BYTES // (8 * max(1, queries)))
    if queries > 1:
        # Several queries are as much as the codes: a block must be worth reading them.
        rows = max(rows, min(SEVERAL, MANY_BYTES // row))
    return max(FEWEST, rows // FEWEST * FEWEST)


def _threads() -> int:
    return min(THREADS, len(os.sched_getaffinity(0)))


def _selections(
    blocks: range, passing: np.ndarray | None, start: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Yield, block by block, the place of its first row among those wanted, rows to read, and which of them to keep."""
    place = 0 if passing is not None else start
    for first in blocks:
        rows = np.arange(first, min(first + blocks.step, blocks.stop))
        if passing is None:
            yield first, rows, None
            continue
        mask = passing[rows - start]
        count = int(mask.sum())
        if count == len(rows):
            yield place, rows, None
        elif count * SPARSE < len(rows):
            if count:
                yield place, rows[mask], None
        else:
            yield place, rows, mask
        place += count
