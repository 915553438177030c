"""The model under examination, and the rows it is examined with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from influence.baselines.repsim import HiddenStates
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.batch import Batch, collate
from influence.data.dataset import Rows
from influence.data.example import Example
from influence.data.tokenise import NOT_SCORED, Part
from influence.data.truncation import nothing_scored
from influence.doctor.check import TOLERANCE
from influence.errors import DataError
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection
from influence.model.load import pad_id

ROWS = 10
SEARCHED = 256
"""Rows looked through for ten with a scored token."""


class Subject:
    """The model under examination, its hooks set, and the sampled rows."""

    def __init__(self, session: Session, capture: Capture | HiddenStates, parts: Sequence[Part]) -> None:
        self.session, self.capture, self.parts = session, capture, list(parts)
        self.pad = pad_id(session.model, session.tokeniser)

    @property
    def tolerance(self) -> float:
        """The relative error that its dtype may cause."""
        return TOLERANCE[str(self.session.spec.model.dtype)]

    def batch(self, parts: Sequence[Part], extra: int = 0) -> Batch:
        """Return parts as a batch with some columns of padding more than they need."""
        batch = collate(parts, self.pad)
        more = (len(parts), extra)
        return replace(
            batch,
            input_ids=torch.cat([batch.input_ids, torch.full(more, self.pad)], dim=1),
            attention_mask=torch.cat([batch.attention_mask, torch.zeros(more, dtype=torch.int64)], dim=1),
            labels=torch.cat([batch.labels, torch.full(more, NOT_SCORED)], dim=1),
        ).to(self.session.device)

    def rows(self, parts: Sequence[Part], extra: int = 0) -> Tensor:
        """Return the loss gradients of parts captured as one batch, or their hidden states, [n, D], on the CPU."""
        return self.capture(self.session.task.example_loss, self.batch(parts, extra))[0].cpu()

    def alone(self) -> Tensor:
        """Return every row captured alone, without padding, [n, D]."""
        return torch.cat([self.rows([part]) for part in self.parts])


def capture_of(session: Session) -> Capture | HiddenStates:
    """Return what captures rows, apart from the session's own."""
    if session.spec.baseline is not None:
        return HiddenStates(session.model)
    return Capture(session.model, session.layers, Projection(session.spec.projection))


@contextmanager
def opened(config: RunConfig) -> Iterator[Session]:
    """Load the model, and leave it without the session's own hooks: checks set theirs."""
    session = Session(CaptureSpec.of(config))
    session.close()
    yield session


def searched(session: Session, rows: Rows) -> tuple[list[Example], list[Part]]:
    """Return rows spread over the data, and their parts."""
    step = max(1, len(rows) // SEARCHED)
    examples = [rows.example(row) for row in range(0, len(rows), step)[:SEARCHED]]
    return examples, session.tokenise(examples)


def sample(
    session: Session, rows: Rows, examples: Sequence[Example], parts: Sequence[Part]
) -> tuple[list[Example], list[Part]]:
    """Return ten of some rows with something to score, spread over them, each with its first such part."""
    first: dict[int, Part] = {}
    for part in parts:
        if part.scored:
            first.setdefault(part.position, part)
    scored = list(first.values())
    if not scored:
        raise DataError(nothing_scored(parts, len(examples), rows.place, session.spec.data.max_tokens))
    chosen = scored[:: max(1, len(scored) // ROWS)][:ROWS]
    return [examples[part.position] for part in chosen], chosen
