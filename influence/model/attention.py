"""The attention kernel for capture in bfloat16 on a CPU, where nobody names one.

Torch's fused attention runs its bfloat16 backward pass several times slower than its float32 one on a CPU.
`sdpa_float32` is transformers' own fused attention with the queries, keys and values widened to float32 for this one
operation and the result narrowed again: the same function, at least as exact, registered with transformers under that
name.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
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
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    wide = (query.float(), key.float(), value.float())
    found, _ = sdpa_attention_forward(module, *wide, attention_mask, **rest)
    return found.to(query.dtype), None
