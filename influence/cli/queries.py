"""The queries of `influence query`: from flags, from a chat's file, from a file of queries, from standard input."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.strict_json import MAX_BYTES, parse_json
from influence.errors import DataError, InfluenceError, QueryError

if TYPE_CHECKING:
    from influence.data.example import Example
    from influence.data.queries import QueryForm

STDIN = "/dev/stdin"


def from_flags(
    prompt: str | None, completion: str | None, text: str | None, label: str | None, contrast: str | None = None
) -> dict[str, str]:
    """Return the one query that flags ask.

    Raises:
        QueryError: There is none, or they don't make one; said before anything is loaded.
    """
    if text is not None:
        if prompt is not None or completion is not None or contrast is not None:
            raise QueryError("--text is the whole query: remove --prompt, --completion and --contrast, or --text.")
        asked = {"text": text} if label is None else {"text": text, "label": label}
    elif label is not None:
        raise QueryError("--label is the class of a --text: give that too.")
    elif completion is None:
        what = "--prompt is given without --completion" if prompt is not None else "No query is given"
        raise QueryError(f"{what}. Give --prompt and --completion, --text, --messages CHAT, or --queries FILE.")
    else:
        asked = {"prompt": prompt or "", "completion": completion}
        if contrast is not None:
            asked["contrast"] = contrast
    _check(asked)
    return asked


def from_messages(path: str, contrast: str | None) -> dict[str, Any]:
    """Read one chat: a JSON file that holds its messages, or an object with `messages` (and `tools`).

    Args:
        path: A file, or `-` for standard input.
        contrast: What the assistant might have said instead in its last turn.

    Raises:
        DataError: It can't be read, or isn't JSON.
        QueryError: It holds no chat, or the contrast is empty or given twice.
    """
    from influence.data.records import raw_lines

    file, name = _source(path, "--messages takes a JSON file with a chat, or - for stdin")
    try:
        chat = parse_json(_whole(raw_lines(file), name))
    except DataError as error:
        raise DataError(str(error).replace(STDIN, name)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} can't be read: {error}. Expected JSON: a list of messages.") from None
    asked = {"messages": chat} if isinstance(chat, list) else chat
    if not isinstance(asked, dict) or not ("messages" in asked or "completion" in asked):
        raise QueryError(
            f"{name} holds no chat: found a JSON {type(chat).__name__}, expected a list of messages "
            '([{"role": "user", "content": …}, …]), or an object with messages and tools.'
        )
    if contrast is not None:
        if asked.get("contrast") is not None:
            raise QueryError(f"{name} has a contrast, and --contrast is given: keep one.")
        asked = {**asked, "contrast": contrast}
    _check(asked)
    return asked


def from_file(path: str, form: "QueryForm") -> "Iterator[Example]":
    """Yield the queries of JSON Lines, a query a line: prompt and completion, messages, or text (and label).

    A line is read when its query is asked for. A row of the training data is a query; columns that a query has no use
    for are named in one log line.

    Args:
        path: A file, or `-` for standard input.
        form: How queries of the run are read.

    Raises:
        DataError: A line isn't UTF-8 or a JSON object; file and line are named.
        QueryError: There are none, or a line holds no query; file and line are named.
    """
    from influence.data.queries import read_queries
    from influence.data.records import records

    file, name = _source(path, "--queries takes a file with one JSON object a line, or - for stdin")
    where = name

    def lines() -> Iterator[Mapping[str, Any]]:
        nonlocal where
        for place, record in records(file, "jsonl", (), strict=True):
            where = place.replace(STDIN, name)
            _check(record)
            yield record

    none = True
    try:
        for example in read_queries(lines(), form):
            none = False
            yield example
    except InfluenceError as error:
        told = str(error).replace(STDIN, name)
        raise type(error)(told if told.startswith(name) else f"{where}: {told}") from None
    if none:
        raise QueryError(f"{name} holds no query. Expected one JSON object a line, with prompt and completion.")


def count_queries(path: str) -> int | None:
    """Return how many queries a file holds, for a progress bar; None of what can be read only once."""
    if path == "-" or not Path(path).is_file():
        return None
    with open(path, "rb") as stream:
        return sum(not line.isspace() for line in stream)


def _whole(lines: Iterator[tuple[bytes, str]], name: str) -> str:
    """Return a file's text. Of standard input, nobody knows beforehand how much there is."""
    read, size = [], 0
    for content, text in lines:
        size += len(content)
        if size > MAX_BYTES:
            raise DataError(f"{name} has more than {MAX_BYTES:,} bytes, and holds one chat. Is it the right file?")
        read.append(text)
    return "".join(read)


def _source(path: str, what: str) -> tuple[str, str]:
    if not path or (path != "-" and Path(path).is_dir()):
        raise QueryError(f"{path} is a folder; {what}." if path else f"The name of a file is empty; {what}.")
    return (STDIN, "standard input") if path == "-" else (path, path)


def _check(query: Mapping[str, Any]) -> None:
    for key in ("completion", "contrast", "text"):
        if query.get(key) == "":
            raise QueryError(
                f"The {key} is empty, so nothing is predicted and nothing can be measured. Give the text of the output."
            )
