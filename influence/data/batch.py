"""Parts grouped by length under a token budget, and padded to tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.axes import NS, PerExample
from influence.data.tokenise import NOT_SCORED, Part

MAX_ROWS = 256
"""The most parts in a batch: each costs one row of D float32 numbers while it is captured, however short it is."""


@dataclass(frozen=True)
class Batch:
    """N parts, padded on the right to S tokens.

    Attributes:
        input_ids: [N, S], int64.
        attention_mask: [N, S], int64, 1 for real tokens.
        labels: [N, S], int64, −100 where not scored; the token at s is predicted from s − 1.
        label: [N], int64, each part's class; None but for classifiers.
        positions: Which example of the list that was tokenised each part comes from.
        tokens: Real tokens, padding not counted. Known without asking the device.
        uniforms: [N, S] in [0, 1), float64: what labels are drawn with where a Fisher samples them; None leaves that to
            the generator.
    """

    input_ids: NS
    attention_mask: NS
    labels: NS
    label: PerExample | None
    positions: tuple[int, ...]
    tokens: int
    uniforms: NS | None = None

    @property
    def padded(self) -> int:
        """N·S, the tokens that are computed."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device; a copy to a GPU goes from pinned memory and does not wait."""

        def transfer(tensor: Tensor) -> Tensor:
            if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        optional = (None if tensor is None else transfer(tensor) for tensor in (self.label, self.uniforms))
        label, uniforms = optional
        required = (transfer(self.input_ids), transfer(self.attention_mask), transfer(self.labels))
        return Batch(*required, label, self.positions, self.tokens, uniforms)


def cut_batches(lengths: Sequence[int], token_budget: int, max_rows: int = MAX_ROWS) -> list[list[int]]:
    """Group parts of similar length so that no group's padded size passes the budget.

    A pure function of its arguments. Longest first, parts of the same length in their order, so that memory is at its
    highest in the first batch. A part that alone is over the budget makes a group of its own.

    Args:
        lengths: Tokens of each part.
        token_budget: The most padded tokens (parts × longest) of a group.
        max_rows: The most parts of a group.

    Returns:
        Groups of indices into `lengths`; every index is in exactly one.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if room == 0:
            groups.append([])
            room = max(1, min(max_rows, token_budget // max(1, lengths[index])))
        groups[-1].append(index)
        room -= 1
    return groups


def collate(parts: Sequence[Part], pad_id: int) -> Batch:
    """Pad parts on the right and stack them; at least one part, each of at least one token."""
    longest = max(len(part.input_ids) for part in parts)
    input_ids = torch.full((len(parts), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, NOT_SCORED)
    for row, part in enumerate(parts):
        length = len(part.input_ids)
        assert length > 0, "a part without tokens has nothing to capture and is not batched"
        input_ids[row, :length] = torch.from_numpy(part.input_ids)
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.from_numpy(part.labels)
    classes = [part.label for part in parts if part.label is not None]
    assert len(classes) in (0, len(parts)), "either every part of a batch has a class or none has"
    return Batch(
        input_ids,
        attention_mask,
        labels,
        torch.tensor(classes) if classes else None,
        tuple(part.position for part in parts),
        sum(len(part.input_ids) for part in parts),
    )
