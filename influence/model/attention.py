"""The attention kernel for capture in bfloat16 on a CPU, where nobody names one.

Torch's fused attention runs its bfloat16 backward pass several times slower than its float32 one on a CPU, which in
turn is more than half of a bfloat16 capture's attention. `cpu_bfloat16` computes the same function and is registered
with transformers under that name. Causal attention without a mask goes block by block over the queries: scores in
float32, probabilities and the other products in bfloat16, each block looking only at the keys that it can see. With a
mask, queries, keys and values are widened to float32 for torch's own kernel and the result is narrowed again.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

log = logging.getLogger(__name__)

CPU_BFLOAT16 = "cpu_bfloat16"
BLOCK, BLOCKS = 64, 8
"""The fewest queries of a block and the most blocks: the smaller they are, the fewer products above the diagonal are
computed in vain; but each block's shapes are compiled and cached apart."""
KEPT = 512
"""Up to this many positions the probabilities are kept for the backward pass; beyond, each block's are computed again,
so that memory grows with the positions and not with their square."""


def stands_in(model: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our kernel takes the place of transformers' own choice: of `sdpa`, in bfloat16 on a CPU only."""
    narrow = device.type == "cpu" and dtype == torch.bfloat16
    return narrow and getattr(model.config, "_attn_implementation", None) == "sdpa"


def use_default_attention(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model our kernel where it stands in for the one that transformers chose."""
    if not stands_in(model, device, dtype):
        return
    AttentionInterface.register(CPU_BFLOAT16, _attention)
    AttentionMaskInterface.register(CPU_BFLOAT16, sdpa_mask)
    try:
        model.set_attn_implementation(CPU_BFLOAT16)
    except ValueError as error:
        log.debug("%s keeps transformers' sdpa: %s", type(model).__name__, error)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    heads = query.shape[1] // key.shape[1]
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and causal and query.shape[2] == key.shape[2]:
        scale = rest.get("scaling")
        whole = (query, repeat_kv(key, heads), repeat_kv(value, heads))
        output: Tensor = BlockedCausal.apply(  # type: ignore[assignment]
            *whole, query.shape[-1] ** -0.5 if scale is None else scale
        )
        return output, None
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    wide = (query.float(), key.float(), value.float())
    output, _ = sdpa_attention_forward(module, *wide, attention_mask, **rest)
    return output.to(query.dtype), None


class BlockedCausal(torch.autograd.Function):
    """Causal attention without a mask: softmax(scale · Q Kᵀ) V.

    Each position sees itself and the positions before it.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attended values, and keep what the backward pass needs.

        Args:
            ctx: Of this call.
            query: [N, heads, S, d], of any floating dtype, which all products but the scores are computed in.
            key: [N, heads, S, d], in the same dtype; grouped keys and values are repeated beforehand.
            value: [N, heads, S, e], in the same dtype; e need not be d.
            scale: What the scores are multiplied by before the softmax.

        Returns:
            [N, S, heads, e], in the same dtype.
        """
        examples, heads, positions, _ = query.shape
        query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
        output = value.new_empty(examples, positions, heads, value.shape[-1])
        blocks = []
        for start, stop, weights in _blocks(query, key, scale):
            block = torch.bmm(weights, value[:, :stop]).unflatten(0, (examples, heads))
            output[:, start:stop] = block.transpose(1, 2)
            if positions <= KEPT:
                blocks.append(weights)
        ctx.save_for_backward(query, key, value, *blocks)
        ctx.scale, ctx.heads = scale, heads
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        """Return the gradients of queries, keys and values."""
        query, key, value, *blocks = ctx.saved_tensors
        above = upstream[0].transpose(1, 2).flatten(0, 1)
        scaled = query * ctx.scale
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start, stop, weights in _blocks(query, key, ctx.scale, blocks):
            grad = above[:, start:stop]
            to_weights = torch.bmm(grad, value[:, :stop].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_query[:, start:stop] = torch.bmm(to_scores, key[:, :stop])
            to_key[:, :stop].baddbmm_(to_scores.transpose(1, 2), scaled[:, start:stop])
            to_value[:, :stop].baddbmm_(weights.transpose(1, 2), grad)
        grads = (to_query.mul_(ctx.scale), to_key, to_value)
        return (*(grad.unflatten(0, (-1, ctx.heads)) for grad in grads), None)  # type: ignore[return-value]


def _blocks(
    query: Tensor, key: Tensor, scale: float, blocks: list[Tensor] | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, weights): the queries from start to stop attend to the keys up to stop.

    Weights are [examples · heads, stop − start, stop], in the dtype of the queries.
    """
    positions = query.shape[1]
    if blocks:
        for weights in blocks:
            start = weights.shape[2] - weights.shape[1]
            yield start, weights.shape[2], weights
        return
    wide = torch.promote_types(query.dtype, torch.float32)
    scaled, keys = query.to(wide) * scale, key.to(wide)
    length = max(BLOCK, -(-positions // BLOCKS))
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    for start in range(0, positions, length):
        stop = min(positions, start + length)
        scores = torch.bmm(scaled[:, start:stop], keys[:, :stop].transpose(1, 2))
        scores[:, :, start:].masked_fill_(later[: stop - start, : stop - start], -torch.inf)
        yield start, stop, torch.softmax(scores, dim=-1, out=scores).to(query.dtype)
