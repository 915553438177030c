"""Which columns a data set has, what shape of row they make, and one row of any format in its canonical form.

A canonical row holds `id`, `source`, `uri` as strings, `label` as JSON (so that the number 1 and the name "1" stay two
things), and the columns of its shape: `text`; `prompt` and `completion`; `messages` as JSON; `input_ids` and `labels`.
Types are never guessed from values: a text or an id that looks like a date or a number stays the string of the file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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
from influence.errors import DataError

Shape = Literal["text", "prompt", "messages", "input_ids"]

CONTENT_ROLES: dict[Shape, tuple[str, ...]] = {
    "text": ("text",),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "input_ids": ("input_ids",),
}
"""The columns that must be there, and hold no null, for each shape."""

LARGEST_TOKEN = 2**31 - 1


class Columns(BaseModel):
    """The name each role has in the user's data; None leaves a role out, though a column of that name is there.

    A name that was set must be there; one that is only a default need not be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = "text"
    prompt: str | None = "prompt"
    completion: str | None = "completion"
    messages: str | None = "messages"
    input_ids: str | None = "input_ids"
    labels: str | None = "labels"
    label: str | None = "label"
    id: str | None = "id"
    source: str | None = "source"
    uri: str | None = "uri"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the columns found in a data set amount to.

    Attributes:
        shape: The shape of every row.
        names: Role → column, for the roles that this shape can have, whether or not the column was found.
        found: The columns found; for JSON Lines, those of the first row.
    """

    shape: Shape
    names: Mapping[str, str]
    found: tuple[str, ...]

    def has(self, role: str) -> bool:
        """Whether the data set has a column for a role."""
        return self.names.get(role) in self.found

    @property
    def columns(self) -> "Columns":
        """The columns that are read, every other role left out by name."""
        return Columns(
            **{role: name if name in self.found else None for role, name in self.names.items()}
            | {role: None for role in Columns.model_fields if role not in self.names}
        )

    @property
    def listing(self) -> str:
        """The columns found, as messages list them."""
        return ", ".join(repr(name) for name in self.found) or "none"


def find_layout(found: Iterable[str], columns: Columns, where: str) -> Layout:
    """Decide the shape of a data set's rows from its columns.

    Raises:
        DataError: A column that was named isn't there, no shape fits, or more than one does; the message lists the
            columns found.
    """
    found = tuple(found)
    _check_named(found, columns, where)
    named = {role: name for role, name in columns.model_dump().items() if name is not None}
    fitting: list[Shape] = [
        shape for shape, roles in CONTENT_ROLES.items() if all(named.get(role) in found for role in roles)
    ]
    listing = Layout("text", {}, found).listing
    if not fitting:
        wanted = [
            " and ".join(repr(named[role]) for role in roles)
            for roles in CONTENT_ROLES.values()
            if all(role in named for role in roles)
        ]
        raise DataError(
            f"{where} has no column to score. Columns found: {listing}. "
            f"Expected {'; or '.join(wanted) or 'a content column'}. "
            "Rename a column, or name yours in data.columns (data.columns.text: body)."
        )
    if len(fitting) > 1:
        raise DataError(
            f"{where} could be read in {len(fitting)} ways: {', '.join(fitting)}. Columns found: {listing}. "
            f"Leave out those not meant, for instance with data.columns.{CONTENT_ROLES[fitting[-1]][0]}: null."
        )
    shape = fitting[0]
    roles = {*CONTENT_ROLES[shape], "id", "source", "uri", "label", *(("labels",) if shape == "input_ids" else ())}
    return Layout(shape, {role: name for role, name in named.items() if role in roles}, found)


def _check_named(found: tuple[str, ...], columns: Columns, where: str) -> None:
    for role in Columns.model_fields:
        name = getattr(columns, role)
        if role in columns.model_fields_set and name is not None and name not in found:
            raise DataError(
                f"{where} has no column {name!r}, which data.columns.{role} names. Columns found: "
                f"{Layout('text', {}, found).listing}. Name the one that is meant, or leave data.columns.{role} out."
            )


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
        column = layout.names[role]
        if value(role) is None:
            state = "is null" if column in record else "is missing"
            raise DataError(f"{where}: {column!r} {state}. Expected a value in every row; fill it or drop the row.")
        if layout.shape in ("text", "prompt"):
            row[role] = _string(value(role), column, where)
        elif layout.shape == "messages":
            row[role] = _messages(value(role), column, where)
        else:
            row["input_ids"] = _tokens(value(role), column, where, lowest=0)
            row["labels"] = _scored(value("labels"), layout.names.get("labels", ""), row["input_ids"], where)
    return row


def example_of(row: int, canonical: Mapping[str, Any], shape: Shape) -> Example:
    """Return the example that a canonical row holds."""
    content: Content
    if shape == "text":
        content = TextContent(canonical["text"])
    elif shape == "prompt":
        content = PromptContent(canonical["prompt"], canonical["completion"])
    elif shape == "messages":
        content = MessagesContent(tuple(json.loads(canonical["messages"])))
    else:
        labels = canonical["labels"]
        content = TokenContent(tuple(canonical["input_ids"]), None if labels is None else tuple(labels))
    return Example(
        row=row,
        id=content_id(content) if canonical["id"] is None else canonical["id"],
        text=readable_text(content),
        content=content,
        source=canonical["source"],
        uri=canonical["uri"],
        label=None if canonical["label"] is None else json.loads(canonical["label"]),
    )


def _found(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.80}"


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {_found(value)}, expected a string.")
    return value


def _id(value: Any, layout: Layout, where: str) -> str | None:
    given = _name(value, layout.names.get("id", ""), where)
    if (given is not None) == layout.has("id"):
        return given
    column = layout.names["id"]
    state = (
        f"{column!r} is {value!r:.80}, but the first row has none" if given else f"{column!r} is null, empty or missing"
    )
    raise DataError(f"{where}: {state}. Give every row an id, or none (data.columns.id: null ignores the column).")


def _name(value: Any, column: str, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {column!r} is {_found(value)}, expected a string or an integer.")
    return str(value)


def _label(value: Any, column: str, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {column!r} is {_found(value)}, expected a class's number or name.")
    return json.dumps(value, ensure_ascii=False)


def _messages(value: Any, column: str, where: str) -> str:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {column!r} is {_found(value)}, expected a list of messages, one at least.")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise DataError(
                f"{where}: message {number} of {column!r} is {_found(message)}, "
                "expected an object with 'role' and 'content'."
            )
    # A column of structs gives every message all the keys that any message has; a template must not see those.
    given = [{key: part for key, part in turn.items() if part is not None or key == "content"} for turn in value]
    try:
        return json.dumps(given, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"{where}: {column!r} holds a value that JSON can't: {error}.") from None


def _tokens(value: Any, column: str, where: str, *, lowest: int) -> list[int]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {_found(value)}, expected a list of token numbers.")
    if set(map(type, value)) - {int}:
        wrong = next(item for item in value if type(item) is not int)
        raise DataError(f"{where}: {column!r} holds {_found(wrong)}, expected integers only.")
    if value and (min(value) < lowest or max(value) > LARGEST_TOKEN):
        wrong = min(value) if min(value) < lowest else max(value)
        raise DataError(f"{where}: {column!r} holds {wrong}, expected token numbers from {lowest} to {LARGEST_TOKEN}.")
    return value


def _scored(value: Any, column: str, input_ids: list[int], where: str) -> list[int] | None:
    if value is None:
        return None
    labels = _tokens(value, column, where, lowest=-100)
    if len(labels) != len(input_ids):
        raise DataError(
            f"{where}: {column!r} has {len(labels)} entries for {len(input_ids)} input_ids, expected as many "
            "(−100 where a token is not scored)."
        )
    wrong = [label for label in labels if -100 < label < 0]
    if wrong:
        raise DataError(f"{where}: {column!r} holds {wrong[0]}, expected −100 or a token number.")
    return labels
