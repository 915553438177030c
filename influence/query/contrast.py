"""Ask for one answer rather than another: the measurement log p(A) − log p(B), in memory.

    scores = influence.pairwise(model, Contrast(task), train, [(batch_of_a, batch_of_b)])

Rows that only make a model surer of both answers cancel; what stays is what favours A. Rows are scored by the task's
own loss. The gradient of a difference is the difference of the gradients, so scores under `dot` are those of A less
those of B; under `cosine` the difference is what has unit length.
"""

from typing import Any

from influence.axes import PerExample
from influence.errors import TaskError
from influence.task import Task, measurement


class Contrast:
    """A task whose queries come as pairs of batches, (A, B), of the same number of examples in the same order."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def example_loss(self, model: Any, batch: Any) -> PerExample:
        """Return the task's own loss of each training example, [N]."""
        return self.task.example_loss(model, batch)

    def measurement(self, model: Any, batch: Any) -> PerExample:
        """Return the measurement of A less that of B, of each pair, [N].

        Raises:
            TaskError: It isn't a pair of batches, or they differ in their examples.
        """
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise TaskError(f"A contrast's query is a pair of batches, (A, B); found {type(batch).__name__}.")
        wanted, other = (measurement(self.task, model, side) for side in batch)
        if wanted.shape != other.shape:
            raise TaskError(
                f"A contrast's two batches must have the same examples; A has {len(wanted)} and B has {len(other)}."
            )
        return wanted - other

    @property
    def sampled_loss(self) -> Any:
        """The task's own, where it has one, for the true Fisher of the training examples."""
        return self.task.sampled_loss  # type: ignore[attr-defined]


__all__ = ["Contrast"]
