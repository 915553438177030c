"""Workers that are processes of this machine: they die with the coordinator and keep standard output free of lines."""

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
from distributed import LocalCluster
from distributed.core import Status

from influence.cluster import ClusterSettings
from influence.engine.adapt import ByTasks, adapt
from influence.engine.closing import closed_at_last
from influence.engine.credentials import draw_credentials
from influence.errors import ClusterError, MissingExtra

LOOPBACK = "127.0.0.1"
REPLACE_TIMEOUT = 10
LOST_WORKER = "1000 days"
"""How long after a death a cluster looks whether the worker is there, and drops it for good where it isn't: never. Its
process may have died once more and be starting just then; it would have nobody to start it again."""


def resolve_device(settings: ClusterSettings) -> Literal["cpu", "cuda"]:
    """Return the kind of device that local workers compute on.

    Raises:
        ClusterError: CUDA was asked for and there is none.
    """
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise ClusterError(
            f"cluster.{'kind' if settings.kind == 'cuda' else 'device'} is cuda, but torch finds no CUDA device here. "
            f"Set it to {'local' if settings.kind == 'cuda' else 'auto or cpu'}."
        )
    return "cuda" if found and settings.device != "cpu" else "cpu"


def worker_count(settings: ClusterSettings, device: str, tasks: int | None = None) -> int:
    """Return how many local workers there are at the most: as set, one a GPU, or one for `threads_per_worker` cores.

    Args:
        settings: The cluster section.
        device: `cpu` or `cuda`.
        tasks: Tasks there are to do; no more workers than that are started.
    """
    if settings.adapt is not None:
        wanted = settings.adapt.max
    elif settings.workers is not None:
        wanted = settings.workers
    elif device == "cuda":
        wanted = torch.cuda.device_count()
    else:
        wanted = max(1, len(os.sched_getaffinity(0)) // settings.threads_per_worker)
    return max(1, wanted if tasks is None else min(wanted, tasks))


@contextmanager
def local_cluster(
    settings: ClusterSettings, slots: int, environment: dict[str, str], tasks: int | None
) -> Iterator[tuple[Any, int]]:
    """Yield a cluster of processes of this machine and how many workers it has at the most, and close it afterwards.

    Args:
        settings: The cluster section, of kind `local` or `cuda`. With 0 workers this process is the only one.
        slots: Tasks that a worker takes at a time.
        environment: What a worker on the CPU finds when it starts.
        tasks: Tasks there are to do; no more workers than that are started.

    Raises:
        ClusterError: CUDA was asked for and there is none.
        MissingExtra: Several GPUs are to be used and dask-cuda is not installed.
    """
    device = resolve_device(settings)
    most = worker_count(settings, device, tasks)
    least = most if settings.adapt is None else min(most, settings.adapt.min)
    with ExitStack() as stack:
        stack.enter_context(_main_not_run_again())
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": LOST_WORKER}))
        if device == "cpu":
            # Both allocator and OpenMP read these when a process starts: its `env` argument would come too late.
            stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
        with interrupts_deferred(), _handlers_heard():
            if settings.workers == 0:
                started = _in_this_process(settings, slots)
            else:
                started = _started(settings, least, most, slots, device)
            cluster = stack.enter_context(closed_at_last(started, "The local workers' cluster"))
        if settings.workers != 0:
            stack.callback(_let_dead_be_replaced, cluster)
        if settings.adapt is not None:
            adapt(cluster, ByTasks, least, most)
        yield cluster, most


def _started(settings: ClusterSettings, count: int, most: int, slots: int, device: str) -> Any:
    options: dict[str, Any] = {
        "n_workers": count,
        "threads_per_worker": slots,
        "host": LOOPBACK,
        "protocol": "tls://",
        "security": draw_credentials().security(),
        "dashboard_address": f"{LOOPBACK}:0",
        "scheduler_kwargs": {"dashboard": settings.dashboard},
        "silence_logs": logging.CRITICAL,
    }
    if device == "cuda" and most > 1:
        if find_spec("dask_cuda") is None:
            raise MissingExtra(
                f"{most} workers on GPUs need dask-cuda, which is not installed: pip install 'influence[gpu]'. "
                "For a single GPU set cluster.workers to 1."
            )
        from dask_cuda import LocalCUDACluster  # type: ignore[import-not-found]

        return LocalCUDACluster(**options, device_memory_limit=0, memory_limit=0)
    return LocalCluster(**options, processes=True, memory_limit=0, worker_dashboard_address=None)


def _in_this_process(settings: ClusterSettings, slots: int) -> Any:
    """Return a cluster whose worker is a thread of this process: tasks go to it as objects, by no socket."""
    return LocalCluster(
        n_workers=1,
        threads_per_worker=slots,
        processes=False,
        memory_limit=0,
        # Without an address, distributed's pages of health and numbers are on every interface.
        dashboard_address=f"{LOOPBACK}:0",
        worker_dashboard_address=f"{LOOPBACK}:0",
        scheduler_kwargs={"dashboard": settings.dashboard},
        silence_logs=logging.CRITICAL,
    )


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
def interrupts_deferred() -> Iterator[None]:
    """Put Ctrl-C off, and SIGTERM where it is heard as one, while workers or a client start; then deliver it.

    Interrupted halfway, `distributed` leaves processes and tracebacks behind, and a client that can't be closed any
    more and keeps the process from ending. Workers inherit the deaf ear and keep it. Only the main thread hears
    signals, so elsewhere there is nothing to put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGTERM]):
        del before[signal.SIGTERM]
    for number in before:
        signal.signal(number, lambda number, frame: pressed.append(number))
    # Not SIGTERM, which workers must hear.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed:
        handler = before[signal.Signals(pressed[0])]
        if not callable(handler):
            raise KeyboardInterrupt
        handler(pressed[0], None)


@contextmanager
def _handlers_heard() -> Iterator[None]:
    """Keep the root logger's handlers as they are: a cluster that silences its own lines silences all of theirs."""
    before = [(handler, handler.level) for handler in logging.getLogger().handlers]
    try:
        yield
    finally:
        for handler, level in before:
            handler.setLevel(level)


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
