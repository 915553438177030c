"""Rows that fail alone: found by halving, tried again, set aside. The rest of their task goes on without them.

A row is set aside only if it fails by itself, twice; where every row fails the model or the software is to blame, and
the error is passed on as it came.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from influence.engine.memory import out_of_memory
from influence.errors import CaptureError, InfluenceError

log = logging.getLogger(__name__)

R = TypeVar("R")

TRIES = 2
"""How often a row must fail alone."""
TRANSIENT = 2
"""Failures of a task that no row of it repeats alone, after which the task fails."""


def rows_may_be_to_blame(error: Exception) -> bool:
    """Whether an error may come of some row: neither of settings, files or the memory."""
    if isinstance(error, CaptureError):
        return True
    return not isinstance(error, InfluenceError | OSError) and not out_of_memory(error)


def without_failing_rows(
    attempt: Callable[[Sequence[int]], R],
    positions: Sequence[int],
    most: int,
    blamed: Callable[[Exception], bool] = rows_may_be_to_blame,
) -> tuple[R, dict[int, str]]:
    """Do something with as many of a task's rows as possible.

    Args:
        attempt: What is done with the rows at some positions; raises where one of them fails, and can be called again.
        positions: Of all rows of the task, ascending.
        most: Rows that may be set aside.
        blamed: Whether an error may come of a row; any other is passed on at once.

    Returns:
        What `attempt` returned for the rows that remain, and the error of each position set aside.

    Raises:
        Exception: As `attempt` raised it: more rows than `most` fail, or none of them does so alone.
    """
    failed: dict[int, str] = {}
    transient = 0
    while True:
        rest = [position for position in positions if position not in failed]
        try:
            return attempt(rest), failed
        except Exception as error:
            if not blamed(error) or not most:
                raise
            named = [position for position in getattr(error, "positions", ()) if position in rest]
            found = _failing(attempt, named or rest, most - len(failed), error, blamed)
            transient += not found
            if transient > TRANSIENT:
                raise
            if not found:
                log.warning("A task failed and no row of it fails alone; trying again: %s", _said(error))
            failed |= found


def _failing(
    attempt: Callable[[Sequence[int]], object],
    positions: Sequence[int],
    most: int,
    error: Exception,
    blamed: Callable[[Exception], bool],
) -> dict[int, str]:
    """Return the positions that fail alone, with what each said; `error` is raised where they are more than `most`."""
    found: dict[int, str] = {}
    left = [list(positions)]
    while left:
        some = left.pop()
        said = [_failure(attempt, some, blamed) for _ in range(TRIES if len(some) == 1 else 1)]
        if None in said:
            continue
        if len(some) > 1:
            left += [some[len(some) // 2 :], some[: len(some) // 2]]
            continue
        found[some[0]] = str(said[-1])
        if len(found) > most:
            raise error
    return found


def _failure(
    attempt: Callable[[Sequence[int]], object], positions: Sequence[int], blamed: Callable[[Exception], bool]
) -> str | None:
    try:
        attempt(positions)
    except Exception as error:
        if not blamed(error):
            raise
        return _said(error)
    return None


def _said(error: Exception) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InfluenceError) else f"{type(error).__name__}: {text}"
