"""The session of this process, lent to a task: opened for the first one, and changed for those of another run."""

from collections.abc import Iterator
from contextlib import contextmanager

from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.engine.threads import torch_threads
from influence.engine.worker import lend_session


@contextmanager
def session_here(spec: CaptureSpec) -> Iterator[Session]:
    """Lend this process's session to a task, which computes with the specification's number of threads meanwhile.

    Raises:
        ClusterError: The worker has not been given the plugin.
        FingerprintMismatch: This machine has other files of the model than the run's coordinator.
    """
    with torch_threads(spec.threads), lend_session(spec, Session) as session:
        yield session
