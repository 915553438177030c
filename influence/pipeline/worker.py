"""What a worker process holds: one session, opened when its first task asks for it."""

import os
import signal
import sys
import threading
from typing import Any

import torch
from distributed import Client, Worker, WorkerPlugin, get_worker

from influence.errors import ClusterError
from influence.pipeline.session import Session
from influence.pipeline.spec import CaptureSpec

PLUGIN = "influence-session"


class SessionPlugin(WorkerPlugin):
    """Keeps a worker's session, so that the model is loaded once a process however many shards it captures."""

    name = PLUGIN
    idempotent = True

    def __init__(self, threads: int, *, local: bool) -> None:
        """Remember the settings.

        Args:
            threads: What torch computes with in this process; decides the order of additions, so the same everywhere.
            local: The process is ours alone: Ctrl-C and standard output, which it shares with the coordinator, are the
                coordinator's business.
        """
        self.threads = threads
        self.local = local

    def setup(self, worker: Worker) -> None:
        """Prepare the process; the model waits for the first task, whose caller then hears of its errors."""
        self._opening = threading.Lock()
        self._session: Session | None = None
        # A worker that is a thread of the coordinator (in tests) must leave its process as it is.
        if self.local and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.flush()
            os.dup2(2, 1)

    def teardown(self, worker: Worker) -> None:
        """Let go of the model."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def session(self, spec: CaptureSpec) -> Session:
        """Return the session of this specification, opening it if the one at hand is another's."""
        with self._opening:
            if self._session is not None and not self._session.serves(spec):
                self._session.close()
                self._session = None
            if self._session is None:
                # The thread count may only change while nothing computes: under the other task slot's products it makes
                # wrong rows.
                torch.set_num_threads(self.threads)
                self._session = Session(spec)
            self._session.project(spec)
            return self._session


def install(client: Client, threads: int, *, local: bool) -> None:
    """Give every worker, present and to come, its plugin."""
    client.register_plugin(SessionPlugin(threads, local=local))


def session_here(spec: CaptureSpec) -> Session:
    """Return this worker's session.

    Raises:
        ClusterError: The worker has not been given the plugin.
    """
    plugin: Any = get_worker().plugins.get(PLUGIN)
    if plugin is None:
        raise ClusterError(
            "This worker has no session plugin: it joined the scheduler without the build noticing. Build again."
        )
    return plugin.session(spec)
