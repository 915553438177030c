"""One group of the sampled rows, summed over in a worker's session: what Kronecker factors are made of.

Labels are drawn with numbers that belong to their row, so that a group's sums don't depend on how its rows are batched.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.artifacts.tensors import load_all, save_tensors
from influence.capture.batches import cut, halved
from influence.capture.process_session import session_here
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec, FactorFiles
from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings, ModuleWidths
from influence.curvature.ekfac import EigenvalueFit, EigenvalueSums
from influence.curvature.kfac import Eigenbasis
from influence.data.batch import Batch, collate
from influence.data.example import place_of
from influence.data.tokenise import Part
from influence.engine.memory import out_of_memory
from influence.engine.poison import Dead, died_of
from influence.engine.quarantine import without_failing_rows
from influence.errors import CaptureError, InfluenceError
from influence.stages.decomposition import Pass
from influence.stages.partial_sums import partial_path
from influence.task import fisher_loss, fisher_scale

log = logging.getLogger(__name__)

Fit = CovarianceFit | EigenvalueFit


@dataclass(frozen=True)
class FactorTask:
    """What a worker is sent: one group of sampled rows to sum over at one checkpoint, in one of the two passes."""

    spec: CaptureSpec
    factors: FactorFiles
    kind: Pass
    number: int
    groups: int
    rows: tuple[int, ...]

    def session(self) -> AbstractContextManager[Session]:
        """Lend the session that it needs, in the process that does it."""
        return session_here(self.spec)

    @property
    def path(self) -> Path:
        """The partial's file."""
        return partial_path(self.factors.folder, self.kind, self.number, self.groups)

    @property
    def name(self) -> str:
        """The pass, the group and its rows, for messages."""
        at = f" at checkpoint {self.factors.checkpoint}" if len(self.spec.checkpoints) > 1 else ""
        return f"{self.kind} {self.number} of {self.groups} (rows {self.rows[0]} to {self.rows[-1]}, sampled){at}"

    @property
    def numbers(self) -> Sequence[int]:
        """The row at each position."""
        return self.rows


def run_group(task: FactorTask) -> int:
    """Sum over one group and save it; the entry point of a task. Returns the rows summed over."""
    with task.session() as session:
        return sum_group(session, task)


def try_group(
    session: Session, task: FactorTask, positions: Sequence[int], dead: Dead, tokenised: Callable[[], None]
) -> int | None:
    """Sum over one group without its dead rows; where that isn't what is left, try some rows and keep nothing.

    Raises:
        CaptureError: No row of the group is left.
    """
    if not positions:
        raise CaptureError(f"{task.name}: every row of it kills its worker, and nothing is left to fit factors to.")
    if len(positions) + len(dead) == len(task.rows):
        for position, during in dead.items():
            log.warning(
                "Row %d is left out of the sample that factors are fitted to: %s", task.rows[position], died_of(during)
            )
        return sum_group(session, task, positions, tokenised)
    with _named(task):
        _summed_most(session, task, positions, tokenised)
    return None


def sum_group(
    session: Session,
    task: FactorTask,
    positions: Sequence[int] | None = None,
    tokenised: Callable[[], None] = lambda: None,
) -> int:
    """Sum over one group, or its rows at some positions, and save it. Returns the rows of the group."""
    with _named(task):
        sums = _summed_most(session, task, range(len(task.rows)) if positions is None else positions, tokenised)
        save_tensors(task.path, sums.tensors(), task.factors.fingerprint)
    return len(task.rows)


@contextmanager
def _named(task: FactorTask) -> Iterator[None]:
    """Put the group in front of what goes wrong in it."""
    try:
        yield
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error


def _summed_most(
    session: Session, task: FactorTask, positions: Sequence[int], tokenised: Callable[[], None]
) -> CovarianceSums | EigenvalueSums:
    """Sum over the parts of every row that can be summed; the others are left out of the sample, with a log line."""
    examples = [session.rows.example(row) for row in task.rows]
    names = [place_of(example) for example in examples]
    found = session.tokenise([examples[position] for position in positions])
    parts = [replace(part, position=positions[part.position]) for part in found if part.scored]
    tokenised()

    def attempt(chosen: Sequence[int]) -> CovarianceSums | EigenvalueSums:
        wanted = set(chosen)
        sums = _summed(session, task, [part for part in parts if part.position in wanted], names)
        bad = [name for name, tensor in sums.tensors().items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise CaptureError(
                f"The {task.kind} sums of {names[chosen[0]]} to {names[chosen[-1]]} are not finite in {len(bad)} "
                f"factors, first {', '.join(bad[:3])}. Look for inf or NaN in the model's weights and outputs."
            )
        return sums

    most = session.spec.data.quarantine
    with session.computing:
        session.load(task.factors.checkpoint)
        sums, failed = without_failing_rows(attempt, positions, min(most, len(positions) - 1))
    for position, error in failed.items():
        log.warning("%s is left out of the sample that factors are fitted to: %s", names[position], error)
    return sums


def _summed(
    session: Session, task: FactorTask, parts: Sequence[Part], names: Sequence[str]
) -> CovarianceSums | EigenvalueSums:
    """Sum a group's parts."""
    return sum_over(session, lambda: _fit(session, task), task.factors.settings, task.rows, parts, names)


def sum_over(
    session: Session,
    make: Callable[[], Fit],
    settings: FactorSettings,
    rows: Sequence[int],
    parts: Sequence[Part],
    names: Sequence[str],
) -> CovarianceSums | EigenvalueSums:
    """Sum over parts; where memory runs out, anew with half the token budget, since a batch may be half added.

    Args:
        session: Of the model.
        make: Gives a fit without anything added to it.
        settings: Of the fit.
        rows: The row at each position.
        parts: Of some of the rows.
        names: What to call the row at each position in a message.
    """
    budget, seeds = session.token_budget, _label_seeds(parts, settings, rows)

    def loss(model: Any, batch: Any) -> Tensor:
        return fisher_loss(session.task, settings.labels, model, batch, settings.seed)

    while True:
        fit = make()
        session.set_hooks(fit)
        for chosen in cut(parts, budget, 1):
            batch = _with_draws(collate(chosen, session.pad), [seeds[id(part)] for part in chosen]).to(session.device)
            try:
                if isinstance(fit, CovarianceFit):
                    fit.add(loss, batch, batch.attention_mask, fisher_scale(session.task, batch))
                else:
                    fit.add(loss, batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                budget = halved(chosen, names, budget)
                break
        else:
            # Rows, as in a score's 1/N: some have no scored token, some are cut into several parts.
            fit.sums.examples = len(rows)
            return fit.sums


def _label_seeds(parts: Sequence[Part], settings: FactorSettings, rows: Sequence[int]) -> dict[int, int]:
    """Return the seed of each part's labels, by the part's `id`: its row's own, however rows are batched."""
    before: Counter[int] = Counter()
    seeds = {}
    for part in parts:
        seeds[id(part)] = settings.label_seed(rows[part.position], before[part.position])
        before[part.position] += 1
    return seeds


def _with_draws(batch: Batch, seeds: Sequence[int]) -> Batch:
    """Give each part of a batch the numbers that its labels are drawn with; more of them where it is padded longer."""
    longest = batch.input_ids.shape[1]
    drawn = [np.random.Generator(np.random.Philox(key=seed)).random(longest) for seed in seeds]
    return replace(batch, uniforms=torch.from_numpy(np.stack(drawn)))


def _fit(session: Session, task: FactorTask) -> Fit:
    if task.kind == "covariance":
        return CovarianceFit(session.model, session.layers, task.factors.settings)
    tensors = load_all(task.factors.bases, task.factors.fingerprint)
    widths = tuple(ModuleWidths(layer.name, layer.inputs, layer.outputs) for layer in session.layers)
    return EigenvalueFit(session.model, session.layers, Eigenbasis.from_tensors(widths, task.factors.settings, tensors))
