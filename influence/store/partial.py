"""A file that is either whole or absent: written as `.partial`, flushed to the disk, digested, renamed.

Names are unique to the attempt, because a scheduler that loses sight of a worker may run the same shard twice: both
write their own partial file, both rename the same bytes into place.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from influence.errors import Incomplete, StoreError

SUFFIX = ".partial"


class PartialFile:
    """A file on its way: a writable stream, which pyarrow takes too, that hashes what passes through.

    Attributes:
        path: The name the file gets at `publish`.
        size: Bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._partial = path.with_name(f"{path.name}.{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}")
        self._hash = hashlib.sha256()
        self._file = self._partial.open("xb")

    @property
    def closed(self) -> bool:
        """Whether the stream is closed (part of what pyarrow asks of a stream)."""
        return self._file.closed

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the bytes written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes and return how many."""
        written = self._file.write(data)
        self._hash.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        self._file.flush()

    def finish(self) -> None:
        """Flush to the disk itself and close: after this no power cut takes a byte."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Rename the finished file to its own name."""
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Remove what was written, unless it was published. Safe to call at any time."""
        # Closing flushes, and on a full disk fails again; the bytes are about to be removed anyway.
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file atomically: a reader sees the old file, or all of the new one.

    Raises:
        Incomplete: The disk is full.
        StoreError: The directory can't be written to.
    """
    with disk_errors(path.parent, path.name, len(content)):
        file = PartialFile(path)
        try:
            file.write(content)
            file.finish()
            file.publish()
            sync_folder(path.parent)
        finally:
            file.discard()


def sync_folder(folder: Path) -> None:
    """Flush a directory, so that the renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> int:
    """Remove what killed writers left in a directory and return how many files. Only for who holds the run's lock."""
    left = list(folder.glob(f"*{SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


@contextmanager
def disk_errors(folder: Path, what: str, needed: int) -> Iterator[None]:
    """Turn an error of the disk into one that says what to do.

    Args:
        folder: Where the writing happens.
        what: What is being written.
        needed: Its size in bytes.

    Raises:
        Incomplete: The disk or the user's quota is full.
        StoreError: Any other error of the operating system.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{what} can't be written into {folder}: {error.strerror or error}.") from error
        quota = "Your quota" if error.errno == errno.EDQUOT else "The disk"
        there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
        free = shutil.disk_usage(there).free
        raise Incomplete(
            f"{quota} under {folder} is full: {what} needs {needed:,} bytes, {free:,} bytes of the disk are free. "
            "Nothing half-written was left. Make room and run the same command again: it resumes here."
        ) from error
