"""Standard output carries data and nothing else; everything said to people goes to standard error.

Training data is written by strangers, and a terminal obeys what it is sent: no control character of a prompt, an id
or a snippet reaches one.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.text import Text

from influence.errors import InfluenceError

PIPED_WIDTH = 120
"""Columns of a table that nobody's terminal limits."""

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed; what turns the writing direction around; halves of surrogate pairs."""


class ReaderGone(Exception):
    """Whoever read standard output has stopped reading, as `head` does."""


def printable(text: str) -> str:
    """Return the text with every character that could steer a terminal as U+FFFD; tabs and line feeds stay."""
    return UNPRINTABLE.sub("\ufffd", text)


def plain(value: object) -> Text:
    """Return a value as text for a table's cell: on one line, no markup, nothing that steers a terminal."""
    return Text(printable(" ".join(str(value).split())))


def put(content: bytes) -> None:
    """Write data to standard output.

    Raises:
        ReaderGone: Nobody reads it any more.
        InfluenceError: It is closed.
        OSError: The disk that it goes to is full, or fails.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        discard_output()
        raise ReaderGone from None
    except OSError as error:
        discard_output()
        if error.errno != errno.EBADF:
            raise
        raise InfluenceError(
            "Standard output is closed, so the answer can't be printed. Redirect it, or name a file with --out."
        ) from None


def discard_output() -> None:
    """Send what is left in the buffers to nowhere: it is written again at exit, and must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def put_text(content: bytes, *, escapes: bool = False) -> None:
    """Write UTF-8 text to standard output; on a terminal without what could steer it.

    Args:
        content: The text.
        escapes: It is JSON: such characters become escapes there, which mean the same.
    """
    if sys.stdout.isatty():
        text = content.decode()
        content = (UNPRINTABLE.sub(_escape, text) if escapes else printable(text)).encode()
    put(content)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def show(*renderables: RenderableType) -> None:
    """Print tables and texts to standard output, in colour where it is a terminal."""
    put(drawn(*renderables).encode())


def drawn(*renderables: RenderableType, plain: bool = False) -> str:
    """Return tables and texts as `show` prints them.

    Args:
        *renderables: What to draw.
        plain: Without colours and at a fixed width, for a file.
    """
    console = Console(no_color=True, color_system=None) if plain else Console()
    if plain or (not console.is_terminal and "COLUMNS" not in os.environ):
        console.width = PIPED_WIDTH
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    text = captured.get()
    # A table fills its lines up with blanks, which only a terminal's background needs.
    return text if console.is_terminal and not plain else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


class _StandardError:
    """Standard error. If its reader goes away, or its disk is full, the work goes on unheard."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@cache
def told() -> Console:
    """Return the console on standard error: messages, log lines and progress bars share it."""
    return Console(file=cast(IO[str], _StandardError()), highlight=False)


def tell(message: str, style: str = "") -> None:
    """Say something to the person at the terminal, one paragraph a line, never wrapped when piped."""
    told().print(Text(printable(message), style=style), soft_wrap=True)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            warned = record.levelno >= logging.WARNING
            tell(f"warning: {self.format(record)}" if warned else self.format(record), "yellow" if warned else "dim")
        except Exception:
            self.handleError(record)


@contextmanager
def log_lines() -> Iterator[None]:
    """Show the log lines of both packages on standard error for a while."""
    handler = _Handler()
    loggers = [logging.getLogger(name) for name in ("influence", "index")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
