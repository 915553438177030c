"""What a run's classifier makes of its own rows: the probability of every class, on the run's cluster.

A task is a block of rows and leaves a committed file, so that what was killed goes on. The model may have been trained
on these very rows: their probabilities are in-sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from influence.config import RunConfig
from influence.errors import InfluenceError
from influence.pipeline.batches import run_batches
from influence.pipeline.cluster import connect
from influence.pipeline.opening import check_unchanged, run_spec
from influence.pipeline.progress import Report, Stage
from influence.pipeline.session import Session
from influence.pipeline.spec import CaptureSpec
from influence.pipeline.submit import run_tasks
from influence.pipeline.tensors import load_tensors, save_tensors, saved_for
from influence.pipeline.worker import install, session_here
from influence.store.manifest import fingerprint_of
from influence.store.reader import Store

ROWS = 4096
"""Rows of a task."""
VERSION = 1


@dataclass(frozen=True)
class ProbabilityTask:
    """A block of rows whose classes a model is asked for."""

    spec: CaptureSpec
    folder: Path
    fingerprint: str
    first: int
    stop: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"probabilities of rows {self.first} to {self.stop - 1}"

    @property
    def file(self) -> Path:
        """What it leaves."""
        return self.folder / f"probabilities-{self.first:012d}.safetensors"


def class_probabilities(
    config: RunConfig, store: Store, folder: Path, report: Report | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield first row, probabilities float32 [b, classes] and the labels' class numbers int64 [b] of all rows in order.

    Probabilities are NaN where a row has no token.

    Of several checkpoints the last is asked.

    Args:
        config: Of a classifier's run; its cluster section says who computes.
        store: Its rows.
        folder: Where blocks are kept.
        report: Hears of every block.

    Raises:
        FingerprintMismatch: The model has changed since the rows were captured.
        InfluenceError: What else a worker met.
    """
    spec = run_spec(config, store.run_dir, store.manifest)
    fingerprint = fingerprint_of({"rows": store.manifest.fingerprint, "what": "probabilities", "version": VERSION})
    blocks = range(0, store.rows, ROWS)
    tasks = [ProbabilityTask(spec, folder, fingerprint, first, min(store.rows, first + ROWS)) for first in blocks]
    missing = [task for task in tasks if not saved_for(task.file, fingerprint)]
    stage = Stage("probabilities", len(tasks), report, done=len(tasks) - len(missing))
    if missing:
        check_unchanged(config, store.run_dir, store.manifest)
        with connect(config.cluster, len(missing), store.run_dir) as client:
            install(client, local=config.cluster.here)
            for _ in run_tasks(client, ask_block, missing, lambda task: task.name, stage):
                stage.finished()
    for task in tasks:
        found = load_tensors(task.file, fingerprint)
        yield task.first, found["probabilities"].numpy(), found["classes"].numpy()


def ask_block(task: ProbabilityTask) -> int:
    """Ask a block's rows and save what comes back; the entry point of a task."""
    try:
        with session_here(task.spec) as session:
            examples = [session.rows.example(row) for row in range(task.first, task.stop)]
            parts = session.tokenise(examples)
            with session.computing:
                found = _asked(session, parts, len(examples))
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    classes = torch.tensor([part.label for part in parts], dtype=torch.int64)
    save_tensors(task.file, {"probabilities": found, "classes": classes}, task.fingerprint)
    return task.first


def _asked(session: Session, parts: Any, count: int) -> torch.Tensor:
    """Return the probabilities of every class, float32 [count, classes]."""
    session.load(session.checkpoints - 1)
    # Nothing is differentiated. Whoever captures next sets hooks again.
    session.close()
    classes = int(session.model.config.num_labels)

    def compute(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            logits = session.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            return torch.softmax(logits.float(), dim=1), torch.zeros(len(logits))

    found = torch.full((count, classes), torch.nan)
    names = [f"row {position} of the block" for position in range(count)]
    used = session.contributing(parts)
    budget, pad, device = session.token_budget, session.pad, session.device
    for piece in run_batches(compute, used, names, width=classes, budget=budget, pad=pad, device=device):
        found[[part.position for part in piece.parts]] = piece.rows.float().cpu()
    return found


__all__ = ["ProbabilityTask", "ask_block", "class_probabilities"]
