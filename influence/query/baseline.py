"""The baselines: their scores in memory, from the batches that `pairwise` is given, and what a run of them answers.

A run of `repsim` is queried as any other; BM25 asks no model, so its answers are put together here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from influence.baselines import bm25, repsim
from influence.baselines.bm25 import BM25
from influence.data.example import Example
from influence.errors import QueryError, RecipeError
from influence.query.attribute import Told, said, scored_turns
from influence.query.hits import Hits, MeasuredQuery
from influence.recipes import Recipe
from influence.store.reader import Store

Decode = Callable[[Any], Sequence[str]]
"""A batch to the texts of its examples."""

SCORED_ROWS = 65_536
"""Rows that BM25 scores at a time where every row is scored."""


def baseline_scores(
    baseline: Literal["bm25", "repsim"],
    model: nn.Module,
    train: Iterable[Any],
    queries: Iterable[Any],
    decode: Decode | None,
) -> Tensor:
    """Score every training example for every query, [queries, rows], on the CPU; the bigger, the more alike.

    Args:
        baseline: Which.
        model: What `repsim` takes hidden states of.
        train: Batches with `input_ids` and `attention_mask`, or that `decode` understands.
        queries: Likewise.
        decode: The texts of a batch, for `bm25`.

    Raises:
        RecipeError: BM25 has no texts.
        DataError, ModelError: See the baselines.
    """
    if baseline == "repsim":
        rows = repsim.fit(repsim.representations(model, train))
        return rows.scores(repsim.representations(model, queries))
    if decode is None:
        raise RecipeError(
            "bm25 compares texts, and batches hold tokens. Say what they read: pairwise(…, decode=lambda batch: "
            "tokeniser.batch_decode(batch.input_ids, skip_special_tokens=True))."
        )
    prepared = bm25.fit(text for batch in train for text in decode(batch))
    asked = [text for batch in queries for text in decode(batch)]
    if not asked:
        raise RecipeError("There are no queries to look up.")
    return torch.stack([torch.from_numpy(prepared.scores(text)) for text in asked])


def check_asked(recipe: Recipe, path: Path, queries: Sequence[Example], *, exact: bool = False) -> None:
    """Refuse what a baseline can't be asked.

    Args:
        recipe: The run's.
        path: The run's, for messages.
        queries: What is asked.
        exact: Whether exact scores are asked for, or candidates for them.

    Raises:
        QueryError: Exact scores are, or a query has a contrast.
    """
    if recipe.baseline is None:
        return
    instead = "Build a run of a recipe of gradients for that, such as whitened"
    if exact:
        raise QueryError(
            f"{path} is a run of the baseline {recipe.baseline}, which has no gradients to score exactly. {instead}; "
            "or leave --exact and --candidates out."
        )
    contrasted = next((query for query in queries if query.contrast is not None), None)
    if contrasted is not None:
        raise QueryError(
            f"Query {contrasted.id!r} asks for one completion rather than another, and {path} is a run of the baseline "
            f"{recipe.baseline}, for which there is no difference of two. {instead}; or measure each separately."
        )


def lexical_hits(queries: Sequence[Example], store: Store, words: BM25, recipe: Recipe, k: int) -> list[Hits]:
    """Answer every query by BM25: the k rows that score highest, none that scores 0, and no opposing side.

    Args:
        queries: What is asked: prompt and completion together are looked up.
        store: The run's rows.
        words: Over the rows' texts.
        recipe: The run's.
        k: Rows wanted.
    """
    told = Told(store, recipe.summary, recipe.unit, exact=False, baseline=recipe.baseline)
    nothing = (np.empty(0, np.int64), np.empty(0, np.float32))
    answers = []
    for query in queries:
        scores = words.scores(query.text)
        rows = np.argsort(-scores, kind="stable")[:k]
        prompt, completion = said(query)
        measured = MeasuredQuery(query.id, prompt, completion, None, turns=scored_turns(query))
        answers.append(told.hits(measured, (rows, scores[rows]), nothing))
    return answers


def lexical_blocks(queries: Sequence[Example], words: BM25) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, scores float32 [queries, b]) of every row, in order."""
    for first in range(0, words.rows, SCORED_ROWS):
        stop = min(words.rows, first + SCORED_ROWS)
        yield first, np.stack([words.scores(query.text, first, stop) for query in queries])
