"""The table of issues: one line a row of the run, written a block at a time.

    row, id, source, label
    is_<issue>, <issue>_score      of every check made; the higher a score, the stronger the case; null: nothing said
    evidence                       struct: of every check, the ids of the rows that made its case; null: not flagged
    action                         drop, relabel or review; null where no check flagged the row
    suggested_label                of relabel
    suggestion                     the same for people

What each score means, from where on rows are flagged, and the run are in the file's metadata.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.diagnose.finding import Action, Case, Finding
from influence.errors import QueryError, StoreError
from influence.store.partial import PartialFile, disk_errors, sync_folder
from influence.store.reader import Store

BLOCK = 2**16
ROW_BYTES = 128
"""About what a line takes, to say beforehand whether there is room."""
STRENGTH: tuple[Action, ...] = ("drop", "relabel", "review")
"""Which suggestion counts, where checks make several."""
VERSION = 1
IS, SCORE = "is_", "_score"
KEY = b"influence.issues"


@dataclass(frozen=True)
class IssuesFile:
    """What a table of issues says of itself.

    Attributes:
        run: Fingerprint of the run's rows.
        rows: Lines.
        issues: The checks, in the order of their columns.
        meanings: By check, what a score means.
        rules: By check, from where on rows are flagged.
    """

    run: str
    rows: int
    issues: tuple[str, ...]
    meanings: dict[str, str]
    rules: dict[str, str]


def write_issues(store: Store, findings: Sequence[Finding], out: Path) -> None:
    """Write the table, replacing what is at `out` at the end.

    Raises:
        Incomplete: The disk is full; nothing half-written is left.
    """
    schema = _schema(store, findings)
    with disk_errors(out.parent, out.name, ROW_BYTES * store.rows):
        file = PartialFile(out)
        try:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _tables(store, findings, schema):
                    writer.write_table(table, row_group_size=BLOCK)
            file.finish()
            file.publish()
            sync_folder(out.parent)
        finally:
            file.discard()


def read_about(path: Path) -> IssuesFile:
    """Return what a table of issues says of itself.

    Raises:
        QueryError: The file isn't there, or is no table of issues.
    """
    expected = "Expected a file that `influence issues` wrote."
    if not path.is_file():
        raise QueryError(f"There is no file {path}. {expected}")
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise QueryError(f"{path} can't be read as Parquet: {error}. {expected}") from None
    if KEY not in metadata:
        raise QueryError(f"{path} is a Parquet file, but no table of issues. {expected}")
    told = json.loads(metadata[KEY])
    if told.pop("version") != VERSION:
        raise StoreError(f"{path} was written by another version of this format. Run `influence issues` again.")
    return IssuesFile(**{**told, "issues": tuple(told["issues"])})


def read_issues(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the table a row group at a time, in row order; see `read_about` for errors."""
    read_about(path)
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=None if columns is None else list(columns))


def _schema(store: Store, findings: Sequence[Finding]) -> pa.Schema:
    told = {
        "version": VERSION,
        "run": store.manifest.rows_fingerprint,
        "rows": store.rows,
        "issues": [finding.issue for finding in findings],
        "meanings": {finding.issue: finding.meaning for finding in findings},
        "rules": {finding.issue: finding.rule for finding in findings},
    }
    named: list[pa.Field] = [pa.field("row", pa.int64(), False), pa.field("id", pa.string(), False)]
    named += [pa.field("source", pa.string()), pa.field("label", pa.string())]
    for finding in findings:
        named += [
            pa.field(f"{IS}{finding.issue}", pa.bool_(), False),
            pa.field(f"{finding.issue}{SCORE}", pa.float32()),
        ]
    struct = pa.struct([pa.field(finding.issue, pa.list_(pa.string())) for finding in findings])
    named += [pa.field("evidence", struct)]
    named += [pa.field(name, pa.string()) for name in ("action", "suggested_label", "suggestion")]
    return pa.schema(named, metadata={KEY: json.dumps(told, ensure_ascii=False).encode(errors="backslashreplace")})


def _tables(store: Store, findings: Sequence[Finding], schema: pa.Schema) -> Iterator[pa.Table]:
    for first in range(0, store.rows, BLOCK):
        rows = np.arange(first, min(store.rows, first + BLOCK))
        meta = store.meta(rows, ("id", "source", "label"))
        columns: list[pa.Array] = [pa.array(rows)]
        columns += [pa.array([line[name] for line in meta], pa.string()) for name in ("id", "source", "label")]
        for finding in findings:
            scores = finding.scores[rows]
            columns.append(pa.array(np.fromiter((int(row) in finding.cases for row in rows), bool, len(rows))))
            columns.append(pa.array(scores.astype(np.float32), mask=np.isnan(scores)))
        cases = [{finding.issue: finding.cases.get(int(row)) for finding in findings} for row in rows]
        columns.append(pa.array([_evidence(line) for line in cases], schema.field("evidence").type))
        decided = [_decided([case for case in line.values() if case]) for line in cases]
        columns += [pa.array([line[number] for line in decided], pa.string()) for number in range(3)]
        yield pa.Table.from_arrays(columns, schema=schema)


def _evidence(line: Mapping[str, Case | None]) -> dict[str, list[str] | None] | None:
    """Return the ids that made each case against one row; None where there is no case."""
    if not any(line.values()):
        return None
    return {issue: list(case.evidence) if case else None for issue, case in line.items()}


def _decided(cases: Sequence[Case]) -> tuple[str | None, str | None, str | None]:
    """Return the action, the label and the words that the cases against one row come to."""
    if not cases:
        return None, None, None
    action = min((case.action for case in cases), key=STRENGTH.index)
    label = next((case.label for case in cases if case.action == "relabel"), None) if action == "relabel" else None
    return action, label, "; ".join(dict.fromkeys(case.suggestion for case in cases))


__all__ = ["IS", "SCORE", "IssuesFile", "read_about", "read_issues", "write_issues"]
