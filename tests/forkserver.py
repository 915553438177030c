"""A server that has imported everything and forks processes off: one starts in a moment instead of five seconds.

`PROCESSES` is a context of `multiprocessing`. `workers_forked` lets a build's local workers come from the server, too.
What depends on how processes really start is tested with `subprocess` and the workers' own way, which is to be spawned.
"""

import multiprocessing
import os
from contextlib import AbstractContextManager
from multiprocessing import forkserver

import dask

PROCESSES = multiprocessing.get_context("forkserver")
# What can be imported without this suite's path, which the server doesn't have.
PRELOADED = ("influence.api", "distributed", "faiss", "transformers.models.llama.modeling_llama", "datasets")
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


def workers_forked() -> AbstractContextManager[object]:
    """Let local workers be forked off the server while this context is open."""
    if forkserver.get_inherited_fds() is None:
        # Started here with the imports of above, before dask asks for a server of its own.
        PROCESSES.Process(target=len, args=("",)).start()
    # The server has the environment that it was started in.
    environment = {"distributed.nanny.environ": dict(os.environ)}
    return dask.config.set({"distributed.worker.multiprocessing-method": "forkserver", **environment})


def share_server() -> None:
    """Take further processes from the server that forked this one.

    `ensure_running` says that it does so, yet it starts a second server, with the imports of above.
    """
    forkserver._forkserver.ensure_running = lambda: None
