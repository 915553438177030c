"""log p of every scored token from a language model's hidden states, and TRAK's log-odds, chunk by chunk.

The logits of a whole batch are never held: the unembedding runs in chunks of positions, and the gradient with respect
to the hidden states is computed in the same pass (`p` of a chunk gives `onehot − p`), so a vocabulary of 128k costs
time but not memory. Only scored positions reach the unembedding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGIT_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""The size a chunk of float32 logits is cut to: on a CPU it should stay in the cache, on a GPU fill the device."""


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log p/(1−p) of targets [...] under logits [..., V], V ≥ 2: finite however near p is to 0 or 1.

    It is the target's logit behind the logsumexp of the others', so neither p nor 1−p is ever formed.
    """
    wide_logits, place = wide(logits), targets.unsqueeze(-1)
    rest = wide_logits.scatter(-1, place, float("-inf")).logsumexp(dim=-1)
    return wide_logits.gather(-1, place).squeeze(-1) - rest


def token_log_likelihood(
    head: nn.Module, hidden: Tensor, targets: Tensor, uniforms: Tensor | None = None, *, odds: bool = False
) -> Tensor:
    """Return log p of every target, [N, S], float32 (float64 for float64 hidden states); 0 where none is scored.

    Args:
        head: The unembedding, a linear layer.
        hidden: [N, S, H].
        targets: [N, S], −100 where not scored.
        uniforms: [N, S] in [0, 1): where given, targets are drawn from the model instead.
        odds: Return log p/(1−p).
    """
    hooked = head._forward_hooks or head._forward_pre_hooks
    if hooked or any(parameter.requires_grad for parameter in head.parameters()):
        return _checkpointed(head, hidden, targets, uniforms, odds)
    chunked = _ChunkedLogLikelihood.apply
    return chunked(hidden, head.weight, getattr(head, "bias", None), targets, uniforms, odds)  # type: ignore[return-value]


def of_logits(logits: Tensor, targets: Tensor, uniforms: Tensor | None = None, *, odds: bool = False) -> Tensor:
    """Return the same from logits [N, S, V] that are there already."""
    if uniforms is not None:
        with torch.no_grad():
            sampled = inverse_cdf(torch.softmax(wide(logits), dim=-1), uniforms)
            targets = torch.where(targets == -100, targets, sampled)
    scored, classes = targets != -100, targets.clamp(min=0)
    if odds:
        return log_odds(logits, classes) * scored
    return torch.log_softmax(wide(logits), dim=-1).gather(-1, classes.unsqueeze(-1)).squeeze(-1) * scored


def inverse_cdf(p: Tensor, uniforms: Tensor) -> Tensor:
    """Return where the cumulative distribution p, [..., V], reaches each uniform number, [...]."""
    cumulative = p.cumsum(dim=-1)
    # Rounded sums end a little beside 1: what is drawn beyond the end would be the last entry, whatever its p.
    thresholds = uniforms.to(p.dtype).unsqueeze(-1) * cumulative[..., -1:]
    classes = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
    return classes.clamp(max=p.shape[-1] - 1)


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


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
        flat, classes = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        scored = (classes != -100).nonzero().squeeze(1)
        values = torch.zeros(
            len(flat), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32, device=hidden.device
        )
        grads = hidden.new_zeros(flat.shape)
        step = _chunk(weight.shape[0], hidden)
        for chunk in scored.split(step):
            target = classes[chunk].unsqueeze(1)
            states = flat[chunk]
            logits = wide(nn.functional.linear(states, weight, bias))
            if odds:
                own = logits.gather(1, target).squeeze(1)
                logits.scatter_(1, target, float("-inf"))
                values[chunk] = own - logits.logsumexp(dim=1)
            p = torch.softmax(logits, dim=1)
            if uniforms is not None:
                target = inverse_cdf(p, uniforms.reshape(-1)[chunk]).unsqueeze(1)
            if not odds:
                # log p of the target by way of the likeliest token's, whose p can't underflow: one exponential does.
                behind = logits.gather(1, target).squeeze(1) - logits.amax(dim=1)
                values[chunk] = behind + p.amax(dim=1).log()
            p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))
            grads[chunk] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(grads)
        return values.view(targets.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (grads,) = ctx.saved_tensors
        scale = upstream[0].reshape(-1, 1)
        return (grads * -scale.to(grads.dtype)).view(*upstream[0].shape, -1), None, None, None, None, None


def _checkpointed(head: nn.Module, hidden: Tensor, targets: Tensor, uniforms: Tensor | None, odds: bool) -> Tensor:
    """The same through autograd, for a tracked unembedding: each chunk's logits are computed twice."""
    step = _chunk(hidden.shape[0] * int(head.weight.shape[0]), hidden)  # type: ignore[arg-type]

    def chunk(states: Tensor, classes: Tensor, sampled: Tensor | None) -> Tensor:
        return of_logits(head(states), classes, sampled, odds=odds)

    pieces = []
    for start in range(0, hidden.shape[1], step):
        part = slice(start, start + step)
        part_uniforms = None if uniforms is None else uniforms[:, part]
        pieces.append(checkpoint(chunk, hidden[:, part], targets[:, part], part_uniforms, use_reentrant=False))
    return torch.cat(pieces, dim=1)  # type: ignore[arg-type]


def _chunk(numbers: int, like: Tensor) -> int:
    """How many positions a chunk takes when one position has this many logits."""
    return max(1, LOGIT_BYTES.get(like.device.type, LOGIT_BYTES["cuda"]) // (4 * numbers))
