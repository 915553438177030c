"""A pass over a run's rows with its model, without gradients: what the model makes of every row, on the run's cluster.

A task is a block of rows and leaves a committed file, so that what was killed goes on. Of several checkpoints the last
is asked. The model may have been trained on these very rows: what it says of them is in-sample.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from influence.artifacts.tensors import load_tensors, save_tensors, saved_for
from influence.capture.opening import check_unchanged, run_spec
from influence.capture.process_session import session_here
from influence.capture.queries import TOKEN_SECONDS
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.tokenise import Part
from influence.engine.dispatch import dispatcher
from influence.engine.progress import Progress, Report
from influence.errors import InfluenceError
from influence.model.load import weight_count
from influence.store.manifest import fingerprint_of
from influence.store.reader import Store

ROWS = 4096
"""Rows of a task."""
VERSION = 1

Ask = Callable[[Session, list[Part], int], dict[str, torch.Tensor]]
"""What is computed of a block: its parts and its number of rows to tensors, a line a row."""


@dataclass(frozen=True)
class PassTask:
    """A block of rows that a model is asked about.

    Attributes:
        spec: Of the run.
        folder: Where it leaves what it found.
        fingerprint: Of the rows and of what is asked.
        what: Is asked, for messages and names of files.
        ask: Computes it; a function of a module, which workers import.
        first: The first row.
        stop: The row after the last.
    """

    spec: CaptureSpec
    folder: Path
    fingerprint: str
    what: str
    ask: Ask
    first: int
    stop: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.what} of rows {self.first} to {self.stop - 1}"

    @property
    def file(self) -> Path:
        """What it leaves."""
        return self.folder / f"{self.what.replace(' ', '-')}-{self.first:012d}.safetensors"


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
    fingerprint = fingerprint_of({"rows": store.manifest.fingerprint, "what": what, "version": VERSION})
    blocks = range(0, store.rows, ROWS)
    tasks = [PassTask(spec, folder, fingerprint, what, ask, first, min(store.rows, first + ROWS)) for first in blocks]
    missing = [task for task in tasks if not saved_for(task.file, fingerprint)]
    stage = Progress(what, len(tasks), report, done=len(tasks) - len(missing))
    if missing:
        check_unchanged(config, store.run_dir, store.manifest)
        tokens = sum(task.stop - task.first for task in missing) * config.data.max_tokens
        seconds = tokens * weight_count(config.model) * TOKEN_SECONDS
        with dispatcher(config, store.run_dir, seconds, len(missing)) as dispatch:
            for _ in dispatch(run_pass, missing, stage):
                pass
    for task in tasks:
        yield task.first, load_tensors(task.file, fingerprint)


def run_pass(task: PassTask) -> int:
    """Ask about a block's rows and save what comes back; the entry point of a task."""
    try:
        with session_here(task.spec) as session:
            examples = [session.rows.example(row) for row in range(task.first, task.stop)]
            parts = session.tokenise(examples)
            with session.computing:
                session.load(session.checkpoints - 1)
                # Nothing is differentiated. Whoever captures next sets hooks again.
                session.close()
                found = task.ask(session, parts, len(examples))
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    save_tensors(task.file, found, task.fingerprint)
    return task.first


__all__ = ["Ask", "PassTask", "model_pass", "run_pass"]
