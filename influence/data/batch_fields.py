"""The fields of a batch that a user made: an object's attributes or a mapping's keys.

A language model is run without its mask where it attends backwards alone, and with nothing but ids and mask in any
case. Fields that say otherwise (padding on the left, positions, segments) are refused, never ignored, as the columns of
a data set are (see `given_tokens`).
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from influence.data.batch import Batch
from influence.errors import TaskError

READ = ("input_ids", "attention_mask", "labels", "label", "uniforms")
UNREAD = ("inputs_embeds", "decoder_input_ids", "encoder_outputs", "past_key_values", "global_attention_mask")
"""Inputs of transformers' models that change a text's loss and that no task here hands on."""


def batch_field(batch: Any, name: str) -> Any:
    """Return an attribute of a batch or, of a mapping, the value of its key; None where it has none."""
    if isinstance(batch, Mapping):
        return batch.get(name)
    return getattr(batch, name, None)


def with_fields(batch: Any, task: str, required: Sequence[str], *, right_padded: bool) -> Any:
    """Return the fields that a task reads of a batch as attributes, after a look at those that it does not hand on.

    Args:
        batch: With `input_ids` [N, S], as attributes or as keys.
        task: The name of the task, for messages.
        required: What it needs beside them.
        right_padded: Refuse a mask that leaves out anything but the end of a row.

    Raises:
        TaskError: It lacks a field, or has one that the task would ignore.
    """
    if isinstance(batch, Batch) and all(getattr(batch, name) is not None for name in required):
        return batch
    fields = SimpleNamespace(**{name: batch_field(batch, name) for name in READ})
    lacks = [name for name in ("input_ids", *required) if not isinstance(getattr(fields, name), Tensor)]
    if lacks:
        raise TaskError(
            f"{task} needs {', '.join(('input_ids', *required))}: the batch ({type(batch).__name__}) has no "
            f"{lacks[0]}. Give an object or a mapping with these fields, or a task of your own that reads yours: "
            "example_loss(model, batch) -> [N]."
        )
    unread = [name for name in UNREAD if batch_field(batch, name) is not None]
    if unread:
        raise TaskError(f"The batch has {unread[0]}, which {task} does not hand to the model. {_OWN}")
    mask = fields.attention_mask
    if isinstance(mask, Tensor):
        if mask.shape != fields.input_ids.shape:
            raise TaskError(
                f"The batch's attention_mask is {tuple(mask.shape)}, expected that of its input_ids, "
                f"{tuple(fields.input_ids.shape)}. {_OWN}"
            )
        if right_padded and bool((mask[:, 1:].bool() & ~mask[:, :-1].bool()).any()):
            raise TaskError(
                "The batch's attention_mask leaves out tokens before others that it keeps: the batch is padded on the "
                f"left or has holes. {task} runs a model without its mask where no token looks at later ones. Pad on "
                "the right, and give each stretch of tokens as an example of its own."
            )
    _check_positions(batch, fields.input_ids, mask, task)
    return fields


_OWN = "Leave it out, or give a task of your own that does (example_loss(model, batch) -> [N])."


def _check_positions(batch: Any, ids: Tensor, mask: Tensor | None, task: str) -> None:
    """Refuse positions other than 0, 1, 2 … and segments other than 0, where a token is."""
    mask_or_ones = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    usual = {
        "position_ids": torch.arange(ids.shape[1], device=mask_or_ones.device).expand_as(mask_or_ones),
        "token_type_ids": torch.zeros_like(ids),
    }
    for name, expected in usual.items():
        field = batch_field(batch, name)
        if isinstance(field, Tensor) and bool(((field != expected) & mask_or_ones).any()):
            raise TaskError(f"The batch has {name}, which {task} does not hand to the model. {_OWN}")


__all__ = ["batch_field", "with_fields"]
