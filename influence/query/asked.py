"""What may be asked: an `Example`, or a mapping as a line of a queries file holds it."""

from collections.abc import Mapping
from typing import Any

from influence.data.example import QUERY_ROW, Example, TextContent, content_id
from influence.errors import QueryError

Query = Example | Mapping[str, Any]
"""An `Example`, or a mapping with prompt and completion (and contrast), or with text (and for a classifier its label);
id optional."""


def as_example(query: Query) -> Example:
    """Return a query given as a mapping as an `Example`.

    Raises:
        QueryError: It has neither prompt and completion nor text, or keys that mean nothing here.
    """
    if isinstance(query, Example):
        return query
    known = {"prompt", "completion", "contrast", "text", "label", "id"}
    if not isinstance(query, Mapping) or set(query) - known:
        found = sorted(set(query) - known) if isinstance(query, Mapping) else type(query).__name__
        raise QueryError(f"A query is a mapping with prompt and completion, or with text; found {found!r}.")
    name = query.get("id")
    if "completion" in query and "text" not in query:
        return Example.query(query.get("prompt", ""), query["completion"], id=name, contrast=query.get("contrast"))
    text = query.get("text")
    if not isinstance(text, str) or {"prompt", "completion", "contrast"} & set(query):
        raise QueryError(f"A query has prompt and completion, or text alone; found the keys {sorted(query)}.")
    content = TextContent(text)
    given = content_id(content) if name is None else str(name)
    return Example(row=QUERY_ROW, id=given, text=text, content=content, label=query.get("label"))
