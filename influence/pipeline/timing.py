"""How long a run's stages take on a worker: each tried for some seconds on a sample of the run's own rows.

What is timed is what a build runs, on whole batches of mixed lengths. Local workers are timed at the same time, since
they share the machine's memory.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from influence.axes import ModuleColumns
from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings, widths_of
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import Eigenbasis, ModuleBasis, Side, decompose
from influence.curvature.projected_fisher import FisherSums
from influence.data.example import Example, place_of
from influence.data.tokenise import Part
from influence.pipeline.captured import capture_most
from influence.pipeline.factor_group import Fit, sum_over
from influence.pipeline.session import Session
from influence.pipeline.spec import CaptureSpec
from influence.pipeline.worker import session_here
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for

SAMPLE = 1024
"""Rows whose lengths are counted."""
WARM_ROWS = 16
SECONDS = 6.0
"""What each stage is given."""


class Timing(BaseModel):
    """What one worker takes.

    Attributes:
        tokens_per_row: Mean over a sample of the rows, after truncation; rows without a scored token count as 0.
        capture: Seconds a token, at all checkpoints together, codes included.
        covariance: Seconds a token of the factors' first pass at one checkpoint; 0 where none are fitted.
        eigenvalues: Seconds a token of EK-FAC's second pass; 0 where there is none.
        decomposition: Seconds for all modules' eigendecompositions at one checkpoint, one after another; 0 where there
            are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_row: float
    capture: float
    covariance: float = 0.0
    eigenvalues: float = 0.0
    decomposition: float = 0.0


@dataclass(frozen=True)
class TimingTask:
    """What a worker is sent.

    Attributes:
        spec: Of the run.
        codec: Of its rows.
        factors: How its Kronecker factors are fitted; None where there are none.
        corrects: Whether EK-FAC's eigenvalues are.
    """

    spec: CaptureSpec
    codec: CodecSettings
    factors: FactorSettings | None
    corrects: bool


def run_timing(task: TimingTask) -> Timing:
    """Time one worker; the entry point of a task."""
    with session_here(task.spec) as session, session.computing:
        return _timed(session, task)


def _timed(session: Session, task: TimingTask) -> Timing:
    examples = _sample(session)
    parts = session.contributing(session.tokenise(examples))
    tokens = sum(len(part.input_ids) for part in parts)
    codec = codec_for(task.codec, session.modules)
    capture = _seconds_a_token(
        lambda chosen, kept: capture_most(session, codec, chosen, kept), examples, parts, session.device
    )
    found = Timing(tokens_per_row=tokens / len(examples), capture=capture)
    if task.factors is None:
        return found
    return found.model_copy(update=_factors(session, task.factors, examples, parts, corrects=task.corrects))


def _factors(
    session: Session, settings: FactorSettings, examples: Sequence[Example], parts: Sequence[Part], *, corrects: bool
) -> dict[str, float]:
    """Time the passes that fit Kronecker factors, and their decomposition."""
    sums: list[CovarianceSums] = []

    def covariance(chosen: Sequence[Example], kept: Sequence[Part]) -> None:
        found = _sums(session, lambda: CovarianceFit(session.model, session.layers, settings), settings, chosen, kept)
        sums[:] = [found]  # type: ignore[list-item]

    times = {"covariance": _seconds_a_token(covariance, examples, parts, session.device)}
    times["decomposition"] = _decomposition(sums[0])
    if corrects:
        basis = _unit_basis(session)

        def eigenvalues(chosen: Sequence[Example], kept: Sequence[Part]) -> None:
            _sums(session, lambda: EigenvalueFit(session.model, session.layers, basis), settings, chosen, kept)

        times["eigenvalues"] = _seconds_a_token(eigenvalues, examples, parts, session.device)
    return times


def _sums(
    session: Session,
    make: Callable[[], Fit],
    settings: FactorSettings,
    examples: Sequence[Example],
    parts: Sequence[Part],
) -> object:
    rows = [example.row for example in examples]
    return sum_over(session, make, settings, rows, parts, [place_of(example) for example in examples])


def _sample(session: Session) -> list[Example]:
    """Return rows from all over the data set, in no order."""
    count = min(SAMPLE, len(session.rows))
    chosen = np.linspace(0, len(session.rows) - 1, count).astype(np.int64)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(count)
    return [session.rows.example(int(row)) for row in chosen[order]]


def _seconds_a_token(
    work: Callable[[Sequence[Example], Sequence[Part]], object],
    examples: Sequence[Example],
    parts: Sequence[Part],
    device: torch.device,
) -> float:
    """Return the seconds a token of work on the first rows: a few to warm up, then as many as fill the time."""
    _measure(work, examples, parts, WARM_ROWS, device)
    rough = _measure(work, examples, parts, WARM_ROWS, device)
    tokens = sum(len(part.input_ids) for part in parts)
    wanted = SECONDS / max(rough, 1e-9) / max(1.0, tokens / len(examples))
    return _measure(work, examples, parts, int(np.clip(wanted, WARM_ROWS, len(examples))), device)


def _measure(
    work: Callable[[Sequence[Example], Sequence[Part]], object],
    examples: Sequence[Example],
    parts: Sequence[Part],
    count: int,
    device: torch.device,
) -> float:
    kept = [part for part in parts if part.position < count]
    if not kept:
        return 0.0 if count >= len(examples) else _measure(work, examples, parts, 2 * count, device)
    began = time.perf_counter()
    work(examples[:count], kept)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / sum(len(part.input_ids) for part in kept)


def _decomposition(sums: CovarianceSums) -> float:
    """Return the seconds of all modules' decompositions: narrow ones are timed, the others reckoned by their cubes."""
    left = sorted(sums.modules, key=lambda module: module.inputs**3 + module.outputs**3)
    spent, rate = 0.0, 0.0
    for place, module in enumerate(left):
        one = CovarianceSums((module,), sums.settings, sums.examples)
        one.positions = {module.name: sums.positions[module.name]}
        one.inputs = {module.name: sums.inputs[module.name]}
        one.outputs = {module.name: sums.outputs[module.name]}
        began = time.perf_counter()
        decompose(one)
        took = time.perf_counter() - began
        spent += took
        rate = took / (module.inputs**3 + module.outputs**3)
        if spent > SECONDS:
            return spent + rate * sum(m.inputs**3 + m.outputs**3 for m in left[place + 1 :])
    return spent


def _unit_basis(session: Session) -> Eigenbasis:
    """Return a basis that costs as much to turn into as any."""

    def side(width: int) -> Side:
        return Side((torch.eye(width),), torch.ones(width, dtype=torch.float64))

    return Eigenbasis(
        tuple(ModuleBasis(layer.name, side(layer.inputs), side(layer.outputs)) for layer in widths_of(session.layers))
    )


def fisher_seconds(blocks: Sequence[ModuleColumns], rows: int) -> tuple[float, float]:
    """Return the seconds of summing a Fisher over rows, and of decomposing it, from two small products."""
    width = min(512, max(block.stop - block.start for block in blocks))
    module = ModuleColumns(name="timed", outputs=1, inputs=width, q=1, p=width, start=0, stop=width)
    gradients = torch.randn(1024, width, generator=torch.Generator().manual_seed(0))
    sums = FisherSums((module,))
    sums.add(gradients)
    began = time.perf_counter()
    sums.add(gradients)
    added = time.perf_counter()
    torch.linalg.eigh(sums.sums["timed"])
    solved = time.perf_counter()
    squares, cubes = (sum((block.stop - block.start) ** power for block in blocks) for power in (2, 3))
    return rows * squares * (added - began) / (1024 * width**2), cubes * (solved - added) / width**3
