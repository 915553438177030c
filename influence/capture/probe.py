"""A look at a run before it starts, on a worker: what resolves to what, and whether gradients arrive at all."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from influence.axes import ModuleColumns
from influence.capture.drawn import drawn
from influence.capture.fingerprint import Probed
from influence.capture.process_session import session_here
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.capture.transfer import Piece
from influence.coverage import Coverage
from influence.data.batch import Batch, collate
from influence.data.dataset import open_rows
from influence.data.example import Example, place_of
from influence.data.tokenise import Part
from influence.data.truncation import nothing_scored
from influence.engine.dispatch import Workers, complete
from influence.engine.memory import out_of_memory
from influence.engine.poison import died_of
from influence.engine.progress import Progress
from influence.engine.quarantine import without_failing_rows
from influence.engine.stage import NO_DEAD, Dead, RowStage, Task
from influence.errors import CaptureError, ClusterError, DataError, ModelError
from influence.gradients.capture_check import check_capture
from influence.task import row_loss

log = logging.getLogger(__name__)

ROWS = 16
"""Rows that a probe captures."""
COMPARED = 4
"""Rows of the ordinary backward pass that the hooks are held against."""
SEARCHED = 1024
"""Rows it looks through for some with a scored token."""


@dataclass
class Probe(RowStage):
    """A look at a few rows, by one worker.

    Attributes:
        spec: To open.
        shared: A file of the coordinator's that shows whether the worker shares its disk; None looks for nothing.
        found: What the worker answered.
    """

    spec: CaptureSpec
    shared: Path | None
    found: Probed | None = None

    name = "probe"
    single = True

    def cut(self) -> list[Task]:
        """Return the one task, whose rows are those that are looked at first."""
        rows = tuple(_spread(len(open_rows(self.spec.data))))
        return [Task(self, 0, "the probe of the model and data", rows=rows)]

    @contextmanager
    def session(self, task: Task) -> Iterator[Session]:
        """Lend the session of the specification, where the disk is shared."""
        if self.shared is not None and not self.shared.exists():
            raise ClusterError(
                f"A worker does not see {self.shared}, which is on the coordinator's disk. Workers write their "
                "shards themselves: put the run directory (and the data and model) on a disk that all of them share."
            )
        with session_here(self.spec) as session:
            yield session

    @property
    def room(self) -> int:
        """As many as may be set aside."""
        return self.spec.data.quarantine

    def run(
        self, task: Task, session: Session, dead: Dead = NO_DEAD, tokenised: Callable[[], None] = lambda: None
    ) -> Probed:
        """Probe without the dead rows."""
        for position, during in dead.items():
            log.warning("The probe leaves out row %d: %s", task.rows[position], died_of(during))
        return probe(session, [task.rows[position] for position in dead], tokenised)

    def rehearse(self, task: Task, session: Session, positions: Sequence[int], tokenised: Callable[[], None]) -> None:
        """Capture some of the rows."""
        examples = [session.rows.example(task.rows[position]) for position in positions]
        parts = session.contributing(session.tokenise(examples))
        tokenised()
        names = [place_of(example) for example in examples]
        everyone = range(len(examples))
        without_failing_rows(lambda chosen: _rows_of(session, parts, names, chosen), everyone, len(examples))

    def take(self, result: Probed, progress: Progress) -> None:
        """Keep what was found."""
        self.found = result


def probe_by(workers: Workers, spec: CaptureSpec, shared: Path | None = None) -> Probed:
    """Probe a specification on one of the workers; see `Probe` and `probe`."""
    stage = Probe(spec, shared)
    complete([stage], workers)
    assert stage.found is not None, "a probe that ends without an error has an answer"
    return stage.found


def probe(session: Session, left_out: Collection[int] = (), tokenised: Callable[[], None] = lambda: None) -> Probed:
    """Capture a few rows spread over the data set and look at them.

    Rows among them that fail alone are left out here, with a log line; the capture sets them aside by name.

    Args:
        session: The run's.
        left_out: Rows that are not to be touched.
        tokenised: Called between the tokeniser and the model.

    Raises:
        DataError: No row has a scored token.
        ModelError: Every gradient is zero, a tracked layer's is another than its calls show or can't be split by
            example, or most of what was trained isn't tracked.
        CaptureError: No row's gradient is finite, or one isn't and none may be set aside; rows are named.
    """
    examples, parts = _scored_rows(session, left_out)
    tokenised()
    names = [place_of(example) for example in examples]
    looked_at = sorted({part.position for part in parts[:ROWS]})

    def attempt(positions: Sequence[int]) -> tuple[torch.Tensor, list[str]]:
        return _rows_of(session, parts[:ROWS], names, positions)

    most = len(looked_at) - 1 if session.spec.data.quarantine else 0
    (rows, drawings), failed = without_failing_rows(attempt, looked_at, most)
    for position, error in failed.items():
        log.warning("The probe leaves out %s: %s", names[position], error)
    coverage = _coverage(session, [part for part in parts[:ROWS] if part.position not in failed])
    silent = silent_modules(rows, session.modules)
    if len(silent) == len(session.modules):
        raise ModelError(
            f"The gradient of {len(rows)} rows is zero in all {len(silent)} tracked layers "
            f"({', '.join(silent[:5])}, …). Is the "
            "model trained, and are these layers part of its forward pass? Choose others with model.layers."
        )
    if silent:
        named = ", ".join(silent[:10]) + (", …" if len(silent) > 10 else "")
        log.warning(
            "%d of %d tracked layers had a zero gradient on every probed row: %s.",
            len(silent),
            len(session.modules),
            named,
        )
    tokens = sum(len(part.input_ids) for part in parts)
    return Probed(
        modules=session.modules,
        dims=session.dims,
        dtype=str(session.spec.model.dtype),
        device=session.device.type,
        device_name=session.device_name,
        token_budget=session.token_budget,
        model_bytes=sum(weight.nbytes for weight in session.model.parameters()),
        tokens_per_row=tokens / len({part.position for part in parts}),
        drawn=tuple(drawings),
        coverage=coverage,
    )


def _rows_of(
    session: Session, parts: Sequence[Part], names: Sequence[str], positions: Sequence[int]
) -> tuple[torch.Tensor, list[str]]:
    """Return what `_captured` does of the rows at some positions."""
    wanted = set(positions)
    return _captured(session, [part for part in parts if part.position in wanted], names)


def _captured(session: Session, parts: Sequence[Part], names: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """Return the rows of some parts, [n, D], and what trak's projector drew for each checkpoint."""
    captured, drawings = [], []
    # Another build's tasks may have the session, too.
    with session.computing:
        for number in range(session.checkpoints):
            session.load(number)
            pieces = session.losses(parts, names)
            captured.append(torch.cat([_checked(piece, names, session.spec.row_is) for piece in pieces]))
            if session.rows_capture.record is not None:
                drawings.append(drawn(session.rows_capture.record))
    return torch.cat(captured, dim=1), drawings


def _coverage(session: Session, parts: Sequence[Part]) -> Coverage | None:
    """Check that the hooks see what was trained, and return which share of it is tracked; None of hidden states.

    Raises:
        ModelError: See `check_capture`.
        CaptureError: A training step on the shortest rows doesn't fit into memory.
    """
    if not session.layers:
        return None
    # The shortest, so that what a training step holds of them fits beside the model.
    chosen = sorted(parts, key=lambda part: len(part.input_ids))[:COMPARED]
    batch = collate(chosen, session.pad).to(session.device)
    kind, settings = session.spec.measurement, session.spec.model.layers

    def measure(model: Any, batch: Batch) -> torch.Tensor:
        return row_loss(session.task, model, batch, kind)

    with session.computing:
        hooks = session.rows_capture
        session.close()
        try:
            return check_capture(session.model, session.layers, settings, measure, batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise CaptureError(
                f"A training step on {len(chosen)} rows of {batch.padded} padded tokens, which the capture is "
                "compared with, does not fit into memory. Set model.gradient_checkpointing, or use a larger device."
            ) from error
        finally:
            session.set_hooks(hooks)


def silent_modules(rows: torch.Tensor, modules: Sequence[ModuleColumns]) -> list[str]:
    """Return the modules whose columns are zero in every row, [n, D]."""
    used = rows.ne(0).any(dim=0)
    return [module.name for module in modules if not bool(used[module.start : module.stop].any())]


def _spread(count: int) -> list[int]:
    """Return rows spread evenly over so many."""
    return list(range(0, count, max(1, count // ROWS)))[:ROWS]


def _scored_rows(session: Session, left_out: Collection[int]) -> tuple[list[Example], list[Part]]:
    """Return rows spread evenly over the data set, and those of their parts that have scored tokens."""
    count = len(session.rows)
    examples, found = [], []
    for chosen in (_spread(count), range(0, count, max(1, count // SEARCHED))[:SEARCHED]):
        examples = [session.rows.example(row) for row in chosen if row not in left_out]
        found = session.tokenise(examples)
        parts = session.contributing(found)
        if parts:
            return examples, parts
    raise DataError(nothing_scored(found, len(examples), session.rows.place, session.spec.data.max_tokens))


def _checked(piece: Piece, names: Sequence[str], row_is: str) -> torch.Tensor:
    finite = torch.isfinite(piece.rows).all(dim=1).tolist()
    for part, good in zip(piece.parts, finite, strict=True):
        if not good:
            raise CaptureError(
                f"The {row_is} of {names[part.position]} is not finite. Look for inf or NaN in the model's outputs "
                "on that text; "
                "in float16 activations overflow where bfloat16 or float32 would not (model.dtype).",
                [part.position],
            )
    return piece.rows
