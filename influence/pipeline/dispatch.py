"""Tasks done in this process where they are few, and handed to the run's cluster where that is worth its start."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from influence.config import RunConfig
from influence.pipeline.cluster import connect
from influence.pipeline.progress import Stage
from influence.pipeline.submit import run_tasks
from influence.pipeline.worker import install

WORTH = 8.0
"""Seconds of one core from which on workers are worth starting: each takes some four of them to import what it needs,
and 200 MiB and more to hold it."""


class Named(Protocol):
    """A task."""

    @property
    def name(self) -> str:
        """For messages."""
        ...


Dispatch = Callable[[Callable[[Any], Any], Sequence[Named]], Iterator[Any]]
"""Yields what a function makes of each of some tasks, in any order."""


@contextmanager
def dispatcher(config: RunConfig, run_dir: Path, seconds: float, tasks: int, stage: Stage) -> Iterator[Dispatch]:
    """Yield what does tasks and counts them.

    Args:
        config: Of the run; its cluster section says who computes what isn't computed here.
        run_dir: The run.
        seconds: What all tasks take on one core, about.
        tasks: The most that are handed over at once.
        stage: Hears of each that is done.
    """

    def counted(results: Iterator[Any]) -> Iterator[Any]:
        for result in results:
            stage.finished()
            yield result

    if seconds < WORTH:
        yield lambda function, given: counted(map(function, given))
        return
    if config.cluster.here:
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "auto"})})
    with connect(config.cluster, tasks, run_dir) as client:
        install(client, local=config.cluster.here)
        yield lambda function, given: counted(run_tasks(client, function, given, lambda task: task.name, stage))


__all__ = ["Dispatch", "Named", "dispatcher"]
