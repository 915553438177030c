"""Stages completed one after another: by this process where that is least work, else by the workers of a cluster."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from distributed import Client

from influence.config import RunConfig
from influence.engine.cluster import connect
from influence.engine.poison import run_surviving
from influence.engine.progress import Progress, Report
from influence.engine.stage import RowStage, Stage, Task, perform
from influence.engine.submit import run_tasks
from influence.engine.threads import torch_threads
from influence.engine.worker import install, sessions_here

log = logging.getLogger(__name__)

WORTH = 8.0
"""Seconds of one core from which on workers are worth starting: each takes some four of them to import what it needs,
and 200 MiB and more to hold it."""


class Workers:
    """Who does tasks. A context manager: the cluster is connected for the first task, and closed at the end."""

    def __init__(self, start: Callable[[], AbstractContextManager[Client | None]], threads: int = 0) -> None:
        """Set up.

        Args:
            start: Connects a cluster whose workers have the session plugin; None means that this process does tasks.
            threads: Torch's, in this process; 0 leaves the number as it is.
        """
        self._start, self._threads = start, threads
        self._stack, self._client, self._started = ExitStack(), None, False

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Close what was started."""
        self._started = False
        self._stack.__exit__(*error)

    @property
    def client(self) -> Client | None:
        """Of the cluster, which starts now if it hasn't; None where this process does the tasks."""
        if not self._started:
            self._client = self._stack.enter_context(self._start())
            self._started = True
        return self._client

    def dismiss(self) -> None:
        """Close the cluster: what follows is done without it."""
        self.__exit__(None, None, None)

    def results(self, stage: Stage, tasks: Sequence[Task], progress: Progress) -> Iterator[Any]:
        """Do tasks of a stage and yield their results, in any order."""
        client = None if stage.here or not tasks else self.client
        if client is None:
            for task in tasks:
                with torch_threads(self._threads) if self._threads else nullcontext():
                    result = perform(task)
                yield result
        elif isinstance(stage, RowStage):
            yield from run_surviving(client, stage, tasks, progress)
        else:
            yield from run_tasks(client, perform, tasks, lambda task: task.name, progress)


def complete(stages: Sequence[Stage], workers: Workers, report: Report | None = None) -> None:
    """Do what is missing of stages, in order. The workers go when nothing that is missing needs them any more.

    Args:
        stages: Each may need what those before it leave.
        workers: Who does the tasks.
        report: Called with every step of every stage.

    Raises:
        InfluenceError: As a task raised it, with the task's name in front of the message.
        ClusterError: Worker after worker was lost on a task.
    """
    last = max((place for place, stage in enumerate(stages) if not stage.here and not stage.stands()), default=-1)
    for place, stage in enumerate(stages):
        _Completion(stage, workers, report, needed=place < last)()


class _Completion:
    """One stage on its way: the stages that it consists of share a counter."""

    def __init__(self, stage: Stage, workers: Workers, report: Report | None, *, needed: bool) -> None:
        self._stage, self._workers, self._report, self._needed = stage, workers, report, needed
        self._total, self._progress = len(stage.cut()), None

    def __call__(self) -> None:
        if self._stage.stands():
            Progress(self._stage.name, self._total, self._report, done=self._total)
        else:
            self._stage.each(self._do)

    def _do(self, stage: Stage) -> None:
        total, todo = len(stage.cut()), stage.missing()
        progress = self._counted(total, total - len(todo))
        if todo and len(todo) < total:
            log.info("%s: %d of %d tasks were complete already.", stage.name, total - len(todo), total)
        if stage.here and not self._needed:
            self._workers.dismiss()
        for result in self._workers.results(stage, todo, progress):
            stage.take(result, progress)
        if todo or not stage.stands():
            stage.merge()

    def _counted(self, total: int, passed: int) -> Progress:
        """Return the counter, with the tasks that needn't be done counted."""
        if self._progress is None:
            self._progress = Progress(self._stage.name, self._total, self._report, done=passed)
        else:
            self._progress.total = max(self._progress.total, self._progress.done + total)
            self._progress.passed(passed)
        return self._progress


def workers_for(config: RunConfig, run_dir: Path, seconds: float, tasks: int) -> Workers:
    """Return who does tasks: this process, where they are few and its machine does the run's work; else the cluster.

    Either way they compute with the run's number of threads, and `session_here` lends them a session.

    Args:
        config: Of the run; its cluster section says who computes what isn't computed here. Whoever names another kind
            of cluster than `local` is given that, however little there is to do; with 0 workers this process does all.
        run_dir: The run.
        seconds: What all tasks take on one core, about.
        tasks: The most that are handed over at once.
    """
    cluster = config.cluster

    @contextmanager
    def start() -> Iterator[Client | None]:
        if cluster.kind == "local" and (seconds < WORTH or cluster.workers == 0):
            with sessions_here():
                yield None
            return
        settings = cluster.model_copy(update={"device": "auto"}) if cluster.here else cluster
        with connect(settings, tasks, run_dir) as client:
            install(client, local=settings.here)
            yield client

    return Workers(start, cluster.threads_per_worker)


__all__ = ["Workers", "complete", "workers_for"]
