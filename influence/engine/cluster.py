"""A `distributed` cluster for one build: local processes, jobs of a batch queue, or a scheduler that someone else runs.

Workers compute with as many threads as the settings say, whoever starts them. Each has two task slots: while one task
writes its finished shard the next one computes; the session's locks see to it that only one computes at a time.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dask
from distributed import Client
from distributed.comm import get_address_host

from influence.cluster import ClusterSettings
from influence.engine.closing import closed_at_last
from influence.engine.credentials import client_security
from influence.engine.jobs import ROUNDS, bounds, queued_cluster
from influence.engine.local import interrupts_deferred, local_cluster, resolve_device, worker_count
from influence.engine.workforce import Workforce, introduce
from influence.errors import ClusterError

log = logging.getLogger(__name__)

CLIENT = "The connection to the workers"
TASK_SLOTS = 2
ALLOWED_FAILURES = 3
"""How many workers may be lost on a task before the scheduler gives it up; see `Workforce.rounds` for what follows."""
START_TIMEOUT = 120
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""What a worker of ours on the CPU finds when it starts. Threads come from the settings.

MALLOC is glibc's: keep freed memory for the next batch, in one heap (ARENA_MAX) from which either task slot takes what
the other freed. Dask's own default gives free pages back at once, and each batch then pays for them again, page by
page. The capacities are those of torch's and oneDNN's caches of compiled products, which hold half a megabyte for every
new shape, and batches come in thousands of shapes: enough for one."""
REACH_TIMEOUT = 30
"""Seconds that a scheduler has to answer: it may only just be starting."""

QUIET = {
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    "distributed.scheduler.work-stealing": True,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.daemon": True,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.limit": "1h",
    "distributed.comm.timeouts.connect": "60s",
    "distributed.logging.distributed": "critical",
    # No pages about tasks and logs: they have no keys. `ClusterSettings.dashboard` asks for the scheduler's.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def worker_environment(settings: ClusterSettings, *, job: bool = False) -> dict[str, str]:
    """Return what a worker on the CPU finds when it starts.

    Args:
        settings: The cluster section.
        job: It is started by a job on another machine, where dask's settings are not ours yet; on a GPU they are all.
    """
    threads = str(settings.threads_per_worker)
    computing = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **ENVIRONMENT}
    if not job:
        return computing
    own = {name: value for name, value in QUIET.items() if not name.startswith("distributed.logging")}
    dasks = {f"DASK_{name.replace('.', '__').replace('-', '_').upper()}": str(value) for name, value in own.items()}
    return dasks if settings.job.gpus else {**computing, **dasks}


def workers_wanted(settings: ClusterSettings, tasks: int) -> int | None:
    """Return how many workers share so many tasks at the most; None where a scheduler brings its own."""
    if settings.here:
        return worker_count(settings, resolve_device(settings), tasks)
    return bounds(settings, tasks)[1] if settings.queued else None


def list_workers(client: Client) -> list[str]:
    """Return the addresses of the workers that are there now."""
    found: Any = client.nthreads()
    return list(found)


@contextmanager
def connect(settings: ClusterSettings, tasks: int | None = None, run_dir: Path | None = None) -> Iterator[Client]:
    """Yield a client of the cluster, and close what was started.

    Args:
        settings: The cluster section.
        tasks: Tasks there are to do; no more workers than that are started.
        run_dir: The run, which takes the logs of a batch queue's jobs.

    Raises:
        ClusterError: The scheduler can't be reached, the queue refuses a job, or the local workers don't start.
        MissingExtra: Several GPUs are to be used and dask-cuda is not installed, or a queue and dask-jobqueue isn't.
    """
    kept = _kept.get()
    if kept is None:
        with _connected(settings, tasks, run_dir) as client:
            yield client
    else:
        yield kept.client(settings, tasks, run_dir)


@contextmanager
def kept_cluster() -> Iterator[None]:
    """Keep what `connect` starts until this ends: stages that follow one another find their workers running."""
    with ExitStack() as stack:
        token = _kept.set(_Kept(stack))
        stack.callback(_kept.reset, token)
        yield


class _Kept:
    """The cluster of several stages."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._settings: ClusterSettings | None = None
        self._workers: int | None = 0

    def client(self, settings: ClusterSettings, tasks: int | None, run_dir: Path | None) -> Client:
        """Return the client that is connected, or connect one; anew for other settings or more workers."""
        wanted = workers_wanted(settings, tasks) if tasks is not None else None
        fewer = self._workers is not None and (wanted is None or wanted > self._workers)
        if settings != self._settings or fewer:
            self.close()
            self._held = self._stack.enter_context(ExitStack())
            self._client = self._held.enter_context(_connected(settings, tasks, run_dir))
            self._settings, self._workers = settings, wanted
        return self._client

    def close(self) -> None:
        """Close what was started."""
        if self._settings is not None:
            self._settings = None
            self._held.close()


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def _connected(settings: ClusterSettings, tasks: int | None, run_dir: Path | None) -> Iterator[Client]:
    with ExitStack() as stack:
        pages = dask.config.get("distributed.scheduler.http.routes")
        stack.enter_context(dask.config.set(QUIET))
        if settings.dashboard:
            stack.enter_context(dask.config.set({"distributed.scheduler.http.routes": pages}))
        stack.enter_context(_quiet_logging())
        if settings.kind == "address":
            yield stack.enter_context(_remote(settings))
            return
        try:
            cluster, workforce = stack.enter_context(_ours(settings, tasks, run_dir))
            with interrupts_deferred():
                ours = Client(cluster, timeout=START_TIMEOUT, set_as_default=False)
                client = stack.enter_context(closed_at_last(ours, CLIENT))
        except (OSError, TimeoutError, RuntimeError) as error:
            raise ClusterError(f"The {settings.kind} workers didn't start: {error}") from error
        introduce(client, workforce)
        if settings.dashboard:
            _tell_dashboard(cluster)
        yield client


@contextmanager
def _ours(settings: ClusterSettings, tasks: int | None, run_dir: Path | None) -> Iterator[tuple[Any, Workforce]]:
    """Yield a cluster that this build starts, and what is known of its workers."""
    if settings.queued:
        environment = worker_environment(settings, job=True)
        with queued_cluster(settings, TASK_SLOTS, environment, run_dir, tasks) as found:
            yield found
        return
    with local_cluster(settings, TASK_SLOTS, worker_environment(settings), tasks) as (cluster, most):
        yield cluster, Workforce(most=most)


def _tell_dashboard(cluster: Any) -> None:
    """Log where the workers can be watched, if there is a page: distributed has none without bokeh."""
    if find_spec("bokeh") is not None and cluster.dashboard_link:
        log.info("Dashboard: %s", cluster.dashboard_link)


@contextmanager
def _remote(settings: ClusterSettings) -> Iterator[Client]:
    address = str(settings.address)
    security = client_security(settings.tls)
    if not security.require_encryption and not address.startswith("tls://") and not _is_loopback(address):
        log.warning(
            "%s is not encrypted: whoever reaches that port can run code as the user of its workers, and read what is "
            "sent. Start the scheduler with TLS and give tls://HOST:PORT and cluster.tls.",
            address,
        )
    with ExitStack() as stack:
        try:
            with interrupts_deferred():
                ours = Client(address, timeout=REACH_TIMEOUT, set_as_default=False, security=security)
                client = stack.enter_context(closed_at_last(ours, CLIENT))
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise ClusterError(f"The scheduler at {address} can't be reached: {error}. {_advice(settings)}") from error
        absent = f"The scheduler at {address} waits for workers. Start some: dask worker {address}"
        absent += " with its TLS files" if security.require_encryption else ""
        introduce(client, Workforce(rounds=ROUNDS, absent=lambda: absent))
        yield client


def _is_loopback(address: str) -> bool:
    host = get_address_host(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _advice(settings: ClusterSettings) -> str:
    if str(settings.address).startswith("tls://"):
        files = "the files of cluster.tls" if settings.tls else "cluster.tls (ca_file, cert, key; it is not set)"
        return f"Is it running, the port open, and does it accept {files}?"
    return "Is it running, and the port open? The address of a scheduler with TLS begins with tls://."


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep the coordinator's own `distributed` log lines for errors that nothing else tells."""
    names = ("distributed", "distributed.nanny", "distributed.scheduler", "distributed.core", "tornado.application")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
