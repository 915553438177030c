"""A file that is either whole or absent: written as `.partial`, flushed to the disk, digested, renamed.

Names are unique to the attempt, because a scheduler that loses sight of a worker may run the same shard twice: both
write their own partial file, both rename the same bytes into place. In a bucket, where an object appears when its
upload is complete, nothing is renamed: see `influence.artifacts.upload`.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from influence.artifacts.path import ObjectPath
from influence.artifacts.place import is_remote
from influence.artifacts.regular import BROKEN_LINK, irregular
from influence.artifacts.upload import Upload
from influence.errors import Incomplete, StoreError

SUFFIX = ".partial"
OF_THE_SYSTEM = re.compile(r"/(dev/(?!shm/)|proc/|sys/)")
LONGEST_STEM = 220
"""Bytes of a name, of the 255 that a file system takes, to which process, attempt and suffix can be added."""

log = logging.getLogger(__name__)


class PartialFile:
    """A file on its way: a writable stream, which pyarrow takes too, that hashes what passes through.

    Attributes:
        path: The name the file gets at `publish`.
        size: Bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        self._file: _Whole = Upload(path) if isinstance(path, ObjectPath) else _Renamed(path)

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
        """Do nothing (part of what pyarrow asks of a stream): `finish` flushes."""

    def finish(self) -> None:
        """Flush to the disk itself and close: after this no power cut takes a byte. In a bucket: send what is left."""
        self._file.finish()

    def publish(self) -> None:
        """Give the finished file its name."""
        self._file.publish()

    def discard(self) -> None:
        """Remove what was written, unless it was published. Safe to call at any time."""
        self._file.discard()


class _Whole(Protocol):
    """What is behind a partial file: on a disk a file that is renamed, in a bucket an upload."""

    @property
    def closed(self) -> bool: ...
    def write(self, data: bytes | memoryview) -> int: ...
    def finish(self) -> None: ...
    def publish(self) -> None: ...
    def discard(self) -> None: ...


class _Renamed:
    """A file on a disk under a name of its own, until it is renamed."""

    def __init__(self, path: Path) -> None:
        check_replaceable(path)
        self._path = path
        self._partial = path.with_name(f"{_stem(path.name)}.{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}")
        self._file = self._partial.open("xb")

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes | memoryview) -> int:
        return self._file.write(data)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        self._partial.replace(self._path)

    def discard(self) -> None:
        # Closing flushes, and on a full disk fails again; the bytes are about to be removed anyway.
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of what is none: a renamed file takes the place even of a device.

    Raises:
        StoreError: A device, FIFO, socket or folder has this name, or a link leads to one; or it is a name of the
            system's, such as /dev/stdout, whatever that leads to.
    """
    if not isinstance(path, os.PathLike):
        return
    kind = irregular(path)
    if kind is None and OF_THE_SYSTEM.match(os.path.realpath(path.parent) + "/"):
        kind = "among the devices and processes of the system"
    if kind is not None and kind != BROKEN_LINK:
        raise StoreError(
            f"{path} is {kind}, and a finished file would take its place. Name a file; what is printed can be piped "
            "or redirected."
        )


def _stem(name: str) -> str:
    """Return what the names of a file's partial files begin with: its own, shortened where that leaves no room."""
    return name if len(os.fsencode(name)) <= LONGEST_STEM else hashlib.sha256(os.fsencode(name)).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file atomically: a reader sees the old file, or all of the new one.

    Raises:
        Incomplete: The disk is full.
        StoreError: The directory can't be written to.
    """
    write_pieces(path, (content,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file of any size atomically, piece by piece as they come; see `write_whole`."""

    def writing(size: int) -> AbstractContextManager[None]:
        return disk_errors(path.parent, path.name, size)

    with writing(0):
        file = PartialFile(path)
    try:
        for piece in pieces:
            with writing(file.size + len(piece)):
                file.write(piece)
        with writing(file.size):
            file.finish()
            file.publish()
            sync_folder(path.parent)
    finally:
        file.discard()


def sync_folder(folder: Path) -> None:
    """Flush a directory, so that the renames in it survive a power cut; nothing is left to flush in a bucket."""
    if is_remote(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> int:
    """Remove what killed writers left in a run's folders and return how many files. Only for who holds its lock."""
    if isinstance(folder, ObjectPath):
        return _abandon_uploads(folder)
    left = [path for path in folder.rglob(f"*{SUFFIX}") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def remove_half_written(file: Path) -> None:
    """Remove what killed writers of a file left beside it, on a disk. Only for who may write it alone."""
    for path in file.parent.iterdir():
        if path.name.startswith(f"{_stem(file.name)}.") and path.name.endswith(SUFFIX) and path.is_file():
            path.unlink(missing_ok=True)


def _abandon_uploads(folder: ObjectPath) -> int:
    try:
        return folder.fs.abandon_uploads(folder.key)
    except StoreError as error:
        # They are seen by nobody and cost room: no reason not to build.
        log.warning("Uploads that a killed build may have left below %s stay: %s", folder, error)
        return 0


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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or is_remote(folder):
            raise StoreError(f"{what} can't be written into {folder}: {error.strerror or error}.") from error
        quota = "Your quota" if error.errno == errno.EDQUOT else "The disk"
        there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
        free = shutil.disk_usage(there).free
        if error.errno == errno.ENOSPC and not os.statvfs(there).f_favail and os.statvfs(there).f_files:
            raise Incomplete(
                f"The disk under {folder} has no room for another file ({what}), however small: all its inodes are in "
                "use. Remove files and run the same command again: it resumes here."
            ) from error
        raise Incomplete(
            f"{quota} under {folder} is full: {what} needs {needed:,} bytes, {free:,} bytes of the disk are free. "
            "Nothing half-written was left. Make room and run the same command again: it resumes here."
        ) from error
