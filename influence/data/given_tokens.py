"""The values of the columns that make a row of tokens: `input_ids`, and what says which are there and which are scored.

Positions that `attention_mask` leaves out are padding: they are dropped, neither scored nor attended to. Columns that a
trainer would have read and that can't be honoured here are refused, never ignored.
"""

from collections.abc import Mapping
from typing import Any

from influence.data.columns import MASK_ROLES, typed
from influence.errors import DataError

LARGEST_TOKEN = 2**31 - 1
NOT_SCORED = -100


def tokens_of(values: Mapping[str, Any], names: Mapping[str, str], where: str) -> tuple[list[int], list[int] | None]:
    """Return a row's tokens without padding, and its labels; None where all tokens but the first are scored.

    Args:
        values: Role → value: `input_ids`, and where there are such columns `labels`, `attention_mask`,
            `completion_mask`, `assistant_masks`, `position_ids`, `token_type_ids`, `seq_lengths`.
        names: Role → column, for messages.
        where: The row, for messages.

    Raises:
        DataError: A value is no list of token numbers, is of another length, or says what can't be honoured.
    """
    input_ids = _tokens(values["input_ids"], names["input_ids"], where, lowest=0)
    count = len(input_ids)

    def beside(role: str, lowest: int = 0) -> list[int] | None:
        value = values.get(role)
        if value is None:
            return None
        if role in MASK_ROLES and isinstance(value, list):
            value = [int(bit) if isinstance(bit, bool) else bit for bit in value]
        numbers = _tokens(value, names[role], where, lowest=lowest)
        if len(numbers) != count:
            hint = " (−100 where a token is not scored)" if role == "labels" else ""
            raise DataError(
                f"{where}: {names[role]!r} has {len(numbers)} entries for {count} input_ids, expected as many{hint}."
            )
        return numbers

    labels = beside("labels", lowest=NOT_SCORED)
    wrong = [label for label in labels or () if NOT_SCORED < label < 0]
    if wrong:
        raise DataError(f"{where}: {names['labels']!r} holds {wrong[0]}, expected −100 or a token number.")
    for role in ("completion_mask", "assistant_masks"):
        mask = _mask(beside(role), role, names, where)
        if mask is not None:
            before = input_ids if labels is None else labels
            labels = [label if bit else NOT_SCORED for label, bit in zip(before, mask, strict=True)]
    start, stop = _span(_mask(beside("attention_mask"), "attention_mask", names, where), count, names, where)
    _check_fixed(beside("position_ids"), beside("token_type_ids"), slice(start, stop), names, where)
    _check_packed(values.get("seq_lengths"), stop - start, count, names, where)
    return input_ids[start:stop], None if labels is None else labels[start:stop]


def _mask(mask: list[int] | None, role: str, names: Mapping[str, str], where: str) -> list[int] | None:
    wrong = [bit for bit in mask or () if bit not in (0, 1)]
    if wrong:
        raise DataError(f"{where}: {names[role]!r} holds {wrong[0]}, expected 0 or 1.")
    return mask


def _span(mask: list[int] | None, count: int, names: Mapping[str, str], where: str) -> tuple[int, int]:
    """Return the positions from and to (exclusive) that a mask leaves."""
    if mask is None:
        return 0, count
    if 1 not in mask:
        return 0, 0
    start, stop = mask.index(1), count - mask[::-1].index(1)
    if 0 in mask[start:stop]:
        hole = start + mask[start:stop].index(0)
        raise DataError(
            f"{where}: {names['attention_mask']!r} is 0 at {hole}, between tokens with 1. Only padding at the ends can "
            "be left out: give each stretch as a row of its own."
        )
    return start, stop


def _check_fixed(
    positions: list[int] | None, segments: list[int] | None, span: slice, names: Mapping[str, str], where: str
) -> None:
    if positions is not None and positions[span] != list(range(span.stop - span.start)):
        raise DataError(
            f"{where}: {names['position_ids']!r} isn't 0, 1, 2 … over the row's tokens, so the row is packed of "
            "several texts or counts otherwise than the model will. Give each text as a row of its own; or read "
            "the row as one text, with data.columns.position_ids: null."
        )
    if segments is not None and any(segments[span]):
        raise DataError(
            f"{where}: {names['token_type_ids']!r} holds {max(segments[span])}, and rows are read as one segment (0). "
            "Join the two texts as this model reads them; or read all as one segment, with "
            "data.columns.token_type_ids: null."
        )


def _check_packed(lengths: Any, tokens: int, count: int, names: Mapping[str, str], where: str) -> None:
    if lengths is None:
        return
    if not isinstance(lengths, list) or len(lengths) != 1 or lengths[0] not in (tokens, count):
        raise DataError(
            f"{where}: {names['seq_lengths']!r} is {lengths!r:.80} for {tokens} tokens, so the row is packed of "
            "several texts. Give each text as a row of its own; or read the row as one text, with "
            "data.columns.seq_lengths: null."
        )


def _tokens(value: Any, column: str, where: str, *, lowest: int) -> list[int]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {typed(value)}, expected a list of token numbers.")
    if set(map(type, value)) - {int}:
        wrong = next(item for item in value if type(item) is not int)
        raise DataError(f"{where}: {column!r} holds {typed(wrong)}, expected integers only.")
    if value and (min(value) < lowest or max(value) > LARGEST_TOKEN):
        wrong = min(value) if min(value) < lowest else max(value)
        raise DataError(f"{where}: {column!r} holds {wrong}, expected token numbers from {lowest} to {LARGEST_TOKEN}.")
    return value


__all__ = ["tokens_of"]
