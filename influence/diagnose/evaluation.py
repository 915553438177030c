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
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from influence.data.columns import Columns
from influence.data.dataset import open_rows
from influence.data.example import QUERY_ROW
from influence.errors import DataError, QueryError
from influence.pipeline.progress import Report
from influence.query.asked import Query, as_example

if TYPE_CHECKING:
    from influence.run import Run

MOST = 100_000
"""The most examples of an evaluation set: all of them are held in memory."""
PREFIX = "eval:"
"""In front of the ids of an evaluation set's examples, where they stand beside ids of rows."""


class Evaluation:
    """Some examples, and every row's scores for them.

    Attributes:
        place: Where they come from, for messages.
        examples: The examples, [queries].
    """

    def __init__(self, run: "Run", examples: Sequence[Query], place: str) -> None:
        self._run = run
        self.place = place
        self.examples = tuple(as_example(example) for example in examples)
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
        out = folder / f"scores-{self.digest[:16]}.parquet"
        if not out.exists():
            self._run.score_to(self.examples, out, cut=True, overwrite=True, overrides=overrides, progress=progress)
        first = 0
        with pq.ParquetFile(out) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["scores"]).column("scores").combine_chunks()
                found = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), len(self.examples))
                yield first, found
                first += len(found)


def read_evaluation(run: "Run", path: str | Path) -> Evaluation:
    """Read examples from a file as the run's training data were read: jsonl, csv, parquet, or a saved data set.

    Columns may have the names that the training data's have, or the usual ones (text, prompt and completion, label, …).

    Raises:
        DataError: The file can't be read, has no column to score, or a classifier's has no labels; what was found and
            expected is named.
        QueryError: It holds no example, or more than are held in memory.
    """
    settings = run.config.data.model_copy(update={"path": str(path), "format": "auto", "limit": None, "name": None})
    rows = None
    try:
        rows = open_rows(settings)
    except DataError as error:
        try:
            rows = open_rows(settings.model_copy(update={"columns": Columns()}))
        except DataError:
            raise error from None
    rows.check(run.config.model.kind)
    if len(rows) > MOST:
        raise QueryError(
            f"{path} holds {len(rows):,} examples, and at most {MOST:,} are held against a run at once: take a sample."
        )
    examples = (replace(example, row=QUERY_ROW) for example in rows.examples())
    if run.config.model.kind == "causal_lm":
        # Rows may have labels that a language model doesn't read; a query with one would ask a classifier.
        examples = (replace(example, label=None) for example in examples)
    return Evaluation(run, list(examples), str(path))


def as_evaluation(run: "Run", given: "Evaluation | str | Path | Sequence[Any]", what: str) -> Evaluation:
    """Return what was given as an evaluation set: a file, or queries as `Run.query_many` takes them."""
    if isinstance(given, Evaluation):
        return given
    return read_evaluation(run, given) if isinstance(given, str | Path) else Evaluation(run, given, what)


__all__ = ["MOST", "PREFIX", "Evaluation", "as_evaluation", "read_evaluation"]
