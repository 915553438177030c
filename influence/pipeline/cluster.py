"""A `distributed` cluster for one build: local processes, or a scheduler that someone else runs.

Local workers are processes that die with the coordinator, keep standard output free of their own lines, and compute
with as many threads as the settings say. Each has two task slots: while one task writes its finished shard the next
one computes; the session's locks see to it that only one computes at a time.
"""

import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import dask
import torch
from distributed import Client, LocalCluster
from distributed.core import Status

from influence.config import ClusterSettings
from influence.errors import ClusterError, MissingExtra

log = logging.getLogger(__name__)

TASK_SLOTS = 2
ALLOWED_FAILURES = 3
"""How many workers may die on a task before it is given up."""
START_TIMEOUT = 120
REPLACE_TIMEOUT = 10
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""What a local worker on the CPU finds when it starts. Threads come from the settings.

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
}


def resolve_device(settings: ClusterSettings) -> Literal["cpu", "cuda"]:
    """Return the kind of device that local workers compute on.

    Raises:
        ClusterError: CUDA was asked for and there is none.
    """
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise ClusterError("cluster.device is cuda, but torch finds no CUDA device here. Set it to auto or cpu.")
    return "cuda" if found and settings.device != "cpu" else "cpu"


def worker_count(settings: ClusterSettings, device: str, tasks: int | None = None) -> int:
    """Return how many local workers to start: as set, or one a GPU, or one for every `threads_per_worker` cores.

    Args:
        settings: The cluster section.
        device: `cpu` or `cuda`.
        tasks: Tasks there are to do; no more workers than that are started.
    """
    if settings.workers is not None:
        wanted = settings.workers
    elif device == "cuda":
        wanted = torch.cuda.device_count()
    else:
        wanted = max(1, len(os.sched_getaffinity(0)) // settings.threads_per_worker)
    return max(1, wanted if tasks is None else min(wanted, tasks))


def list_workers(client: Client) -> list[str]:
    """Return the addresses of the workers that are there now."""
    found: Any = client.nthreads()
    return list(found)


@contextmanager
def connect(settings: ClusterSettings, tasks: int | None = None) -> Iterator[Client]:
    """Yield a client of the cluster, and close what was started.

    Raises:
        ClusterError: The scheduler can't be reached, has no workers, or the local workers don't start.
        MissingExtra: Several GPUs are to be used and dask-cuda is not installed.
    """
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(QUIET))
        stack.enter_context(_quiet_logging())
        if settings.kind == "address":
            yield stack.enter_context(_remote(str(settings.address)))
            return
        try:
            stack.enter_context(_main_not_run_again())
            with _interrupts_deferred():
                cluster = stack.enter_context(_local(settings, tasks))
            stack.callback(_let_dead_be_replaced, cluster)
            client = stack.enter_context(Client(cluster, timeout=START_TIMEOUT, set_as_default=False))
        except (OSError, TimeoutError, RuntimeError) as error:
            raise ClusterError(f"The local workers didn't start: {error}") from error
        yield client


def _local(settings: ClusterSettings, tasks: int | None) -> LocalCluster:
    device = resolve_device(settings)
    count = worker_count(settings, device, tasks)
    options: dict[str, Any] = {
        "n_workers": count,
        "threads_per_worker": TASK_SLOTS,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
    }
    if device == "cuda" and count > 1:
        if find_spec("dask_cuda") is None:
            raise MissingExtra(
                f"{count} workers on GPUs need dask-cuda, which is not installed: pip install 'influence[gpu]'. "
                "For a single GPU set cluster.workers to 1."
            )
        from dask_cuda import LocalCUDACluster  # type: ignore[import-not-found]

        return LocalCUDACluster(**options, device_memory_limit=0, memory_limit=0)
    # Both allocator and OpenMP read these when a process starts: its `env` argument would come too late.
    threads = str(settings.threads_per_worker)
    env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **ENVIRONMENT}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": env}):
        return LocalCluster(**options, processes=True, memory_limit=0, worker_dashboard_address=None)


def _let_dead_be_replaced(cluster: Any) -> None:
    """Wait until every worker that died is replaced, before the cluster closes.

    Where workers die as they come up, `distributed` takes the next one for running before its process is started, and
    fails its own assertion in closing it: that would be told instead of what the workers died of.
    """
    end = time.monotonic() + REPLACE_TIMEOUT
    while time.monotonic() < end and any(_coming_up(nanny) for nanny in list(cluster.workers.values())):
        time.sleep(0.02)


def _coming_up(nanny: Any) -> bool:
    process = nanny.process
    up = process is not None and process.status is Status.running and nanny.is_alive()
    return nanny.status is Status.running and not up


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Put Ctrl-C off while worker processes start, then deliver it; the workers inherit the deaf ear and keep it.

    Interrupted halfway, `distributed` leaves processes and tracebacks behind. Only the main thread hears signals, so
    elsewhere there is nothing to put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def _remote(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=REACH_TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"The scheduler at {address} can't be reached: {error}. Is it running, and the port open?"
        ) from error
    with client:
        if not list_workers(client):
            raise ClusterError(
                f"The scheduler at {address} has no workers. Start some (dask worker {address}) and try again."
            )
        yield client


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


@contextmanager
def _main_not_run_again() -> Iterator[None]:
    """Keep starting workers from running the user's script a second time.

    A spawned process imports the parent's `__main__` first, which runs a script that has no `if __name__ ==
    "__main__"` again, build and all. Nothing of ours is defined there, so workers start without it; it is back in
    place afterwards.
    """
    main = sys.modules["__main__"]
    stand_in = types.ModuleType("__main__")
    stand_in.__dict__.update({key: value for key, value in vars(main).items() if key not in ("__file__", "__spec__")})
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = main
