"""How many workers a cluster of our own should have now: one for each task that is not finished, within bounds.

Dask's own rule reckons from how long tasks took so far; ours are long and few, and all of them are worth a worker.
"""

from typing import Any

from distributed.deploy.adaptive import Adaptive

EVERY = "1s"
PATIENCE = 30
"""How many times in a row, `EVERY` apart, a worker has to be one too many before it goes: stages follow one another."""
OPEN = ("waiting", "queued", "no-worker", "processing")


class ByTasks(Adaptive):
    """Keeps one worker for each open task, between a smallest and a largest number."""

    async def target(self) -> int:
        """Return how many workers the open tasks are worth; a busy worker is never among those too many."""
        scheduler: Any = self.cluster.scheduler  # type: ignore[attr-defined]
        return sum(task.state in OPEN for task in scheduler.tasks.values())


def adapt(cluster: Any, rule: type[ByTasks], smallest: int, largest: int, **options: Any) -> Any:
    """Let a cluster grow and shrink between two numbers of workers from now on."""
    return cluster.adapt(
        Adaptive=rule, minimum=smallest, maximum=largest, interval=EVERY, wait_count=PATIENCE, **options
    )
