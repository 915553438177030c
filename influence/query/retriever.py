"""How a run answers queries: the index proposes candidates, exact scores re-rank them, a condition restricts both.

Without a condition on rows the index proposes; with one, the rows that pass are scanned, so that the answer is the best
of those and not what is left of the best of all.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal

import numpy as np

import index.approximate.search
import index.persist
import index.search
from index.approximate.merge import open_index
from index.approximate.search import ApproximateIndex
from index.build import FlatIndex
from index.exact import exact_search_scores
from index.neighbours import Found, Neighbours
from influence.baselines import bm25
from influence.baselines.bm25 import BM25
from influence.capture.exact import ExactScorer
from influence.capture.queries import query_gradients
from influence.capture.session import Session
from influence.curvature.damping import Damping
from influence.curvature.kfac import KroneckerCurvature
from influence.data.example import Example
from influence.data.queries import Query
from influence.engine.progress import Report
from influence.errors import QueryError
from influence.query.attribute import Queries, Search, attribute, decide, propose, query_vectors
from influence.query.baseline import lexical_blocks, lexical_hits
from influence.query.decision import check_lexical, checked_k
from influence.query.hits import Hits
from influence.query.index_errors import index_errors
from influence.query.scores import Scores
from influence.recipes import ExactSettings, extra_copy, sign_rule
from influence.run_dir import RunDir
from influence.stages.factors import load_kronecker
from influence.stages.index import (
    FOLDER,
    candidate_scores,
    index_fingerprint,
    index_plan,
    load_comparison,
    scan_stands,
    scored_blocks,
)
from influence.stages.lexical_index import load_lexical
from influence.stages.mirror import on_disk
from influence.store.filter import passing_rows
from influence.vectors.ensemble import Compared

log = logging.getLogger(__name__)


FIRST_BATCH = 16
"""Queries of the first batch, where answers are given as they come."""


@dataclass(frozen=True)
class Options:
    """How queries are answered; see `influence.api.Run.query_many`."""

    k: int | None = None
    exact: bool | None = None
    candidates: int | None = None
    where: str | None = None
    raw: bool = False
    progress: Report | None = None


def growing(queries: Iterable[Query], first: int, most: int) -> Iterator[list[Query]]:
    """Yield queries in batches, each twice as large as the one before, up to a limit."""
    rest, size = iter(queries), first
    while batch := list(islice(rest, min(size, most))):
        size *= 2
        yield batch


class WordsAmong(BM25):
    """BM25 of which only some rows may be found."""

    def __init__(self, words: BM25, passing: np.ndarray) -> None:
        self._whole, self._passing = words, passing
        self.rows, self.postings = words.rows, words.postings

    def scores(self, query: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the scores of texts `start` up to `stop`; zero, as without a common word, where none may be found."""
        return self._whole.scores(query, start, stop) * self._passing[start:stop]


class Retriever:
    """Finds the rows that answer queries of one run. Its curvature, its index and BM25's are loaded when first needed.

    Attributes:
        run: The run.
    """

    def __init__(self, run: RunDir, session: Callable[[], Session]) -> None:
        """Set up.

        Args:
            run: The run.
            session: Returns its model under capture, loaded when first needed.
        """
        self.run, self._session = run, session
        self._curvature: tuple[tuple[str, Damping], KroneckerCurvature] | None = None

    @cached_property
    def comparison(self) -> Compared:
        """The recipe with its curvature."""
        return load_comparison(self.run.path, self.run.manifest, self.run.recipe.stored)

    def capture(self, examples: tuple[Example, ...]) -> Queries:
        """Capture queries: their gradients −∇m, projected as the rows are, and what the model makes of them.

        Raises:
            QueryError: The run is of `bm25`, which uses no model; or nothing of a query is scored.
        """
        if self.run.recipe.baseline == "bm25":
            raise QueryError(f"{self.run.path} compares words and captures nothing: take query or score.")
        return Queries(examples, *query_gradients(self._session(), examples))

    def blocks(self, examples: Sequence[Example], captured: Queries | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [queries, b]) of consecutive rows; by BM25 where nothing is captured."""
        if captured is None:
            yield from lexical_blocks(examples, self.words)
        else:
            yield from scored_blocks(self.run.store, self.comparison, query_vectors(captured, self.comparison))

    def every_row(self, examples: tuple[Example, ...]) -> Scores:
        """Score every row for every query, without candidates: by the stored rows, or by K-FAC's whole gradients."""
        run = self.run
        captured = None if run.recipe.baseline == "bm25" else self.capture(examples)
        if run.recipe.curvature.whole:
            scores, recipe = self.scorer(run.recipe.decision).every_row(examples), run.recipe
        else:
            scores, recipe = np.empty((len(examples), run.rows), dtype=np.float32), run.recipe.stored
            for first, block in self.blocks(examples, captured):
                scores[:, first : first + block.shape[1]] = block
        unit, sign = recipe.unit_under(run.manifest.reduction), sign_rule(run.recipe.baseline)
        contrasted = [example.contrast is not None for example in examples]
        return Scores.of(scores, unit, sign, None if captured is None else captured.measured, contrasted)

    def hits(
        self,
        examples: tuple[Example, ...],
        decision: ExactSettings,
        k: int | None,
        where: str | None = None,
        progress: Report | None = None,
    ) -> list[Hits]:
        """Answer every query.

        Args:
            examples: What is asked.
            decision: What decides.
            k: Rows on each side; unset, 10 or as many as there are.
            where: A condition on the rows' metadata; see `influence.store.filter`.
            progress: Hears of exact scoring.

        Raises:
            QueryError: See `Run.query_many`.
        """
        run = self.run
        k = checked_k(k, run.rows, run.path, decision)
        passing = None if where is None else passing_rows(run.store, where)
        if passing is not None:
            k = self._fewer(k, int(passing.sum()), str(where))
        if run.recipe.baseline == "bm25":
            return lexical_hits(examples, run.store, self._words_among(passing), run.recipe, k)
        captured = self.capture(examples)
        search = self._search_among(passing)
        with index_errors():
            if decision.kind == "none":
                return attribute(captured, run.store, self.comparison, search, k)
            if decision.candidates is None and passing is None:
                found = self.scorer(decision, progress).every_row(captured.examples)
                everyone = [np.arange(run.rows)] * len(found)
                return decide(captured, run.store, everyone, list(found), k, **self._told(decision))
            searches = None
            if decision.candidates is None:
                proposed = [np.flatnonzero(passing)] * len(examples)  # type: ignore[arg-type]
            else:
                words = self._words_among(passing) if decision.lexical else None
                count = min(decision.candidates, run.rows)
                proposed, searches = propose(captured, self.comparison, search, count, words)
            scores = self.scorer(decision, progress).candidates(captured.examples, proposed)
            return decide(captured, run.store, proposed, scores, k, searches=searches, **self._told(decision))

    @cached_property
    def words(self) -> BM25:
        """BM25 over every row's text: the run's index of them, or one prepared when first needed."""
        run = self.run
        if run.recipe.baseline == "bm25":
            with on_disk(run.path / FOLDER) as folder:
                return load_lexical(folder, run.manifest)
        check_lexical(run.rows)
        return bm25.fit(run.store.texts())

    def scorer(self, decision: ExactSettings, progress: Report | None = None) -> ExactScorer:
        """Return what scores rows from whole gradients; the factors stay for further queries of the same decision."""
        run = self.run
        kind: Literal["kfac", "ekfac"] = "kfac" if decision.kind == "kfac" else "ekfac"
        if self._curvature is None or self._curvature[0] != (kind, decision.damping):
            self._curvature = None
            loaded = load_kronecker(run.path, run.manifest, run.recipe, kind, decision.damping)
            self._curvature = (kind, decision.damping), loaded
        curvature = self._curvature[1]
        left_out = [row.row for row in run.manifest.quarantined]
        return ExactScorer(self._session(), curvature, run.rows, decision.rank, progress, left_out)

    @cached_property
    def _flat(self) -> FlatIndex:
        with on_disk(self.run.path / FOLDER) as folder:
            return index.persist.load(folder, self._indexed, self.run.config.index.device)

    @cached_property
    def _approximate(self) -> ApproximateIndex:
        with on_disk(self.run.path / FOLDER) as folder:
            return open_index(folder, self._indexed)

    @cached_property
    def _kind(self) -> str:
        """The kind of the index's plan; `exact` also where `auto` found no index that is good enough."""
        run = self.run
        plan = index_plan(run.config.index, run.manifest)
        if plan.factory is None:
            return plan.kind
        scanned = scan_stands(run.path, run.manifest, run.recipe.stored, run.config.index)
        return "exact" if scanned else plan.kind

    @property
    def _indexed(self) -> str:
        return index_fingerprint(self.run.manifest, self.run.recipe.stored)

    def _search(self, vectors: np.ndarray, k: int) -> Neighbours:
        run, kind = self.run, self._kind
        if kind == "exact":
            return exact_search_scores(scored_blocks(run.store, self.comparison, vectors), len(vectors), k)
        if kind == "flat":
            return index.search.search(self._flat, vectors, k)
        score = partial(candidate_scores, run.store, self.comparison)
        settings = run.config.index
        return index.approximate.search.search(
            self._approximate, vectors, k, score, probes=settings.probes, candidates=settings.candidates
        )

    def _search_among(self, passing: np.ndarray | None) -> Search:
        if passing is None:
            return self._search
        rows, run = np.flatnonzero(passing), self.run

        def search(vectors: np.ndarray, k: int) -> Neighbours:
            blocks = scored_blocks(run.store, self.comparison, vectors, passing=passing)
            found = exact_search_scores(blocks, len(vectors), k)
            sides = (found.largest, found.smallest)
            return Neighbours(*(Found(rows[side.rows], side.scores) for side in sides))

        return search

    def _words_among(self, passing: np.ndarray | None) -> BM25:
        return self.words if passing is None else WordsAmong(self.words, passing)

    def _fewer(self, k: int, passing: int, where: str) -> int:
        log.info("%d of %d rows pass %r; they are scanned, not looked up in the index.", passing, self.run.rows, where)
        if k > passing:
            log.warning("k is %d rows on each side, and only %d rows meet %r.", k, passing, where)
        return min(k, passing)

    def _told(self, decision: ExactSettings) -> dict[str, Any]:
        recipe = self.run.recipe
        decided = recipe.model_copy(update={"exact": decision})
        return {
            "summary": f"{recipe.summary}; {decided.exact_summary}",
            "unit": extra_copy(self.run.manifest.reduction),
        }
