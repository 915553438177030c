"""How far a build is: one event a finished task, and a bar on standard error that shows them."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


@dataclass(frozen=True, slots=True)
class Step:
    """Where a stage stands after a task of it has finished; the first step of a stage reports what stood already.

    Attributes:
        stage: `capture`, `curvature` or `index`.
        done: Tasks finished, those of earlier builds included.
        total: Tasks of the stage.
        rows: Rows captured by this build so far; 0 in other stages.
        tokens: Tokens captured by this build so far.
        seconds: Since the stage began.
        retried: Tasks that failed and were handed out again.
        lost: Workers lost; what they had in hand went to others.
    """

    stage: str
    done: int
    total: int
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    retried: int = 0
    lost: int = 0


Report = Callable[[Step], None]
"""What a build calls with each step; it must not raise."""


def silent(step: Step) -> None:
    """Report nothing."""


class Progress:
    """Counts a stage's finished tasks and reports them."""

    def __init__(self, name: str, total: int, report: Report | None, done: int = 0) -> None:
        self.name, self.total, self.done = name, total, done
        self.rows = self.tokens = self.retried = self.lost = 0
        self._report = report or silent
        self._began = time.monotonic()
        self._tell()

    def tried_again(self) -> None:
        """Count a task that failed and was handed out again."""
        self.retried += 1
        self._tell()

    def lost_workers(self, count: int) -> None:
        """Count workers that are gone."""
        self.lost += count
        self._tell()

    def passed(self, count: int) -> None:
        """Count tasks whose artifacts are on disk already."""
        if count:
            self.done += count
            self._tell()

    def finished(self, rows: int = 0, tokens: int = 0) -> None:
        """Count one more task."""
        self.done += 1
        self.rows += rows
        self.tokens += tokens
        self._tell()

    def _tell(self) -> None:
        seconds = time.monotonic() - self._began
        self._report(Step(self.name, self.done, self.total, self.rows, self.tokens, seconds, self.retried, self.lost))


class ProgressBar:
    """A bar a stage on standard error: tasks, rows/s, tokens/s, time left. A context manager to pass as `progress=`.

    Where standard error is no terminal it stays silent: the stages' log lines say the same.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(file=sys.stderr)
        self._bar = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            redirect_stdout=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the finished bars on the screen."""
        self._bar.stop()

    def __call__(self, step: Step) -> None:
        """Show one step."""
        if step.stage not in self._tasks:
            self._tasks[step.stage] = self._bar.add_task(step.stage, total=step.total, completed=step.done, speed="")
            return
        speed = speed_text(step)
        self._bar.update(self._tasks[step.stage], completed=step.done, total=step.total, speed=speed)


def speed_text(step: Step) -> str:
    """Return `12 rows/s, 3,400 tokens/s`, or nothing where nothing was captured yet."""
    if not step.rows or step.seconds <= 0:
        return ""
    return f"{step.rows / step.seconds:,.0f} rows/s, {step.tokens / step.seconds:,.0f} tokens/s"
