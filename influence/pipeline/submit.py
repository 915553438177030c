"""Hand many tasks to a cluster, few at a time, and hear of each as it finishes.

A worker that dies takes its tasks with it; the scheduler gives them to another, three times at most. An error of ours
(`InfluenceError`) is a fact about the data or the settings: it is never tried again and reaches the caller as it is.
An error of the operating system is tried again twice, since shared file systems stumble.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker, as_completed

from influence.errors import ClusterError, InfluenceError
from influence.pipeline.cluster import list_workers

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks a worker has been given or has waiting; the other hundred thousand stay out of the scheduler."""
TRIES = 3


def run_tasks(client: Client, function: Callable[[T], R], tasks: Iterable[T], name: Callable[[T], str]) -> Iterator[R]:
    """Yield each task's result as it finishes, in any order.

    Args:
        client: Of the cluster.
        function: What a worker calls with a task; importable by name.
        tasks: Small picklable values; taken from the iterable as room is made.
        name: What to call a task in a message: `shard-00007 (rows 448 to 511)`.

    Raises:
        InfluenceError: As a worker raised it.
        ClusterError: Workers kept dying on one task.
    """
    source = iter(tasks)
    running: dict[Future, tuple[T, int]] = {}
    finished: Any = as_completed(loop=client.loop)

    def submit(task: T, attempt: int) -> None:
        future = client.submit(function, task, pure=False)
        running[future] = (task, attempt)
        finished.add(future)

    def submit_next() -> None:
        for task in source:
            submit(task, 1)
            return

    try:
        for _ in range(AHEAD * max(1, len(list_workers(client)))):
            submit_next()
        for future in finished:
            task, attempt = running.pop(future)
            try:
                result = future.result()
            except KilledWorker:
                raise ClusterError(
                    f"The workers that took up {name(task)} died, one after the other. Most often the system's "
                    "memory ran out: "
                    "lower cluster.token_budget, cluster.workers or store.rows_per_shard."
                ) from None
            except InfluenceError:
                raise
            except OSError as error:
                if attempt >= TRIES:
                    raise
                log.warning("%s: %s; trying again (%d of %d).", name(task), error, attempt + 1, TRIES)
                submit(task, attempt + 1)
                continue
            submit_next()
            yield result
    finally:
        if running:
            client.cancel(list(running), force=True)
