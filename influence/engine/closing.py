"""Close what `distributed` runs: a failure there is told, and never takes the place of a result or of an error.

On a busy machine a worker may take longer to end than `distributed` waits for it, which then raises a TimeoutError. By
then everything that the workers made stands on the disk.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


@contextmanager
def closed_at_last(resource: AbstractContextManager[T], what: str) -> Iterator[T]:
    """Enter a context, and tell it when its end fails instead of raising that.

    Args:
        resource: A cluster, or a client.
        what: Its name in a message.
    """
    entered = resource.__enter__()
    try:
        yield entered
    finally:
        with failures_told(what):
            resource.__exit__(*sys.exc_info())


@contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Log what goes wrong while something is closed; Ctrl-C goes through."""
    try:
        yield
    except Exception as error:
        log.warning(
            "%s did not close in order (%s). Results are complete; what is left of it ends with this process.",
            what,
            f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        )
