"""Who holds a lock: the record that a holder writes, and whether that process still runs."""

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from index.strict_json import parse_json
from influence.artifacts.path import ObjectPath
from influence.artifacts.regular import read_regular

BOOT = Path("/proc/sys/kernel/random/boot_id")
PROCESSES = Path("/proc/self/ns/pid")
FIELDS = {"host", "pid", "since"}
"""What every record has."""


def own_record() -> dict[str, Any]:
    """Return the record of this process as the holder of a lock; no two are equal."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "began": process_began(os.getpid()),
        "token": uuid4().hex,
    }


def read_holder(path: Path | ObjectPath) -> dict[str, Any] | None:
    """Return the record in a file or object; None where there is none, or something else.

    Raises:
        StoreError: It can't be read.
    """
    try:
        record = parse_json(read_regular(path))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= FIELDS else None


def describe(holder: dict[str, Any]) -> str:
    """Return a holder's process id, host and start of the lock, for messages."""
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"


def lives(holder: dict[str, Any]) -> bool:
    """Whether a holder still runs; True for every holder on another machine, where that can't be seen."""
    return holder.get("machine") != machine() or _runs(holder)


def lives_on_host(holder: dict[str, Any]) -> bool:
    """As `lives`, except that a reboot of a host of this name ends its holders: it has freed their locks."""
    return holder["host"] != socket.gethostname() or _runs(holder)


def _runs(holder: dict[str, Any]) -> bool:
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


__all__ = ["describe", "lives", "lives_on_host", "machine", "own_record", "process_began", "read_holder"]
