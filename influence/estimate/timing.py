"""How long a run's stages take on a worker: each tried for a short time on a sample of the run's own rows.

A try is given a few hundredths of what the stage would take, and some seconds at most: more rows each time until then.

What is timed is what a build runs, on whole batches of mixed lengths. Local workers are timed at the same time, since
they share the machine's memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from influence.axes import ModuleColumns
from influence.capture.captured import capture_most
from influence.capture.process_session import session_here
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings, widths_of
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import Eigenbasis, ModuleBasis, Side, decompose
from influence.curvature.projected_fisher import FisherSums
from influence.data.example import Example, place_of
from influence.data.tokenise import Part
from influence.gradients.inner_products import InnerProducts
from influence.stages.factor_group import Fit, sum_over
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for

SAMPLE = 1024
"""Rows whose lengths are counted."""
SECONDS = 6.0
"""What each stage is given, at most."""
SHARE, LEAST = 0.03, 0.25
"""What it is given of the seconds that all of the stage would take, and however few these are."""


class Timing(BaseModel):
    """What one worker takes.

    Attributes:
        tokens_per_row: Mean over a sample of the rows, after truncation; rows without a scored token count as 0.
        capture: Seconds a token, at all checkpoints together, codes included.
        covariance: Seconds a token of the factors' first pass at one checkpoint; 0 where none are fitted.
        eigenvalues: Seconds a token of EK-FAC's second pass; 0 where there is none.
        decomposition: Seconds for all modules' eigendecompositions at one checkpoint, one after another; 0 where there
            are none.
        exact: Seconds a token of a row that is scored exactly for a query; 0 where none is.
        measuring: Seconds that the measurement took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_row: float
    capture: float
    covariance: float = 0.0
    eigenvalues: float = 0.0
    decomposition: float = 0.0
    exact: float = 0.0
    measuring: float = 0.0


def run_timing(
    spec: CaptureSpec, codec_settings: CodecSettings, factors: FactorSettings | None, *, corrects: bool, exact: bool
) -> Timing:
    """Time one worker; the entry point of a worker.

    Args:
        spec: Of the run.
        codec_settings: Of its rows.
        factors: How its Kronecker factors are fitted; None where there are none.
        corrects: Whether EK-FAC's eigenvalues are.
        exact: Whether whole gradients of rows decide a query.
    """
    with session_here(spec) as session, session.computing:
        return _timed(session, codec_settings, factors, corrects=corrects, exact=exact)


def _timed(
    session: Session, codec_settings: CodecSettings, factors: FactorSettings | None, *, corrects: bool, exact: bool
) -> Timing:
    began = time.perf_counter()
    examples = _sample(session)
    parts = session.contributing(session.tokenise(examples))
    tokens = sum(len(part.input_ids) for part in parts)
    codec = codec_for(codec_settings, session.modules)
    tried = _Tried(session, examples, parts)
    found: dict[str, float] = {"tokens_per_row": tokens / len(examples)}
    found["capture"] = tried.seconds_a_token(lambda chosen, kept: capture_most(session, codec, chosen, kept))
    if factors is not None:
        found |= _factors(session, factors, tried, corrects=corrects)
    if exact:
        found["exact"] = _exact(session, tried)
    return Timing(**found, measuring=time.perf_counter() - began)


def _exact(session: Session, tried: "_Tried") -> float:
    """Time rows that are scored for one query, whose gradient is 0."""
    matrices = [torch.zeros(1, layer.outputs, layer.inputs) for layer in widths_of(session.layers)]
    products = InnerProducts(session.model, session.layers, matrices)

    def score(chosen: Sequence[Example], kept: Sequence[Part]) -> None:
        for _ in session.capture(session.task.example_loss, kept, [place_of(example) for example in chosen], products):
            pass

    return tried.seconds_a_token(score)


def _factors(session: Session, settings: FactorSettings, tried: "_Tried", *, corrects: bool) -> dict[str, float]:
    """Time the passes that fit Kronecker factors, and their decomposition."""
    sums: list[CovarianceSums] = []

    def covariance(chosen: Sequence[Example], kept: Sequence[Part]) -> None:
        found = _sums(session, lambda: CovarianceFit(session.model, session.layers, settings), settings, chosen, kept)
        sums[:] = [found]  # type: ignore[list-item]

    times = {"covariance": tried.seconds_a_token(covariance, settings.rows)}
    times["decomposition"] = _decomposition(sums[0])
    if corrects:
        basis = _unit_basis(session)

        def eigenvalues(chosen: Sequence[Example], kept: Sequence[Part]) -> None:
            _sums(session, lambda: EigenvalueFit(session.model, session.layers, basis), settings, chosen, kept)

        times["eigenvalues"] = tried.seconds_a_token(eigenvalues, settings.rows)
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


class _Tried:
    """A sample of a session's rows, on which work is timed."""

    def __init__(self, session: Session, examples: Sequence[Example], parts: Sequence[Part]) -> None:
        # Those with nothing to score would be work of no tokens.
        there = {part.position for part in parts}
        order = sorted(range(len(examples)), key=lambda place: place not in there)
        places = {place: number for number, place in enumerate(order)}
        self._examples = [examples[place] for place in order]
        moved = [replace(part, position=places[part.position]) for part in parts]
        self._parts = sorted(moved, key=lambda part: part.position)
        self._rows, self._device = len(session.rows), session.device

    def seconds_a_token(
        self, work: Callable[[Sequence[Example], Sequence[Part]], object], rows: int | None = None
    ) -> float:
        """Return the seconds a token of work: of one row to warm up, of one row, then of twice as many each time.

        It ends when another try would take longer than what the stage is given: `SECONDS`, or `SHARE` of what all its
        rows would take, if that is less.

        Args:
            work: What is done to some rows.
            rows: Rows that the stage does it to; all if None.
        """
        if not self._parts:
            return 0.0
        tokens = sum(len(part.input_ids) for part in self._parts) / len(self._examples)
        whole = min(self._rows, rows or self._rows) * tokens
        # What is compiled and loaded at a first use may take longer than all rows do: it doesn't count.
        self._measured(work, 1)
        began = time.perf_counter()
        (rate, took), before = self._measured(work, 1), 1
        for size in (2**power for power in range(1, len(self._examples).bit_length())):
            left = min(SECONDS, max(LEAST, SHARE * rate * whole)) - (time.perf_counter() - began)
            if took * size / before > left:
                break
            (rate, took), before = self._measured(work, size), size
        return rate

    def _measured(self, work: Callable[[Sequence[Example], Sequence[Part]], object], count: int) -> tuple[float, float]:
        """Return seconds a token, and seconds, of so many rows."""
        kept = [part for part in self._parts if part.position < count]
        began = time.perf_counter()
        work(self._examples[:count], kept)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        took = time.perf_counter() - began
        return took / sum(len(part.input_ids) for part in kept), took


def _decomposition(sums: CovarianceSums) -> float:
    """Return the seconds of all modules' decompositions: one of each shape is timed, wide ones reckoned by cubes."""
    alike = Counter((module.inputs, module.outputs) for module in sums.modules)
    first = {(module.inputs, module.outputs): module for module in reversed(sums.modules)}
    spent, found, rate = 0.0, 0.0, 0.0
    for shape in sorted(alike, key=_cubes):
        if spent > SECONDS:
            found += alike[shape] * rate * _cubes(shape)
            continue
        module = first[shape]
        one = CovarianceSums((module,), sums.settings, sums.examples)
        one.positions = {module.name: sums.positions[module.name]}
        one.inputs = {module.name: sums.inputs[module.name]}
        one.outputs = {module.name: sums.outputs[module.name]}
        began = time.perf_counter()
        decompose(one)
        took = time.perf_counter() - began
        spent, found, rate = spent + took, found + alike[shape] * took, took / _cubes(shape)
    return found


def _cubes(shape: tuple[int, int]) -> int:
    return shape[0] ** 3 + shape[1] ** 3


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
