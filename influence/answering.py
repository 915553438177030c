"""How a run answers queries: what proposes rows, what decides among them, and which rows may be among the answers.

Without a condition on rows the index proposes; with one, the rows that pass are scanned, so that the answer is the best
of those and not what is left of the best of all.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

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
from influence.curvature.damping import Damping
from influence.curvature.kfac import KroneckerCurvature
from influence.data.example import Example
from influence.engine.progress import Report
from influence.query.asked import Query
from influence.query.attribute import Search, attribute, decide, propose
from influence.query.baseline import lexical_hits
from influence.query.decision import check_lexical, checked_k
from influence.query.hits import Hits
from influence.query.index_errors import index_errors
from influence.recipes import ExactSettings, extra_copy
from influence.stages.factors import load_kronecker
from influence.stages.index import (
    FOLDER,
    candidate_scores,
    index_fingerprint,
    index_plan,
    scan_stands,
    scored_blocks,
)
from influence.stages.lexical_index import load_lexical
from influence.stages.mirror import on_disk
from influence.store.filter import passing_rows

if TYPE_CHECKING:
    from influence.run import Run

log = logging.getLogger(__name__)


FIRST_BATCH = 16
"""Queries of the first batch, where answers are given as they come."""


@dataclass(frozen=True)
class Options:
    """How queries are answered; see `influence.run.Run.query_many`."""

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


class Answering:
    """Answers the queries of one run; the index and BM25's are loaded when first needed."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._curvature: tuple[tuple[str, Damping], KroneckerCurvature] | None = None

    def hits(
        self,
        examples: Sequence[Example],
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
        run = self._run
        k = checked_k(k, run.rows, run.path, decision)
        passing = None if where is None else passing_rows(run.store, where)
        if passing is not None:
            k = self._fewer(k, int(passing.sum()), str(where))
        if run.recipe.baseline == "bm25":
            return lexical_hits(examples, run.store, self._words_among(passing), run.recipe, k)
        captured = run.capture(examples)
        search = self._search_among(passing)
        with index_errors():
            if decision.kind == "none":
                return attribute(captured, run.store, run.comparison, search, k)
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
                proposed, searches = propose(captured, run.comparison, search, count, words)
            scores = self.scorer(decision, progress).candidates(captured.examples, proposed)
            return decide(captured, run.store, proposed, scores, k, searches=searches, **self._told(decision))

    @cached_property
    def words(self) -> BM25:
        """BM25 over every row's text: the run's index of them, or one prepared when first needed."""
        run = self._run
        if run.recipe.baseline == "bm25":
            with on_disk(run.path / FOLDER) as folder:
                return load_lexical(folder, run.manifest)
        check_lexical(run.rows)
        return bm25.fit(run.store.texts())

    def scorer(self, decision: ExactSettings, progress: Report | None = None) -> ExactScorer:
        """Return what scores rows from whole gradients; the factors stay for further queries of the same decision."""
        run = self._run
        kind: Literal["kfac", "ekfac"] = "kfac" if decision.kind == "kfac" else "ekfac"
        if self._curvature is None or self._curvature[0] != (kind, decision.damping):
            self._curvature = None
            loaded = load_kronecker(run.path, run.manifest, run.recipe, kind, decision.damping)
            self._curvature = (kind, decision.damping), loaded
        curvature = self._curvature[1]
        left_out = [row.row for row in run.manifest.quarantined]
        return ExactScorer(run.session, curvature, run.rows, decision.rank, progress, left_out)

    @cached_property
    def _flat(self) -> FlatIndex:
        with on_disk(self._run.path / FOLDER) as folder:
            return index.persist.load(folder, self._indexed, self._run.config.index.device)

    @cached_property
    def _approximate(self) -> ApproximateIndex:
        with on_disk(self._run.path / FOLDER) as folder:
            return open_index(folder, self._indexed)

    @cached_property
    def _kind(self) -> str:
        """The kind of the index's plan; `exact` also where `auto` found no index that is good enough."""
        run = self._run
        plan = index_plan(run.config.index, run.manifest)
        if plan.factory is None:
            return plan.kind
        scanned = scan_stands(run.path, run.manifest, run.recipe.stored, run.config.index)
        return "exact" if scanned else plan.kind

    @property
    def _indexed(self) -> str:
        return index_fingerprint(self._run.manifest, self._run.recipe.stored)

    def _search(self, vectors: np.ndarray, k: int) -> Neighbours:
        run, kind = self._run, self._kind
        if kind == "exact":
            return exact_search_scores(scored_blocks(run.store, run.comparison, vectors), len(vectors), k)
        if kind == "flat":
            return index.search.search(self._flat, vectors, k)
        score = partial(candidate_scores, run.store, run.comparison)
        settings = run.config.index
        return index.approximate.search.search(
            self._approximate, vectors, k, score, probes=settings.probes, candidates=settings.candidates
        )

    def _search_among(self, passing: np.ndarray | None) -> Search:
        if passing is None:
            return self._search
        rows, run = np.flatnonzero(passing), self._run

        def search(vectors: np.ndarray, k: int) -> Neighbours:
            blocks = scored_blocks(run.store, run.comparison, vectors, passing=passing)
            found = exact_search_scores(blocks, len(vectors), k)
            sides = (found.largest, found.smallest)
            return Neighbours(*(Found(rows[side.rows], side.scores) for side in sides))

        return search

    def _words_among(self, passing: np.ndarray | None) -> BM25:
        return self.words if passing is None else WordsAmong(self.words, passing)

    def _fewer(self, k: int, passing: int, where: str) -> int:
        log.info("%d of %d rows pass %r; they are scanned, not looked up in the index.", passing, self._run.rows, where)
        if k > passing:
            log.warning("k is %d rows on each side, and only %d rows meet %r.", k, passing, where)
        return min(k, passing)

    def _told(self, decision: ExactSettings) -> dict[str, Any]:
        recipe = self._run.recipe
        decided = recipe.model_copy(update={"exact": decision})
        return {
            "summary": f"{recipe.summary}; {decided.exact_summary}",
            "unit": extra_copy(self._run.manifest.reduction),
        }
