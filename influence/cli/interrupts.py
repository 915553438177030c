"""What Ctrl-C does, from the first line of a process to its last.

before a verb begins      the process ends at once with code 4: nothing is under way
while a verb is at work   the first raises KeyboardInterrupt, after any import; the second ends the process, code 4
after it                  the process ends at once with the verb's own code
while Python shuts down   nothing

Imports nothing that takes time. What is left to the system are the first milliseconds, in which Python itself starts:
there a process is killed by the signal, as any is.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from influence.errors import Incomplete

INCOMPLETE = Incomplete.exit_code
HERE = Path(__file__).parent
LOOK_AGAIN = 0.05
"""Seconds until a Ctrl-C that came during an import is tried again."""
LEFT_BEHIND = "ignore:resource_tracker:UserWarning"

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def answered(*, to_the_end: bool) -> Iterator[None]:
    """Answer Ctrl-C as above, where nobody else does; only the main thread can say what happens.

    Args:
        to_the_end: The process ends after this. Else what was there before comes back.
    """
    if threading.current_thread() is not threading.main_thread() or not _unanswered():
        yield
        return
    before = signal.signal(signal.SIGINT, _nothing_begun)
    if to_the_end:
        # Python forgets every handler but this when it shuts down, and unloads libraries for a while after that.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def at_work() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt and the second end the process.

    What is being closed by then, `distributed` above all, would tell in many tracebacks that it was interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    ours = before is _nothing_begun or _unanswered()
    if threading.current_thread() is not threading.main_thread() or not ours:
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _end_at_once)
        _interrupt(frame)

    # The process that clears away what others leave behind takes these over, and would warn of having found something.
    sys.warnoptions.append(LEFT_BEHIND)
    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before)
        sys.warnoptions.remove(LEFT_BEHIND)


def all_told(code: int) -> None:
    """Say that the verb has ended and with which code: Ctrl-C can change nothing any more, and shortens the rest."""
    if signal.getsignal(signal.SIGINT) is _nothing_begun:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))


def _unanswered() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt wherever the process is: not where a shell has it ignored."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _interrupt(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but in no import: libraries of C++ abort the process when it comes while they load.

    Of an import that a verb begins with, nothing is under way yet. In the middle of the work the end of the import is
    waited for.
    """
    importer = _importer(frame)
    if importer is None:
        raise KeyboardInterrupt
    if Path(importer.f_code.co_filename).parent == HERE:
        _nothing_begun()
    signal.signal(signal.SIGALRM, lambda number, inside: _interrupt(inside))
    signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN)


def _importer(frame: FrameType | None) -> FrameType | None:
    """Return the frame that asked for the import under way, the outermost of several; None where there is none."""
    importer = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            importer = frame.f_back
        frame = frame.f_back
    return importer


def _nothing_begun(number: int = 0, frame: FrameType | None = None) -> None:
    os.write(2, b"\nInterrupted. Run the same command again.\n")
    os._exit(INCOMPLETE)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process without another line of Python: local workers follow it, jobs of a queue miss it and end."""
    # Straight to the descriptor: a signal may come in the middle of another line.
    shown_again = b"\x1b[?25h" if sys.stderr.isatty() else b""
    os.write(2, shown_again + b"\nEnded at once. Run the same command again to resume.\n")
    os._exit(INCOMPLETE)
