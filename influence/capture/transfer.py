"""A batch's rows on their way from the device to the CPU, in pinned buffers while the next batch computes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.data.tokenise import Part


@dataclass(frozen=True)
class Piece:
    """The captured rows of one batch, on the CPU.

    Attributes:
        parts: The parts of examples in the batch, one a row.
        rows: [n, D] float32 (float64 for a float64 model), the gradient of each part's measured value.
        values: [n], the measured values, in nats.
    """

    parts: tuple[Part, ...]
    rows: Tensor
    values: Tensor


class Transfer:
    """A batch's rows on their way to the CPU."""

    def __init__(self, parts: tuple[Part, ...], rows: Tensor, values: Tensor) -> None:
        self._parts = parts
        self._arrival: Any = None
        if rows.device.type == "cuda":
            # Of a model spread over GPUs the rows are on the last one, whose stream the copies are in.
            with torch.cuda.device(rows.device):
                rows, values = _pinned(rows), _pinned(values.to(rows.device))
                self._arrival = torch.cuda.Event()
                self._arrival.record()
        self._rows, self._values = rows, values

    def arrived(self) -> Piece:
        """Wait for the copies, if any, and return the rows."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return Piece(self._parts, self._rows, self._values)


def _pinned(source: Tensor) -> Tensor:
    out = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return out.copy_(source, non_blocking=True)
