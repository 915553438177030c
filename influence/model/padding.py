"""Whether a model's answer for a text changes when padding follows it.

Rows are captured in batches filled up with padding, which an attention mask hides. A model that mixes positions
otherwise (FNet's Fourier transform, ConvBERT's convolutions) reads the padding all the same, so that a row would depend
on the rows beside it. Logits that move say so, beyond rounding, and so does a gradient that reaches the padding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import TaskError

NEAR = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far logits may move, in units of their size; 5e-2 in narrower dtypes."""
FILLED = 3
"""Tokens of padding."""


def check_padding(model: Any, ids: Tensor, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Compare the logits of one text alone and followed by padding.

    Args:
        model: The model, for its padding token and the message.
        ids: [1, S], tokens without padding.
        logits: (ids, mask) → the logits of the first S tokens, or of the text as a whole.

    Raises:
        TaskError: They differ.
    """
    token = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    mask = torch.ones_like(ids)
    filled_ids = nn.functional.pad(ids, (0, FILLED), value=token)
    filled_mask = nn.functional.pad(mask, (0, FILLED))
    with torch.no_grad():
        alone = logits(ids, mask)
        filled = logits(filled_ids, filled_mask)
    near = NEAR.get(alone.dtype, 5e-2)
    sensitive = float((alone - filled).abs().max()) > near * max(1e-6, float(alone.float().abs().max()))
    if sensitive or _reaches(model, ids.shape[1], lambda: logits(filled_ids, filled_mask)):
        raise TaskError(
            f"{type(model).__name__} reads padding though its attention mask hides it: a text followed by {FILLED} "
            "tokens of padding has other logits than alone, so a row would depend on the rows in its batch. Such "
            "models aren't supported."
        )


def _reaches(model: Any, tokens: int, logits: Callable[[], Tensor]) -> bool:
    """Whether logits have a gradient at an embedding behind the first tokens: exact in every dtype, as zeros are."""
    gradients: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.ndim != 3 or len(output) != 1 or output.shape[1] <= tokens:
            return output
        output = output.detach().requires_grad_()
        gradients.append(output)
        return output

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    handles = [table.register_forward_hook(keep) for table in tables]
    try:
        with torch.enable_grad():
            values = logits()
            # The sum of a normalised head's outputs may be constant.
            weighted = (values * torch.arange(1, 1 + values.shape[-1]).to(values)).sum()
            grads = torch.autograd.grad(weighted, gradients, allow_unused=True) if gradients else ()
    finally:
        for handle in handles:
            handle.remove()
    return any(grad is not None and bool(grad[:, tokens:].any()) for grad in grads)
