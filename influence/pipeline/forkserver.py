"""The process that local CPU workers are forked from: it has imported everything, once for all of them.

Imports are most of what starting a worker takes (torch and transformers, some five seconds). This module itself imports
nothing heavy, so that a command can start the process first and do its own imports beside it. CUDA does not survive a
fork and other systems than Linux fork badly: there workers are spawned and import for themselves.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys

IMPORTED = ["influence.pipeline.worker", "transformers.models.auto.modeling_auto"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""What a process that computes must find when it starts. A session sets torch's threads to what the settings say.

MALLOC is glibc's: keep freed memory for the next batch. Dask's own default gives free pages back at once, and each
batch then pays for them again, page by page. The capacities are those of torch's and oneDNN's caches of compiled
products, which hold half a megabyte for every new shape, and batches come in thousands of shapes: enough for one."""

SUPPORTED = sys.platform == "linux"


def start() -> None:
    """Start the process, unless it runs already; it ends with this one. Does not wait for its imports."""
    if not SUPPORTED:
        return
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    # Ctrl-C is the coordinator's business: a process inherits what is blocked where it is started.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.environ.update(ENVIRONMENT)
        multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
