"""The baselines' scores in memory, from the batches that `pairwise` is given."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from influence.baselines import bm25, repsim
from influence.errors import RecipeError

Decode = Callable[[Any], Sequence[str]]
"""A batch to the texts of its examples."""


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
