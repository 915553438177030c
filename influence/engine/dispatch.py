"""Tasks done in this process where they are few, and handed to the run's cluster where that is worth its start."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from distributed import Client

from influence.config import RunConfig
from influence.engine.cluster import connect
from influence.engine.progress import Progress
from influence.engine.submit import run_tasks
from influence.engine.threads import torch_threads
from influence.engine.worker import install, sessions_here

WORTH = 8.0
"""Seconds of one core from which on workers are worth starting: each takes some four of them to import what it needs,
and 200 MiB and more to hold it."""


class Named(Protocol):
    """A task."""

    @property
    def name(self) -> str:
        """For messages."""
        ...


Dispatch = Callable[[Callable[[Any], Any], Sequence[Named], Progress], Iterator[Any]]
"""Yields what a function makes of each of some tasks, in any order; the stage hears of each that is done."""


@contextmanager
def dispatcher(config: RunConfig, run_dir: Path, seconds: float, tasks: int) -> Iterator[Dispatch]:
    """Yield what does tasks: this process, where they are few and its machine does the run's work; else the cluster.

    Either way they compute with the run's number of threads, and `session_here` lends them a session.

    Args:
        config: Of the run; its cluster section says who computes what isn't computed here. Whoever names another kind
            of cluster than `local` is given that, however little there is to do; with 0 workers this process does all.
        run_dir: The run.
        seconds: What all tasks take on one core, about.
        tasks: The most that are handed over at once.
    """
    cluster = config.cluster
    if cluster.kind == "local" and (seconds < WORTH or cluster.workers == 0):
        with sessions_here():
            yield partial(_done_here, cluster.threads_per_worker)
        return
    if cluster.here:
        cluster = cluster.model_copy(update={"device": "auto"})
    with connect(cluster, tasks, run_dir) as client:
        install(client, local=cluster.here)
        yield partial(_handed_over, client)


def _done_here(threads: int, function: Callable[[Any], Any], given: Sequence[Named], stage: Progress) -> Iterator[Any]:
    for task in given:
        with torch_threads(threads):
            result = function(task)
        stage.finished()
        yield result


def _handed_over(
    client: Client, function: Callable[[Any], Any], given: Sequence[Named], stage: Progress
) -> Iterator[Any]:
    for result in run_tasks(client, function, given, lambda task: task.name, stage):
        stage.finished()
        yield result


__all__ = ["Dispatch", "Named", "dispatcher"]
