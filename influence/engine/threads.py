"""How many threads torch computes with: a part of what decides the bits of a product, so set where products are made.

Torch keeps the number by thread, and a thread that was never told computes its first products with as many threads as
there are cores. The thread that a task happens to run in would then decide the last bits of what it writes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_changed = threading.Condition()
_computing: dict[int, int] = {}
"""How many blocks compute with each number of threads; one number at a time."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with this many threads inside the block, whichever thread of the process runs it.

    Blocks with the same number run side by side. One with another number waits: changed under the others' products it
    would make their numbers wrong. Afterwards the calling thread has the number that it had before.
    """
    with _changed:
        _changed.wait_for(lambda: not _computing or count in _computing)
        _computing[count] = _computing.get(count, 0) + 1
        before = torch.get_num_threads()
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _changed:
            _computing[count] -= 1
            if not _computing[count]:
                del _computing[count]
                torch.set_num_threads(before)
            _changed.notify_all()
