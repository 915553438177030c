"""Tasks that go wrong, in a file of their own so that a worker imports nothing else to run them."""

import os
from pathlib import Path
from types import SimpleNamespace

from distributed import KilledWorker

from influence.errors import DataError


def attempts(path: Path) -> int:
    """Count this attempt and return its number."""
    with path.open("a") as out:
        out.write("x")
    return path.stat().st_size


def dies_once(path: Path) -> int:
    if attempts(path) == 1:
        os._exit(1)
    return os.getpid()


def always_dies(path: Path) -> None:
    attempts(path)
    os._exit(1)


def stumbles_once(path: Path) -> str:
    if attempts(path) == 1:
        raise OSError("stale file handle")
    return "done"


def never_readable(path: Path) -> None:
    attempts(path)
    raise OSError("stale file handle")


def wrong(path: Path) -> None:
    attempts(path)
    raise DataError("row 7 is not a row")


def told_pid(task: object) -> int:
    return os.getpid()


def given_up_twice(path: Path) -> str:
    """What the scheduler says of a task that worker after worker was lost on, at its first two rounds."""
    if attempts(path) <= 2:
        raise KilledWorker("task", SimpleNamespace(address="tcp://gone:1"), 3)
    return "done"
