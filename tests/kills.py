"""Calls and builds in processes of their own that end by a signal: at a call, at a step of a build, or after some time.

They are forked off a server that has imported everything; see `tests.forkserver`. Whoever tests that a killed or
interrupted command goes on takes its processes from here.
"""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import dask
import psutil
import torch
from distributed import Client, LocalCluster

from influence.artifacts.place import run_path
from influence.cli.ending import ended
from influence.cli.main import main
from influence.config import load_config
from influence.engine import cluster
from influence.export.clean import export_clean
from influence.export.undo import undo_export
from influence.export.verdicts import Wish
from influence.stages import build as build_module
from tests.diagnose.exported import run_of
from tests.forkserver import PROCESSES, share_server, workers_forked


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


class Halt(NamedTuple):
    """What happens to a build when it reports a step.

    Attributes:
        how: `kill` the coordinator, kill a `worker`, or `interrupt` the whole process group as Ctrl-C does.
        step: The step, `capture 2`. None: the first one that is not in the log of steps yet, see `started`.
    """

    how: Literal["kill", "worker", "interrupt"]
    step: str | None = None


@contextmanager
def _thread_cluster(*_):
    """A cluster whose one worker is a thread: it dies with the process."""
    quiet = {"threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with (
        dask.config.set(cluster.QUIET),
        LocalCluster(n_workers=1, processes=False, **quiet) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def _workers() -> list[psutil.Process]:
    """The other processes of this build: its children where they are spawned, else those of the same server."""
    siblings = psutil.Process(os.getppid()).children()
    forked = [child for child in siblings if child.pid != os.getpid() and child.status() != psutil.STATUS_ZOMBIE]
    return [*psutil.Process().children(recursive=True), *forked]


def _build(environment: dict[str, str], settings: Path, place: str, log: Path, workers: str, halt: Halt | None) -> None:
    os.environ.update(environment)  # the server was started before a bucket had its keys
    os.setsid()  # Ctrl-C is for this process and those that it spawns
    torch.set_num_threads(1)
    for stream, suffix in ((1, ".out"), (2, ".log")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    steps = log.with_suffix(".steps")
    before = steps_in(log)

    def report(step):
        said = f"{step.stage} {step.done}"
        with steps.open("a") as file:
            file.write(f"{said}\n")
        if halt is None or (said in before if halt.step is None else said != halt.step):
            return
        others = _workers()
        log.with_suffix(".workers").write_text(" ".join(str(other.pid) for other in others))
        if halt.how == "worker":
            others[0].kill()
        elif halt.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            os.killpg(0, signal.SIGINT)

    with ExitStack() as stack:
        if workers == "thread":
            build_module.connect = _thread_cluster
        elif workers == "forked":
            share_server()
            stack.enter_context(workers_forked())
        _as_verb(lambda: build_module.build_run(load_config(settings), run_path(place), report))


def started(settings: Path, place: object, log: Path, workers: str = "thread", halt: Halt | None = None):
    """Start building a run, and return the process.

    Args:
        settings: The run file.
        place: The run directory, on a disk or in a bucket.
        log: Where its standard error goes; beside it `.out` has the standard output and `.steps` what it reported.
        workers: A `thread` of the process, processes `forked` off this suite's server, or `spawned` as for users.
        halt: Where it ends before its time.
    """
    process = PROCESSES.Process(target=_build, args=(dict(os.environ), settings, str(place), log, workers, halt))
    process.start()
    return process


def steps_in(log: Path) -> list[str]:
    """The steps that builds with this log have reported, as `capture 2`."""
    steps = log.with_suffix(".steps")
    return steps.read_text().splitlines() if steps.exists() else []


def halted(settings: Path, place: object, log: Path, workers: str, halt: Halt) -> int:
    """Build until a step; return how the process ended, once its workers are gone, too."""
    process = started(settings, place, log, workers, halt)
    process.join(250)
    assert process.exitcode is not None, "it hangs"
    found = log.with_suffix(".workers")
    assert found.exists(), f"it didn't come to {halt}: {log.read_text()[-3000:]}"
    left = []
    for pid in found.read_text().split():
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(int(pid)))
    assert psutil.wait_procs(left, timeout=60)[1] == []
    found.unlink()
    return process.exitcode
