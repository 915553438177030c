"""The projected per-example gradient of a matrix: `nn.Linear`, GPT-2's `Conv1D`, `nn.Embedding`.

G_n = Σ_s g_{n,s} a_{n,s}ᵀ, so R_o G_n R_iᵀ = Σ_s (R_o g_{n,s})(R_i a_{n,s})ᵀ: both factors are projected first, at a
cost of S(IP + OQ + PQ) a row, and neither G nor the gradient of a weight is ever formed. GPT-2's Conv1D stores its
weight transposed, which changes nothing here: a is what went in and g belongs to what came out. An embedding's a is
one-hot, so R_i a is a column.

Source: Choe et al. 2024, "What is Your Data Worth to GPT?" (LoGra), equation 6; Goodfellow 2015 for the unprojected
form.
"""

import torch
from torch import Tensor

from influence.axes import NQP, NSI, NSO


def project_inputs(inputs: NSI, side: Tensor | None, bias: bool) -> Tensor:
    """Return R_i a for every position, [N, S, P], in the dtype of the inputs.

    Args:
        inputs: What the layer received, [N, I] or [N, ..., I]; the axes between are positions.
        side: R_i, [P, I], with one column more where `bias`; None keeps every input.
        bias: Append a 1 to the inputs, so that the bias is one more column of the weight.
    """
    inputs = positions(inputs)
    if side is None:
        return torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2) if bias else inputs
    if bias:
        return torch.nn.functional.linear(inputs, side[:, :-1], side[:, -1])
    return torch.nn.functional.linear(inputs, side)


def project_tokens(
    tokens: Tensor, side: Tensor | None, vocabulary: int, dtype: torch.dtype, padding: int | None = None
) -> Tensor:
    """Return R_i a for an embedding, [N, S, P]: a is the token's one-hot vector, so this is a lookup.

    Args:
        tokens: Token numbers, [N, S].
        side: R_i, [P, vocabulary]; None keeps the one-hot vectors.
        vocabulary: I, the rows of the embedding's table.
        dtype: The dtype of the result.
        padding: The embedding's `padding_idx`, a token whose vector gets no gradient; negative counts from the end.
    """
    if side is None:
        one_hot = torch.nn.functional.one_hot(tokens, vocabulary).to(dtype)
    else:
        one_hot = torch.nn.functional.embedding(tokens, side.T).to(dtype)
    if padding is None:
        return one_hot
    return one_hot.masked_fill((tokens == padding % vocabulary).unsqueeze(-1), 0)


def project_output_grads(grads: NSO, side: Tensor | None) -> Tensor:
    """Return R_o g for every position, [N, S, Q]; `side` is R_o, [Q, O], or None to keep every output."""
    grads = positions(grads)
    return grads if side is None else torch.nn.functional.linear(grads, side)


def sum_over_positions(grads: Tensor, inputs: Tensor, dtype: torch.dtype) -> NQP:
    """Return Σ_s (R_o g_s)(R_i a_s)ᵀ, [N, Q, P], accumulated in `dtype`.

    Args:
        grads: [N, S, Q]; positions that padding filled carry zeros.
        inputs: [N, S, P].
        dtype: float32, or float64 for a float64 model; the scale is that of the summed loss.
    """
    return torch.bmm(grads.to(dtype).transpose(1, 2), inputs.to(dtype))


def positions(tensor: Tensor) -> Tensor:
    """View [N, I] as [N, 1, I] and [N, A, B, I] as [N, A·B, I]; [N, S, I] stays."""
    if tensor.ndim == 3:
        return tensor
    return tensor.reshape(tensor.shape[0], -1 if tensor.ndim > 2 else 1, tensor.shape[-1])
