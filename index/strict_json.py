"""JSON that means one thing: files of a run and queries, which a stranger may have written.

Python's reader keeps the last of two equal keys, takes NaN and numbers beyond float64's range, and ends in a
RecursionError where brackets are nested deep enough. Here each of these is a `ValueError` that says what was found.
"""

import json
import math
import stat
from typing import Any, Protocol

MAX_BYTES = 1 << 28
"""Of a file. The manifest of a million shards has 100 MB."""
MAX_DEPTH = 64
"""Brackets within brackets; a run's own files have fewer than ten."""


class ReadableFile(Protocol):
    """What is read of a file: a path of a disk, or one of a bucket."""

    def stat(self) -> Any:
        """Return at least `st_size`."""
        ...

    def read_bytes(self) -> bytes:
        """Return the content."""
        ...


def parse_json(content: bytes | str, *, constants: bool = False) -> Any:
    """Return what a JSON document says.

    Args:
        content: The document; bytes are UTF-8.
        constants: Whether NaN and infinities are numbers, as they are in some models' configurations.

    Raises:
        ValueError: It isn't JSON, names a key twice, nests deeper than 64 brackets, or holds a number or a text that
            can't be written down again.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=None if constants else _refuse_constant)
    except RecursionError:
        raise ValueError(f"brackets are nested deeper than {MAX_DEPTH}") from None
    _check(document, constants)
    return document


def read_json(path: ReadableFile, *, constants: bool = False) -> Any:
    """Return what a JSON file says; see `parse_json`.

    Raises:
        OSError: It can't be read.
        ValueError: It has more than 256 MiB, or isn't strict JSON.
    """
    return parse_json(read_bounded(path), constants=constants)


def read_bounded(path: ReadableFile) -> bytes:
    """Return the bytes of a file that is read whole.

    Raises:
        OSError: It can't be read.
        ValueError: It is no regular file, which reading might wait for without end; or it has more than 256 MiB.
    """
    status = path.stat()
    if not stat.S_ISREG(getattr(status, "st_mode", stat.S_IFREG)):
        raise ValueError("it is no regular file, and wasn't opened")
    size = status.st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, and no such file has more than {MAX_BYTES:,}")
    return path.read_bytes()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names: set[str] = set()
        twice = next(key for key, _ in pairs if key in names or names.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is given twice")
    return fields


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check(document: Any, constants: bool) -> None:
    level, depth = [document], 0
    while level:
        below: list[Any] = []
        for value in level:
            if depth == MAX_DEPTH and isinstance(value, dict | list):
                raise ValueError(f"brackets are nested deeper than {MAX_DEPTH}")
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if not value.isascii():
                    _check_text(value)
            elif isinstance(value, float) and not constants and not math.isfinite(value):
                raise ValueError("a number is beyond the range of float64")
        level, depth = below, depth + 1


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a \\u escape in {value!a:.80} is half of a surrogate pair") from None
