"""A task: what is differentiated.

A task has one duty, `example_loss(model, batch) -> Tensor[N]`, the loss of each example in nats, summed over its scored
positions (all but the first token, or the completion's). Optionally it has `measurement(model, batch) -> Tensor[N]`,
what is asked of a query; without one it is minus the loss, the log-likelihood; and
`sampled_loss(model, batch, generator) -> Tensor[N]`, the loss of labels drawn from the model itself, which the true
Fisher needs. TRAK's measurement needs `log_odds(model, batch) -> Tensor[N]`, log p/(1−p) summed over the scored
positions, and `residual(model, batch) -> Tensor[N]`, their mean of 1−p, which carries no gradient.

The causal language model's loss never holds the logits of a whole batch: the unembedding runs in chunks of positions,
and the gradient with respect to the hidden states is computed in the same pass (`p` of a chunk gives `onehot −
p`), so a vocabulary of 128k costs time but not memory. Only scored positions reach the unembedding.
"""

import logging
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from influence.axes import PerExample
from influence.errors import TaskError
from influence.model.unembedding import unembedding

log = logging.getLogger(__name__)

LOGIT_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""The size a chunk of float32 logits is cut to: on a CPU it should stay in the cache, on a GPU fill the device."""


class TaskSettings(BaseModel):
    """How an example's loss is reduced over its scored tokens: `sum`, or `mean` where asked for by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reduction: Literal["sum", "mean"] = "sum"


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
    if labels == "empirical":
        return task.example_loss(model, batch)
    sampled = getattr(task, "sampled_loss", None)
    if sampled is None:
        raise TaskError(
            f"{type(task).__name__} has no sampled_loss(model, batch, generator), which the true Fisher needs. Give it "
            "one, or take the data's labels: recipe.factors.labels: empirical."
        )
    return sampled(model, batch, torch.Generator().manual_seed(seed))


def task_for(kind: Literal["causal_lm", "sequence_classification"], settings: TaskSettings = TaskSettings()) -> Task:
    """Return the task of a kind of model."""
    return CausalLM(settings) if kind == "causal_lm" else SequenceClassification()


class CausalLM:
    """Next-token prediction with any transformers causal language model.

    Batches have `input_ids`, `attention_mask` and `labels`, each [N, S]; the token at s is predicted from s−1 and
    scored where its label isn't −100.
    """

    def __init__(self, settings: TaskSettings = TaskSettings()) -> None:
        self.settings = settings
        self._probed: WeakKeyDictionary[nn.Module, tuple[bool, bool]] = WeakKeyDictionary()

    def example_loss(self, model: Any, batch: Any) -> PerExample:
        """Return −Σ log p of the scored tokens of each example, [N] (their mean where the settings say so)."""
        total = -self.measurement(model, batch)
        if self.settings.reduction == "sum":
            return total
        return total / _scored(batch)

    def sampled_loss(self, model: Any, batch: Any, generator: torch.Generator) -> PerExample:
        """Return `example_loss` with each scored token replaced by one drawn from the model, [N].

        The tokens before it stay the data's: labels are drawn, not texts.
        """
        uniforms = torch.rand(batch.labels[:, 1:].shape, generator=generator).to(batch.labels.device)
        total = -self.token_log_likelihood(model, batch, uniforms).sum(dim=1)
        return total if self.settings.reduction == "sum" else total / _scored(batch)

    def measurement(self, model: Any, batch: Any) -> PerExample:
        """Return log p(scored tokens | the tokens before), [N], in nats, always summed."""
        return self.token_log_likelihood(model, batch).sum(dim=1)

    def log_odds(self, model: Any, batch: Any) -> PerExample:
        """Return Σ log p/(1−p) of the scored tokens of each example, [N], always summed."""
        return self.token_log_likelihood(model, batch, odds=True).sum(dim=1)

    def residual(self, model: Any, batch: Any) -> PerExample:
        """Return the mean of 1−p over the scored tokens of each example, [N], detached.

        It is d loss / d log-odds, so where the settings reduce the loss to a mean it is divided by the tokens once more.
        """
        with torch.no_grad():
            behind = torch.sigmoid(-self.token_log_likelihood(model, batch, odds=True))
        count = _scored(batch)
        mean = (behind * (batch.labels[:, 1:] != -100)).sum(dim=1) / count
        return mean if self.settings.reduction == "sum" else mean / count

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
        targets = batch.labels[:, 1:]
        if targets.shape[1] == 0:
            raise TaskError(
                "A batch of one-token examples has nothing to predict: leave examples without scored tokens out."
            )
        body, head = split_head(model)
        plain_head, causal = self._probe(model, body, head)
        # Padding is on the right, where no scored token of a causal model looks; without a mask attention runs faster.
        mask = {} if causal else {"attention_mask": batch.attention_mask}
        if not plain_head:
            logits = model(input_ids=batch.input_ids, **mask, use_cache=False).logits[:, :-1]
            return _gathered(logits, targets if uniforms is None else _drawn(logits, targets, uniforms), odds)
        hidden = body(input_ids=batch.input_ids, **mask, use_cache=False).last_hidden_state
        # The last position predicts nothing; marking it so spares a copy of the others, forward and backward.
        shifted = nn.functional.pad(targets, (0, 1), value=-100)
        if uniforms is not None:
            uniforms = nn.functional.pad(uniforms, (0, 1))
        if head._forward_hooks or any(parameter.requires_grad for parameter in head.parameters()):
            return _checkpointed(head, hidden, shifted, uniforms, odds)[:, :-1]
        weight, bias = head.weight, getattr(head, "bias", None)
        chunked = _ChunkedLogLikelihood.apply
        found: Tensor = chunked(hidden, weight, bias, shifted, uniforms, odds)  # type: ignore[assignment]
        return found[:, :-1]

    def _probe(self, model: Any, body: Any, head: Any) -> tuple[bool, bool]:
        """Find out two things once a model, on eight tokens.

        Returns:
            Whether logits = head(hidden), which is not so where a model caps or scales its logits afterwards; and
            whether a token leaves the positions before it unchanged, which is not so in a bidirectional model.
        """
        if model not in self._probed:
            table = model.get_input_embeddings().weight
            first = torch.arange(1, 9, device=table.device)[None] % table.shape[0]
            other = first.clone()
            other[:, -1] = first[:, 0]
            with torch.no_grad():
                logits, changed = (model(input_ids=ids, use_cache=False).logits for ids in (first, other))
                near = 1e-3 * float(logits.float().std())
                causal = float((logits - changed)[:, :-1].abs().max()) <= near
                plain = False
                if body is not None and type(head) is nn.Linear:
                    ours = head(body(input_ids=first, use_cache=False).last_hidden_state)
                    plain = float((ours - logits).abs().max()) <= near
            if not plain:
                log.info("%s: logits are not its unembedding's alone and are computed whole.", type(model).__name__)
            self._probed[model] = plain, causal
        return self._probed[model]


class SequenceClassification:
    """A classifier of whole sequences; batches have `input_ids`, `attention_mask` [N, S] and `label` [N]."""

    def _logits(self, model: Any, batch: Any) -> Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise TaskError(
                f"Expected logits [N, classes] with at least 2 classes; found {tuple(logits.shape)} (a regression?)."
            )
        return logits

    def example_loss(self, model: Any, batch: Any) -> PerExample:
        """Return −log p(label | text), [N], in nats."""
        return nn.functional.cross_entropy(_wide(self._logits(model, batch)), _label(batch), reduction="none")

    def log_odds(self, model: Any, batch: Any) -> PerExample:
        """Return log p/(1−p) of the label, [N]."""
        return log_odds(self._logits(model, batch), _label(batch))

    def residual(self, model: Any, batch: Any) -> PerExample:
        """Return 1−p of the label, [N], detached."""
        with torch.no_grad():
            return torch.sigmoid(-self.log_odds(model, batch))

    def sampled_loss(self, model: Any, batch: Any, generator: torch.Generator) -> PerExample:
        """Return −log p of labels drawn from the model, [N], in nats."""
        logits = _wide(self._logits(model, batch))
        uniforms = torch.rand(len(logits), generator=generator).to(logits.device)
        drawn = _at(torch.softmax(logits.detach(), dim=1), uniforms)
        return nn.functional.cross_entropy(logits, drawn, reduction="none")


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log p/(1−p) of targets [...] under logits [..., V], V ≥ 2: finite however near p is to 0 or 1.

    It is the target's logit behind the logsumexp of the others', so neither p nor 1−p is ever formed.
    """
    wide, place = _wide(logits), targets.unsqueeze(-1)
    others = wide.scatter(-1, place, float("-inf")).logsumexp(dim=-1)
    return wide.gather(-1, place).squeeze(-1) - others


def split_head(model: Any) -> tuple[Any, Any]:
    """Return a causal LM's body (ids → last hidden state) and its unembedding; (None, None) if it has none."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = unembedding(inner)
    body = getattr(inner, "base_model", None)
    if head is None or body is None or body is inner or not hasattr(head, "weight"):
        return None, None
    return body, head


class _ChunkedLogLikelihood(torch.autograd.Function):
    """log p of the targets from hidden states, [N, S], and its gradient, in one pass over the chunks.

    `grads`, all that is kept for the backward pass, is −∂ log p / ∂ hidden of every position, [N·S, H], in the dtype of
    the hidden states: (p − onehot) times the unembedding, and 0 where no target is scored. With `odds` it is
    log p/(1−p) and its gradient, for which p stands for the distribution over the other tokens, 0 at the target.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        uniforms: Tensor | None,
        odds: bool,
    ) -> Tensor:
        flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        scored = (wanted != -100).nonzero().squeeze(1)
        found = torch.zeros(
            len(flat), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32, device=hidden.device
        )
        grads = hidden.new_zeros(flat.shape)
        step = _chunk(weight.shape[0], hidden)
        for chunk in scored.split(step):
            target = wanted[chunk].unsqueeze(1)
            states = flat[chunk]
            logits = _wide(nn.functional.linear(states, weight, bias))
            if odds:
                found[chunk] = log_odds(logits, target.squeeze(1))
                logits.scatter_(1, target, float("-inf"))
            p = torch.softmax(logits, dim=1)
            if uniforms is not None:
                target = _at(p, uniforms.reshape(-1)[chunk]).unsqueeze(1)
            if not odds:
                # log p of the target by way of the likeliest token's, whose p can't underflow: one exponential does.
                behind = logits.gather(1, target).squeeze(1) - logits.amax(dim=1)
                found[chunk] = behind + p.amax(dim=1).log()
            p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))
            grads[chunk] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(grads)
        return found.view(targets.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (grads,) = ctx.saved_tensors
        scale = upstream[0].reshape(-1, 1)
        return (grads * -scale.to(grads.dtype)).view(*upstream[0].shape, -1), None, None, None, None, None


def _checkpointed(head: nn.Module, hidden: Tensor, targets: Tensor, uniforms: Tensor | None, odds: bool) -> Tensor:
    """The same through autograd, for a tracked unembedding: each chunk's logits are computed twice."""
    step = _chunk(hidden.shape[0] * int(head.weight.shape[0]), hidden)  # type: ignore[arg-type]

    def chunk(states: Tensor, wanted: Tensor, drawn: Tensor | None) -> Tensor:
        logits = head(states)
        return _gathered(logits, wanted if drawn is None else _drawn(logits, wanted, drawn), odds)

    pieces = []
    for start in range(0, hidden.shape[1], step):
        part = slice(start, start + step)
        drawn = None if uniforms is None else uniforms[:, part]
        pieces.append(checkpoint(chunk, hidden[:, part], targets[:, part], drawn, use_reentrant=False))
    return torch.cat(pieces, dim=1)  # type: ignore[arg-type]


def _gathered(logits: Tensor, targets: Tensor, odds: bool) -> Tensor:
    if odds:
        return log_odds(logits, targets.clamp(min=0)) * (targets != -100)
    log_p = torch.log_softmax(_wide(logits), dim=-1)
    return log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (targets != -100)


def _drawn(logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
    """Replace the scored targets, [N, S], by tokens drawn from the logits, [N, S, V]."""
    with torch.no_grad():
        return torch.where(targets == -100, targets, _at(torch.softmax(_wide(logits), dim=-1), uniforms))


def _at(p: Tensor, uniforms: Tensor) -> Tensor:
    """Return where the cumulative distribution p, [..., V], reaches each uniform number, [...]."""
    reached = torch.searchsorted(p.cumsum(dim=-1), uniforms.to(p.dtype).unsqueeze(-1), right=True).squeeze(-1)
    return reached.clamp(max=p.shape[-1] - 1)


def _label(batch: Any) -> Tensor:
    if batch.label is None:
        raise TaskError("A classifier's examples need labels: the batch has none.")
    return batch.label


def _scored(batch: Any) -> Tensor:
    """How many tokens of each example are scored, [N], at least 1."""
    return (batch.labels[:, 1:] != -100).sum(dim=1).clamp(min=1)


def _chunk(numbers: int, like: Tensor) -> int:
    """How many positions a chunk takes when one position has this many logits."""
    return max(1, LOGIT_BYTES.get(like.device.type, LOGIT_BYTES["cuda"]) // (4 * numbers))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
