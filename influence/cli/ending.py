"""How a verb ends: the exit codes, and what is said with each.

0  done, also where the reader of a pipe has seen enough
1  a defect of ours: the traceback, and where to take it
2  usage or bad input: the message alone
3  a gate failed
4  incomplete: the same command goes on from what stands

Ctrl-C ends a verb in good order, which may take a while: workers are stopped, jobs cancelled. A second one ends it at
once, as `kill -9` would, and with code 4.
"""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import typer

from index.errors import VectorIndexError
from influence.cli.streams import ReaderGone, log_lines, tell
from influence.errors import Incomplete, InfluenceError

DEFECT = 1
BAD_INPUT = InfluenceError.exit_code
INCOMPLETE = Incomplete.exit_code
LEFT_BEHIND = "ignore:resource_tracker:UserWarning"


def ended(verb: Callable[..., None]) -> Callable[..., None]:
    """Wrap a verb so that it ends with an exit code and a message, whatever happens in it."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        with log_lines(), _second_interrupt_heard():
            try:
                verb(*args, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except ReaderGone:
                raise typer.Exit(0) from None
            except KeyboardInterrupt:
                tell("Interrupted. Run the same command again: it goes on from what stands.", "red")
                raise typer.Exit(INCOMPLETE) from None
            except Exception as error:
                raise typer.Exit(_explained(error)) from None

    return run


@contextmanager
def _second_interrupt_heard() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt and the second end the process; only the main thread hears either.

    What is being closed by then, `distributed` above all, would tell in many tracebacks that it was interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return

    def first(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, _end_at_once)
        raise KeyboardInterrupt

    # The process that clears away what others leave behind takes these over, and would warn of having found something.
    sys.warnoptions.append(LEFT_BEHIND)
    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.warnoptions.remove(LEFT_BEHIND)


def _end_at_once(number: int, frame: Any) -> None:
    """End the process without another line of Python: local workers follow it, jobs of a queue miss it and end."""
    # Straight to the descriptor: a signal may come in the middle of another line.
    shown_again = b"\x1b[?25h" if sys.stderr.isatty() else b""
    os.write(2, shown_again + b"\nEnded at once. Run the same command again: it goes on from what stands.\n")
    os._exit(INCOMPLETE)


def _explained(error: Exception) -> int:
    """Say what went wrong and return the exit code."""
    if isinstance(error, InfluenceError | VectorIndexError):
        tell(f"error: {error}", "red")
        return error.exit_code
    if isinstance(error, MemoryError):
        tell(f"error: out of memory. {error}", "red")
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" under {error.filename}" if error.filename else ""
        tell(f"error: the disk{where} is full. Make room and run the same command again.", "red")
        return INCOMPLETE
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        tell(f"error: {error.filename or 'a file'}: {error.strerror}.", "red")
        return BAD_INPUT
    tell("".join(traceback.format_exception(error)).rstrip())
    tell("This is a defect of influence, not of your input. Please report it with the lines above.", "red")
    return DEFECT
