"""Examples that a run's rows are held against: an evaluation set, a target, an unwanted output.

They are read like the run's own data, and cut where its rows are. The scores of all rows for them are a scan of
`pipeline/`, on the run's cluster and into a file, so that memory doesn't grow with either and an interrupted scan goes
on.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from influence.data.classes import check_class_order
from influence.data.columns import CONTENT_ROLES, Columns, find_layout
from influence.data.dataset import Rows, locate, open_rows
from influence.data.example import QUERY_ROW
from influence.data.queries import Query, in_form, read_queries
from influence.data.records import columns_of
from influence.engine.progress import Report
from influence.errors import DataError, QueryError
from influence.model.class_names import class_names
from influence.query.examples import query_examples
from influence.run_dir import RunDir
from influence.scan.answer import Question
from influence.scan.score import score_to
from influence.scan.table import QueryRecord, query_records

MOST = 100_000
"""The most examples of an evaluation set: all of them are held in memory."""
CONTENT = tuple(dict.fromkeys(role for roles in CONTENT_ROLES.values() for role in roles))
ABOUT = ("id", "source", "uri")
"""Columns that say what a row is called and where it comes from, not what it is."""
PREFIX = "eval:"
"""In front of the ids of an evaluation set's examples, where they stand beside ids of rows."""


class Evaluation:
    """Some examples, and every row's scores for them.

    Attributes:
        place: Where they come from, for messages.
        file: The file or data set that they were read from; None where they were given one by one.
        examples: The examples, [queries].
    """

    def __init__(self, run: RunDir, examples: Sequence[Query], place: str, file: str | None = None) -> None:
        self._run = run
        self.place, self.file = place, file
        self.examples = tuple(read_queries(examples, run.query_form))
        if not self.examples:
            raise QueryError(f"{place} holds no example. Expected one or more, with the columns of the training data.")

    @property
    def labels(self) -> list[str | None]:
        """The examples' labels, as text."""
        return [None if example.label is None else str(example.label) for example in self.examples]

    @property
    def ids(self) -> list[str]:
        """The examples' ids, marked as those of an evaluation set."""
        return [f"{PREFIX}{example.id}" for example in self.examples]

    @property
    def digest(self) -> str:
        """Of the examples, in their order."""
        told = hashlib.sha256()
        for example in self.examples:
            label = None if example.label is None else str(example.label)
            told.update(json.dumps([example.id, repr(example.content), label]).encode(errors="backslashreplace"))
        return told.hexdigest()

    def scores(
        self, folder: Path, overrides: Sequence[str] = (), progress: Report | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [b, queries]) of all rows, in order; positive promotes the example.

        Args:
            folder: Where the scan's file is kept; it is used again if it is there.
            overrides: `key=value` each, of the cluster section.
            progress: Hears of the scan.

        Raises:
            QueryError: The run's recipe has no stored scores, or an example can't be asked about.
            Incomplete: Interrupted, or the disk is full; the same call goes on.
        """
        out = self._file(folder)
        if not out.exists():
            try:
                question = Question(query_examples(self._run, self.examples), cut=True)
                score_to(self._run, question, out, overwrite=True, overrides=overrides, progress=progress)
            except QueryError as error:
                which = (number for number, own in enumerate(self.examples) if f"Query {own.id!r}" in str(error))
                number = next(which, None)
                where = "" if number is None else f", row {number} (counted from 0)"
                raise QueryError(f"{self.place}{where}: {error}") from None
        first = 0
        with pq.ParquetFile(out) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["scores"]).column("scores").combine_chunks()
                found = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), len(self.examples))
                yield first, found
                first += len(found)

    def records(self, folder: Path) -> tuple[QueryRecord, ...]:
        """Return what the model makes of each example, after `scores` into the same folder."""
        return tuple(query_records(self._file(folder)))

    def _file(self, folder: Path) -> Path:
        return folder / f"scores-{self.digest[:16]}.parquet"


def read_evaluation(run: RunDir, path: str | Path) -> Evaluation:
    """Read examples from a file as the run's training data were read: jsonl, csv, parquet, or a saved data set.

    Columns may have the names that the training data's have, or the usual ones (text, prompt and completion, label, …).

    Raises:
        DataError: The file can't be read, has no column to score, or a classifier's has no labels; what was found and
            expected is named.
        QueryError: It holds no example, or more than are held in memory.
    """
    rows = _opened(run, path, named=True)
    try:
        rows.check(run.config.model.kind)
    except DataError:
        if run.config.data.columns.id is not None:
            raise
        # The training data go without ids, and the file's may not do as such: they repeat, or some are missing.
        rows = _opened(run, path, named=False)
        rows.check(run.config.model.kind)
    if len(rows) > MOST:
        raise QueryError(
            f"{path} holds {len(rows):,} examples, and at most {MOST:,} can be compared with a run at once: "
            "take a sample."
        )
    if rows.classes and run.config.model.kind == "sequence_classification":
        check_class_order(rows.classes, class_names(run.config.model), rows.place)
    examples = (in_form(replace(example, row=QUERY_ROW), run.query_form) for example in rows.examples())
    if run.config.model.kind == "causal_lm":
        # Rows may have labels that a language model doesn't read; a query with one would ask a classifier.
        examples = (replace(example, label=None) for example in examples)
    return Evaluation(run, list(examples), str(path), str(path))


def _opened(run: RunDir, path: str | Path, *, named: bool) -> Rows:
    """Open a file by the training data's columns or the usual ones; `named`: by those that they lack, too."""
    own = run.config.data
    settings = own.model_copy(update={"path": str(path), "format": "auto", "limit": None, "name": None})
    kind, files = locate(settings)
    if kind in ("saved", "hub"):
        try:
            return open_rows(settings)
        except DataError as error:
            try:
                return open_rows(settings.model_copy(update={"columns": Columns()}))
            except DataError:
                raise error from None
    found = columns_of(files[0], kind, own.columns.named)
    # What the training data say nothing of, the file may.
    told = own.columns.model_dump()
    without = {role for role, name in told.items() if name is None and not (named and role in ABOUT)}
    given = {role: name for role, name in told.items() if name in found or role in without}
    for columns in (Columns(**given), Columns()):
        try:
            find_layout(found, columns, str(path))
        except DataError:
            continue
        return open_rows(settings.model_copy(update={"columns": columns}))
    content = tuple(name for role in CONTENT for name in (getattr(own.columns, role),) if name is not None)
    ways = dict.fromkeys((content, *CONTENT_ROLES.values()))
    raise DataError(
        f"{path} has no column that a query of {run.path} can have. Columns found: "
        f"{', '.join(map(repr, found)) or 'none'}. Expected {' and '.join(map(repr, content))}, as in the training "
        f"data; or {'; or '.join(' and '.join(map(repr, way)) for way in list(ways)[1:])}."
    )


def as_evaluation(run: RunDir, given: "Evaluation | str | Path | Sequence[Any]", what: str) -> Evaluation:
    """Return what was given as an evaluation set: a file, or queries as `Run.query_many` takes them."""
    if isinstance(given, Evaluation):
        return given
    if not isinstance(given, str | Path | Sequence):
        raise QueryError(f"{what}: found {type(given).__name__}. Expected a file, or a list of queries.")
    return read_evaluation(run, given) if isinstance(given, str | Path) else Evaluation(run, given, what)


__all__ = ["MOST", "PREFIX", "Evaluation", "as_evaluation", "read_evaluation"]
