"""Bounds on what a chat template may take: it is a program, and comes with a stranger's tokeniser.

Transformers renders templates in jinja's sandbox, which keeps them from files and from Python's internals, and limits
one `range` to 100,000 numbers; loops within loops still never end. A thread looks at the processor time of the thread
that renders, and stops it where it takes too long. Powers and numbers in the millions, which one operation could turn
into gigabytes, are refused before.
"""

import ctypes
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from jinja2 import Environment, TemplateSyntaxError

SECONDS = 10.0
"""Processor time of one rendering, which takes some hundred microseconds."""
INTERVAL = 0.1
MOST_CHARACTERS = 1 << 26
"""Of a rendered chat: 67 million."""
LARGEST_NUMBER = 1_000_000
WIDE_FIELD = re.compile(r"%[-+ #0.]*[0-9.]*[0-9]{7}|\{[^{}]*:[^{}]*[0-9]{7}")
"""In a text that is filled in, as `'%9999999d'|format(1)` or `'{:>9999999}'.format(1)`."""


class RenderingError(Exception):
    """A template that takes too much; the message says of what."""


class _TooLong(BaseException):
    """Raised in the middle of a rendering; no `except Exception` of a library holds it up."""


@contextmanager
def bounded(template: str) -> Iterator[None]:
    """Stop what renders a template inside, where it takes more than 10 seconds of processor time.

    Raises:
        RenderingError: It took longer, or the template holds an operation that isn't let through.
    """
    _check_operations(template)
    watch = _watch()
    watch.begin()
    try:
        try:
            yield
        finally:
            watch.end()
    except _TooLong:
        # Or it came while `end` waited for its turn.
        watch.end()
        raise RenderingError(f"it took more than {SECONDS:g} seconds: does it loop without an end?") from None


def check_length(text: str) -> str:
    """Return a rendered text, refusing one of more than 67 million characters.

    Raises:
        RenderingError: It has more.
    """
    if len(text) > MOST_CHARACTERS:
        raise RenderingError(f"it makes {len(text):,} characters of the messages, and {MOST_CHARACTERS:,} are the most")
    return text


@lru_cache(16)
def _check_operations(template: str) -> None:
    try:
        tokens = list(Environment(autoescape=True).lex(template))
    except TemplateSyntaxError:
        return  # Rendering says what is wrong with it.
    for line, kind, value in tokens:
        if kind == "operator" and value == "**":
            raise RenderingError(f"its line {line} takes a power (**), which no chat needs")
        if kind == "integer" and len(digits := re.sub(r"[_\s]", "", value)) and int(digits, 0) > LARGEST_NUMBER:
            raise RenderingError(f"its line {line} has the number {value:.40}, and {LARGEST_NUMBER:,} is the largest")
        if kind == "string" and WIDE_FIELD.search(value):
            raise RenderingError(f"its line {line} fills a field with millions of characters: {value!r:.80}")


class _Watch:
    """A thread that stops renderings in other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._ends: dict[int, float] = {}
        """By thread: the processor time at which its rendering is stopped."""
        self._stopped: set[int] = set()
        threading.Thread(target=self._look, name="influence-templates", daemon=True).start()

    def begin(self) -> None:
        """Watch the calling thread from here on."""
        with self._lock:
            self._ends[threading.get_ident()] = time.thread_time() + SECONDS
        self._work.set()

    def end(self) -> None:
        """Watch it no longer; an exception that was on its way is taken back."""
        own = threading.get_ident()
        with self._lock:
            self._ends.pop(own, None)
            if own in self._stopped:
                self._stopped.discard(own)
                _raise_in(own, None)

    def _look(self) -> None:
        while True:
            self._work.wait()
            time.sleep(INTERVAL)
            with self._lock:
                if not self._ends:
                    self._work.clear()
                for thread, end in self._ends.items():
                    if thread not in self._stopped and _processor_time(thread) > end:
                        self._stopped.add(thread)
                        _raise_in(thread, _TooLong)


def _processor_time(thread: int) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind))


@lru_cache(1)
def _watch() -> _Watch:
    return _Watch()
