"""Representation similarity: the cosine of two examples' mean last hidden states, knowing nothing of gradients.

The mean is over the tokens that the model read, padding apart, and before any head: language models and classifiers,
which score no tokens, are treated alike. Rows of the same topic are near one another whatever the model learnt from
them: a score is no influence, has no unit and its sign promises nothing.

Source: Hanawa et al. 2021, "Evaluation of similarity-based explanations" (the cosine of last hidden states); the
baseline of Pezeshkpour et al. 2021 and of fact-tracing benchmarks since.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import DataError, ModelError
from influence.vectors.unit_norm import unit_norm


class RepSim:
    """The prepared state: the rows' directions. Apply it with `scores`.

    Attributes:
        rows: How many rows it was prepared over.
    """

    def __init__(self, directions: Tensor) -> None:
        self._directions = directions
        self.rows = len(directions)

    def scores(self, queries: Tensor) -> Tensor:
        """Return the cosine of every query's representation, [m, H], with every row's: [m, rows]."""
        return unit_norm(queries)[0] @ self._directions.T


def fit(representations: Tensor) -> RepSim:
    """Prepare representation similarity over the rows' representations, [rows, H]."""
    return RepSim(unit_norm(representations)[0])


def representations(model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """Return the mean last hidden state of every example.

    Args:
        model: A transformers language model or classifier, adapters on it or not.
        batches: With `input_ids` and `attention_mask`, [N, S] each.

    Returns:
        [examples, H] on the CPU, float32 (float64 for a float64 model).

    Raises:
        ModelError: The model has no body that returns hidden states, or they aren't finite.
        DataError: There are no batches, or they hold no tokens.
    """
    body = _body(model)
    found = []
    for batch in batches:
        tokens, mask = getattr(batch, "input_ids", None), getattr(batch, "attention_mask", None)
        if tokens is None or mask is None:
            raise DataError(
                f"repsim compares what a model makes of tokens, and a batch ({type(batch).__name__}) has no input_ids "
                "and attention_mask. Give such batches, or choose a recipe of gradients."
            )
        with torch.no_grad():
            hidden = body(input_ids=tokens, attention_mask=mask).last_hidden_state
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        # Filled, not multiplied: a hidden state of padding may be anything, infinite too.
        summed = wide.masked_fill((mask == 0).unsqueeze(-1), 0).sum(dim=1)
        found.append((summed / mask.sum(dim=1, keepdim=True).clamp(min=1)).cpu())
    if not found:
        raise DataError("There are no batches to take representations of.")
    means = torch.cat(found)
    finite = torch.isfinite(means).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().squeeze(1).tolist()
        raise ModelError(f"The last hidden states of examples {bad[:10]} ({len(bad)} in all) are not finite.")
    return means


def _body(model: Any) -> Any:
    """Return the part of a model that ends in its hidden states."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, "base_model", None)
    if body is None or body is inner or getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(inner).__name__} has no body that returns last hidden states, which repsim compares: it takes "
            "transformers' causal language models and sequence classifiers."
        )
    return body


__all__ = ["RepSim", "fit", "representations"]
