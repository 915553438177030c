"""What may be asked: an `Example`, or a mapping as a line of a queries file holds it.

A row of the training data is a query, too: read by the same columns, rendered and scored in the same way.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from influence.data.canonical import content_columns, content_of
from influence.data.columns import CONTENT_ROLES, OPTIONAL_ROLES, Columns, Shape, typed
from influence.data.example import (
    QUERY_ROW,
    Example,
    MessagesContent,
    PromptContent,
    content_id,
    readable_text,
)
from influence.errors import DataError, QueryError

log = logging.getLogger(__name__)

Query = Example | Mapping[str, Any]
"""An `Example`, or a mapping with prompt and completion (and contrast), with text (and for a classifier its label),
with messages (and tools, and contrast), or with input_ids; id optional."""

EXPECTED = "A query has prompt and completion, or text alone, or messages, or input_ids"
NEAR = 0.8
"""How alike a key must be to a known one to be taken for a misspelling, as `difflib` measures it."""
NEAR_LENGTHS = 2
"""Characters by which the two may differ in length."""
SHORT = 4
"""Keys of fewer characters are alike by chance."""


@dataclass(frozen=True)
class QueryForm:
    """How queries of a run are read.

    Attributes:
        columns: The names of the training data's columns, which queries may have, too.
        chats: A prompt and a completion that are strings are the turns of a user and the assistant, as the run's rows
            are chats.
        labels: A label means something: the model is a classifier.
    """

    columns: Columns = field(default_factory=Columns)
    chats: bool = False
    labels: bool = True

    def asking(self, *, raw: bool) -> "QueryForm":
        """Return the same, or that of prompts and completions that are asked about as they stand."""
        return replace(self, chats=False) if raw else self


PLAIN = QueryForm()


def as_example(query: Query, form: QueryForm = PLAIN) -> Example:
    """Return a query given as a mapping as an `Example`.

    Args:
        query: The query. Keys that say nothing to it are left out; `surplus` names them.
        form: How queries of the run are read.

    Raises:
        QueryError: It has no content or several, a key that looks like a misspelt one, or a contrast of the wrong kind.
        DataError: A value is of the wrong type.
    """
    if isinstance(query, Example):
        return query
    if not isinstance(query, Mapping):
        raise QueryError(f"A query is a mapping; found {type(query).__name__!r}. {EXPECTED}.")
    _check_spelling(query, form)
    values = _by_role(query, form)
    shape = _shape(values, query)
    _check_sides(shape, values)
    name, contrast = values.get("id"), values.get("contrast")
    strings = shape == "prompt" and not any(isinstance(values.get(role), list) for role in ("prompt", "completion"))
    if strings and not form.chats:
        return Example.query(values.get("prompt", ""), values["completion"], id=name, contrast=contrast)
    if strings:
        values, shape = _as_turns(values), "messages"
    names = {role: role for role in values}
    where = "The query" if name is None else f"Query {name!r}"
    content = content_of(content_columns(values, shape, names, where), shape)
    label = values.get("label") if form.labels else None
    return _example(content, name, contrast, label)


def surplus(query: Query, form: QueryForm = PLAIN) -> tuple[str, ...]:
    """Return the keys of a query that are not read, in their order."""
    if isinstance(query, Example):
        return ()
    roles = {form.columns.model_dump().get(role) or role: role for role in Columns.model_fields}
    values = _by_role(query, form)
    shape = _shape(values, query)
    read = {*CONTENT_ROLES[shape], *OPTIONAL_ROLES[shape], "id", "contrast", *(("label",) if form.labels else ())}
    return tuple(key for key, value in query.items() if value is not None and roles.get(key, key) not in read)


def read_queries(queries: Iterable[Query], form: QueryForm) -> Iterator[Example]:
    """Yield queries as examples, and say once which of their keys are not read."""
    named: set[str] = set()
    bare = False
    for query in queries:
        yield as_example(query, form)
        more = [key for key in surplus(query, form) if key not in named]
        if more:
            named.update(more)
            log.info("Columns of the queries that are not read: %s.", ", ".join(map(repr, more)))
        if form.chats and not bare and not isinstance(query, Example) and "text" in query:
            bare = True
            log.info("The rows are chats, and a query of text is used as a bare text, without the chat template.")


def in_form(example: Example, form: QueryForm) -> Example:
    """Return an example that was read from a file as queries of the run are read: see `QueryForm.chats`."""
    if not form.chats or not isinstance(example.content, PromptContent):
        return example
    prompt, completion = example.content.prompt, example.content.completion
    chat = as_example({"prompt": prompt, "completion": completion}, form)
    return replace(example, content=chat.content, text=chat.text)


def _by_role(query: Mapping[str, Any], form: QueryForm) -> dict[str, Any]:
    """Return role → value, of keys that have the usual names or those of the training data; nulls are left out."""
    values = {key: value for key, value in query.items() if value is not None}
    for role, own in form.columns.model_dump().items():
        if own is not None and own != role and own in values and role not in values:
            values[role] = values[own]
    return {role: value for role, value in values.items() if role in Columns.model_fields or role == "contrast"}


def _shape(values: Mapping[str, Any], query: Mapping[str, Any]) -> Shape:
    there: list[Shape] = [shape for shape, roles in CONTENT_ROLES.items() if roles[-1] in values]
    mixed = there != ["prompt"] and ("prompt" in values)
    if len(there) != 1 or mixed or ("contrast" in values and there[0] not in ("prompt", "messages")):
        raise QueryError(f"{EXPECTED}; found the keys {sorted(map(str, query))}.")
    return there[0]


def _check_sides(shape: Shape, values: Mapping[str, Any]) -> None:
    if shape == "prompt" and isinstance(values["completion"], list) and not isinstance(values.get("prompt"), list):
        raise QueryError(
            "The query's completion is a list of messages and its prompt is not. Give both as lists, or one chat as "
            "messages."
        )


def _check_spelling(query: Mapping[str, Any], form: QueryForm) -> None:
    known = {*Columns.model_fields, "contrast"}
    own = {name for name in form.columns.model_dump().values() if name is not None}
    for key in query:
        if key in known | own or not isinstance(key, str) or len(key) < SHORT:
            continue
        near = [name for name in known if abs(len(name) - len(key)) <= NEAR_LENGTHS]
        meant = get_close_matches(key, near, n=1, cutoff=NEAR)
        if meant:
            raise QueryError(f"A query has no key {key!r}: is {meant[0]!r} meant? Rename it, or leave it out.")


def _as_turns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt and a completion that are strings as the messages of a chat."""
    for role in ("prompt", "completion"):
        if role in values and not isinstance(values[role], str):
            raise DataError(f"The query's {role} is {typed(values[role])}, expected a string.")
    asked = [{"role": "user", "content": values["prompt"]}] if values.get("prompt") else []
    answer = {"role": "assistant", "content": values["completion"]}
    return {**values, "messages": [*asked, answer]}


def _example(content: Any, name: Any, contrast: Any, label: Any) -> Example:
    against = None if contrast is None else _against(content, contrast)
    try:
        own = content_id(content) if against is None else f"{content_id(content)}-{against.id}"
    except UnicodeEncodeError:
        raise DataError(
            "The query has half of a surrogate pair, which UTF-8 can't hold. Was it read with the wrong encoding?"
        ) from None
    given = own if name is None else str(name)
    return Example(row=QUERY_ROW, id=given, text=readable_text(content), content=content, label=label, contrast=against)


def _against(content: Any, contrast: Any) -> Example:
    """Return the same chat with another last turn of the assistant."""
    assert isinstance(content, MessagesContent), "only prompts and chats have a contrast"
    if content.messages[-1]["role"] != "assistant":
        raise QueryError(
            f"The contrast stands for the chat's last message, which is by the {content.messages[-1]['role']}. "
            "Expected a chat that ends with the assistant's answer."
        )
    turn = contrast[0] if isinstance(contrast, list) and len(contrast) == 1 else contrast
    if isinstance(turn, str):
        turn = {"role": "assistant", "content": turn}
    if not isinstance(turn, Mapping) or turn.get("role") != "assistant" or turn.get("content") is None:
        raise QueryError(f"The contrast is {typed(contrast)}, expected what the assistant might have said instead.")
    other = MessagesContent((*content.messages[:-1], dict(turn)), content.context, content.prompt)
    return _example(other, None, None, None)


__all__ = ["PLAIN", "Query", "QueryForm", "as_example", "in_form", "read_queries", "surplus"]
