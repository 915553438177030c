"""Special tokens that a text has already and its tokeniser adds again: a first or an end token counts once."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

log = logging.getLogger(__name__)


def encode(texts: list[str], tokeniser: Any, **how: Any) -> Any:
    """Return what a tokeniser makes of some texts, without padding; `how` are further arguments of its call."""
    # `verbose` off: rows longer than the model's window are expected here and cut afterwards.
    return tokeniser(
        texts, padding=False, return_attention_mask=False, return_token_type_ids=False, verbose=False, **how
    )


def single_ends(texts: Sequence[str], encoded: Sequence[Sequence[int]], tokeniser: Any) -> list[slice]:
    """Return which of each text's tokens count: no first or end token that the tokeniser put beside the text's own."""
    first, last = doubled_starts(texts, encoded, tokeniser), _ended_twice(texts, encoded, tokeniser)
    return [slice(start, len(ids) - int(twice)) for ids, start, twice in zip(encoded, first, last, strict=True)]


def _ended_twice(texts: Sequence[str], encoded: Sequence[Sequence[int]], tokeniser: Any) -> list[bool]:
    """Return whether the tokeniser put its end token behind one in the text."""
    token, number = tokeniser.eos_token, tokeniser.eos_token_id
    ended = [
        token is not None and text.endswith(token) and list(ids[-2:]) == [number, number]
        for text, ids in zip(texts, encoded, strict=True)
    ]
    # A text may end with two of them itself.
    if not any(ended) or encode([""], tokeniser)["input_ids"][0][-1:] != [number]:
        return [False] * len(ended)
    warn_doubled("end", token)
    return ended


def doubled_starts(texts: Sequence[str], encoded: Sequence[Sequence[int]], tokeniser: Any) -> list[int]:
    """Return where each text's tokens begin: at 1 where the tokeniser put its first token before one in the text.

    Texts that a chat template made begin with that token already, and no model was trained on two.
    """
    firsts = {
        token: number
        for token, number in (
            (tokeniser.bos_token, tokeniser.bos_token_id),
            (tokeniser.cls_token, tokeniser.cls_token_id),
        )
        if token is not None and number is not None
    }
    starts = [
        int(any(text.startswith(token) and list(ids[:2]) == [number, number] for token, number in firsts.items()))
        for text, ids in zip(texts, encoded, strict=True)
    ]
    # A text may begin with two of them itself.
    if not any(starts) or encode([""], tokeniser)["input_ids"][0][:1] not in ([number] for number in firsts.values()):
        return [0] * len(starts)
    warn_doubled("begin", next(iter(firsts)))
    return starts


@cache
def warn_doubled(where: Literal["begin", "end"], token: str) -> None:
    """Say it once in a process, not once a shard."""
    log.warning(
        "Texts %s with %s, as a chat template writes it, and the tokeniser puts another %s every text: it is counted "
        "once.",
        where,
        token,
        "in front of" if where == "begin" else "behind",
    )
