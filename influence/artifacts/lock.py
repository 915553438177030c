"""The lock of a folder: one process at a time writes a run, a graph of neighbours, or the parts of an output file.

On a disk it is a file lock, which the operating system frees when its holder dies. In a bucket it is an object that is
created only where there is none and holds the record of its holder. No operating system frees that one. On the holder's
machine a process sees that the holder has ended and takes the lock over, on the condition that the object is unchanged,
so that of two processes one does. From another machine the holder can't be seen: the error says who holds the lock
since when, and what to do if that process has ended.
"""

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from influence.artifacts.holder import describe, lives, lives_on_host, machine, own_record, read_holder
from influence.artifacts.partial import disk_errors, remove_partials, write_whole
from influence.artifacts.path import ObjectPath
from influence.artifacts.regular import check_regular, irregular
from influence.errors import RunLocked, StoreError

LOCK = ".lock"
HOLDER = ".lock.json"
"""On a disk, the record of who holds the lock; in a bucket the lock itself is that record."""

log = logging.getLogger(__name__)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for writing; on entry and exit remove the partial files that killed processes left in it.

    Raises:
        RunLocked: Another process holds the lock; the message names its host and process id.
        StoreError: The folder can't be made or written to.
    """
    with _object_lock(folder) if isinstance(folder, ObjectPath) else _file_lock(folder):
        _remove_half_written(folder, "a killed build")
        yield
        _remove_half_written(folder, "lost workers")


def lock_holder(folder: Path) -> str | None:
    """Return who holds the lock of a folder, for messages; None where nobody does.

    The answer comes from the record beside the lock: a holder that was killed is recognised on its own machine only.
    """
    remote = isinstance(folder, ObjectPath)
    try:
        holder = read_holder(folder / (LOCK if remote else HOLDER))
    except (OSError, StoreError):
        return None
    if holder is None or not (lives if remote else lives_on_host)(holder):
        return None
    return describe(holder)


def _remove_half_written(folder: Path, whose: str) -> None:
    count = remove_partials(folder)
    if count:
        log.info("removed %d half-written files that %s left in %s", count, whose, folder)


@contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    with disk_errors(folder, "the lock", 0):
        _make_folder(folder)
        with suppress(FileNotFoundError):
            check_regular(folder / LOCK)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            # The holder may not have written its record yet, or be about to leave.
            raise RunLocked(_writing(folder, lock_holder(folder) or "another process")) from None
    try:
        write_whole(folder / HOLDER, json.dumps(own_record()).encode())
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        kind = irregular(folder) or "a file"
        raise StoreError(f"{folder} is {kind}, expected a directory or a name that is free. Name another.") from None


@contextmanager
def _object_lock(folder: ObjectPath) -> Iterator[None]:
    lock, record = folder / LOCK, own_record()
    content = json.dumps(record).encode()
    while not _created(lock, content):
        _take_over(lock, folder, content)
        if read_holder(lock) == record:
            break
    try:
        _warn_unless_exclusive(lock, folder)
        yield
    finally:
        # Somebody who took this process for dead may have deleted the lock, and another may hold it now.
        if read_holder(lock) == record:
            lock.unlink(missing_ok=True)


def _created(lock: ObjectPath, content: bytes) -> bool:
    try:
        # Asked first: a store that doesn't know the condition would replace the object.
        if lock.exists():
            return False
        lock.create(content)
    except FileExistsError:
        return False
    return True


def _take_over(lock: ObjectPath, folder: ObjectPath, content: bytes) -> None:
    """Put our lock in the place of one whose holder died here; do nothing where the lock has gone or changed meanwhile.

    Raises:
        RunLocked: Its holder lives, or may live.
    """
    try:
        tag = lock.stat().tag
        holder = read_holder(lock)
        if holder is None:
            raise RunLocked(f"{lock} isn't a lock that this software wrote. {_breaking(lock, 'If no build runs')}")
        who = describe(holder)
        if holder.get("machine") != machine():
            raise RunLocked(
                f"{folder} is held by {who}, and from {socket.gethostname()} it is unknown whether that "
                "build still runs. If it does, wait for it, or stop it: two builds can't share a run. "
                f"{_breaking(lock, 'If it was killed, or its machine is gone or was rebooted')}"
            )
        if lives(holder):
            raise RunLocked(_writing(folder, who))
        lock.fs.replace_unchanged(lock.key, content, tag)
        log.info("The lock of %s was left by %s, which is no more; it is taken over.", folder, who)
    except (FileNotFoundError, FileExistsError):
        return


def _warn_unless_exclusive(lock: ObjectPath, folder: ObjectPath) -> None:
    """Say so where the store would have let two builds that begin at the same moment both have the lock."""
    found = lock.read_bytes()
    try:
        lock.create(found)
    except FileExistsError:
        return
    log.warning(
        "The store of %s creates an object even where there is one (it ignores If-None-Match), so that two builds "
        "which begin at the same moment aren't kept apart: see to it that only one runs.",
        folder,
    )


def _breaking(lock: ObjectPath, when: str) -> str:
    return f"{when}, delete the object {lock} (aws s3 rm {lock}) and run the same command again to resume."


def _writing(folder: Path | ObjectPath, who: str) -> str:
    return f"{folder} is being written by {who}. Wait for it, or stop it: two builds can't share a run."


__all__ = ["HOLDER", "LOCK", "lock_folder", "lock_holder"]
