"""Scores held to real steps of the weights: are they derivatives of what is measured, and can they be read as nats?

The score of row i for output q is a derivative: of m_q along a step δ_i of the tracked weights. So the step is taken,
m_q is measured again, and the weights are put back bit by bit. Two steps:

    a small one      δ = −η ∇ℓ_i         predicts η ⟨∇m_q, −∇ℓ_i⟩; what differs is no gradient of these weights
    one extra copy   δ = (1/N)(H + λ)⁻¹(−∇ℓ_i), the whole step that nats per extra copy stand for

The second differs from its prediction where the step leaves the neighbourhood in which the model is linear, as it does
where λ is too small. Where it agrees, a score is what that step does. A training that ends before it has converged
moves less than that, as its rate and its number of steps allow: a damping of kind `training` predicts it.

Outputs are those of the sampled rows themselves, so that each row's step is tried on itself and on the others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from influence.axes import ModuleColumns
from influence.config import RunConfig
from influence.curvature.kfac import preconditioned
from influence.doctor.check import Check
from influence.doctor.subject import Subject
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import TrackedLayer
from influence.stages.factors import factors_stand, load_kronecker
from influence.store.manifest import Manifest
from influence.task import measurement

ROWS = 6
"""Rows whose steps are taken."""
NUMBERS = 2**28
"""Numbers of whole gradients that are held at once; a model of more tracked weights gets fewer rows."""
SMALL = 0.01
"""The share of its own log-likelihood that a row's small step is to change."""
FACTOR = 2.0
"""How far the measured changes may be from the predicted ones, either way."""
AGREEMENT = 0.9
"""The least share of equal signs."""
FLOOR = 1e-3
"""The share of the largest change under which a sign may be rounding."""


def gradient_step(subject: Subject) -> Check:
    """Take a small step along each row's own gradient, and hold what it changes to what the gradients say."""
    name, stepped = "gradient step", _Stepped.of(subject)
    if isinstance(stepped, str):
        return Check(name, "note", stepped)
    change = -(stepped.rows * stepped.outputs).sum(dim=1)
    rates = SMALL * stepped.before.abs() / change.clamp(min=torch.finfo(torch.float32).tiny)
    predicted, measured = stepped.taken(-stepped.rows * rates[:, None])
    agreement = _Agreement.of(predicted, measured)
    return Check(
        name,
        "pass" if agreement.fine else "fail",
        agreement.words,
        _EXPECTED,
        "The captured gradients are not the derivatives of the outputs by the tracked weights. Is a weight shared, or "
        "used outside its layer (model.layers.exclude)? Please report the model's class.",
        value=agreement.slope,
        limit=FACTOR,
    )


def copy_step(config: RunConfig, run_dir: Path, subject: Subject) -> Check:
    """Take the step that an extra copy of each row stands for, and say whether the run's scores can be read as nats.

    Raises:
        DigestMismatch: The run's factors are missing or damaged.
        CurvatureError: They are singular and the damping is 0.
    """
    name, recipe = "step of one copy", config.recipe
    decision = recipe.decision
    if decision.kind == "none":
        return Check(name, "note", f"does not apply: {recipe.name} has no exact scores (recipe.exact.kind none)")
    manifest = Manifest.load(run_dir)
    if not factors_stand(run_dir, manifest, recipe):
        return Check(name, "note", "does not apply yet: the run's factors aren't built")
    stepped = _Stepped.of(subject)
    if isinstance(stepped, str):
        return Check(name, "note", stepped)
    kind: Literal["kfac", "ekfac"] = "kfac" if decision.kind == "kfac" else "ekfac"
    curvature = load_kronecker(run_dir, manifest, recipe, kind, decision.damping)
    steps = stepped.rows.clone()
    preconditioned(steps, stepped.modules, curvature)
    predicted, measured = stepped.taken(steps.div_(-manifest.rows))
    agreement = _Agreement.of(predicted, measured)
    beyond = int((predicted > -stepped.before).any(dim=1).sum())
    ruled_out = f"; {beyond} of {len(predicted)} rows promise more than probability allows" if beyond else ""
    return Check(
        name,
        "pass" if agreement.fine and not beyond else "note",
        agreement.words + ruled_out,
        _EXPECTED,
        "Read the scores as a rank, not as numbers of nats. A larger damping (recipe.exact.damping; of kfac and ekfac "
        "recipe.curvature.damping) makes them smaller; no row has to be captured again.",
        value=agreement.slope,
        limit=FACTOR,
    )


_EXPECTED = f"measured within a factor of {FACTOR:g}, {AGREEMENT:.0%} of signs"


@dataclass(frozen=True)
class _Agreement:
    """How predicted and measured changes agree, over all pairs of a step and an output.

    Attributes:
        slope: Of the line through 0 that gives the measured from the predicted ones.
        signs: The share of equal signs, where both are more than rounding.
        ranks: Spearman's correlation.
        largest: The largest predicted change, and what was measured there.
    """

    slope: float
    signs: float
    ranks: float
    largest: tuple[float, float]

    @classmethod
    def of(cls, predicted: Tensor, measured: Tensor) -> "_Agreement":
        """Compare changes [steps, outputs]."""
        expected, found = predicted.double().flatten(), measured.double().flatten()
        slope = float((expected @ found) / (expected @ expected).clamp(min=1e-300))
        told = (expected.abs() > FLOOR * expected.abs().max()) & (found.abs() > FLOOR * found.abs().max())
        signs = float((expected.sign() == found.sign())[told].double().mean())
        place = int(expected.abs().argmax())
        ranks = float(np.corrcoef(rankdata(expected), rankdata(found))[0, 1]) if len(expected) > 1 else 1.0
        return cls(slope, signs, ranks, (float(expected[place]), float(found[place])))

    @property
    def fine(self) -> bool:
        """Whether magnitudes and signs can be believed."""
        return 1 / FACTOR <= self.slope <= FACTOR and self.signs >= AGREEMENT

    @property
    def words(self) -> str:
        """The comparison in words."""
        expected, found = self.largest
        return (
            f"measured / predicted {self.slope:.2g}, {self.signs:.0%} of signs agree, rank correlation "
            f"{self.ranks:.2g}; the largest {expected:+.3g} nats predicted, {found:+.3g} measured"
        )


@dataclass(frozen=True)
class _Stepped:
    """Some rows, their whole gradients, and their own outputs to be measured.

    Attributes:
        subject: The model and the rows.
        modules: The columns of a whole gradient.
        rows: ∇ℓ, [n, D].
        before: log p of each row's output as the weights are, [n], in nats.
    """

    subject: Subject
    modules: tuple[ModuleColumns, ...]
    rows: Tensor
    before: Tensor

    @classmethod
    def of(cls, subject: Subject) -> "_Stepped | str":
        """Capture whole gradients of as many rows as fit, or return why none can be stepped along."""
        session = subject.session
        if str(session.spec.model.dtype) not in ("float32", "float64"):
            return f"a small step is lost in {session.spec.model.dtype}: add --set model.dtype=float32"
        with Capture(session.model, session.layers, Projection(ProjectionSettings(kind="none"))) as capture:
            count = min(ROWS, len(subject.parts), NUMBERS // capture.dims)
            if count < 1:
                return f"does not fit: a row's whole gradient has {capture.dims:,} numbers"
            chosen = Subject(session, capture, subject.parts[:count])
            rows = chosen.alone()
        return cls(chosen, capture.modules, rows, _measured(chosen))

    @property
    def outputs(self) -> Tensor:
        """∇ log p of every row's output, [n, D]: what is measured is the sum over its tokens, whatever the loss is."""
        averaged = self.subject.session.spec.task.reduction == "mean"
        return -self.rows * torch.tensor([[part.scored if averaged else 1] for part in self.subject.parts])

    def taken(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changes of the outputs, predicted and measured, [steps, outputs], of steps [steps, D]."""
        session = self.subject.session
        after = []
        for step in steps:
            with _moved(session.layers, self.modules, step):
                after.append(_measured(self.subject))
        return steps @ self.outputs.T, torch.stack(after) - self.before


def _measured(subject: Subject) -> Tensor:
    """Log p of every row's own output, [n], on the CPU."""
    session = subject.session
    with torch.no_grad():
        found = [measurement(session.task, session.model, subject.batch([part])) for part in subject.parts]
    return torch.cat(found).cpu()


@contextmanager
def _moved(layers: Sequence[TrackedLayer], modules: Sequence[ModuleColumns], step: Tensor) -> Iterator[None]:
    """Add a step [D] to the tracked weights; afterwards they are what they were, to the bit."""
    weights = {id(weight): weight for layer in layers for weight in layer.module.parameters(recurse=False)}
    before = [weight.detach().clone() for weight in weights.values()]
    try:
        with torch.no_grad():
            for layer, module in zip(layers, modules, strict=True):
                _add(layer, step[module.start : module.stop].view(module.q, module.p))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights.values(), before, strict=True):
                weight.copy_(old)


def _add(layer: TrackedLayer, matrix: Tensor) -> None:
    """Add a matrix [O, I] to a layer's weight as it lies there, its last column to the bias where that is tracked."""
    module: Any = layer.module
    if layer.bias:
        module.bias += matrix[:, -1].to(module.bias)
        matrix = matrix[:, :-1]
    if layer.kind in ("conv1d", "embedding"):
        matrix = matrix.T
    module.weight += matrix.to(module.weight).reshape(module.weight.shape)
