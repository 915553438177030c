"""A statement of DuckDB that can be stopped: after a time, and by Ctrl-C at once.

DuckDB looks whether it should stop between its vectors of 2,048 rows, and Python hears Ctrl-C when the call has
returned. So the statement runs in a thread of its own while this one waits, hears signals and looks at the clock.

DuckDB is imported where a statement is evaluated, here and in the modules beside this one, and never with a module:
its bindings list what is left of them on stderr when a process ends in which anything still refers to our functions.
"""

import time
from collections.abc import Callable
from threading import Event, Thread
from threading import enumerate as enumerate_threads
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import duckdb

Result = TypeVar("Result")
STOP_TIMEOUT = 5.0
"""Seconds that a statement has to end after it was asked to. One that doesn't is left to its thread."""


class Evaluation:
    """A database in memory and the statements it evaluates, one after another. A context manager that closes it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import duckdb

        self._database = duckdb.connect(":memory:", config=settings)
        self._abandoned = False

    def __enter__(self) -> "Evaluation":
        return self

    def __exit__(self, *_: object) -> None:
        # Closing it would wait for the statement.
        if not self._abandoned:
            self._database.close()

    def run(self, step: "Callable[[duckdb.DuckDBPyConnection], Result]", seconds: float) -> Result:
        """Return what a function makes of the database.

        Args:
            step: Executes a statement and fetches all of its result.
            seconds: How long it may take.

        Raises:
            TimeoutError: It took longer, and was stopped.
        """
        import duckdb

        outcome: list[tuple[Result | None, BaseException | None]] = []
        # Of `Thread.join` Python 3.11 believes, once it was interrupted, that the thread has ended.
        finished = Event()

        def evaluate() -> None:
            try:
                outcome.append((step(self._database), None))
            except BaseException as error:  # handed to the caller's thread
                outcome.append((None, error))
            finally:
                finished.set()

        thread = Thread(target=evaluate, name="influence-where", daemon=True)
        try:
            # Ctrl-C may come while the thread starts, and the statement then runs.
            thread.start()
            finished.wait(seconds)
        finally:
            if not finished.is_set() and thread in enumerate_threads():
                self._stop(finished)
        if not outcome:
            raise TimeoutError(f"stopped after {seconds:g} seconds")
        result, error = outcome[0]
        if error is not None:
            if isinstance(error, duckdb.InterruptException):
                raise TimeoutError(f"stopped after {seconds:g} seconds") from None
            raise error
        return result  # type: ignore[return-value]

    def _stop(self, finished: Event) -> None:
        self._abandoned = True
        end = time.monotonic() + STOP_TIMEOUT
        # Again and again: a statement that is only about to begin doesn't hear it.
        while not finished.is_set() and time.monotonic() < end:
            self._database.interrupt()
            finished.wait(0.01)
        self._abandoned = not finished.is_set()
