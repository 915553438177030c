"""How a verb ends: the exit codes, and what is said with each.

0  done, also where the reader of a pipe has seen enough
1  a defect of ours: the traceback, and where to take it
2  usage or bad input: the message alone
3  a gate failed
4  incomplete: run the same command again to resume

Ctrl-C ends a verb in good order, which may take a while: workers are stopped, jobs cancelled. A second one ends it at
once, as `kill -9` would, and with code 4.
"""

import errno
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from index.errors import VectorIndexError
from influence.cli.interrupts import INCOMPLETE, all_told, at_work
from influence.cli.streams import ReaderGone, log_lines, tell
from influence.errors import InfluenceError

DEFECT = 1
BAD_INPUT = InfluenceError.exit_code
OF_A_NAME = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
"""Errors of the system that a path which somebody named is the reason of."""


def ended(verb: Callable[..., None]) -> Callable[..., None]:
    """Wrap a verb so that it ends with an exit code and a message, whatever happens in it."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        with log_lines():
            try:
                with at_work():
                    code = _code_of(verb, args, kwargs)
            except KeyboardInterrupt:
                tell("Interrupted. Run the same command again to resume.", "red")
                code = INCOMPLETE
        if code == 0 and any(getattr(given, "invoked_subcommand", None) for given in kwargs.values()):
            return  # A group's own call, with typer's context: the verb itself is still to come.
        all_told(code)
        raise typer.Exit(code)

    return run


def _code_of(verb: Callable[..., None], args: Any, kwargs: Any) -> int:
    """Call a verb and return its exit code.

    Raises:
        typer.Abort: Nobody answered a question that it asked.
        KeyboardInterrupt: Ctrl-C, once.
    """
    try:
        verb(*args, **kwargs)
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        raise
    except ReaderGone:
        pass
    except Exception as error:
        return _explained(error)
    return 0


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
        tell(f"error: the disk{where} is full. Free some space and run the same command again.", "red")
        return INCOMPLETE
    if isinstance(error, OSError) and error.errno in OF_A_NAME:
        tell(f"error: {error.filename or 'a file'}: {error.strerror}.", "red")
        return BAD_INPUT
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        said = (
            f"{error.object[:200]!a} isn't UTF-8. If it is the name of a file, rename it or give a symbolic link to it."
        )
        tell(f"error: {said}", "red")
        return BAD_INPUT
    tell("".join(traceback.format_exception(error)).rstrip())
    tell("This is a defect of influence, not of your input. Please report it with the lines above.", "red")
    return DEFECT
