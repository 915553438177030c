"""From examples to tokens, and which of them are scored.

A label is aligned with its input id, as in transformers: the token at s is predicted from s − 1, so the first label of
a part is always −100. A row that is split loses no label: each part starts with the last token of the one before it, as
context.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence.data.classes import class_number
from influence.data.conversation import render_conversation
from influence.data.dataset import DataSettings, TaskKind
from influence.data.example import Example, MessagesContent, PromptContent, TextContent, TokenContent, place_of
from influence.data.given_tokens import NOT_SCORED
from influence.data.special_tokens import doubled_starts, encode, single_ends
from influence.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A row, or one part of a long one, as tokens.

    Attributes:
        position: Which of the examples given to `tokenise` it comes from.
        input_ids: [S], int32.
        labels: [S], int32; −100 where a token is not scored.
        label: The class's number, for classifiers.
        length: Tokens of the row before it was cut.
        lost: Scored tokens of the row that truncation took.
    """

    position: int
    input_ids: np.ndarray
    labels: np.ndarray
    label: int | None = None
    length: int = 0
    lost: int = 0

    @property
    def scored(self) -> int:
        """Scored tokens; for a classifier 1, its class, unless there is no token to read it from."""
        if self.label is not None:
            return int(len(self.input_ids) > 0)
        return int((self.labels != NOT_SCORED).sum())


@dataclass(frozen=True, slots=True)
class _Tokens:
    input_ids: np.ndarray
    labels: np.ndarray


def tokenise(
    examples: Sequence[Example],
    tokeniser: "PreTrainedTokenizerBase",
    settings: DataSettings,
    kind: TaskKind = "causal_lm",
    label_names: Mapping[str, int] | None = None,
) -> list[Part]:
    """Tokenise examples, many at a time, and mark the tokens that are scored.

    Args:
        examples: Rows or queries; a query never gets the end-of-sequence token of `append_eos`.
        tokeniser: The model's.
        settings: `max_tokens`, `long_rows` and `append_eos` are read.
        kind: For `sequence_classification` no token is scored and every part has its class.
        label_names: Class name → number, for classifiers (the model's `label2id`).

    Returns:
        The parts of every example, in order, one at least each. An empty text has a part with no scored token.

    Raises:
        DataError: An example can't be tokenised as asked; the message names its row.
    """
    if kind == "sequence_classification":
        return _classified(examples, tokeniser, settings, label_names)
    tokens: dict[int, _Tokens] = {}
    for of, tokenised in _ENCODERS.items():
        positions = [position for position, example in enumerate(examples) if isinstance(example.content, of)]
        if positions:
            encoded = tokenised([examples[position] for position in positions], tokeniser)
            tokens.update(zip(positions, encoded, strict=True))
    parts: list[Part] = []
    for position, example in enumerate(examples):
        row = tokens[position]
        if settings.append_eos and example.row >= 0 and not isinstance(example.content, TokenContent):
            row = _with_eos(row, tokeniser)
        parts += _cut(position, row, settings)
    return parts


def readable(example: Example, tokeniser: "PreTrainedTokenizerBase") -> str:
    """Return what people read of an example; tokens given as such are decoded."""
    if isinstance(example.content, TokenContent):
        return str(tokeniser.decode(list(example.content.input_ids)))
    return example.text


def _with_eos(tokens: _Tokens, tokeniser: Any) -> _Tokens:
    end = tokeniser.eos_token_id
    if end is None:
        raise DataError(
            "data.append_eos is set, but the tokeniser has no end-of-sequence token. Unset it, or give one."
        )
    if len(tokens.input_ids) and tokens.input_ids[-1] == end:
        return tokens
    return _Tokens(np.append(tokens.input_ids, np.int32(end)), np.append(tokens.labels, np.int32(end)))


def _cut(position: int, tokens: _Tokens, settings: DataSettings) -> list[Part]:
    length, most = len(tokens.input_ids), settings.max_tokens
    truncated = settings.long_rows == "truncate"
    last_start = 0 if truncated else max(0, length - 2)
    lost = int((tokens.labels[most:] != NOT_SCORED).sum()) if truncated else 0
    parts = []
    for start in range(0, last_start + 1, most - 1):
        labels = tokens.labels[start : start + most].copy()
        labels[:1] = NOT_SCORED
        parts.append(Part(position, tokens.input_ids[start : start + most], labels, length=length, lost=lost))
    return parts


def _marked(input_ids: Sequence[int], scored: np.ndarray | bool) -> _Tokens:
    ids = np.asarray(input_ids, np.int32)
    return _Tokens(ids, np.where(scored, ids, np.int32(NOT_SCORED)))


def _texts(examples: list[Example], tokeniser: Any) -> list[_Tokens]:
    texts = [example.content.text for example in examples]  # type: ignore[union-attr]
    encoded = encode(texts, tokeniser, truncation=False)["input_ids"]
    spans = single_ends(texts, encoded, tokeniser)
    return [_marked(ids[span], True) for ids, span in zip(encoded, spans, strict=True)]


def _prompts(examples: list[Example], tokeniser: Any) -> list[_Tokens]:
    _need_offsets(tokeniser, "prompt and completion")
    texts = [example.text for example in examples]
    encoded = encode(texts, tokeniser, truncation=False, return_offsets_mapping=True)
    spans = single_ends(texts, encoded["input_ids"], tokeniser)
    rows = []
    for example, span, ids, offsets in zip(
        examples, spans, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        ids, offsets = ids[span], offsets[span]
        ends = np.asarray(offsets, np.int64).reshape(-1, 2)[:, 1]
        # A token that straddles the boundary says something of the completion. Special tokens have no characters;
        # one that the tokeniser puts after the completion belongs to it.
        scored = np.maximum.accumulate(ends > len(example.content.prompt))  # type: ignore[union-attr]
        rows.append(_marked(ids, scored))
    return rows


def _conversations(examples: list[Example], tokeniser: Any) -> list[_Tokens]:
    _need_offsets(tokeniser, "messages")
    rendered = [render_conversation(example, tokeniser) for example in examples]
    texts = [text for text, _ in rendered]
    encoded = encode(texts, tokeniser, truncation=False, return_offsets_mapping=True, add_special_tokens=False)
    rows = []
    for ids, offsets, (_, spans) in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True):
        starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
        scored = np.zeros(len(ids), bool)
        for start, stop in spans:
            scored |= (starts < stop) & (ends > start)
        rows.append(_marked(ids, scored))
    return rows


def _from_ids(examples: list[Example], tokeniser: Any) -> list[_Tokens]:
    rows = []
    for example in examples:
        content = example.content
        assert isinstance(content, TokenContent)
        for column, values in (("input_ids", content.input_ids), ("labels", content.labels)):
            if values and max(values) >= len(tokeniser):
                raise DataError(
                    f"{place_of(example)}: {column!r} holds {max(values)}, but the tokeniser's vocabulary ends at "
                    f"{len(tokeniser) - 1}. Were the rows tokenised for another model?"
                )
        tokens = _marked(content.input_ids, True)
        rows.append(
            tokens if content.labels is None else _Tokens(tokens.input_ids, np.asarray(content.labels, np.int32))
        )
    return rows


def _need_offsets(tokeniser: Any, shape: str) -> None:
    if not tokeniser.is_fast:
        raise DataError(
            f"Rows of {shape} need a fast tokeniser, which says where each token's characters are; "
            f"{type(tokeniser).__name__} does not. "
            "Convert it to a fast one (a tokenizer.json), or give input_ids and labels."
        )


def _classified(
    examples: Sequence[Example], tokeniser: Any, settings: DataSettings, label_names: Mapping[str, int] | None
) -> list[Part]:
    if settings.long_rows == "split":
        raise DataError("A classified row has one class and can't be split into parts. Set data.long_rows: truncate.")
    texts = [example.content.text for example in examples if isinstance(example.content, TextContent)]
    # The tokeniser cuts, so that the special tokens a classifier expects around a text stay.
    encoded = iter(_cut_texts(texts, tokeniser, settings.max_tokens))
    parts = []
    for position, example in enumerate(examples):
        if isinstance(example.content, TextContent):
            ids = np.asarray(next(encoded), np.int32)
        elif isinstance(example.content, TokenContent):
            ids = _from_ids([example], tokeniser)[0].input_ids[: settings.max_tokens]
        else:
            raise DataError(
                f"{place_of(example)}: a classifier reads a text or input_ids, not a prompt or messages. Ask "
                "with a text and its label (--text and --label)."
            )
        parts.append(Part(position, ids, np.full_like(ids, NOT_SCORED), class_number(example, label_names)))
    return parts


def _cut_texts(texts: list[str], tokeniser: Any, most: int) -> list[list[int]]:
    if not texts:
        return []
    encoded = [list(ids) for ids in encode(texts, tokeniser, truncation=True, max_length=most)["input_ids"]]
    # One more token, where one of two first tokens goes.
    doubled = [number for number, start in enumerate(doubled_starts(texts, encoded, tokeniser)) if start]
    if doubled:
        again = encode([texts[number] for number in doubled], tokeniser, truncation=True, max_length=most + 1)
        for number, ids in zip(doubled, again["input_ids"], strict=True):
            encoded[number] = list(ids[1:])
    return encoded


_ENCODERS: dict[type, Callable[[list[Example], Any], list[_Tokens]]] = {
    TextContent: _texts,
    PromptContent: _prompts,
    MessagesContent: _conversations,
    TokenContent: _from_ids,
}
