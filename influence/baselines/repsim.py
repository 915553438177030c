"""Representation similarity: the cosine of two examples' mean last hidden states, knowing nothing of gradients.

The mean is over the tokens that the model read, scored or not, padding apart, and before any head: language models and
classifiers, which score no tokens, are treated alike. Of a row that is split it is the mean over the tokens of all its
parts, each part read by itself; the token that a part repeats as its context counts in both. Rows of the same topic
are near one another whatever the model learnt from them: a score is no influence, has no unit and its sign promises
nothing.

Source: Hanawa et al. 2021, "Evaluation of similarity-based explanations" (the cosine of last hidden states); the
baseline of Pezeshkpour et al. 2021 and of fact-tracing benchmarks since.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from influence.axes import ND, ModuleColumns, PerExample
from influence.errors import DataError, ModelError
from influence.gradients.hooks import Measure
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
    hidden = HiddenStates(model)
    found = []
    for batch in batches:
        if getattr(batch, "input_ids", None) is None or getattr(batch, "attention_mask", None) is None:
            raise DataError(
                f"repsim compares what a model makes of tokens, and a batch ({type(batch).__name__}) has no input_ids "
                "and attention_mask. Give such batches, or choose a recipe of gradients."
            )
        found.append(hidden(None, batch)[0].cpu())
    if not found:
        raise DataError("There are no batches to take representations of.")
    means = torch.cat(found)
    finite = torch.isfinite(means).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().squeeze(1).tolist()
        raise ModelError(f"The last hidden states of examples {bad[:10]} ({len(bad)} in all) are not finite.")
    return means


class HiddenStates:
    """The mean last hidden states of batches, from the forward pass that measures them.

    It stands where a `gradients.capture.Capture` stands in a build, and is called alike.

    Attributes:
        record: None: nothing was drawn.
    """

    record: None = None

    def __init__(self, model: nn.Module) -> None:
        """Look for the model's body.

        Raises:
            ModelError: It has none that returns hidden states.
        """
        self._model = model
        self._body = _body(model)
        self._kept: Tensor | None = None

    @cached_property
    def dims(self) -> int:
        """H, found with one token."""
        device = self._model.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
        with torch.no_grad():
            one = torch.zeros((1, 1), dtype=torch.int64, device=device)
            return self._body(input_ids=one).last_hidden_state.shape[-1]

    @property
    def width(self) -> int:
        """Numbers an example while it is captured, H."""
        return self.dims

    @cached_property
    def modules(self) -> tuple[ModuleColumns, ...]:
        """The columns of a row: one block, [1, H]."""
        sizes = {"outputs": 1, "inputs": self.dims, "q": 1, "p": self.dims}
        return (ModuleColumns(name="last hidden state", **sizes, start=0, stop=self.dims),)

    def __call__(self, measure: Measure | None, batch: Any) -> tuple[ND, PerExample]:
        """Return the mean last hidden state of every example, and its measured value.

        Args:
            measure: `measure(model, batch)` gives one value an example, [N], and passes the batch through the model's
                body; None measures nothing.
            batch: With `input_ids` and `attention_mask`, [N, S] each.

        Returns:
            Means [N, H] on the model's device, float32 (float64 for a float64 model); and the values [N], detached,
            zeros where nothing is measured or no token of the batch is scored.
        """
        with torch.no_grad(), self._body.register_forward_hook(self._keep):
            if measure is None or not _has_scored(batch):
                self._body(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                values = torch.zeros(len(batch.input_ids), device=batch.input_ids.device)
            else:
                values = measure(self._model, batch)
        hidden, self._kept = self._kept, None
        # Of several passes the last is the batch's: a task may look at the model before it measures.
        assert hidden is not None, "a measurement passes the batch through the model's body"
        assert hidden.shape[:2] == batch.input_ids.shape, "the body's last pass is the batch's"
        return _token_means(hidden, batch.attention_mask), values.detach()

    def __enter__(self) -> Self:
        """Do nothing: the hook is there during a call only."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def _keep(self, body: nn.Module, inputs: Any, output: Any) -> None:
        self._kept = output.last_hidden_state


def _token_means(hidden: Tensor, mask: Tensor) -> ND:
    """Return the mean over each example's tokens, [N, H], of hidden states [N, S, H]; zero where there are none."""
    wide, mask = hidden if hidden.dtype == torch.float64 else hidden.float(), mask.to(hidden.device)
    # Filled, not multiplied: a hidden state of padding may be anything, infinite too.
    summed = wide.masked_fill((mask == 0).unsqueeze(-1), 0).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _has_scored(batch: Any) -> bool:
    """Whether a batch has a class, or a token to be predicted."""
    return batch.label is not None or bool((batch.labels[:, 1:] != -100).any())


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


__all__ = ["HiddenStates", "RepSim", "fit", "representations"]
