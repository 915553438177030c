"""Hand many tasks to a cluster, few at a time, and hear of each as it finishes.

A worker that is lost takes its tasks with it; the scheduler gives them to another, three times at most, and where
workers come and go (`Workforce.rounds`) that begins again some times. An error of ours (`InfluenceError`) is a fact
about the data or the settings: it is never tried again and reaches the caller as it is. An error of the operating
system is tried again twice, since shared file systems stumble.
"""

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError as FutureCancelled
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from distributed import Client, Future, KilledWorker

from influence.engine.closing import failures_told
from influence.engine.cluster import list_workers
from influence.engine.progress import Progress
from influence.engine.workforce import workforce_of
from influence.errors import ClusterError, Incomplete

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks a worker has been given or has waiting; the other hundred thousand stay out of the scheduler."""
TRIES = 3
LOOK_EVERY = 1.0
"""Seconds between two looks at who is there."""
FETCH = 5.0
"""Seconds that a finished task's small result may take to come, before looking whether it was lost on the way."""
FIRST_WORD, LONGEST_SILENCE = 5.0, 300.0
"""Seconds without a worker before a line says so; every line after it waits twice as long, up to the longest."""


GONE = (
    "The connection to the scheduler is lost, and with it the running tasks. Committed results are kept: run the "
    "same build again to resume."
)


@dataclass(frozen=True)
class Sent(Generic[T]):
    """A task on its way: how often it was tried, and how often workers were lost on it until the scheduler gave up."""

    task: T
    attempt: int = 1
    round: int = 1


def run_tasks(
    client: Client,
    function: Callable[[T], R],
    tasks: Iterable[T],
    name: Callable[[T], str],
    progress: Progress | None = None,
    given_up: Callable[[T], None] | None = None,
) -> Iterator[R]:
    """Yield each task's result as it finishes, in any order.

    Workers may come late, leave, and all be gone for a while: tasks wait for them, and more are out as more come.

    Args:
        client: Of the cluster.
        function: What a worker calls with a task; importable by name.
        tasks: Small picklable values; taken from the iterable as room is made.
        name: What to call a task in a message: `shard-00007 (rows 448 to 511)`.
        progress: Counts workers lost and tasks tried again; those that finish the caller counts.
        given_up: Takes each task on which workers kept dying, which then has no result; None raises instead.

    Raises:
        InfluenceError: As a worker raised it, or why no workers are to be hoped for.
        ClusterError: Workers kept dying on one task.
        Incomplete: The scheduler is gone.
    """
    crew = _Crew(client, function, tasks, progress)
    try:
        crew.fill()
        while crew.running:
            future = crew.next_finished()
            sent = crew.running.pop(future)
            try:
                result = crew.fetched(future)
            except (KilledWorker, OSError) as error:
                if given_up is not None and isinstance(error, KilledWorker) and sent.round >= crew.rounds:
                    given_up(sent.task)
                    crew.fill()
                    continue
                crew.send(_again(sent, error, name(sent.task), crew.rounds))
                if progress is not None:
                    progress.tried_again()
                continue
            except (CancelledError, FutureCancelled):
                raise Incomplete(GONE) from None
            crew.fill()
            yield result
    finally:
        if crew.running:
            with failures_told("What was under way"):
                client.cancel(list(crew.running), force=True)


def _again(sent: Sent[T], error: KilledWorker | OSError, name: str, rounds: int) -> Sent[T]:
    """Return what to send after a failure that may pass.

    Raises:
        ClusterError: Worker after worker was lost on it, once more than is allowed.
        OSError: The last try's.
    """
    if isinstance(error, KilledWorker):
        if sent.round >= rounds:
            raise ClusterError(died(name, rounds)) from None
        log.warning("Worker after worker was lost on %s; trying again (%d of %d).", name, sent.round + 1, rounds)
        return replace(sent, round=sent.round + 1)
    if sent.attempt >= TRIES:
        raise error
    log.warning("%s: %s; trying again (%d of %d).", name, error, sent.attempt + 1, TRIES)
    return replace(sent, attempt=sent.attempt + 1)


def died(name: str, rounds: int = 1) -> str:
    """Say that workers kept dying on a task, of what most likely, and what to do."""
    return (
        f"The workers that took up {name} died, one after the other. Most often the system's memory ran out: "
        "lower cluster.token_budget, cluster.workers or store.rows_per_shard"
        + (", or raise cluster.job.memory." if rounds > 1 else ".")
    )


class _Crew(Generic[T, R]):
    """A client's workers at work on one series of tasks.

    Attributes:
        running: What has been handed out and has not finished.
        rounds: See `Workforce`.
    """

    def __init__(
        self, client: Client, function: Callable[[T], R], tasks: Iterable[T], progress: Progress | None = None
    ) -> None:
        self._client, self._function, self._source, self._progress = client, function, iter(tasks), progress
        self._known: set[str] = set()
        self._workforce = workforce_of(client)
        self.rounds = self._workforce.rounds
        self.running: dict[Future, Sent[T]] = {}
        self._finished: SimpleQueue[Any] = SimpleQueue()
        self._alone_since: float | None = None
        self._patience = FIRST_WORD
        self._look()

    def send(self, sent: Sent[T]) -> None:
        """Hand out one task."""
        future = self._client.submit(self._function, sent.task, pure=False)
        self.running[future] = sent
        future.add_done_callback(self._finished.put)

    def fill(self) -> None:
        """Hand out tasks until as many are under way as the workers can have waiting."""
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._look()
        while len(self.running) < self._room:
            for task in self._source:
                self.send(Sent(task))
                break
            else:
                return

    def next_finished(self) -> Future:
        """Wait for a task to finish, looking now and then whether there is anybody to finish one."""
        while True:
            try:
                return self._finished.get(timeout=LOOK_EVERY)
            except Empty:
                self._look()
                self.fill()

    def fetched(self, future: Future) -> R:
        """Return a finished task's result, looking now and then: one that was lost with its worker is computed anew."""
        while True:
            try:
                return future.result(timeout=FETCH)
            except TimeoutError:
                if future.status == "error":
                    raise
                self._look()

    def _look(self) -> None:
        """Count the workers; say so if there are none, and raise if there will be none."""
        if self._workforce.failure is not None:
            raise self._workforce.failure
        try:
            names = set(list_workers(self._client))
        except (OSError, CancelledError, FutureCancelled):
            raise Incomplete(GONE) from None
        there, lost = len(names), len(self._known - names)
        if lost and self._progress is not None:
            self._progress.lost_workers(lost)
        self._known = names
        self._looked = time.monotonic()
        self._room = AHEAD * max(1, there, self._workforce.most)
        if there:
            if self._patience > FIRST_WORD:
                log.info("Workers are there again: %d.", there)
            self._alone_since, self._patience = None, FIRST_WORD
            return
        if self._alone_since is None:
            self._alone_since = self._looked
        alone = self._looked - self._alone_since
        if alone >= self._patience:
            log.info("No worker for %.0f s. %s", alone, self._workforce.absent())
            self._patience = min(2 * self._patience, alone + LONGEST_SILENCE)
