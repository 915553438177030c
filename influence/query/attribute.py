"""From captured queries to answers: compare, search, score exactly, describe.

A query's gradient comes from the same capture and projection as a row's. The sign is settled there: queries arrive as
−∇m and rows are ∇ℓ, so their product is positive where training more on the row raises m.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index.neighbours import Neighbours
from influence.data.example import Example, PromptContent
from influence.errors import QueryError
from influence.query.hits import Hit, Hits, MeasuredQuery, snippet
from influence.query.rescore import ranked, rescore
from influence.store.reader import Store
from influence.vectors.whiten import Comparison

Search = Callable[[np.ndarray, int], Neighbours]
"""Query vectors [m, D] and k to the rows with the k largest and the k smallest inner products."""


@dataclass(frozen=True)
class Queries:
    """Captured queries.

    Attributes:
        examples: The queries, m of them.
        gradients: −∇m, [m, D] float32, projected as rows are.
        measured: m(q), [m] float64: log p(completion | prompt) in nats.
    """

    examples: tuple[Example, ...]
    gradients: torch.Tensor
    measured: np.ndarray


def query_vectors(queries: Queries, comparison: Comparison) -> np.ndarray:
    """Return the queries as they are compared, [m, D] float32.

    Raises:
        QueryError: A query's gradient is zero or not finite, so no row can be told from another; the query is named.
    """
    lengths = torch.linalg.vector_norm(queries.gradients.double(), dim=1)
    for example, length, measured in zip(queries.examples, lengths.tolist(), queries.measured.tolist(), strict=True):
        if not np.isfinite(length) or not np.isfinite(measured):
            raise QueryError(
                f"The gradient of query {example.id!r} is not finite (log-likelihood {measured:.4g}). Look for inf "
                "or NaN "
                "in the model's outputs on that text; in float16 activations overflow where bfloat16 would not."
            )
        if length == 0:
            raise QueryError(
                f"The gradient of query {example.id!r} is zero (log-likelihood {measured:.4g}): the model is so "
                "sure of the "
                "completion that no row could have made it surer. Ask about another completion."
            )
    return comparison.query_vectors(queries.gradients).numpy()


def attribute(
    queries: Queries, store: Store, comparison: Comparison, search: Search, k: int, *, summary: str | None = None
) -> list[Hits]:
    """Answer every query: the k rows that promote its completion most, and the k that oppose it most.

    Rows that score zero or on the other side are left out, so a list may be shorter than k.

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
    answers = []
    for number, example in enumerate(queries.examples):
        answers.append(
            Hits(
                query=described(example, float(queries.measured[number])),
                recipe=summary or comparison.recipe.summary,
                unit=comparison.recipe.unit,
                fingerprint=store.manifest.fingerprint,
                promoting=_side(store, comparison, vectors[number], found.largest.rows[number], promoting=True),
                opposing=_side(store, comparison, vectors[number], found.smallest.rows[number], promoting=False),
            )
        )
    return answers


def scores(
    queries: Queries, comparison: Comparison, blocks: Iterator[tuple[int, np.ndarray]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, scores float32 [m, b]) of every block of compared rows, in order."""
    vectors = query_vectors(queries, comparison).astype(np.float64)
    for first, block in blocks:
        yield first, (vectors @ block.astype(np.float64).T).astype(np.float32)


def described(example: Example, measured: float) -> MeasuredQuery:
    """Return what an answer says of its query; `measured` is log p(completion | prompt) in nats."""
    content = example.content
    prompt, completion = "", example.text
    if isinstance(content, PromptContent):
        prompt, completion = content.prompt, content.completion
    elif example.label is not None:
        prompt, completion = example.text, str(example.label)
    return MeasuredQuery(id=example.id, prompt=prompt, completion=completion, log_likelihood=measured)


def _side(
    store: Store, comparison: Comparison, vector: np.ndarray, rows: np.ndarray, *, promoting: bool
) -> tuple[Hit, ...]:
    found = rescore(store, comparison, vector, rows)
    order = ranked(rows, found, largest=promoting)
    kept = [place for place in order.tolist() if (found[place] > 0 if promoting else found[place] < 0)]
    told = store.meta(rows[kept], ("row", "id", "source", "uri", "tokens", "text")) if kept else []
    return tuple(
        Hit(
            rank=rank,
            row=int(rows[place]),
            id=meta["id"],
            score=float(found[place]),
            source=meta["source"],
            uri=meta["uri"],
            tokens=int(meta["tokens"]),
            snippet=snippet(meta["text"]),
            exact=False,
        )
        for rank, (place, meta) in enumerate(zip(kept, told, strict=True), start=1)
    )


def named(queries: Sequence[Example]) -> tuple[Example, ...]:
    """Return the queries, refusing an empty list.

    Raises:
        QueryError: There are none.
    """
    if not queries:
        raise QueryError("There are no queries. Give a prompt and a completion, or a file with one query a line.")
    return tuple(queries)
