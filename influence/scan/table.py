"""The parts of a scan put together as one Parquet file, a row group in memory at a time.

    all    row, id, scores: fixed_size_list<float>[queries], the queries in the order they were asked
    top    query, query_id, side (promoting, opposing), rank, row, id, score
    rows   row, id, mean, sum, min, max, positive: over the queries; `positive` is the share of scores above zero
    self   row, id, score

Unit, sign rule, recipe, the run's fingerprint, the filter and the queries' ids are in the file's metadata; what the
model makes of each query is in `OUT.queries.jsonl`, with its largest score and whether scores can be nats.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.partial import PartialFile, disk_errors, sync_folder, write_whole
from influence.artifacts.tensors import load_tensors, open_tensors
from influence.data.example import Example
from influence.engine.progress import Progress
from influence.recipes import Magnitudes, magnitudes
from influence.scan.plan import Scan
from influence.scan.shortlist import Shortlist
from influence.store.reader import Store

GROUP_BYTES = 2**25
"""Scores of a row group."""
GROUP_ROWS = 2**16
ROW = [pa.field("row", pa.int64(), nullable=False), pa.field("id", pa.string(), nullable=False)]
REAL = pa.float64()
COLUMNS = {
    "top": [
        *(pa.field("query", pa.int32(), nullable=False), pa.field("query_id", pa.string(), nullable=False)),
        *(pa.field("side", pa.string(), nullable=False), pa.field("rank", pa.int32(), nullable=False)),
        *ROW,
        pa.field("score", pa.float32(), nullable=False),
    ],
    "rows": [*ROW, *(pa.field(name, REAL, nullable=False) for name in ("mean", "sum", "min", "max", "positive"))],
    "self": [*ROW, pa.field("score", pa.float32(), nullable=False)],
}


def queries_file(out: Path) -> Path:
    """Return where the queries are told of."""
    return out.with_name(f"{out.stem}.queries.jsonl")


def schema_of(scan: Scan, told: dict[str, str]) -> pa.Schema:
    """Return the columns of an answer, with what is told of it as metadata."""
    scores = pa.field("scores", pa.list_(pa.field("item", pa.float32(), nullable=False), scan.queries), nullable=False)
    return pa.schema(COLUMNS.get(scan.keep, [*ROW, scores]), metadata=told)


def write_answer(scan: Scan, queries: Sequence[Example], told: dict[str, str], out: Path, stage: Progress) -> None:
    """Write the answer from the parts, all of which stand; what is at `out` is replaced at the end.

    Raises:
        Incomplete: The disk is full; the parts stay.
        DigestMismatch: A part is damaged.
    """
    store = Store(scan.run_dir)
    schema = schema_of(scan, told)
    if queries:
        write_whole(queries_file(out), _told_queries(scan, queries, told["unit"]))
    with disk_errors(out.parent, out.name, answer_bytes(scan, scan.rows)):
        file = PartialFile(out)
        try:
            # Scores don't compress, and ids do a little.
            repeated: Any = ["side", "query_id"] if scan.keep == "top" else False
            with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated) as writer:
                for table in _tables(scan, store, queries, schema, stage):
                    writer.write_table(table, row_group_size=max(1, len(table)))
            file.finish()
            file.publish()
            sync_folder(out.parent)
        finally:
            file.discard()


def answer_bytes(scan: Scan, rows: int) -> int:
    """Return about how many bytes an answer takes over so many rows, ids apart."""
    if scan.keep == "all":
        return 4 * rows * scan.queries + 8 * rows
    return scan.queries * scan.k * 2 * 32 if scan.keep == "top" else 48 * rows


def _tables(
    scan: Scan, store: Store, queries: Sequence[Example], schema: pa.Schema, stage: Progress
) -> Iterator[pa.Table]:
    if scan.keep == "top":
        for batch in range(len(scan.batches)):
            yield _best(scan, store, queries, batch, schema)
            stage.finished()
        return
    for block in range(len(scan.blocks)):
        rows = scan.chosen(block)
        if len(rows):
            yield from _each(scan, store, block, rows, schema)
        stage.finished()


def _each(scan: Scan, store: Store, block: int, rows: np.ndarray, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the lines of a block's rows, a row group at a time."""
    size = max(1, min(GROUP_ROWS, GROUP_BYTES // (4 * max(1, scan.queries)))) if scan.keep == "all" else GROUP_ROWS
    with ExitStack() as stack:
        files = (scan.scored_file(block, batch) for batch in range(len(scan.batches)))
        parts = [stack.enter_context(open_tensors(path, scan.fingerprint)) for path in files]
        for start in range(0, len(rows), size):
            here = rows[start : start + size]

            def read(name: str, part: int, first: int = start, last: int = start + size) -> np.ndarray:
                return parts[part].get_slice(name)[first : min(last, len(rows))]

            columns: list[pa.Array] = [pa.array(here), pa.array(_ids(store, here))]
            if scan.keep == "all":
                scores = np.concatenate([read("scores", part) for part in range(len(parts))], axis=1)
                kind = schema.field("scores").type
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), type=kind))
            elif scan.keep == "self":
                columns.append(pa.array(read("scores", 0)))
            else:
                columns += [pa.array(column) for column in _over_queries(scan, read, len(parts))]
            yield pa.Table.from_arrays(columns, schema=schema)


def _over_queries(scan: Scan, read: Callable[[str, int], np.ndarray], parts: int) -> list[np.ndarray]:
    """Return mean, sum, min, max and share positive of some rows; batches are added up in their order."""
    total, positive = read("sum", 0), read("positive", 0)
    low, high = read("min", 0), read("max", 0)
    for part in range(1, parts):
        total, positive = total + read("sum", part), positive + read("positive", part)
        low, high = np.minimum(low, read("min", part)), np.maximum(high, read("max", part))
    return [total / scan.queries, total, low, high, positive / scan.queries]


def _best(scan: Scan, store: Store, queries: Sequence[Example], batch: int, schema: pa.Schema) -> pa.Table:
    """Return the best rows of a batch of queries at both ends; a row that scores zero is at neither."""
    count, first = scan.batch_size(batch), scan.batches[batch]
    ends = {"promoting": Shortlist(count, scan.k), "opposing": Shortlist(count, scan.k)}
    for block in range(len(scan.blocks)):
        found = load_tensors(scan.scored_file(block, batch), scan.fingerprint)
        for side, name in (("promoting", "high"), ("opposing", "low")):
            ends[side].merge(found[name].numpy(), found[f"{name}_rows"].numpy())
    sides = {"promoting": 1} if scan.recipe.baseline is not None else {"promoting": 1, "opposing": -1}
    found_here = []
    for place, (side, sign) in enumerate(sides.items()):
        scores, rows = ends[side].scores, ends[side].rows
        number, rank = np.nonzero(scores > 0)
        found_here.append((number, np.full(number.size, place), rank, rows[number, rank], sign * scores[number, rank]))
    number, side, rank, row, score = (np.concatenate(arrays) for arrays in zip(*found_here, strict=True))
    order = np.lexsort((rank, side, number))
    number, side, rank, row, score = (array[order] for array in (number, side, rank, row, score))
    names = pa.array([query.id for query in queries[first : first + count]], pa.string())
    columns = [first + number, names.take(pa.array(number)), pa.array(list(sides)).take(pa.array(side)), rank + 1, row]
    columns += [_ids(store, row), score]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _ids(store: Store, rows: np.ndarray) -> list[str]:
    return [meta["id"] for meta in store.meta(rows, ("id",))]


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """What the model makes of a query that was asked in a scan.

    Attributes:
        log_likelihood: log p(completion | prompt), summed over its tokens, in nats.
        magnitudes: How the scores of its rows can be read.
    """

    log_likelihood: float
    magnitudes: Magnitudes


def query_records(out: Path) -> Iterator[QueryRecord]:
    """Yield what is told of an answer's queries, in their order; nothing where rows were asked about themselves."""
    if not queries_file(out).exists():
        return
    with queries_file(out).open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield QueryRecord(record["log_likelihood"], record.get("magnitudes", "unchecked"))


def _told_queries(scan: Scan, queries: Sequence[Example], unit: str) -> bytes:
    """Return a line of JSON a query: its number, id, text, log-likelihood, best score and how to read magnitudes."""
    lines = []
    for batch, first in enumerate(scan.batches):
        best = np.zeros(scan.batch_size(batch), dtype=np.float32)
        for block in range(len(scan.blocks)):
            with open_tensors(scan.scored_file(block, batch), scan.fingerprint) as found:
                best = np.maximum(best, found.get_tensor("best"))
        with open_tensors(scan.asked_file(batch), scan.fingerprint) as found:
            said, instead = found.get_tensor("said"), found.get_tensor("instead")
        for within, query in enumerate(queries[first : first + scan.batch]):
            told = {"query": first + within, "id": query.id, "text": query.text, "log_likelihood": float(said[within])}
            if query.label is not None:
                told["label"] = query.label
            if query.contrast is not None:
                told["contrast"] = query.contrast.text
                against = float(instead[within])
                told["contrast_log_likelihood"] = against if math.isfinite(against) else None
            told["best"] = float(best[within])
            told["magnitudes"] = magnitudes(
                unit, told["best"], told["log_likelihood"], contrasted=query.contrast is not None
            )
            lines.append(json.dumps(told, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
