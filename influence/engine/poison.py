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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from distributed import Client, Event

from influence.engine.progress import Progress
from influence.engine.quarantine import without_failing_rows
from influence.engine.stage import Dead, During, RowStage, Task, named, perform
from influence.engine.submit import died, run_tasks
from influence.errors import ClusterError

log = logging.getLogger(__name__)

MACHINE = 5
"""Single rows that die, and not one part that comes through, after which the machine or the model is to blame."""

_found: WeakKeyDictionary[Client, dict[int, During]] = WeakKeyDictionary()
"""The rows that killed workers of a client, which is one build's."""


class WorkerLost(ClusterError):
    """A try took its worker along."""


@dataclass(frozen=True)
class Try:
    """Some rows of a task to be rehearsed, or all but the dead to be done."""

    task: Task[RowStage]
    positions: tuple[int, ...]
    dead: Dead
    mark: str


@dataclass(frozen=True)
class Lost:
    """What a worker answers in the place of the one that began a try."""

    during: During


def run_try(tried: Try) -> Any:
    """Make a try in a worker's session, unless an earlier worker died in it; the entry point of a worker."""
    begun, tokenised = _marks(tried.mark)
    if begun.is_set():
        return Lost("computing" if tokenised.is_set() else "tokenising")
    task, stage = tried.task, tried.task.stage
    # A worker that dies here, in opening the session, dies of the model and not of a row.
    with stage.session(task) as session, named(task):
        begun.set()
        if len(tried.positions) + len(tried.dead) == len(task.rows):
            return stage.run(task, session, tried.dead, lambda: _set(tokenised))
        stage.rehearse(task, session, tried.positions, lambda: _set(tokenised))
        return None


def run_surviving(
    client: Client, stage: RowStage, tasks: Iterable[Task], progress: Progress | None = None
) -> Iterator[Any]:
    """Yield each task's result as `run_tasks` does; a task whose workers die goes on without the rows that kill them.

    Args:
        client: Of the cluster, whose workers have the session plugin.
        stage: Says how many rows may be set aside now.
        tasks: What there is to do of it.
        progress: Counts workers lost and tries.

    Raises:
        ClusterError: Workers kept dying on a task and no row of it is to blame, or more rows than may be.
        InfluenceError: As a worker raised it.
    """
    known, apart = _found.setdefault(client, {}), list[Task]()

    def harmless() -> Iterator[Task]:
        for task in tasks:
            if any(row in task.rows for row in known):
                apart.append(task)
            else:
                yield task

    yield from run_tasks(client, perform, harmless(), _name, progress, apart.append if stage.room else None)
    for task in apart:
        yield _without_deadly_rows(client, task, stage.room, progress)


def died_of(during: During) -> str:
    """Return the error of a row that kills its worker, for the manifest."""
    return (
        f"the worker died while {during} this row alone, twice: most likely the system's memory ran out, or a library "
        "crashed"
    )


def _without_deadly_rows(client: Client, task: Task, most: int, progress: Progress | None) -> Any:
    """Do a task that the scheduler gave up, without the rows that kill their worker."""
    known = _found[client]
    dead: dict[int, During] = {n: known[row] for n, row in enumerate(task.rows) if row in known}
    held, rows = len(dead), [position for position in range(len(task.rows)) if position not in dead]
    if not dead:
        log.warning(
            "Worker after worker was lost on %s: it is tried again with nothing else under way, and if that fails too, "
            "a part of its rows at a time. Up to %d rows may be set aside.",
            task.name,
            most,
        )
    through = 0

    def tried(positions: Sequence[int]) -> Any:
        nonlocal through
        aside: Dead = {position: during for position, during in dead.items() if position not in positions}
        found = _try(client, Try(task, tuple(positions), aside, uuid4().hex), progress)
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
    known |= {task.rows[position]: during for position, during in dead.items()}
    return done


def _try(client: Client, tried: Try, progress: Progress | None) -> Any:
    """Make one try, with nothing else under way, and clear its marks."""
    if progress is not None:
        progress.tried_again()
    begun, tokenised = marks = _marks(tried.mark, client)
    given_up: list[Try] = []
    try:
        found = list(run_tasks(client, run_try, [tried], lambda _: tried.task.name, progress, given_up.append))
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


def _shown(task: Task, positions: Sequence[int]) -> str:
    rows = [task.rows[position] for position in positions]
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"{len(rows)} rows" + (f" ({rows[0]} to {rows[-1]})" if rows else "")


def _name(task: Task) -> str:
    return task.name
