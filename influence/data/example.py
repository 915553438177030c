"""One row of a data set, or one query, before it is tokenised.

A query travels through the same functions as a row, so it is an `Example` too: its `row` is −1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from influence.errors import DataError

QUERY_ROW = -1
"""The `row` of an example that belongs to no data set."""


@dataclass(frozen=True, slots=True)
class TextContent:
    """A text of which every token but the first is scored."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptContent:
    """A prompt and what follows it; only the completion's tokens are scored."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class MessagesContent:
    """A chat, rendered by the tokeniser's chat template; only the assistant's turns are scored.

    Attributes:
        messages: Objects with `role` and `content`; an assistant's turn of `weight` 0 is not scored.
        context: What else the template is given: `tools`, `documents`, and `chat_template_kwargs` (its own variables).
        prompt: How many messages are the prompt, where prompt and completion are lists of messages: all that follows
            them is scored. None where every turn of the assistant is.
    """

    messages: tuple[Mapping[str, Any], ...]
    context: Mapping[str, Any] = field(default_factory=dict)
    prompt: int | None = None


@dataclass(frozen=True, slots=True)
class TokenContent:
    """Tokens given as they are.

    `labels` is as long as `input_ids`, −100 where a token is not scored; None scores all but the first.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...] | None = None


Content = TextContent | PromptContent | MessagesContent | TokenContent


@dataclass(frozen=True, slots=True)
class Example:
    """One row or query.

    Attributes:
        row: Position in the data set, counted from 0; −1 for a query.
        id: The id the row was given, else the digest of its content.
        text: What people read: the text, prompt and completion joined, or the turns of the messages. Empty for tokens,
            which `tokenise.readable` decodes.
        content: What is tokenised.
        source: Where the row came from, for people.
        uri: Where it can be looked up.
        label: A class's number or name, for classifiers.
        contrast: Of a query, what it is asked against: log p of this example minus log p of that one.
    """

    row: int
    id: str
    text: str
    content: Content
    source: str | None = None
    uri: str | None = None
    label: int | str | None = None
    contrast: "Example | None" = None

    @classmethod
    def query(cls, prompt: str, completion: str, *, id: str | None = None, contrast: str | None = None) -> "Example":
        """Return a query: what made the model say `completion` after `prompt`?

        Args:
            prompt: What the model was given; may be empty.
            completion: What it said.
            id: A name for the query; its content digest when None.
            contrast: What it might have said instead: what made it say `completion` rather than this?

        Raises:
            DataError: One of the two is not text that UTF-8 can hold.
        """
        fields = [("prompt", prompt), ("completion", completion)]
        for name, value in fields if contrast is None else [*fields, ("contrast", contrast)]:
            if not isinstance(value, str):
                raise DataError(f"The query's {name} is {type(value).__name__} {value!r:.80}, expected a string.")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"The query's {name} has half of a surrogate pair at character {error.start}, "
                    "which UTF-8 can't hold. Was it read with the wrong encoding?"
                ) from None
        content = PromptContent(prompt, completion)
        against = None if contrast is None else cls.query(prompt, contrast)
        presence = (
            (content_id(content) if against is None else f"{content_id(content)}-{against.id}") if id is None else id
        )
        return cls(QUERY_ROW, str(presence), readable_text(content), content, contrast=against)


def content_id(content: Content) -> str:
    """Return the id of a row that was given none: 16 hex digits of the SHA-256 of its content as canonical JSON.

    Rows with the same content share it.
    """
    parts = columns_of_content(content)
    if isinstance(content, TokenContent):
        parts.setdefault("labels", None)
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()[:16]


def columns_of_content(content: Content) -> dict[str, Any]:
    """Return a content as the columns of a data set that hold it, by their usual names."""
    match content:
        case TextContent(text):
            return {"text": text}
        case PromptContent(prompt, completion):
            return {"prompt": prompt, "completion": completion}
        case MessagesContent(messages, context, prompt):
            turns = [dict(message) for message in messages]
            if prompt is None:
                return {"messages": turns, **context}
            return {"prompt": turns[:prompt], "completion": turns[prompt:], **context}
        case TokenContent(input_ids, labels):
            return {"input_ids": list(input_ids), **({} if labels is None else {"labels": list(labels)})}


def readable_text(content: Content) -> str:
    """Return what people read of a content; empty for tokens, which only a tokeniser can decode."""
    match content:
        case TextContent(text):
            return text
        case PromptContent(prompt, completion):
            return prompt + completion
        case MessagesContent(messages):
            return "\n".join(readable_turn(message) for message in messages)
        case TokenContent():
            return ""


def readable_turn(message: Mapping[str, Any]) -> str:
    """Return what people read of a message: `role: content`; of one without content, the calls of tools as JSON."""
    content = message.get("content") or message.get("tool_calls") or ""
    return f"{message['role']}: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}"


def place_of(example: Example) -> str:
    """Return how a message names an example."""
    return (
        f"Query {example.id!r}"
        if example.row == QUERY_ROW
        else f"Row {example.row} (counted from 0, id {example.id!r})"
    )
