"""From captured queries to answers: compare, search, score exactly, describe.

A query's gradient comes from the same capture and projection as a row's. The sign is settled there: queries arrive as
−∇m and rows are ∇ℓ, so their product is positive where training more on the row raises m.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index.neighbours import Found, Neighbours
from influence.baselines.bm25 import BM25
from influence.data.example import Example, MessagesContent, PromptContent, readable_turn
from influence.errors import QueryError
from influence.query.hits import Hit, Hits, MeasuredQuery, SearchKind, snippet
from influence.query.rescore import ranked, rescore
from influence.recipes import Baseline
from influence.store.reader import Store
from influence.vectors.ensemble import Compared
from influence.vectors.queries import compared_queries

Search = Callable[[np.ndarray, int], Neighbours]
"""Query vectors [m, D] and k to the rows with the k largest and the k smallest inner products."""


NO_QUERIES = "There are no queries. Give a prompt and a completion, or a file with one query a line."


@dataclass(frozen=True)
class Queries:
    """Captured queries.

    Attributes:
        examples: The queries, m of them.
        gradients: −∇m, [m, D] float32, projected as rows are; or what else rows are, in a baseline's run.
        measured: log p(completion | prompt) of each, [m] float64, in nats.
        contrasted: log p of what it is asked against, [m] float64, NaN where it isn't.
    """

    examples: tuple[Example, ...]
    gradients: torch.Tensor
    measured: np.ndarray
    contrasted: np.ndarray


def query_vectors(queries: Queries, comparison: Compared) -> np.ndarray:
    """Return the queries as they are compared, [m, D] float32.

    Raises:
        QueryError: A query's gradient is zero or not finite, so no row can be told from another; the query is named.
    """
    names = [example.id for example in queries.examples]
    return compared_queries(comparison, queries.gradients, names, queries.measured)


def attribute(
    queries: Queries, store: Store, comparison: Compared, search: Search, k: int, *, summary: str | None = None
) -> list[Hits]:
    """Answer every query: the k rows that promote its completion most, and the k that oppose it most.

    Rows that score zero or on the other side are left out, so a list may be shorter than k. For a baseline no row
    opposes.

    Args:
        queries: Captured.
        store: The run's rows.
        comparison: The run's recipe with its curvature.
        search: Over the rows as they are compared.
        k: Rows wanted on each side, at most as many as there are.
        summary: What the answers call the recipe; its own summary if None.

    Raises:
        QueryError: k is under 1 or over the number of rows, or a query has no usable gradient.
    """
    if k < 1 or k > store.rows:
        raise QueryError(f"k is {k}, but the run {store.run_dir} has {store.rows} rows. Ask for 1 to {store.rows}.")
    vectors = query_vectors(queries, comparison)
    found = search(vectors, k)
    recipe = comparison.recipe
    told = Told(
        store,
        summary or recipe.summary,
        recipe.unit_under(store.manifest.reduction),
        exact=False,
        baseline=recipe.baseline,
    )
    ends = (found.largest, found.smallest) if recipe.baseline is None else (found.largest,)
    answers = []
    for number, vector in enumerate(vectors):
        lowest = found.smallest.rows[number] if recipe.baseline is None else np.empty(0, np.int64)
        both = (found.largest.rows[number], lowest)
        sides = [(rows, rescore(store, comparison, vector, rows)) for rows in both]
        answers.append(told.hits(described(queries, number), *sides, search=searched(number, *ends)))
    return answers


def searched(number: int, *sides: Found) -> SearchKind:
    """Return how the neighbours of a query were found, on the sides that its answer has."""
    below = [side.below_recall for side in sides if side.below_recall is not None]
    if not below:
        return "exact"
    return "below_recall" if any(queries[number] for queries in below) else "approximate"


def propose(
    queries: Queries, comparison: Compared, search: Search, count: int, words: BM25 | None = None
) -> tuple[list[np.ndarray], list[SearchKind]]:
    """Return each query's candidates: the index's best and worst `count` rows, joined with as many of BM25's.

    Args:
        queries: Captured.
        comparison: The recipe of the stored rows.
        search: Over the rows as they are compared.
        count: Rows of each proposer and side.
        words: Over the rows' texts; None leaves it out.

    Returns:
        For each query row numbers, int64, ascending, none twice; and how the index's were found.

    Raises:
        QueryError: A query has no usable gradient.
    """
    found = search(query_vectors(queries, comparison), count)
    proposals = []
    for number, example in enumerate(queries.examples):
        proposed = [found.largest.rows[number], found.smallest.rows[number]]
        if words is not None:
            asked = example.text if example.contrast is None else f"{example.text} {example.contrast.text}"
            proposed.append(words.top(asked, count).astype(np.int64))
        proposals.append(np.unique(np.concatenate(proposed)))
    return proposals, [searched(number, found.largest, found.smallest) for number in range(len(proposals))]


def decide(
    queries: Queries,
    store: Store,
    candidates: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    k: int,
    *,
    summary: str,
    unit: str,
    searches: Sequence[SearchKind] | None = None,
) -> list[Hits]:
    """Answer every query from its candidates' exact scores; every other row counts as zero.

    Args:
        queries: Captured.
        store: The run's rows.
        candidates: Each query's rows.
        scores: Their exact scores.
        k: Rows wanted on each side.
        summary: What the answers call the method.
        unit: Of the scores.
        searches: How each query's candidates were found; None where all rows that may be are candidates.
    """
    told = Told(store, summary, unit, exact=True)
    answers = []
    for number, (rows, found) in enumerate(zip(candidates, scores, strict=True)):
        best, worst = ranked(rows, found, largest=True)[:k], ranked(rows, found, largest=False)[:k]
        sides = (rows[best], found[best]), (rows[worst], found[worst])
        search: SearchKind = "exact" if searches is None else searches[number]
        answers.append(told.hits(described(queries, number), *sides, search=search))
    return answers


def described(queries: Queries, number: int) -> MeasuredQuery:
    """Return what an answer says of its query."""
    example = queries.examples[number]
    prompt, completion = said(example)
    measured, turns = float(queries.measured[number]), scored_turns(example)
    if example.contrast is None:
        return MeasuredQuery(example.id, prompt, completion, measured, turns=turns)
    against = float(queries.contrasted[number])
    return MeasuredQuery(example.id, prompt, completion, measured, said(example.contrast)[1], against, turns)


def scored_turns(example: Example) -> int | None:
    """Return how many turns of a chat are measured; None of what is no chat."""
    if not isinstance(example.content, MessagesContent):
        return None
    scored = example.content.messages[example.content.prompt or 0 :]
    return sum(message["role"] == "assistant" and message.get("weight", 1) != 0 for message in scored)


def said(example: Example) -> tuple[str, str]:
    """Return an example's prompt and completion."""
    if isinstance(example.content, PromptContent):
        return example.content.prompt, example.content.completion
    if isinstance(example.content, MessagesContent):
        turns = [readable_turn(message) for message in example.content.messages]
        first = len(turns) - 1 if example.content.prompt is None else example.content.prompt
        return "\n".join(turns[:first]), "\n".join(turns[first:])
    if example.label is not None:
        return example.text, str(example.label)
    return "", example.text


@dataclass(frozen=True)
class Told:
    """What all answers of one call have in common."""

    store: Store
    summary: str
    unit: str
    exact: bool
    baseline: Baseline | None = None

    def hits(
        self,
        query: MeasuredQuery,
        promoting: tuple[np.ndarray, np.ndarray],
        opposing: tuple[np.ndarray, np.ndarray],
        search: SearchKind = "exact",
    ) -> Hits:
        """Return one answer from rows and scores of either side."""
        return Hits(
            query=query,
            recipe=self.summary,
            unit=self.unit,
            fingerprint=self.store.manifest.fingerprint,
            promoting=self._side(*promoting, sign=1),
            opposing=self._side(*opposing, sign=-1),
            baseline=self.baseline,
            coverage=self.store.manifest.coverage,
            search=search,
        )

    def _side(self, rows: np.ndarray, scores: np.ndarray, sign: int) -> tuple[Hit, ...]:
        order = ranked(rows, scores, largest=sign > 0)
        kept = [place for place in order.tolist() if sign * scores[place] > 0]
        columns = ("row", "id", "source", "uri", "tokens", "text")
        told = self.store.meta(rows[kept], columns) if kept else []
        return tuple(
            Hit(
                rank=rank,
                row=int(rows[place]),
                id=meta["id"],
                score=float(scores[place]),
                source=meta["source"],
                uri=meta["uri"],
                tokens=int(meta["tokens"]),
                snippet=snippet(meta["text"]),
                exact=self.exact,
            )
            for rank, (place, meta) in enumerate(zip(kept, told, strict=True), start=1)
        )


def named(queries: Sequence[Example]) -> tuple[Example, ...]:
    """Return the queries, refusing an empty list.

    Raises:
        QueryError: There are none.
    """
    if not queries:
        raise QueryError(NO_QUERIES)
    return tuple(queries)
