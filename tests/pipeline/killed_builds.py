"""A build in a process of its own that starts in a moment: its server has imported everything and only forks."""

import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path

import dask
import torch
from distributed import Client, LocalCluster

from influence.config import load_config
from influence.engine import cluster
from influence.stages import build as build_module

PROCESSES = multiprocessing.get_context("forkserver")
# What can be imported without this suite's path, which the server doesn't have.
PRELOADED = ("influence.run", "distributed", "faiss", "transformers.models.llama.modeling_llama", "datasets")
LATE = (
    "influence.model.attention",
    "influence.store.codecs.kernels",
    *(f"numba.{name}" for name in ("core.ccallback", "core.inline_closurecall", "core.typing.cffi_utils")),
    *(f"numba.{name}" for name in ("experimental.function_type", "experimental.jitclass.base", "misc.cffiimpl")),
    *(f"numba.{name}" for name in ("np.arraymath", "np.linalg", "np.polynomial", "np.random.generator_methods")),
    *(f"numba.{name}" for name in ("typed.typeddict", "typed.typedlist", "typed.typedset", "cpython.unicode")),
    *("datasets.packaged_modules.generator.generator", "transformers.convert_slow_tokenizer", "scipy.io"),
)
"""What a build imports only when it is needed."""
VERBS = ("influence.cli.main", "influence.cli.diagnosis_tables", "influence.issues.issues", "influence.export.undo")
PAGE = (
    *("influence.demo.dirty", "influence.demo.classifier", "influence.groups.groups", "influence.export.clean"),
    *("transformers.models.modernbert.modeling_modernbert", "transformers.trainer"),
)
"""What the worked page on data quality imports besides."""
PROCESSES.set_forkserver_preload([*PRELOADED, *LATE, *VERBS, *PAGE])


@contextmanager
def connect(*_):
    """A cluster whose one worker is a thread: it dies with the process."""
    quiet = {"threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with (
        dask.config.set(cluster.QUIET),
        LocalCluster(n_workers=1, processes=False, **quiet) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def build(settings: Path, run_dir: Path) -> None:
    """Build a run; what it says goes into a file beside it."""
    torch.set_num_threads(1)
    with run_dir.with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), 2)
    build_module.connect = connect
    build_module.build_run(load_config(settings), run_dir)


def started(settings: Path, run_dir: Path):
    """Start building a run, and return the process."""
    process = PROCESSES.Process(target=build, args=(settings, run_dir))
    process.start()
    return process
