"""One group of the sampled rows, summed over in a worker's session: what Kronecker factors are made of.

Labels are drawn with numbers that belong to their row, so that a group's sums don't depend on how its rows are batched.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from influence.artifacts.tensors import load_all, remove_tensors, saved_for
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
from influence.engine.poison import died_of
from influence.engine.progress import Progress
from influence.engine.quarantine import without_failing_rows
from influence.engine.stage import NO_DEAD, Dead, RowStage, Task
from influence.errors import CaptureError
from influence.stages.partial_sums import partial_path
from influence.task import fisher_loss, fisher_scale

log = logging.getLogger(__name__)

Fit = CovarianceFit | EigenvalueFit
Pass = Literal["covariance", "eigenvalues"]


@dataclass
class FactorPartials(RowStage):
    """Sums over groups of sampled rows at one checkpoint, in one of the two passes; labels are drawn for each row.

    Attributes:
        spec: Of the run; its projection isn't used.
        factors: Where the checkpoint's factors are or will be.
        kind: Which pass.
        groups: The sampled rows, int64, in consecutive groups.
    """

    spec: CaptureSpec
    factors: FactorFiles
    kind: Pass
    groups: tuple[np.ndarray, ...]

    name = "factors"
    local = ("groups",)

    @property
    def key(self) -> str:
        """Of the rows, the sample and the fit."""
        return self.factors.fingerprint

    @property
    def products(self) -> tuple[Path, ...]:
        """The files that the sums are merged to."""
        return self.factors.bases if self.kind == "covariance" else self.factors.eigenvalues

    def cut(self) -> list[Task]:
        """Return a task for each group of the sample."""
        at, count = (
            f" at checkpoint {self.factors.checkpoint}" if len(self.spec.checkpoints) > 1 else "",
            len(self.groups),
        )
        tasks = []
        for number, group in enumerate(self.groups):
            name = f"{self.kind} {number} of {count} (rows {group[0]} to {group[-1]}, sampled){at}"
            path = partial_path(self.factors.folder, self.kind, number, count)
            tasks.append(Task(self, number, name, None, path, self.key, tuple(group.tolist())))
        return tasks

    def stands(self) -> bool:
        """Whether what the sums are merged to is there."""
        return all(saved_for(path, self.key) for path in self.products)

    def session(self, task: Task) -> AbstractContextManager[Session]:
        """Lend the session of the run."""
        return session_here(self.spec)

    @property
    def room(self) -> int:
        """As many as may be set aside: what a sample leaves out, the capture sets aside by name, or ends the build."""
        return self.spec.data.quarantine

    def run(
        self, task: Task, session: Session, dead: Dead = NO_DEAD, tokenised: Callable[[], None] = lambda: None
    ) -> int:
        """Sum over a group's rows but the dead, and save it. Returns the rows of the group.

        Raises:
            CaptureError: No row of the group is left.
        """
        for position, during in dead.items():
            log.warning(
                "Row %d is left out of the sample that factors are fitted to: %s", task.rows[position], died_of(during)
            )
        living = [position for position in range(len(task.rows)) if position not in dead]
        task.save(_summed_most(session, task, living, tokenised).tensors())
        return len(task.rows)

    def rehearse(self, task: Task, session: Session, positions: Sequence[int], tokenised: Callable[[], None]) -> None:
        """Sum over some rows of a group."""
        _summed_most(session, task, positions, tokenised)

    def take(self, result: int, progress: Progress) -> None:
        """Count the group's rows."""
        progress.finished(rows=result)

    def merge(self) -> None:
        """Remove the eigenvalues that stand on other bases than those that are made now."""
        if self.kind == "covariance":
            for path in self.factors.eigenvalues:
                remove_tensors(path)


def _summed_most(
    session: Session, task: Task[FactorPartials], positions: Sequence[int], tokenised: Callable[[], None]
) -> CovarianceSums | EigenvalueSums:
    """Sum over the parts of every row that can be summed; the others are left out of the sample, with a log line."""
    if not positions:
        raise CaptureError("every row of it kills its worker, and nothing is left to fit factors to.")
    stage = task.stage
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
                f"The {stage.kind} sums of {names[chosen[0]]} to {names[chosen[-1]]} are not finite in {len(bad)} "
                f"factors, first {', '.join(bad[:3])}. Look for inf or NaN in the model's weights and outputs."
            )
        return sums

    most = session.spec.data.quarantine
    with session.computing:
        session.load(stage.factors.checkpoint)
        sums, failed = without_failing_rows(attempt, positions, min(most, len(positions) - 1))
    for position, error in failed.items():
        log.warning("%s is left out of the sample that factors are fitted to: %s", names[position], error)
    return sums


def _summed(
    session: Session, task: Task[FactorPartials], parts: Sequence[Part], names: Sequence[str]
) -> CovarianceSums | EigenvalueSums:
    """Sum a group's parts."""
    stage = task.stage
    return sum_over(session, lambda: _fit(session, stage), stage.factors.settings, task.rows, parts, names)


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


def _fit(session: Session, stage: FactorPartials) -> Fit:
    settings = stage.factors.settings
    if stage.kind == "covariance":
        return CovarianceFit(session.model, session.layers, settings)
    tensors = load_all(stage.factors.bases, stage.key)
    widths = tuple(ModuleWidths(layer.name, layer.inputs, layer.outputs) for layer in session.layers)
    return EigenvalueFit(session.model, session.layers, Eigenbasis.from_tensors(widths, settings, tensors))
