"""SHA-256 of files, read as a stream and remembered within the process.

A digest is remembered for as long as the file keeps its size, its times and its inode, so that a large file that
several readers check is read once. Both times count: a file can be rewritten at its old length and given its old
modification time, but not its old change time.
"""

import hashlib
from pathlib import Path
from threading import Lock
from typing import Any

from influence.artifacts.regular import check_regular

State = tuple[str, int, int, int, int]
"""Path, bytes, modification and change time (nanoseconds) and inode of a file."""

_digests: dict[State, str] = {}
_turns = tuple(Lock() for _ in range(64))
"""Threads that want the same file wait for one of them to read it."""


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, read as a stream.

    Raises:
        StoreError: It is no regular file.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> State:
    """Return what a file is told from a changed one by, without reading it. An object in a bucket has no change time.

    Raises:
        OSError: There is no such file, or it can't be looked at.
    """
    stat: Any = path.stat()
    return (str(path), stat.st_size, stat.st_mtime_ns, getattr(stat, "st_ctime_ns", 0), stat.st_ino)


def cached_sha256(path: Path, state: State | None = None, *, again: bool = False) -> str:
    """Return the hex SHA-256 of a file; this process reads it once for as long as it stays as it is.

    Args:
        path: The file.
        state: Its state, where the caller has just looked.
        again: Read it even if its digest is remembered.
    """
    state = state or file_state(path)
    with _turns[hash(state) % len(_turns)]:
        if not again and state in _digests:
            return _digests[state]
        digest = sha256(path)
        # What is written while it is read has no digest to remember.
        if file_state(path) == state:
            _digests[state] = digest
        return digest
