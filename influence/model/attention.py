"""The attention kernel for capture in bfloat16 on a CPU, where nobody names one.

Torch's fused attention runs its bfloat16 backward pass several times slower than its float32 one on a CPU.
`sdpa_float32` is the same fused attention, registered with transformers under that name: causal attention without a
mask runs forward in bfloat16 and backward in float32, from the same operators that torch dispatches to; with a mask,
queries, keys and values are widened to float32 for this one operation and the result is narrowed again.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

log = logging.getLogger(__name__)

FLOAT32_ATTENTION = "sdpa_float32"


def use_default_attention(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model that transformers would run on `sdpa` the float32 kernel, in bfloat16 on a CPU only."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(FLOAT32_ATTENTION, _sdpa_float32)
    AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)
    try:
        model.set_attn_implementation(FLOAT32_ATTENTION)
    except ValueError as error:
        log.debug("%s keeps transformers' sdpa: %s", type(model).__name__, error)


def _sdpa_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    heads = query.shape[1] // key.shape[1]
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and causal and query.shape[2] == key.shape[2]:
        whole = (query, repeat_kv(key, heads), repeat_kv(value, heads))
        mixed: Tensor = _MixedCausal.apply(*whole, rest.get("scaling"))  # type: ignore[assignment]
        return mixed.transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    wide = (query.float(), key.float(), value.float())
    found, _ = sdpa_attention_forward(module, *wide, attention_mask, **rest)
    return found.to(query.dtype), None


class _MixedCausal(torch.autograd.Function):
    """Causal attention of [N, heads, S, d] without a mask: forward in bfloat16, backward in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        ops = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        found, sums = ops(query, key, value, 0.0, True, scale=scale)
        ctx.save_for_backward(query, key, value, found, sums)
        ctx.scale = scale
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, found, sums = ctx.saved_tensors
        ops = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        wide = (tensor.float() for tensor in (upstream[0], query, key, value, found))
        grads = ops(*wide, sums, 0.0, True, scale=ctx.scale)
        return (*(grad.to(query.dtype) for grad in grads), None)  # type: ignore[return-value]
