"""The one unit norm of the house."""

import torch
from torch import Tensor

from influence.errors import CaptureError


def at_length(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Return vectors with other lengths, [n, D]; a zero vector stays zero.

    What a coarse codec gives back is longer than the row was, as its errors are at right angles to it: squares of rows,
    in a Fisher or in what a row scores with itself, take the rows at the length that is stored beside the codes.

    Args:
        vectors: [n, D].
        lengths: [n].
    """
    return unit_norm(vectors)[0] * lengths.to(vectors).unsqueeze(1)


def unit_norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Split vectors into directions and lengths, without overflow.

    Each vector is first divided by its largest entry, so neither the squares nor a later cast of the direction to
    float16 can overflow: no entry of a direction exceeds 1 in magnitude. A zero vector stays zero and has length 0.

    Args:
        vectors: [n, D], float32 or float64.

    Returns:
        Directions [n, D] of length 1 (or 0), in the same dtype, and lengths [n].

    Raises:
        CaptureError: A vector isn't finite, or its length isn't; the message gives its positions among the n.
    """
    largest = torch.linalg.vector_norm(vectors, ord=float("inf"), dim=1, keepdim=True)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = vectors / safe
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    norms = (lengths * largest).squeeze(1)
    if not bool(torch.isfinite(norms).all()):
        where = (~torch.isfinite(norms)).nonzero().squeeze(1).tolist()
        raise CaptureError(
            f"The gradient of {len(where)} of {len(vectors)} vectors is not finite (positions {where[:10]}). Look for "
            "inf or NaN in the model's outputs on these inputs; float16 overflows where bfloat16 and float32 don't."
        )
    return scaled / torch.where(lengths > 0, lengths, torch.ones_like(lengths)), norms
