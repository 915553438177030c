"""Parts through the model batch by batch, with a token budget that halves itself when memory runs out.

On a GPU rows leave through pinned buffers while the next batch computes, and nothing waits for the device before a
later batch is under way.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from influence.capture.transfer import Piece, Transfer
from influence.data.batch import MAX_ROWS, Batch, collate, cut_batches
from influence.data.tokenise import Part
from influence.engine.memory import out_of_memory
from influence.errors import CaptureError

log = logging.getLogger(__name__)

BATCH_BYTES = 256 * 2**20
"""The float32 rows of a batch take at most this, unless one row alone takes more."""
LAG = 2
"""Batches whose rows are still on their way out of a GPU."""

Compute = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch to one row [N, width] and one value [N] an example."""


def cut(parts: Sequence[Part], budget: int, width: int) -> list[list[Part]]:
    """Cut parts into batches of similar lengths, of at most `budget` padded tokens and 256 MB of rows."""
    most = max(1, min(MAX_ROWS, BATCH_BYTES // (4 * max(1, width))))
    groups = cut_batches([len(part.input_ids) for part in parts], budget, max_rows=most)
    return [[parts[index] for index in group] for group in groups]


def run_batches(
    compute: Compute,
    parts: Sequence[Part],
    names: Sequence[str],
    *,
    width: int,
    budget: int,
    pad: int,
    device: torch.device,
) -> Iterator[Piece]:
    """Compute one row and one value a part.

    When memory runs out the budget halves, with a log line, for what is left of these parts; the rows stay the same to
    rounding.

    Args:
        compute: What is done with a batch on the device.
        parts: With at least one scored token each.
        names: What to call the example at each position in a message.
        width: Numbers a row.
        budget: Padded tokens of a batch.
        pad: The token that fills a batch.
        device: Where.

    Raises:
        CaptureError: A single part doesn't fit into memory; its example is named.
    """
    todo = deque(cut(parts, budget, width))
    leaving: deque[Transfer] = deque()
    while todo:
        chosen = todo.popleft()
        transfer = _try(compute, chosen, pad, device)
        if transfer is None:
            while leaving:
                yield leaving.popleft().arrived()
            budget = halved(chosen, names, budget)
            todo = deque(cut([*chosen, *(part for batch in todo for part in batch)], budget, width))
            continue
        leaving.append(transfer)
        if device.type != "cuda" or len(leaving) > LAG:
            yield leaving.popleft().arrived()
    while leaving:
        yield leaving.popleft().arrived()


def halved(chosen: Sequence[Part], names: Sequence[str], budget: int) -> int:
    """Return the budget after a batch that didn't fit, with a log line.

    Raises:
        CaptureError: The batch was a single part; its example is named.
    """
    padded = len(chosen) * max(len(part.input_ids) for part in chosen)
    if len(chosen) == 1:
        raise CaptureError(
            f"{names[chosen[0].position]} has {padded} tokens and does not fit into memory even alone. Lower "
            "data.max_tokens, or set model.gradient_checkpointing.",
            [chosen[0].position],
        )
    budget = max(2, min(budget, padded) // 2)
    log.warning("Out of memory at %d padded tokens: the token budget is now %d.", padded, budget)
    return budget


def _try(compute: Compute, chosen: list[Part], pad: int, device: torch.device) -> Transfer | None:
    """Compute one batch, or return None where memory runs out. The failed attempt's tensors are gone on return."""
    try:
        rows, values = compute(collate(chosen, pad).to(device))
        return Transfer(tuple(chosen), rows, values)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
