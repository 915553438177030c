"""What a process that does tasks holds: one session, opened for the first task that needs it.

A worker has it in its plugin. A process that does a few tasks itself has it inside `sessions_here`. What a session is,
the room knows that hands out the tasks: here it is something that a specification opens.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from distributed import Client, Worker, WorkerPlugin, get_worker

from influence.errors import ClusterError

PLUGIN = "influence-session"


class Session(Protocol):
    """What is expensive to open, and serves every task of one specification."""

    def serves(self, spec: Any) -> bool:
        """Whether it can be changed into what a specification describes without being opened anew."""
        ...

    def is_of(self, spec: Any) -> bool:
        """Whether it is what a specification describes, without any change."""
        ...

    def project(self, spec: Any) -> None:
        """Change it into what a specification that it serves describes."""
        ...

    def close(self) -> None:
        """Let go of what it set up."""
        ...


Open = Callable[[Any], Session]
"""Opens the session of a specification."""


class Holding:
    """A process's session, so that the model is loaded once for all of its tasks."""

    def __init__(self) -> None:
        self._returned = threading.Condition()
        self._session: Session | None = None
        self._lent = 0

    @contextmanager
    def lend(self, spec: Any, opens: Open) -> Iterator[Any]:
        """Lend the session of this specification, opening or changing the one at hand if it is another's.

        Tasks of one specification have it side by side. A task of another waits until they have returned it: two builds
        may share a scheduler, and what is left of one that failed may still be running when the next begins.
        """
        with self._returned:
            self._returned.wait_for(lambda: not self._lent or (self._session is not None and self._session.is_of(spec)))
            if self._session is not None and not self._session.serves(spec):
                self.close()
            if self._session is None:
                self._session = opens(spec)
            self._session.project(spec)
            session = self._session
            self._lent += 1
        try:
            yield session
        finally:
            with self._returned:
                self._lent -= 1
                self._returned.notify_all()

    def close(self) -> None:
        """Let go of the session; whoever lends it must have it back."""
        if self._session is not None:
            self._session.close()
            self._session = None


class SessionPlugin(WorkerPlugin):
    """Keeps a worker's session.

    Nothing is let go of when the worker closes: its tasks' threads go on until the process ends, and a shard whose
    hooks were removed under it would be committed with zeros in it.
    """

    name = PLUGIN
    idempotent = True

    def __init__(self, *, local: bool) -> None:
        """Remember the setting.

        Args:
            local: The process is ours alone: Ctrl-C and standard output, which it shares with the coordinator, are the
                coordinator's business.
        """
        self.local = local

    def setup(self, worker: Worker) -> None:
        """Prepare the process; the model waits for the first task, whose caller then hears of its errors."""
        self.holding = Holding()
        # A worker that is a thread of the coordinator (in tests) must leave its process as it is.
        if self.local and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.flush()
            os.dup2(2, 1)

    def lend(self, spec: Any, opens: Open) -> AbstractContextManager[Any]:
        """Lend the session of this specification; see `Holding.lend`."""
        return self.holding.lend(spec, opens)


def install(client: Client, *, local: bool) -> None:
    """Give every worker, present and to come, its plugin."""
    client.register_plugin(SessionPlugin(local=local))


_here: ContextVar[Holding | None] = ContextVar("here", default=None)


@contextmanager
def sessions_here() -> Iterator[None]:
    """Let this thread do tasks itself: the session that they ask for is opened here, and closed when this ends."""
    holding = Holding()
    token = _here.set(holding)
    try:
        yield
    finally:
        _here.reset(token)
        holding.close()


def lend_session(spec: Any, opens: Open) -> AbstractContextManager[Any]:
    """Lend this process's session of a specification to a task; see `Holding.lend`.

    Raises:
        ClusterError: The worker has not been given the plugin.
    """
    return (_here.get() or _workers()).lend(spec, opens)


def _workers() -> SessionPlugin:
    plugin: Any = get_worker().plugins.get(PLUGIN)
    if plugin is None:
        raise ClusterError(
            "This worker has no session plugin: it joined the scheduler without the build noticing. Build again."
        )
    return plugin
