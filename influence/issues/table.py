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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.partial import PartialFile, disk_errors, sync_folder
from influence.errors import QueryError, StoreError
from influence.issues.cases import Cases, gather
from influence.issues.finding import Action, Case, Finding
from influence.store.reader import Store

BLOCK = 2**16
ROW_BYTES = 128
"""About what a line takes, to say beforehand whether there is room."""
STRENGTH: tuple[Action, ...] = ("drop", "relabel", "review")
"""Which suggestion counts, where checks make several; but see `OF_THE_LABEL`."""
OF_THE_LABEL = frozenset({"harmful"})
"""Checks whose reason to drop a row a better label takes away. Poison and copies go, whatever their label should be."""
VERSION = 2
WITHOUT_SKIPPED = 1
"""The version whose tables don't say which checks were skipped."""
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
        labels: How many rows a label is suggested for; None where the table doesn't say.
        skipped: By check that was not made, why; of checks that nobody named.
    """

    run: str
    rows: int
    issues: tuple[str, ...]
    meanings: dict[str, str]
    rules: dict[str, str]
    labels: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def write_issues(
    store: Store,
    findings: Sequence[Finding],
    out: Path,
    publish: Callable[[PartialFile], None] = PartialFile.publish,
    skipped: Mapping[str, str] | None = None,
) -> None:
    """Write the table.

    Args:
        store: The rows.
        findings: One a check.
        out: The file.
        publish: Gives the finished file its name, replacing what is there unless told otherwise.
        skipped: By check that was not made, why.

    Raises:
        Incomplete: The disk is full; nothing half-written is left.
    """
    cases = {finding.issue: gather(finding.cases) for finding in findings}
    schema = _schema(store, findings, cases, skipped or {})
    with disk_errors(out.parent, out.name, ROW_BYTES * store.rows):
        file = PartialFile(out)
        try:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _tables(store, findings, cases, schema):
                    writer.write_table(table, row_group_size=BLOCK)
            file.finish()
            publish(file)
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
    if told.pop("version") not in (VERSION, WITHOUT_SKIPPED):
        raise StoreError(f"{path} was written by another version of this format. Run `influence issues` again.")
    return IssuesFile(**{**told, "issues": tuple(told["issues"])})


def read_issues(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the table a row group at a time, in row order; see `read_about` for errors."""
    read_about(path)
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=None if columns is None else list(columns))


def _schema(
    store: Store, findings: Sequence[Finding], cases: Mapping[str, Cases], skipped: Mapping[str, str]
) -> pa.Schema:
    told = {
        "version": VERSION,
        "run": store.manifest.rows_fingerprint,
        "rows": store.rows,
        "issues": [finding.issue for finding in findings],
        "meanings": {finding.issue: finding.meaning for finding in findings},
        "rules": {finding.issue: finding.rule for finding in findings},
        "labels": sum(found.labels for found in cases.values()),
        "skipped": dict(skipped),
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


def _tables(
    store: Store, findings: Sequence[Finding], gathered: Mapping[str, Cases], schema: pa.Schema
) -> Iterator[pa.Table]:
    for first in range(0, store.rows, BLOCK):
        rows = np.arange(first, min(store.rows, first + BLOCK))
        held = {issue: cases.between(first, first + len(rows)) for issue, cases in gathered.items()}
        meta = store.meta(rows, ("id", "source", "label"))
        columns: list[pa.Array] = [pa.array(rows)]
        columns += [pa.array([line[name] for line in meta], pa.string()) for name in ("id", "source", "label")]
        for finding in findings:
            scores = finding.scores[rows]
            columns.append(pa.array(np.isin(rows, gathered[finding.issue].rows)))
            columns.append(pa.array(scores.astype(np.float32), mask=np.isnan(scores)))
        cases = [{issue: found.get(row) for issue, found in held.items()} for row in rows.tolist()]
        columns.append(pa.array([_evidence(line) for line in cases], schema.field("evidence").type))
        decided = [_decided({issue: case for issue, case in line.items() if case}) for line in cases]
        columns += [pa.array([line[number] for line in decided], pa.string()) for number in range(3)]
        yield pa.Table.from_arrays(columns, schema=schema)


def _evidence(line: Mapping[str, Case | None]) -> dict[str, list[str] | None] | None:
    """Return the ids that made each case against one row; None where there is no case."""
    if not any(line.values()):
        return None
    return {issue: list(case.evidence) if case else None for issue, case in line.items()}


def _decided(cases: Mapping[str, Case]) -> tuple[str | None, str | None, str | None]:
    """Return the action, the label and the words that the cases against one row come to, by check."""
    if not cases:
        return None, None, None
    action = min((case.action for case in cases.values()), key=STRENGTH.index)
    label = next((case.label for case in cases.values() if case.action == "relabel"), None)
    dropping = {issue for issue, case in cases.items() if case.action == "drop"}
    words = {issue: case.suggestion for issue, case in cases.items()}
    if label is not None and dropping and dropping <= OF_THE_LABEL:
        action = "relabel"
        words |= {issue: words[issue].removeprefix("drop: ") for issue in dropping}
    return action, label if action == "relabel" else None, "; ".join(dict.fromkeys(words.values()))


__all__ = ["IS", "SCORE", "IssuesFile", "read_about", "read_issues", "write_issues"]
