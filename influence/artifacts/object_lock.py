"""The lock of a run in a bucket: an object that is created only where there is none, and says who created it.

No operating system frees it when its holder dies. On the holder's own machine a build sees that the process is gone and
takes the lock over, on the condition that it still is the same object, so that of two builds one does. From any other
machine it can't be seen: the error says who holds it since when, and what to do if that build is no more.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from index.strict_json import read_json
from influence.artifacts.path import ObjectPath
from influence.errors import RunLocked

BOOT = Path("/proc/sys/kernel/random/boot_id")
PROCESSES = Path("/proc/self/ns/pid")

log = logging.getLogger(__name__)


@contextmanager
def object_lock(lock: ObjectPath, run_dir: ObjectPath) -> Iterator[None]:
    """Hold the lock of a run.

    Args:
        lock: Its object.
        run_dir: The run, for messages.

    Raises:
        RunLocked: Another process holds it, or did when it died on another machine.
    """
    mine = _signed()
    content = json.dumps(mine).encode()
    while not _taken(lock, content):
        _take_over(lock, run_dir, content)
        if _read(lock) == mine:
            break
    try:
        _warn_unless_exclusive(lock, run_dir)
        yield
    finally:
        # Somebody who took this build for dead may have deleted the lock, and another build may hold it now.
        if _read(lock) == mine:
            lock.unlink(missing_ok=True)


def lives(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock lives, as far as can be seen from here: on other machines all do."""
    if holder.get("machine") != machine():
        return True
    try:
        began = process_began(int(holder["pid"]))
    except (KeyError, TypeError, ValueError):
        return False
    # The number alone may be another process's by now.
    return began is not None and began == holder.get("began")


def process_began(number: int) -> str | None:
    """Return when a process began, unmoved by corrections of the clock; None if it is no more."""
    try:
        process = psutil.Process(number)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        with suppress(OSError):
            # Ticks since the machine was booted.
            return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
        return str(int(process.create_time()))
    except psutil.NoSuchProcess:
        return None


def machine() -> str:
    """Return what tells this machine, as it was booted, and its space of process ids from all others."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(BOOT.read_text().strip())
    with suppress(OSError):
        parts.append(str(PROCESSES.stat().st_ino))
    return "/".join(parts)


def _signed() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "began": process_began(os.getpid()),
        "token": uuid4().hex,
    }


def _taken(lock: ObjectPath, content: bytes) -> bool:
    try:
        # Asked first: a store that doesn't know the condition would replace the object.
        if lock.exists():
            return False
        lock.create(content)
    except FileExistsError:
        return False
    return True


def _take_over(lock: ObjectPath, run_dir: ObjectPath, content: bytes) -> None:
    """Put our lock in the place of one whose holder died here; do nothing where the lock has gone or changed meanwhile.

    Raises:
        RunLocked: Its holder lives, or may live.
    """
    try:
        tag = lock.stat().tag
        holder = _read(lock)
        if holder is None:
            raise RunLocked(f"{lock} isn't a lock that this software wrote. {_breaking(lock, 'If no build runs')}")
        who = f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
        if holder.get("machine") != machine():
            raise RunLocked(
                f"{run_dir} is held by {who}, and from {socket.gethostname()} it is unknown whether that "
                "build still runs. If it does, wait for it, or stop it: two builds can't share a run. "
                f"{_breaking(lock, 'If it was killed, or its machine is gone or was rebooted')}"
            )
        if lives(holder):
            raise RunLocked(
                f"{run_dir} is being written by {who}. Wait for it, or stop it: two builds can't share a run."
            )
        lock.fs.replace_unchanged(lock.key, content, tag)
        log.info("The lock of %s was left by %s, which is no more; it is taken over.", run_dir, who)
    except (FileNotFoundError, FileExistsError):
        return


def _warn_unless_exclusive(lock: ObjectPath, run_dir: ObjectPath) -> None:
    """Say so where the store would have let two builds that begin at the same moment both have the lock."""
    found = lock.read_bytes()
    try:
        lock.create(found)
    except FileExistsError:
        return
    log.warning(
        "The store of %s creates an object even where there is one (it ignores If-None-Match), so that two builds "
        "which begin at the same moment aren't kept apart: see to it that only one runs.",
        run_dir,
    )


def _breaking(lock: ObjectPath, when: str) -> str:
    return f"{when}, delete the object {lock} (aws s3 rm {lock}) and run the same command again: it goes on from there."


def _read(lock: ObjectPath) -> dict[str, Any] | None:
    try:
        found = read_json(lock)
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
