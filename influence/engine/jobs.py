"""Workers that are jobs of a batch queue: submitted, watched, submitted anew when they end, and cancelled at the end.

dask-jobqueue submits and cancels. It takes no notice of a job that ends before its worker reports, or that is
cancelled or preempted: `Keeper` does, by asking the queue which jobs are left whenever workers are missing. A build
goes on for as long as jobs get to their workers; if three in a row come to nothing, the last one's log is shown.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
from distributed import SchedulerPlugin
from distributed.core import Status

from influence.artifacts.place import is_remote
from influence.cluster import ClusterSettings
from influence.engine.adapt import ByTasks, adapt
from influence.engine.closing import closed_at_last
from influence.engine.jobqueue import (
    coordinator_address,
    dask_settings,
    job_classes,
    job_options,
    listed_jobs,
    listing_command,
    log_tail,
)
from influence.engine.key_folder import key_folder
from influence.engine.local import interrupts_deferred
from influence.engine.workforce import Workforce
from influence.errors import ClusterError

log = logging.getLogger(__name__)

JOBS = "jobs"
"""The folder of a run directory that its jobs' logs are in."""
SOON, SELDOM = 1.0, 30.0
"""Seconds between two questions to the queue: soon when other workers are missing, then ever more seldom."""
FRUITLESS = 3
"""Jobs in a row whose workers never reported, before that is taken for a fault and not for bad luck."""
ROUNDS = 5
LOST_WORKER = "10 minutes"
"""How long a job may be without its worker, whose process is being started anew, before dask cancels it."""


class Watched:
    """A job that remembers why it was refused, instead of failing its whole cluster; mixed into dask-jobqueue's."""

    refused: str | None = None
    reported = False
    job_id: str | None
    status: Status

    def __init__(self, *options: Any, security: Any = None, **named: Any) -> None:
        # Its script exports where the keys are: dask-jobqueue would put paths into a command without quotes.
        super().__init__(*options, **named)

    async def start(self) -> None:
        """Submit the job."""
        try:
            await super().start()  # type: ignore[misc]
        except (RuntimeError, OSError, ValueError) as error:
            self.refused = str(error).rpartition("stderr:\n")[2].strip()
            self.status = Status.running

    async def close(self) -> None:
        """Cancel the job."""
        await super().close()  # type: ignore[misc]
        self.status = Status.closed


class Arrivals(SchedulerPlugin):
    """The names of the workers that have reported, also of those that have left again since."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Take note of a worker."""
        self.names.add(str(scheduler.workers[worker].name))


class Keeper(ByTasks):
    """Sees which jobs have ended, so that others take their place, and how many came to nothing."""

    def __init__(self, cluster: Any, *, workforce: Workforce, kind: str, logs: Path, **options: Any) -> None:
        self.workforce, self.kind, self.logs = workforce, kind, logs
        self._ask_at, self._pause, self._asked_for, self._fruitless = 0.0, SOON, frozenset[str](), 0
        self._arrivals = Arrivals()
        cluster.scheduler.add_plugin(self._arrivals, name="influence-arrivals")
        super().__init__(cluster, **options)

    async def adapt(self) -> None:
        """Look after the jobs, then after their number."""
        if self.workforce.failure is not None:
            return
        try:
            await self._drop_ended()
            await super().adapt()
        except (RuntimeError, OSError) as error:
            log.warning("The %s queue does not answer now: %s", self.kind, error)

    async def _drop_ended(self) -> None:
        cluster: Any = self.cluster
        here = {str(worker.name) for worker in cluster.scheduler.workers.values()}
        missing: dict[str, Any] = {}
        for name, job in cluster.workers.items():
            if _names(cluster, name) & self._arrivals.names:
                job.reported, self._fruitless = True, 0
            if not _names(cluster, name) & here:
                missing[name] = job
        refused = {name for name, job in missing.items() if job.refused}
        waiting = frozenset(job.job_id for name, job in missing.items() if name not in refused)
        left = await self._left(waiting) if waiting else set()
        for name, job in missing.items():
            if name in refused or (left is not None and job.job_id not in left):
                self._arrivals.names -= _names(cluster, name)
                cluster.workers.pop(name, None)
                cluster.worker_spec.pop(name, None)
                job.status = Status.closed
                self._note(job, bool(here))

    async def _left(self, waiting: frozenset[str]) -> set[str] | None:
        """Return which jobs have not ended, None where it isn't time to ask again."""
        if waiting != self._asked_for:
            self._asked_for, self._ask_at, self._pause = waiting, 0.0, SOON
        now = time.monotonic()
        if now < self._ask_at:
            return None
        self._ask_at, self._pause = now + self._pause, min(2 * self._pause, SELDOM)
        cluster: Any = self.cluster
        try:
            return listed_jobs(await cluster.job_cls._call(listing_command(self.kind)))
        except RuntimeError as error:
            if "No unfinished job found" in str(error):
                return set()
            raise

    def _note(self, job: Any, others: bool) -> None:
        if job.reported:
            log.info("Job %s has ended before the build has; another takes its place.", job.job_id)
            return
        self._fruitless += 1
        why = refusal(job, self.kind, self.logs)
        log.warning("%s", why)
        if self._fruitless >= FRUITLESS and not others:
            self.workforce.failure = ClusterError(
                f"{why}\n{self._fruitless} jobs in a row came to nothing. Correct cluster.job and run the same build "
                "again."
            )


def refusal(job: Any, kind: str, logs: Path) -> str:
    """Say why a job has no worker: what the queue said, or what the job wrote before it ended."""
    if job.refused:
        return f"The {kind} queue refused a job: {job.refused}"
    wrote = log_tail(logs, job.job_id) or f"It wrote nothing into {logs}: was it cancelled, or is that folder its own?"
    return f"Job {job.job_id} has ended, and its worker never reported. {wrote}"


def _names(cluster: Any, job_name: str) -> set[str]:
    """Return the names of a job's workers."""
    suffixes = cluster.worker_spec.get(job_name, {}).get("group", [""])
    return {f"{job_name}{suffix}" for suffix in suffixes}


@contextmanager
def queued_cluster(
    settings: ClusterSettings, slots: int, environment: dict[str, str], run_dir: Path | None, tasks: int | None
) -> Iterator[tuple[Any, Workforce]]:
    """Yield a cluster whose workers are jobs, the first of them submitted, and cancel its jobs afterwards.

    Args:
        settings: The cluster section, of a batch queue.
        slots: Tasks that a worker takes at a time.
        environment: What a job's processes find.
        run_dir: The run, whose `jobs` folder holds the logs; None for a measurement, whose logs go with it.
        tasks: Tasks there are to do; no more workers than that are asked for.

    Raises:
        MissingExtra: dask-jobqueue is not installed.
        ClusterError: There is no such queue on this machine, or it refuses the first job.
    """
    kind, job_kind = job_classes(settings.kind)
    with ExitStack() as stack:
        logs = stack.enter_context(_log_folder(run_dir))
        stack.enter_context(dask_settings(settings.kind))
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": LOST_WORKER}))
        stack.enter_context(_terminated_like_interrupted())
        credentials = stack.enter_context(key_folder(logs))
        host = coordinator_address(settings)
        options = job_options(settings, slots, {**environment, **credentials.environment()}, logs, host)
        watched = type(job_kind.__name__, (Watched, job_kind), {})
        listens = {"host": host, "dashboard_address": "127.0.0.1:0", "dashboard": settings.dashboard}
        security = credentials.security()
        with interrupts_deferred():
            cluster = kind(job_cls=watched, scheduler_options=listens, security=security, silence_logs=False, **options)
            stack.enter_context(closed_at_last(cluster, f"The cluster of {settings.kind} jobs"))
        smallest, largest = bounds(settings, tasks)
        first = max(1, smallest)
        log.info(
            "Submitting %d %s job(s) of %d worker(s); their logs are in %s.",
            -(-first // settings.job.workers),
            settings.kind,
            settings.job.workers,
            logs,
        )
        cluster.scale(first)
        cluster.sync(cluster._correct_state)
        for job in cluster.workers.values():
            if job.refused:
                raise ClusterError(f"{refusal(job, settings.kind, logs)}\nCorrect cluster.job and run the build again.")
        workforce = Workforce(most=largest, rounds=ROUNDS, absent=lambda: _absent(cluster, settings.kind, logs))
        adapt(cluster, Keeper, smallest, largest, workforce=workforce, kind=settings.kind, logs=logs)
        yield cluster, workforce


def bounds(settings: ClusterSettings, tasks: int | None) -> tuple[int, int]:
    """Return the smallest and the largest number of workers, no larger than the number of tasks."""
    if settings.adapt is not None:
        smallest, largest = settings.adapt.min, settings.adapt.max
    else:
        smallest = largest = settings.workers or settings.job.workers
    if tasks is not None:
        smallest, largest = min(smallest, tasks), max(1, min(largest, tasks))
    return smallest, largest


def _absent(cluster: Any, kind: str, logs: Path) -> str:
    numbers = sorted(str(job.job_id) for job in list(cluster.workers.values()) if job.job_id)
    shown = ", ".join(numbers[:5]) + (", …" if len(numbers) > 5 else "")
    asked = " ".join(listing_command(kind)[:1])
    named = f"Job(s) {shown} wait in the {kind} queue or are starting" if numbers else "Jobs are being submitted"
    return f"{named} ({asked} tells; logs in {logs}). Ctrl-C cancels them."


@contextmanager
def _log_folder(run_dir: Path | None) -> Iterator[Path]:
    """Yield where logs go: not where the system has temporary files, which is another place on every node."""
    if run_dir is None:
        with TemporaryDirectory(prefix="influence-jobs-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    # A batch queue writes logs to files: of a run in a bucket they are kept where the build was started.
    logs = Path.cwd() / f"{run_dir.name}-{JOBS}" if is_remote(run_dir) else run_dir.absolute() / JOBS
    logs.mkdir(parents=True, exist_ok=True)
    try:
        yield logs
    finally:
        if not any(logs.iterdir()):
            logs.rmdir()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Take SIGTERM, which ends a job that is the coordinator, for Ctrl-C: its workers' jobs are cancelled too."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
