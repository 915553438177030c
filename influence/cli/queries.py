"""The queries of `influence query`: from flags, from a file, from standard input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from influence.errors import InfluenceError, QueryError

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
            raise QueryError("--text is the whole query: leave out --prompt, --completion and --contrast, or --text.")
        asked = {"text": text} if label is None else {"text": text, "label": label}
    elif label is not None:
        raise QueryError("--label is the class of a --text: give that too.")
    elif completion is None:
        what = "--prompt is given without --completion" if prompt is not None else "No query is given"
        raise QueryError(
            f"{what}. Ask with --prompt and --completion (what the model said), with --text, or with --queries FILE."
        )
    else:
        asked = {"prompt": prompt or "", "completion": completion}
        if contrast is not None:
            asked["contrast"] = contrast
    _check(asked)
    return asked


def from_file(path: str) -> Sequence[Mapping[str, Any]]:
    """Read JSON Lines, a query a line: prompt and completion, or text (and label); id if wanted.

    Args:
        path: A file, or `-` for standard input.

    Raises:
        DataError: A line isn't UTF-8 or a JSON object; file and line are named.
        QueryError: There are none, or a line holds no query; file and line are named.
    """
    from influence.data.records import records
    from influence.query.asked import as_example

    file, name = (STDIN, "standard input") if path == "-" else (path, path)
    if path != "-" and Path(path).is_dir():
        raise QueryError(f"{path} is a folder; --queries takes a file with one JSON object a line, or - for stdin.")
    asked = []
    for where, record in records(file, "jsonl", (), strict=True):
        try:
            _check(record)
            as_example(record)
        except InfluenceError as error:
            raise type(error)(f"{where.replace(STDIN, name)}: {error}") from None
        asked.append(record)
    if not asked:
        raise QueryError(f"{name} holds no query. Expected one JSON object a line, with prompt and completion.")
    return asked


def _check(query: Mapping[str, Any]) -> None:
    for key in ("completion", "contrast", "text"):
        if query.get(key) == "":
            raise QueryError(
                f"The {key} is empty, so nothing is predicted and nothing can be asked. Give what was said."
            )
