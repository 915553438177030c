"""Full scans of a run: every stored row scored for every query, or for itself, into a file of any size."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from influence.capture.opening import run_spec
from influence.config import RunConfig
from influence.data.columns import Columns
from influence.data.example import Example
from influence.engine.progress import Progress, Report
from influence.query.asked import Query, QueryForm, read_queries
from influence.query.attribute import named
from influence.query.baseline import check_asked
from influence.recipes import Recipe
from influence.scan.answer import Answered, Question, answer
from influence.scan.blocks import self_scores
from influence.scan.plan import Keep, check_scannable
from influence.stages.index import load_comparison
from influence.stages.record import overridden
from influence.store.reader import Store

SELF_BLOCK = 2**14
"""Rows between two steps of progress."""


class Scanning:
    """What `Run` can do to all of its rows at once.

    Attributes:
        path: The run directory.
        config: Its whole resolved configuration.
        store: Its rows.
    """

    path: Path
    config: RunConfig
    store: Store

    @property
    def recipe(self) -> Recipe:
        """How rows are scored."""
        return self.config.recipe

    @cached_property
    def query_form(self) -> QueryForm:
        """How queries are read: by the names of the data's columns, and as chats where the rows are."""
        parts = self.store.manifest.fingerprint_parts
        columns = Columns.model_validate_json(str(parts["data.columns"]))
        chats = bool(parts.get("data.chats")) or columns.messages is not None
        return QueryForm(columns, chats, labels=self.config.model.kind != "causal_lm")

    def score_to(
        self,
        queries: Sequence[Query],
        out: str | Path,
        *,
        keep: Keep = "all",
        k: int = 100,
        where: str | None = None,
        cut: bool = False,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> Answered:
        """Score every stored row for every query on the run's cluster, into a Parquet file; see `influence.scan.table`.

        Memory does not depend on the number of rows and queries. A scan that was killed resumes from `OUT.parts/`. If
        local workers would take longer to start than to compute, this process computes.

        Args:
            queries: See `query_many`.
            out: The file (.parquet).
            keep: `all`: every score, one line per row. `top`: the k best rows of each query and side. `rows`: each
                row's mean, sum, minimum, maximum and share of positive scores over all queries.
            k: With `top`: number of rows on each side.
            where: Score only rows that meet a condition; see `query_many`.
            cut: Cut long queries as the run's rows are cut, instead of refusing those beyond the model's positions.
            overwrite: Replace an existing file.
            overrides: Settings of the cluster section, `key=value` each: `cluster.workers=4`.
            progress: Called with every `Step`; a `ProgressBar` shows them.

        Raises:
            QueryError: The recipe has no stored scores, or see `influence.scan.answer`.
            Incomplete: Interrupted, or the disk is full. The same call resumes.
        """
        return self._scan(Question(self._asked(queries), keep, k, where, cut), out, overwrite, overrides, progress)

    def self_influence_to(
        self,
        out: str | Path,
        *,
        where: str | None = None,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> Answered:
        """Write `self_influence` into a Parquet file, on the run's cluster; see `score_to` for the arguments."""
        return self._scan(Question(None, where=where), out, overwrite, overrides, progress)

    def self_influence(self, progress: Report | None = None) -> np.ndarray:
        """Score each stored row for itself: ⟨v, (H+λ)⁻¹v⟩, the diagonal of the matrix of all rows as queries.

        Without a Fisher (`whitened`, `graddot`, `tracin`) it is the square of a row's stored length, exact under every
        codec. With a Fisher (`logra`) it is computed from the decoded rows at their stored lengths: within a per cent
        for float16 and int8, within some tens of per cent for `bits`, which keeps the ranks.

        It is computed in this process, some rows at a time. `self_influence_to` uses the run's cluster and resumes.

        Args:
            progress: Called with every `Step`.

        Returns:
            float32 [rows], in the recipe's unit. Large for rows that other rows do not support.

        Raises:
            QueryError: With this recipe it is 1 for every row, or it cannot be computed from stored rows.
        """
        check_scannable(self.recipe, itself=True)
        comparison = load_comparison(self.path, self.store.manifest, self.recipe.stored)
        found, blocks = np.empty(self.store.rows, dtype=np.float32), self.store.span(SELF_BLOCK, 0, None)
        stage = Progress("self-influence", len(blocks), progress)
        for first in blocks:
            rows = np.arange(first, min(first + SELF_BLOCK, self.store.rows))
            found[rows] = self_scores(self.store, comparison, rows)
            stage.finished()
        return found

    def _scan(
        self, question: Question, out: str | Path, overwrite: bool, overrides: Sequence[str], progress: Report | None
    ) -> Answered:
        config = overridden(self.config, overrides)
        # Queries may be asked on another device than the rows were captured on.
        if config.cluster.here:
            config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "auto"})})
        check_scannable(config.recipe, itself=question.queries is None)
        spec = run_spec(config, self.path, self.store.manifest)
        return answer(config, self.store, spec, question, Path(out), overwrite=overwrite, report=progress)

    def _asked(self, queries: Iterable[Query], *, exact: bool = False, raw: bool = False) -> tuple[Example, ...]:
        examples = named(list(read_queries(queries, self.query_form.asking(raw=raw))))
        check_asked(self.recipe, self.path, examples, exact=exact)
        return examples
