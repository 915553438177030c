"""The rows as the model sees them: which tokens are scored, what truncation takes, and padding that nothing masks."""

from collections.abc import Iterator, Sequence

import numpy as np

from influence.capture.session import Session
from influence.data.dataset import Rows
from influence.data.example import Example, TokenContent, place_of
from influence.data.tokenise import NOT_SCORED, Part
from influence.data.truncation import Truncation
from influence.doctor.check import Check
from influence.errors import DataError

BEGIN, END = "⟦", "⟧"
"""Around what is scored."""
SHOWN = 400
"""Characters of a stretch of text that are shown: its two ends."""
PADDED = 2
"""Pad tokens in a row at the end of `input_ids` that are taken for padding: one may be the end of a sequence."""


def seen(
    session: Session, rows: Rows, searched: Sequence[Example], parts: Sequence[Part], row: int | None
) -> Iterator[Check]:
    """Show one row as the model sees it, and look at the ends of all that were searched.

    Args:
        session: Of the model.
        rows: The data set.
        searched: Rows spread over it.
        parts: Of these rows.
        row: The row that is shown; None for the first of those with a scored token.

    Raises:
        DataError: There is no such row, or it can't be tokenised.
    """
    if row is None:
        part = next(part for part in parts if part.scored)
        example, own = searched[part.position], [other for other in parts if other.position == part.position]
    elif row < len(rows):
        example = rows.example(row)
        own = session.tokenise([example])
    else:
        raise DataError(f"There is no row {row}: {rows.place} has {len(rows):,}, counted from 0.")
    yield _shown(session, example, own)
    yield _truncation(session, parts, len(searched))
    if rows.shape == "input_ids":
        yield _padding(session, searched, rows)


def _shown(session: Session, example: Example, parts: Sequence[Part]) -> Check:
    part = parts[0]
    scored, tokens = sum(own.scored for own in parts), sum(len(own.input_ids) for own in parts)
    if part.label is not None:
        found = f"class {part.label} read from {tokens} tokens"
    else:
        found = f"{scored} of {tokens} tokens scored"
    if len(parts) > 1:
        found += f"; the first of {len(parts)} parts is shown"
    return Check(
        "row as scored",
        "pass" if scored else "note",
        f"{found}: {place_of(example)}",
        f"scored tokens are in {BEGIN}{END}" if part.label is None else "the text that is classified",
        "No token of this row is scored: check its content.",
        value=float(scored),
        shown=marked(part, session.tokeniser),
    )


def marked(part: Part, tokeniser: object) -> str:
    """Return a part's text as its tokens read, special ones too, what is scored in brackets and long stretches cut."""

    def read(stop: int) -> str:
        return tokeniser.decode(part.input_ids[:stop].tolist(), skip_special_tokens=False)  # type: ignore[attr-defined]

    scored = part.labels != NOT_SCORED
    turns = [0, *(np.flatnonzero(scored[1:] != scored[:-1]) + 1).tolist(), len(scored)]
    # A token alone may be half of a character, or lack the space in front of it: stretches are read off the whole.
    places = [len(read(turn)) for turn in turns]
    whole, pieces = read(len(scored)), []
    for turn, start, stop in zip(turns, places, places[1:], strict=False):
        piece = _cut(whole[start:stop])
        pieces.append(f"{BEGIN}{piece}{END}" if turn < len(scored) and scored[turn] else piece)
    return "".join(pieces)


def _cut(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]} … {len(text) - SHOWN:,} characters … {text[-SHOWN // 2 :]}"


def _truncation(session: Session, parts: Sequence[Part], rows: int) -> Check:
    found, settings = Truncation.of(parts, rows), session.spec.data
    longest = f"the longest of {rows:,} rows has {found.longest:,} tokens"
    if settings.long_rows == "split":
        return Check("length", "pass", longest, f"parts of at most {settings.max_tokens:,}")
    remedy = found.remedy(settings.max_tokens)
    if not remedy and found.cut:
        remedy = f"Set data.max_tokens to {found.longest} to score them whole, or data.long_rows: split."
    return Check(
        "length",
        "note" if found.cut else "pass",
        f"{longest}; {found.cut:,} lose scored tokens, {found.silenced:,} all of them" if found.cut else longest,
        f"at most data.max_tokens, {settings.max_tokens:,}",
        remedy,
        value=float(found.cut),
    )


def _padding(session: Session, searched: Sequence[Example], rows: Rows) -> Check:
    """Look for a run of the pad token at either end of rows that no mask has cleared of padding."""
    pad = session.tokeniser.pad_token_id
    padded = [
        example
        for example in searched
        if isinstance(example.content, TokenContent) and pad is not None and _padded(example.content, pad)
    ]
    named = f", first {place_of(padded[0])}" if padded else ""
    return Check(
        "padding in the rows",
        "note" if padded else "pass",
        f"{len(padded):,} of {len(searched):,} rows begin or end with {PADDED} or more scored pad tokens{named}",
        "none",
        f"Padding (token {pad}) is scored and attended to like any token. Add an attention_mask column, or leave the "
        f"padding out of {rows.place}.",
        value=float(len(padded)),
    )


def _padded(content: TokenContent, pad: int) -> bool:
    labels = content.input_ids if content.labels is None else content.labels
    ends = (content.input_ids[:PADDED], content.input_ids[-PADDED:])
    said = (labels[:PADDED], labels[-PADDED:])
    return any(
        len(end) == PADDED and set(end) == {pad} and own[-1] != NOT_SCORED for end, own in zip(ends, said, strict=True)
    )


__all__ = ["marked", "seen"]
