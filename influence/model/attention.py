"""Attention kernels for capture, and which one is used where nobody names one.

On a CPU torch's fused attention runs its bfloat16 backward pass several times slower than its float32 one.
`sdpa_float32` is transformers' own fused attention with the queries, keys and values widened to float32 for this one
operation and the result narrowed again: the same function, at least as exact, registered with transformers under that
name.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

FLOAT32_ATTENTION = "sdpa_float32"


def register() -> None:
    """Make `sdpa_float32` known to transformers; calling it twice changes nothing."""
    AttentionInterface.register(FLOAT32_ATTENTION, _sdpa_float32)
    AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)


def default_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the attention for a device and dtype; None leaves the choice to transformers."""
    return FLOAT32_ATTENTION if device.type == "cpu" and dtype == torch.bfloat16 else None


def _sdpa_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    wide = (query.float(), key.float(), value.float())
    found, _ = sdpa_attention_forward(module, *wide, attention_mask, **rest)
    return found.to(query.dtype), None
