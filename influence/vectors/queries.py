"""Captured queries on their way to compared vectors, and the refusal of those that no row could be told from."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from influence.errors import QueryError
from influence.vectors.ensemble import Compared


def compared_queries(comparison: Compared, gradients: Tensor, names: Sequence[str], measured: np.ndarray) -> np.ndarray:
    """Return queries as they are compared, [m, D] float32.

    Args:
        comparison: Of the run's recipe.
        gradients: −∇m of every query, [m, D].
        names: What messages call them: their ids.
        measured: log p of what was said, [m], in nats.

    Raises:
        QueryError: A query's gradient is zero or not finite, so no row can be told from another; the query is named.
    """
    vector = "gradient" if comparison.recipe.baseline is None else "mean last hidden state"
    lengths = torch.linalg.vector_norm(gradients.double(), dim=1)
    for name, length, likelihood in zip(names, lengths.tolist(), measured.tolist(), strict=True):
        if not np.isfinite(length) or not np.isfinite(likelihood):
            raise QueryError(
                f"The {vector} of query {name!r} is not finite (log-likelihood {likelihood:.4g}). Look for inf or NaN "
                "in the model's outputs on that text; in float16 activations overflow where bfloat16 would not."
            )
        if length == 0:
            raise QueryError(
                f"The {vector} of query {name!r} is zero (log-likelihood {likelihood:.4g}): the model gives the "
                "completion a probability of 1, so no row can raise it. Measure another completion."
            )
    return comparison.query_vectors(gradients).numpy()
