"""Which columns a data set has, and what shape of row they make. What a row of it is says `canonical`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from influence.errors import DataError

Shape = Literal["text", "prompt", "messages", "input_ids"]

CONTENT_ROLES: dict[Shape, tuple[str, ...]] = {
    "text": ("text",),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "input_ids": ("input_ids",),
}
"""The columns that must be there, and hold no null, for each shape."""

CONTEXT_ROLES = ("tools", "documents", "chat_template_kwargs")
"""What a chat's template is given beside its messages."""

MASK_ROLES = ("attention_mask", "completion_mask", "assistant_masks")
"""Columns beside `input_ids` that say which tokens are there, and which are scored."""

FIXED_ROLES = ("position_ids", "token_type_ids", "seq_lengths")
"""Columns beside `input_ids` that may say nothing but the usual: one text a row, one segment."""

OPTIONAL_ROLES: dict[Shape, tuple[str, ...]] = {
    "text": (),
    "prompt": CONTEXT_ROLES,
    "messages": CONTEXT_ROLES,
    "input_ids": ("labels", *MASK_ROLES, *FIXED_ROLES),
}
"""The columns that belong to a shape's content and need not be there."""

UNREAD = (
    "loss_mask",
    "loss_weights",
    "prompt_mask",
    "segment_ids",
    "sequence_id",
    "sequence_ids",
    "seq_idx",
    "document_ids",
)
"""Columns beside `input_ids` that some trainers read, with meanings that differ: refused, never ignored."""

ABOUT_ROLES = ("id", "source", "uri", "label")
"""The columns that any row may have."""


class Columns(BaseModel):
    """The name each role has in the user's data; None leaves a role out, though a column of that name is there.

    A name other than the usual one must be there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = "text"
    prompt: str | None = "prompt"
    completion: str | None = "completion"
    messages: str | None = "messages"
    input_ids: str | None = "input_ids"
    labels: str | None = "labels"
    attention_mask: str | None = "attention_mask"
    completion_mask: str | None = "completion_mask"
    assistant_masks: str | None = "assistant_masks"
    position_ids: str | None = "position_ids"
    token_type_ids: str | None = "token_type_ids"  # noqa: S105
    seq_lengths: str | None = "seq_lengths"
    tools: str | None = "tools"
    documents: str | None = "documents"
    chat_template_kwargs: str | None = "chat_template_kwargs"
    label: str | None = "label"
    id: str | None = "id"
    source: str | None = "source"
    uri: str | None = "uri"

    @property
    def named(self) -> tuple[str, ...]:
        """The columns of other than the usual names, which must be there."""
        usual = {role: field.default for role, field in type(self).model_fields.items()}
        return tuple(name for role, name in self.model_dump().items() if name not in (None, usual[role]))


@dataclass(frozen=True, slots=True)
class Layout:
    """What the columns found in a data set amount to.

    Attributes:
        shape: The shape of every row.
        names: Role → column, for the roles that this shape can have, whether or not the column was found.
        found: The columns found; for JSON Lines, those of the first row, and those that were named.
        sparse: Later rows may have columns that the first has not, as in JSON Lines.
    """

    shape: Shape
    names: Mapping[str, str]
    found: tuple[str, ...]
    sparse: bool = False

    def has(self, role: str) -> bool:
        """Whether the data set has a column for a role."""
        return self.names.get(role) in self.found

    @property
    def columns(self) -> "Columns":
        """The columns that are read, every other role left out by name.

        Ids stand in all rows or in none; any other column that the first row lacks may be in a later one.
        """
        there = {
            role: name if name in self.found or (self.sparse and role != "id") else None
            for role, name in self.names.items()
        }
        return Columns(**there | {role: None for role in Columns.model_fields if role not in self.names})

    @property
    def listing(self) -> str:
        """The columns found, as messages list them."""
        return ", ".join(repr(name) for name in self.found) or "none"


def find_layout(present: Iterable[str], columns: Columns, where: str, *, sparse: bool = False) -> Layout:
    """Decide the shape of a data set's rows from its columns.

    Args:
        present: Its columns.
        columns: The name of each role.
        where: The data set, for messages.
        sparse: Later rows may have columns that aren't found.

    Raises:
        DataError: A column that was named isn't there, no shape fits, or more than one does; the message lists the
            columns found.
    """
    present = tuple(present)
    _check_named(present, columns, where)
    renamed = {role: name for role, name in columns.model_dump().items() if name is not None}
    fitting: list[Shape] = [
        shape for shape, roles in CONTENT_ROLES.items() if all(renamed.get(role) in present for role in roles)
    ]
    listing = Layout("text", {}, present).listing
    if not fitting:
        expected = [
            " and ".join(repr(renamed[role]) for role in roles)
            for roles in CONTENT_ROLES.values()
            if all(role in renamed for role in roles)
        ]
        raise DataError(
            f"{where} has no column to score. Columns found: {listing}. "
            f"Expected {'; or '.join(expected) or 'a content column'}. {_advice(present)}"
        )
    if len(fitting) > 1:
        raise DataError(
            f"{where} could be read in {len(fitting)} ways: {', '.join(fitting)}. Columns found: {listing}. "
            f"Leave out those not meant, for instance with data.columns.{CONTENT_ROLES[fitting[-1]][0]}: null."
        )
    shape = fitting[0]
    unread = [name for name in UNREAD if name in present and name not in renamed.values()]
    if shape == "input_ids" and unread:
        raise DataError(
            f"{where} has the column {unread[0]!r} beside input_ids, which says what of a row is trained on or where "
            "its texts begin, and is not read here. Write labels (−100 where a token is not scored) and one text a "
            "row; or drop or rename the column where it says nothing."
        )
    roles = {*CONTENT_ROLES[shape], *OPTIONAL_ROLES[shape], *ABOUT_ROLES}
    return Layout(shape, {role: name for role, name in renamed.items() if role in roles}, present, sparse)


def _advice(present: tuple[str, ...]) -> str:
    chats = next(
        (name for name in ("conversations", "conversation", "chat", "dialog", "turns") if name in present), None
    )
    if chats is not None:
        return (
            f"If {chats!r} holds chats (lists of role and content, or of from and value as in ShareGPT), set "
            f"data.columns.messages: {chats}."
        )
    return "Rename a column, or name yours in data.columns (data.columns.text: body)."


def _check_named(present: tuple[str, ...], columns: Columns, where: str) -> None:
    for role in Columns.model_fields:
        name = getattr(columns, role)
        if name is not None and name != Columns.model_fields[role].default and name not in present:
            raise DataError(
                f"{where} has no column {name!r}, which data.columns.{role} names. Columns found: "
                f"{Layout('text', {}, present).listing}. Name the one that is meant, or leave data.columns.{role} out."
            )


def typed(value: object) -> str:
    """Return a value as messages name it: its type and its beginning."""
    return f"{type(value).__name__} {value!r:.80}"
