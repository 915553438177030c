"""What is known of a client's workers: how many are to come, what to say while there are none, what went wrong.

Workers of a batch queue or of somebody else's scheduler come late and leave early. That is no reason to give up a task,
only to wait; where waiting has no sense any more, whoever watches the workers says so here, and the build hears of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from distributed import Client

from influence.errors import InfluenceError


@dataclass
class Workforce:
    """The workers of one client.

    Attributes:
        most: How many there will be at the most; 0 where nobody knows.
        absent: Says why there may be none, and what to do; for a log line.
        rounds: How often a task may be given up by the scheduler, because worker after worker was lost on it, before
            the build gives it up. Workers that are cancelled or preempted count like those that a task killed: nothing
            tells them apart on every kind of queue.
        failure: What ended the hope for workers, once something has.
    """

    most: int = 0
    absent: Callable[[], str] = lambda: "The workers that died are being replaced."
    rounds: int = 1
    failure: InfluenceError | None = None


_known: WeakKeyDictionary[Client, Workforce] = WeakKeyDictionary()


def introduce(client: Client, workforce: Workforce) -> None:
    """Keep what is known of a client's workers."""
    _known[client] = workforce


def workforce_of(client: Client) -> Workforce:
    """Return what is known of a client's workers."""
    return _known.get(client) or Workforce()
