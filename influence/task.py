"""A task: what is differentiated.

A task has one duty, `example_loss(model, batch) -> Tensor[N]`, the loss of each example in nats, summed over its scored
positions (all but the first token, or the completion's). Optionally it has `measurement(model, batch) -> Tensor[N]`,
what is asked of a query; without one it is minus the loss, the log-likelihood; and
`sampled_loss(model, batch, generator) -> Tensor[N]`, the loss of labels drawn from the model itself, which the true
Fisher needs. TRAK's measurement needs `log_odds(model, batch) -> Tensor[N]`, log p/(1−p) summed over the scored
positions, and `residual(model, batch) -> Tensor[N]`, their mean of 1−p, which carries no gradient. A task whose loss is
a mean over L tokens says so with `averaged_tokens(batch) -> Tensor[N]`, L of each example: see `fisher_scale`.

The causal language model's loss never holds the logits of a whole batch: see `model.token_likelihood`.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from influence.axes import PerExample
from influence.data.batch_fields import with_fields
from influence.errors import TaskError
from influence.model.forward_path import forward_path
from influence.model.heads import unsupported_head
from influence.model.padding import check_padding
from influence.model.token_likelihood import inverse_cdf, log_odds, of_logits, token_log_likelihood, wide
from influence.model.training_loss import check_training_loss
from influence.model.weights_state import PerState

Reduction = Literal["sum", "mean"]


class TaskSettings(BaseModel):
    """How an example's loss is reduced over its scored tokens: `sum`, or `mean` where asked for by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reduction: Reduction = "sum"


@runtime_checkable
class Task(Protocol):
    """Anything with an `example_loss`; see the module's docstring for the optional `measurement`."""

    def example_loss(self, model: Any, batch: Any) -> PerExample:
        """Return the loss of each example, [N], in nats, summed over its scored positions."""
        ...


Measured = Literal["log_likelihood", "log_odds"]
"""What a recipe may ask of a query."""


def measurement(task: Task, model: Any, batch: Any, kind: Measured = "log_likelihood") -> PerExample:
    """Return what is asked of each query, [N]: its log-odds, or the task's own measurement, or minus its loss.

    Raises:
        TaskError: Log-odds are asked for, and the task has none.
    """
    if kind == "log_odds":
        return _log_odds(task)(model, batch)
    own = getattr(task, "measurement", None)
    return own(model, batch) if own is not None else -task.example_loss(model, batch)


def row_loss(task: Task, model: Any, batch: Any, kind: Measured = "log_likelihood") -> PerExample:
    """Return what a row is the gradient of, [N]: its loss, or minus its log-odds.

    Raises:
        TaskError: Log-odds are asked for, and the task has none.
    """
    return task.example_loss(model, batch) if kind == "log_likelihood" else -_log_odds(task)(model, batch)


def row_weight(task: Task, model: Any, batch: Any, kind: Measured = "log_likelihood") -> PerExample | None:
    """Return what a row's vector is multiplied by after the curvature, [N]: 1−p for log-odds, nothing for a loss.

    ∇ log p = (1−p) ∇ log p/(1−p), so with this weight a row of one scored token is its loss's gradient again.

    Raises:
        TaskError: Log-odds are asked for, and the task has none.
    """
    if kind == "log_likelihood":
        return None
    _log_odds(task)
    with torch.no_grad():
        return task.residual(model, batch)  # type: ignore[attr-defined]


def _log_odds(task: Task) -> Any:
    lacks = [name for name in ("log_odds", "residual") if not hasattr(task, name)]
    if lacks:
        raise TaskError(
            f"{type(task).__name__} has no {' and no '.join(lacks)}(model, batch), which the measurement log_odds "
            "needs. Give it both, or take recipe.measurement: log_likelihood."
        )
    return task.log_odds  # type: ignore[attr-defined]


def fisher_loss(task: Task, labels: Literal["sampled", "empirical"], model: Any, batch: Any, seed: int) -> PerExample:
    """Return the loss whose gradients' second moment is the Fisher, [N].

    Args:
        task: With a `sampled_loss` of its own where labels are sampled.
        labels: `sampled` from the model (the true Fisher), or `empirical`, the data's own.
        model: The model.
        batch: What the task understands.
        seed: Of the labels drawn for this batch.

    Raises:
        TaskError: Labels are to be sampled, and the task can't.
    """
    scale = fisher_scale(task, batch)
    if labels == "empirical":
        return _scaled(task.example_loss(model, batch), scale)
    sampled = getattr(task, "sampled_loss", None)
    if sampled is None:
        raise TaskError(
            f"{type(task).__name__} has no sampled_loss(model, batch, generator), which the true Fisher needs. Give it "
            "one, or take the data's labels: recipe.factors.labels: empirical."
        )
    return _scaled(sampled(model, batch, torch.Generator().manual_seed(seed)), scale)


def fisher_scale(task: Task, batch: Any, kind: Measured = "log_likelihood") -> Tensor | None:
    """Return what rows' gradients are multiplied by where their second moment is to be the Gauss-Newton matrix, [N].

    The gradient of a sum of L token losses with labels drawn from the model has the sum's Gauss-Newton matrix H as its
    second moment. The mean's gradient, 1/L of it, has H/L², but the mean's Gauss-Newton matrix is H/L: so it is taken
    √L times. Log-odds are always summed, so their gradients are divided by √L. None stands for 1, of summed losses.

    Args:
        task: The task.
        batch: What it understands.
        kind: What a row is the gradient of; see `row_loss`.
    """
    averaged = getattr(task, "averaged_tokens", None)
    tokens = None if averaged is None else averaged(batch)
    return None if tokens is None else scale_of(tokens, kind)


def scale_of(tokens: Tensor, kind: Measured) -> Tensor:
    """Return `fisher_scale` from how many tokens each loss is the mean of, [N] float64."""
    return tokens.double() ** (0.5 if kind == "log_likelihood" else -0.5)


def _scaled(losses: PerExample, scale: Tensor | None) -> PerExample:
    return losses if scale is None else losses * scale.to(losses.device, losses.dtype)


def drawn_with(batch: Any, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return numbers in [0, 1) to draw labels with, `shape` [N, s], on the batch's device.

    The batch's own `uniforms`, whose first s columns belong to each example wherever it is batched; or the generator's.
    """
    own = getattr(batch, "uniforms", None)
    drawn = torch.rand(tuple(shape), generator=generator) if own is None else own[:, : shape[1]]
    return drawn.to(batch.input_ids.device)


def task_for(kind: Literal["causal_lm", "sequence_classification"], settings: TaskSettings = TaskSettings()) -> Task:
    """Return the task of a kind of model."""
    return CausalLM(settings) if kind == "causal_lm" else SequenceClassification()


class CausalLM:
    """Next-token prediction with any transformers causal language model.

    Batches have `input_ids`, `attention_mask` and `labels`, each [N, S], as attributes or keys, padded on the right;
    the token at s is predicted from s−1 and scored where its label isn't −100.
    """

    def __init__(self, settings: TaskSettings = TaskSettings()) -> None:
        self.settings = settings

    def example_loss(self, model: Any, batch: Any) -> PerExample:
        """Return −Σ log p of the scored tokens of each example, [N] (their mean where the settings say so)."""
        total = -self.measurement(model, batch)
        if self.settings.reduction == "sum":
            return total
        return total / _scored(self._read(batch)).to(total.device)

    def sampled_loss(self, model: Any, batch: Any, generator: torch.Generator) -> PerExample:
        """Return `example_loss` with each scored token replaced by one drawn from the model, [N].

        The tokens before it stay the data's: labels are drawn, not texts.
        """
        fields = self._read(batch)
        uniforms = drawn_with(fields, fields.labels[:, 1:].shape, generator)
        total = -self.token_log_likelihood(model, batch, uniforms).sum(dim=1)
        return total if self.settings.reduction == "sum" else total / _scored(fields).to(total.device)

    def averaged_tokens(self, batch: Any) -> Tensor | None:
        """Return how many tokens each example's loss is the mean of, [N]; None where it is their sum."""
        return None if self.settings.reduction == "sum" else _scored(self._read(batch))

    def measurement(self, model: Any, batch: Any) -> PerExample:
        """Return log p(scored tokens | the tokens before), [N], in nats, always summed."""
        return self.token_log_likelihood(model, batch).sum(dim=1)

    def log_odds(self, model: Any, batch: Any) -> PerExample:
        """Return Σ log p/(1−p) of the scored tokens of each example, [N], always summed."""
        return self.token_log_likelihood(model, batch, odds=True).sum(dim=1)

    def residual(self, model: Any, batch: Any) -> PerExample:
        """Return the mean of 1−p over the scored tokens of each example, [N], detached.

        It stands for d loss / d log-odds, so where the settings make the loss a mean it is divided by the tokens again.
        """
        fields = self._read(batch)
        with torch.no_grad():
            behind = torch.sigmoid(-self.token_log_likelihood(model, batch, odds=True))
        count = _scored(fields).to(behind.device)
        mean = (behind * (fields.labels[:, 1:] != -100).to(behind.device)).sum(dim=1) / count
        return mean if self.settings.reduction == "sum" else mean / count

    def _read(self, batch: Any) -> Any:
        return with_fields(batch, type(self).__name__, ("labels",), right_padded=True)

    def token_log_likelihood(
        self, model: Any, batch: Any, uniforms: Tensor | None = None, *, odds: bool = False
    ) -> Tensor:
        """Return log p of the token at each position s ≥ 1, [N, S−1]; positions that aren't scored hold 0.

        Args:
            model: The language model.
            batch: With input_ids, attention_mask and labels.
            uniforms: [N, S−1] in [0, 1): where given, each scored token is replaced by the one that the model's
                cumulative distribution reaches there, a draw from the model.
            odds: Return log p/(1−p) instead.
        """
        batch = self._read(batch)
        targets = batch.labels[:, 1:]
        if targets.shape[1] == 0:
            raise TaskError(
                "A batch of one-token examples has nothing to predict: leave examples without scored tokens out."
            )
        path = forward_path(model)
        # Padding is on the right, where no scored token of a causal model looks; without a mask attention runs faster.
        mask = {} if path.causal else {"attention_mask": batch.attention_mask}
        if path.head is None:
            # accelerate brings a spread model's logits back to where the batch is.
            logits = model(input_ids=batch.input_ids, **mask, use_cache=False).logits
            # An adapter's virtual tokens come first.
            logits = logits[:, -batch.input_ids.shape[1] :][:, :-1]
            return of_logits(logits, targets, uniforms, odds=odds)
        hidden = path.body(input_ids=batch.input_ids, **mask, use_cache=False).last_hidden_state
        # The last position predicts nothing; marking it so spares a copy of the others, forward and backward.
        hidden = hidden.to(path.head.weight.device)
        shifted = nn.functional.pad(targets, (0, 1), value=-100).to(hidden.device)
        if uniforms is not None:
            uniforms = nn.functional.pad(uniforms, (0, 1)).to(hidden.device)
        return token_log_likelihood(path.head, hidden, shifted, uniforms, odds=odds)[:, :-1]


class SequenceClassification:
    """A classifier of whole sequences; batches have `input_ids`, `attention_mask` [N, S] and `label` [N]."""

    def __init__(self) -> None:
        self._checked = PerState(_check_classifier)

    def _read(self, batch: Any, *required: str) -> Any:
        return with_fields(batch, type(self).__name__, required, right_padded=False)

    def _logits(self, model: Any, batch: Any) -> Tensor:
        batch = self._read(batch)
        self._checked(model, batch)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise TaskError(f"Expected logits [N, classes] with at least 2 classes; found {tuple(logits.shape)}.")
        return logits

    def example_loss(self, model: Any, batch: Any) -> PerExample:
        """Return −log p(label | text), [N], in nats."""
        label = self._read(batch, "label").label
        return nn.functional.cross_entropy(wide(self._logits(model, batch)), label, reduction="none")

    def log_odds(self, model: Any, batch: Any) -> PerExample:
        """Return log p/(1−p) of the label, [N]."""
        label = self._read(batch, "label").label
        return log_odds(self._logits(model, batch), label)

    def residual(self, model: Any, batch: Any) -> PerExample:
        """Return 1−p of the label, [N], detached."""
        with torch.no_grad():
            return torch.sigmoid(-self.log_odds(model, batch))

    def sampled_loss(self, model: Any, batch: Any, generator: torch.Generator) -> PerExample:
        """Return −log p of labels drawn from the model, [N], in nats."""
        logits = wide(self._logits(model, batch))
        uniforms = drawn_with(self._read(batch), (len(logits), 1), generator).squeeze(1).to(logits.device)
        drawn = inverse_cdf(torch.softmax(logits.detach(), dim=1), uniforms)
        return nn.functional.cross_entropy(logits, drawn, reduction="none")


def _check_classifier(model: Any, batch: Any) -> None:
    """Refuse a model whose training loss isn't softmax cross-entropy over its logits; looks at one example."""
    refusal = unsupported_head(getattr(model, "config", None))
    if refusal:
        raise TaskError(f"{type(model).__name__}: {refusal}")
    mask = None if batch.attention_mask is None else batch.attention_mask[:1]
    inputs = {"input_ids": batch.input_ids[:1], "attention_mask": mask}
    with torch.no_grad():
        logits = model(**inputs).logits
    if logits.ndim == 2:
        loss = float(-torch.log_softmax(logits.double(), dim=1)[0, 0])
        check_training_loss(model, loss, **inputs, labels=inputs["input_ids"].new_zeros(1))
        if mask is None:
            return
        ids = batch.input_ids[:1, mask[0].bool()]
        # Short, so that what stands next to the text is near every token; some models need the last token, too.
        short = torch.cat([ids[:, :2], ids[:, 2:][:, -1:]], dim=1)
        check_padding(model, short, lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits)


def _scored(batch: Any) -> Tensor:
    """How many tokens of each example are scored, [N], at least 1."""
    return (batch.labels[:, 1:] != -100).sum(dim=1).clamp(min=1)
