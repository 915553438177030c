"""What differs between a disk and a bucket when the files of a run are read and listed."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from influence.artifacts.path import ObjectPath

T = TypeVar("T")
R = TypeVar("R")

REQUESTS = 16
"""Small requests that wait for a bucket at the same time."""


def source(path: Path) -> Any:
    """Return what pyarrow reads a file from: a local path itself, an object opened."""
    return path.open("rb") if isinstance(path, ObjectPath) else path


def fill(path: Path, pieces: Sequence[tuple[int, memoryview]]) -> int:
    """Read pieces of a file, of which no other bytes are read.

    Args:
        path: The file.
        pieces: Where each begins, and what is filled with it.

    Returns:
        How many bytes of the first incomplete piece are missing because the file ends; 0 where all are filled.
    """
    if isinstance(path, ObjectPath):
        found = path.read_ranges([(start, start + len(into)) for start, into in pieces])
        for (_, into), content in zip(pieces, found, strict=True):
            into[: len(content)] = content
        return next((short for short in map(_short, pieces, found) if short), 0)
    with path.open("rb", buffering=0) as file:
        for start, into in pieces:
            file.seek(start)
            while into:
                count = file.readinto(into)
                if not count:
                    return len(into)
                into = into[count:]
    return 0


def _short(piece: tuple[int, memoryview], found: bytes) -> int:
    return len(piece[1]) - len(found)


def names_in(folder: Path) -> set[str]:
    """Return the names of what is in a folder, from one listing; none where there is no folder."""
    if isinstance(folder, ObjectPath):
        return {path.name for path in folder.iterdir()}
    return set(os.listdir(folder)) if folder.is_dir() else set()


def listed(folder: Path) -> dict[str, int] | None:
    """Return the bytes of the files in a bucket's folder, from one listing; None on a disk, which answers at once."""
    return folder.sizes() if isinstance(folder, ObjectPath) else None


def bytes_under(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    if isinstance(folder, ObjectPath):
        return sum(folder.sizes().values())
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def each(function: Callable[[T], R], items: Iterable[T], place: Path) -> Iterator[R]:
    """Yield a function's value for every item, in order; in a bucket, where each waits for answers, many at a time."""
    wanted = list(items) if isinstance(place, ObjectPath) else []
    if len(wanted) < 2:
        yield from map(function, wanted or items)
        return
    with ThreadPoolExecutor(min(REQUESTS, len(wanted)), "requests") as pool:
        yield from pool.map(function, wanted)
