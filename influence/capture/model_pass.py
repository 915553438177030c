"""A pass over a run's rows with its model, without gradients: what the model makes of every row, on the run's cluster.

A task is a block of rows and leaves a committed file, so that what was killed goes on. Of several checkpoints the last
is asked. The model may have been trained on these very rows: what it says of them is in-sample.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from influence.capture.opening import check_unchanged, run_spec
from influence.capture.process_session import session_here
from influence.capture.queries import TOKEN_SECONDS
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.tokenise import Part
from influence.engine.dispatch import complete, workers_for
from influence.engine.progress import Report
from influence.engine.stage import Stage, Task
from influence.model.load import weight_count
from influence.store.manifest import fingerprint_of
from influence.store.reader import Store

ROWS = 4096
"""Rows of a task."""
VERSION = 1

Ask = Callable[[Session, list[Part], int], dict[str, torch.Tensor]]
"""What is computed of a block: its parts and its number of rows to tensors, a line a row."""


@dataclass
class ModelPass(Stage):
    """What a model makes of blocks of rows.

    Attributes:
        spec: Of the run.
        folder: Where it leaves what it found.
        stored: Fingerprint of the rows.
        name: What is computed, in a word or two; for messages and names of files.
        ask: Computes it; a function of a module, which workers import.
        rows: N.
    """

    spec: CaptureSpec
    folder: Path
    stored: str
    name: str
    ask: Ask
    rows: int

    @property
    def key(self) -> str:
        """Of the rows and of what is computed."""
        return fingerprint_of({"rows": self.stored, "what": self.name, "version": VERSION})

    def cut(self) -> list[Task]:
        """Return a task for each block of `ROWS` rows."""
        key, tasks = self.key, list[Task]()
        for number, first in enumerate(range(0, self.rows, ROWS)):
            stop = min(self.rows, first + ROWS)
            path = self.folder / f"{self.name.replace(' ', '-')}-{first:012d}.safetensors"
            tasks.append(Task(self, number, f"{self.name} of rows {first} to {stop - 1}", (first, stop), path, key))
        return tasks

    def session(self, task: Task) -> AbstractContextManager[Session]:
        """Lend the session of the run."""
        return session_here(self.spec)

    def run(self, task: Task, session: Session) -> None:
        """Compute over a block's rows and save it."""
        examples = [session.rows.example(row) for row in range(*task.span)]
        parts = session.tokenise(examples)
        with session.computing:
            session.load(session.checkpoints - 1)
            # Nothing is differentiated. Whoever captures next sets hooks again.
            session.close()
            tensors = self.ask(session, parts, len(examples))
        task.save(tensors)


def model_pass(
    config: RunConfig, store: Store, folder: Path, what: str, ask: Ask, report: Report | None = None
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Yield (first row, what was computed of the block) of all rows in order; a block in memory at a time.

    Workers are started where there is enough to do.

    Args:
        config: Of the run; its cluster section says who computes.
        store: Its rows.
        folder: Where blocks are kept, on a disk that workers see.
        what: Is asked, in a word or two.
        ask: Computes it, of the checkpoint that is loaded, with no hooks on the model.
        report: Hears of every block.

    Raises:
        FingerprintMismatch: The model has changed since the rows were captured.
        InfluenceError: What else a worker met.
    """
    spec = run_spec(config, store.run_dir, store.manifest)
    stage = ModelPass(spec, folder, store.manifest.fingerprint, what, ask, store.rows)
    missing = stage.missing()
    if missing:
        check_unchanged(config, store.run_dir, store.manifest)
    tokens = sum(task.span[1] - task.span[0] for task in missing) * config.data.max_tokens
    seconds = tokens * weight_count(config.model) * TOKEN_SECONDS if missing else 0.0
    with workers_for(config, store.run_dir, seconds, len(missing)) as workers:
        complete([stage], workers, report)
    for task in stage.cut():
        yield task.span[0], task.load()


__all__ = ["Ask", "ModelPass", "model_pass"]
