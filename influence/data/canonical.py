"""One row of any format in its canonical form.

A canonical row holds `id`, `source`, `uri` as strings, `label` as JSON (so that the number 1 and the name "1" stay two
things), and the columns of its shape: `text`; `prompt` and `completion`; `messages` as JSON; `input_ids` and `labels`.
A prompt and a completion that are lists of messages are `messages`, too. `template` says as JSON what else a chat's
template is given. Types are never guessed from values: a text or an id that looks like a date or a number stays the
string of the file.
"""

import json
from collections.abc import Mapping
from typing import Any

from influence.data.chat import context_of, messages_of
from influence.data.columns import CONTENT_ROLES, CONTEXT_ROLES, Layout, Shape, typed
from influence.data.example import (
    Content,
    Example,
    MessagesContent,
    PromptContent,
    TextContent,
    TokenContent,
    content_id,
    readable_text,
)
from influence.data.given_tokens import tokens_of
from influence.errors import DataError

READING = 2
"""Which tokens rows have and which are scored: raised when the same chats or `input_ids` give others. Since 2 what
stands beside them is read (tools, masks, weights), nulls are left out, and who speaks first has no header scored."""


def canonical_row(record: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """Return one record in canonical form, with every role of its shape.

    Args:
        record: Column → value, as the file gave it.
        layout: What the data set's columns amount to.
        where: File and line (or row), for messages.

    Raises:
        DataError: A value is missing, null or of the wrong type; the message names where, the column and the value.
    """

    def value(role: str) -> Any:
        return record.get(layout.names.get(role, ""))

    row: dict[str, Any] = {
        "id": _id(value("id"), layout, where),
        "source": _name(value("source"), layout.names.get("source", ""), where),
        "uri": _name(value("uri"), layout.names.get("uri", ""), where),
        "label": _label(value("label"), layout.names.get("label", ""), where),
    }
    for role in CONTENT_ROLES[layout.shape]:
        if value(role) is None:
            column = layout.names[role]
            state = "is null" if column in record else "is missing"
            raise DataError(f"{where}: {column!r} {state}. Expected a value in every row; fill it or drop the row.")
    return row | content_columns({role: value(role) for role in layout.names}, layout.shape, layout.names, where)


def content_columns(values: Mapping[str, Any], shape: Shape, names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the columns of a canonical row that hold its content.

    Args:
        values: Role → value; those of the shape are there.
        shape: Of the row.
        names: Role → column, for messages.
        where: File and line (or row), for messages.

    Raises:
        DataError: A value is of the wrong type, or says what can't be honoured.
    """
    if shape == "text":
        return {"text": _string(values["text"], names["text"], where)}
    if shape == "input_ids":
        input_ids, labels = tokens_of(values, names, where)
        return {"input_ids": input_ids, "labels": labels}
    context = {role: context_of(role, values.get(role), names.get(role, role), where) for role in CONTEXT_ROLES}
    template = {role: value for role, value in context.items() if value is not None}
    if shape == "messages":
        turns = messages_of(values["messages"], names["messages"], where)
        return {"messages": _json(turns, names["messages"], where), "template": _template(template, where)}
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": completion, "messages": None, "template": None}
    if not isinstance(prompt, list) and not isinstance(completion, list):
        for role in ("prompt", "completion"):
            _string(values[role], names[role], where)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise DataError(
            f"{where}: {names['prompt']!r} is {typed(prompt)} and {names['completion']!r} is {typed(completion)}. "
            "Expected two strings, or two lists of messages."
        )
    before, after = (messages_of(values[role], names[role], where) for role in ("prompt", "completion"))
    _check_turns(before, after, names, where)
    return {
        "prompt": None,
        "completion": None,
        "messages": _json([*before, *after], names["completion"], where),
        "template": _template({**template, "prompt": len(before)}, where),
    }


def _check_turns(
    before: list[dict[str, Any]], after: list[dict[str, Any]], names: Mapping[str, str], where: str
) -> None:
    if before[-1]["role"] == "assistant" or after[0]["role"] != "assistant":
        raise DataError(
            f"{where}: the last message of {names['prompt']!r} is by the {before[-1]['role']}, and the first of "
            f"{names['completion']!r} by the {after[0]['role']}. Expected an answer of the assistant to what another "
            "role said; or give messages."
        )
    unscored = [number for number, turn in enumerate(after) if turn.get("weight") == 0]
    if unscored:
        raise DataError(
            f"{where}: message {unscored[0]} of {names['completion']!r} has weight 0, and a completion is scored "
            "whole. Give messages, of which each turn of the assistant may have a weight."
        )


def _template(template: Mapping[str, Any], where: str) -> str | None:
    return _json(template, "the columns beside the messages", where) if template else None


def content_of(canonical: Mapping[str, Any], shape: Shape) -> Content:
    """Return the content that a canonical row of a shape holds."""
    if shape == "text":
        return TextContent(canonical["text"])
    if shape == "input_ids":
        labels = canonical["labels"]
        return TokenContent(tuple(canonical["input_ids"]), None if labels is None else tuple(labels))
    if canonical["messages"] is None:
        return PromptContent(canonical["prompt"], canonical["completion"])
    template = {} if canonical["template"] is None else json.loads(canonical["template"])
    prompt = template.pop("prompt", None)
    return MessagesContent(tuple(json.loads(canonical["messages"])), template, prompt)


def example_of(row: int, canonical: Mapping[str, Any], shape: Shape) -> Example:
    """Return the example that a canonical row holds."""
    content = content_of(canonical, shape)
    return Example(
        row=row,
        id=content_id(content) if canonical["id"] is None else canonical["id"],
        text=readable_text(content),
        content=content,
        source=canonical["source"],
        uri=canonical["uri"],
        label=None if canonical["label"] is None else json.loads(canonical["label"]),
    )


def _json(value: Any, column: str, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"{where}: {column!r} holds a value that JSON can't: {error}.") from None


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {typed(value)}, expected a string.")
    return value


def _id(value: Any, layout: Layout, where: str) -> str | None:
    identifier = _name(value, layout.names.get("id", ""), where)
    if (identifier is not None) == layout.has("id"):
        return identifier
    column = layout.names["id"]
    state = (
        f"{column!r} is {value!r:.80}, but the first row has none"
        if identifier
        else f"{column!r} is null, empty or missing"
    )
    raise DataError(f"{where}: {state}. Give every row an id, or none (data.columns.id: null ignores the column).")


def _name(value: Any, column: str, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {column!r} is {typed(value)}, expected a string or an integer.")
    return str(value)


def _label(value: Any, column: str, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {column!r} is {typed(value)}, expected a class's number or name.")
    return json.dumps(value, ensure_ascii=False)
