"""Calls in processes of their own that end by a signal at a moment of their own choosing, or of nobody's.

Their server has imported everything and only forks, so that a process starts in a moment; see `killed_builds`.
"""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch

from influence.cli.ending import ended
from influence.cli.main import main
from influence.export.clean import export_clean
from influence.export.undo import undo_export
from influence.export.verdicts import Wish
from tests.diagnose.exported import run_of
from tests.pipeline.killed_builds import PROCESSES


def examine(run: Path, out: Path) -> None:
    """`influence issues` of a run so small that no worker is started."""
    main(["issues", str(run), "--out", str(out)])


def say(*words: object) -> None:
    """Any verb."""
    main([str(word) for word in words])


def export(data: Path, table: Path, out: Path) -> None:
    """`influence export` of what stands for a run over the data."""
    _as_verb(lambda: export_clean(run_of(data), Wish((table,)), out))


def undo(cleaned: Path, out: Path) -> None:
    """`influence export --undo`."""
    _as_verb(lambda: undo_export(cleaned, out))


def _as_verb(call) -> None:
    import typer

    try:
        ended(call)()
    except typer.Exit as done:
        sys.exit(done.exit_code)


def called(call, arguments, log: Path, dies=None, pipe=None) -> None:
    """Call, saying what it says into a log; `dies` is (where, how many calls of it, signal)."""
    torch.set_num_threads(1)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if dies is not None:
        _die_at(*dies)
    if pipe is not None:
        pipe.send("begun")
    call(*arguments)


def _die_at(where: str, calls: int, number: int) -> None:
    """Send this process a signal when a function (`module:name`, `module:class.name`) is called that often."""
    module, _, names = where.partition(":")
    *above, name = names.split(".")
    place = import_module(module)
    for step in above:
        place = getattr(place, step)
    inner, made = getattr(place, name), []

    def dying(*given, **named):
        made.append(None)
        if len(made) == calls:
            os.kill(os.getpid(), number)
            threading.Event().wait(60)  # Python hears of Ctrl-C between two steps
        return inner(*given, **named)

    setattr(place, name, dying)


def killed(call, arguments, log: Path, where: str, calls: int = 1, number: int = signal.SIGKILL) -> int:
    """Call until a function is called, and return how the process ended there."""
    process = PROCESSES.Process(target=called, args=(call, arguments, log, (where, calls, number)))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


@contextmanager
def running(call, arguments, log: Path):
    """Call in a process that has begun."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=called, args=(call, arguments, log, None, theirs))
    process.start()
    ours.recv()
    yield process
    process.join()


def killed_within(call, arguments, log: Path, seconds: float) -> bool:
    """Call, kill the process after some time, and return whether it was still at work."""
    with running(call, arguments, log) as process:
        process.join(seconds)
        at_work = process.is_alive()
        process.kill()
    return at_work


def timed(call, arguments, log: Path) -> float:
    """Call to the end, and return the seconds it took."""
    with running(call, arguments, log) as process:
        began = time.monotonic()
        process.join(120)
        assert process.exitcode == 0, log.read_text()[-3000:]
        return time.monotonic() - began
