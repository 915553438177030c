"""Rows that kill their worker: found from outside, one try at a time, and set aside like rows that raise an error.

What raises is caught where it happens (`quarantine`). Of what ends the process, a crash in native code or a system out
of memory, only the scheduler hears, and it blames every task that the worker had in hand. So a task that it gives up is
tried once more after all others and with nothing else under way: a worker lost now is lost on it. Then parts of its
rows are only tried, halved until single rows are left that kill alone, and the task goes on without them.

A try leaves a mark with the scheduler when it begins. The worker that is handed it after a death finds the mark and
answers that the try is lost, so a try costs one worker: about log₂ n + 4 for a row among n. A row found by one stage is
kept from the workers in the stages that follow.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

from distributed import Client, Event

from influence.engine.progress import Progress
from influence.engine.quarantine import without_failing_rows
from influence.engine.submit import died, run_tasks
from influence.errors import ClusterError

log = logging.getLogger(__name__)

MACHINE = 5
"""Single rows that die, and not one part that comes through, after which the machine or the model is to blame."""

During = Literal["tokenising", "computing"]
Dead = Mapping[int, During]
"""Positions of the rows that kill their worker, and what it was doing with each."""


class OfRows(Protocol):
    """A task over some rows."""

    def session(self) -> AbstractContextManager[Any]:
        """Lend the session that it needs, in the process that does it."""
        ...

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def numbers(self) -> Sequence[int]:
        """The row at each position."""
        ...


T = TypeVar("T", bound=OfRows)
R = TypeVar("R")

Attempt = Callable[[Any, T, Sequence[int], Dead, Callable[[], None]], R | None]
"""Do a task, or try a part of it, in a session: `attempt(session, task, positions, dead, tokenised)`.

Where `positions` and `dead` are all of its rows together the task is done without the dead ones, and its result is
returned; where they aren't, the rows at `positions` are tried and nothing is kept. `tokenised` is called between the
tokeniser and the model.
"""


_found: WeakKeyDictionary[Client, dict[int, During]] = WeakKeyDictionary()
"""The rows that killed workers of a client, which is one build's."""


class WorkerLost(ClusterError):
    """A try took its worker along."""


@dataclass(frozen=True)
class Try(Generic[T, R]):
    """What a worker is sent: some rows of a task to be tried, or all but the dead to be done."""

    task: T
    attempt: Attempt[T, R]
    positions: tuple[int, ...]
    dead: Dead
    mark: str


@dataclass(frozen=True)
class Lost:
    """What a worker answers in the place of the one that began a try."""

    during: During


def run_try(tried: Try[T, R]) -> R | Lost | None:
    """Make a try in a worker's session, unless an earlier worker died in it; the entry point of a task."""
    begun, tokenised = _marks(tried.mark)
    if begun.is_set():
        return Lost("computing" if tokenised.is_set() else "tokenising")
    # A worker that dies here, in opening the session, dies of the model and not of a row.
    with tried.task.session() as session:
        begun.set()
        return tried.attempt(session, tried.task, tried.positions, tried.dead, lambda: _set(tokenised))


def run_surviving(
    client: Client,
    function: Callable[[T], R],
    attempt: Attempt[T, R],
    tasks: Iterable[T],
    most: Callable[[], int],
    stage: Progress | None = None,
) -> Iterator[R]:
    """Yield each task's result as `run_tasks` does; a task whose workers die goes on without the rows that kill them.

    Args:
        client: Of the cluster, whose workers have the session plugin.
        function: What a worker calls with a task.
        attempt: The same for a part of its rows; importable by name.
        tasks: What there is to do.
        most: Tells how many rows may be set aside now; asked for each task that was given up.
        stage: Hears of workers lost and of tries.

    Raises:
        ClusterError: Workers kept dying on a task and no row of it is to blame, or more rows than may be.
        InfluenceError: As a worker raised it.
    """
    known, apart = _found.setdefault(client, {}), list[T]()

    def harmless() -> Iterator[T]:
        for task in tasks:
            if any(row in task.numbers for row in known):
                apart.append(task)
            else:
                yield task

    yield from run_tasks(client, function, harmless(), _name, stage, apart.append if most() else None)
    for task in apart:
        yield _without_deadly_rows(client, attempt, task, most(), stage)


def died_of(during: During) -> str:
    """Return the error of a row that kills its worker, for the manifest."""
    return (
        f"the worker died while {during} this row alone, twice: most likely the system's memory ran out, or a library "
        "crashed"
    )


def _without_deadly_rows(client: Client, attempt: Attempt[T, R], task: T, most: int, stage: Progress | None) -> R:
    """Do a task that the scheduler gave up, without the rows that kill their worker."""
    known = _found[client]
    dead: dict[int, During] = {n: known[row] for n, row in enumerate(task.numbers) if row in known}
    held, rows = len(dead), [position for position in range(len(task.numbers)) if position not in dead]
    if not dead:
        log.warning(
            "Worker after worker was lost on %s: it is tried again with nothing else under way, and if that fails too, "
            "a part of its rows at a time. Up to %d rows may be set aside.",
            task.name,
            most,
        )
    through = 0

    def tried(positions: Sequence[int]) -> R | None:
        nonlocal through
        aside: Dead = {position: during for position, during in dead.items() if position not in positions}
        found = _made(client, Try(task, attempt, tuple(positions), aside, uuid4().hex), stage)
        if not isinstance(found, Lost):
            through += 1
            if len(positions) == 1:
                dead.pop(positions[0], None)
            return found
        log.warning("A worker was lost while %s %s of %s.", found.during, _shown(task, positions), task.name)
        if len(positions) == 1:
            dead[positions[0]] = found.during
        if len(dead) - held >= MACHINE and not through:
            raise ClusterError(f"{died(task.name)} Its rows do so one by one, and none was seen to come through.")
        raise WorkerLost

    try:
        done, _ = without_failing_rows(tried, rows, most, blamed=lambda error: isinstance(error, WorkerLost))
    except WorkerLost:
        why = (
            f"{len(dead) - held} of its rows do so alone, more than data.quarantine leaves room for ({most})."
            if len(dead) - held > most
            else "No row of it does so alone: it is their number at a time."
        )
        raise ClusterError(f"{died(task.name)} {why}") from None
    known |= {task.numbers[position]: during for position, during in dead.items()}
    assert done is not None, "an attempt at all rows but the dead returns the task's result"
    return done


def _made(client: Client, tried: Try[T, R], stage: Progress | None) -> R | Lost | None:
    """Make one try, with nothing else under way, and clear its marks."""
    if stage is not None:
        stage.tried_again()
    begun, tokenised = marks = _marks(tried.mark, client)
    given_up: list[Try[T, R]] = []
    try:
        found = list(run_tasks(client, run_try, [tried], lambda _: tried.task.name, stage, given_up.append))
        if found:
            return found[0]
        # A scheduler that hands nothing out twice, or workers that die of the model already.
        if begun.is_set():
            return Lost("computing" if tokenised.is_set() else "tokenising")
        raise ClusterError(f"{died(tried.task.name)} They did so before they came to its rows.")
    finally:
        for mark in marks:
            mark.clear()


def _set(event: Event) -> None:
    event.set()


def _marks(mark: str, client: Client | None = None) -> tuple[Event, Event]:
    return Event(f"{mark}-begun", client), Event(f"{mark}-tokenised", client)


def _shown(task: OfRows, positions: Sequence[int]) -> str:
    rows = [task.numbers[position] for position in positions]
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"{len(rows)} rows" + (f" ({rows[0]} to {rows[-1]})" if rows else "")


def _name(task: OfRows) -> str:
    return task.name
