"""How much is added to the curvature before it is inverted.

    relative   λ = c · mean(Λ), Λ the eigenvalues of one module's curvature
    bounded    the same, with the smallest c from `value` to 100 for which Σ Λ/(Λ + λ), over all modules, is at most N
               times a row's mean loss; 100 where none is
    trace      the λ under which a share c of the trace Σ Λ lies
    training   λ = √(mean(Λ)/B) / (η T), of a training by AdamW: T steps at a mean rate η, of B rows each
    absolute   λ itself, in the units of the mean example loss's Gauss-Newton matrix

Relative, bounded and trace mean the same in layers of different scale, and don't change when the loss is multiplied by
a constant. How eigenvalues are spread differs, though: in a large model nearly all of the trace lies in few directions,
and with λ = .01 · mean(Λ) the others, where no row has much of a gradient, are left to 1/λ. Bounded follows the spread:
(1/N) Σ Λ/(Λ + λ) is what a row's extra copy does to the row itself, in the mean over rows whose labels the model drew,
and a copy can't raise a row's log-likelihood by more than its loss. Beyond c = 100 hardly an eigenvalue decides
anything and the order of scores becomes that of raw gradients: a model that has learnt its rows by heart, with losses
near 0, gets 100, and scores that promise more than an output's probability allows are marked as ranks.

Where only the order of rows counts, little damping is best. Where a score is to be the number of nats that one more
copy of a row would have brought, λ is what the training itself stood for. SGD at rate η reaches a direction of
curvature Λ after 1/(η Λ) steps, so that T steps are a damping of 1/(η T). AdamW divides a gradient by the root of its
second moment, which is mostly the noise of its batch, mean(Λ)/B. docs/benchmarks.md has measurements.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from influence.errors import CurvatureError

MOST_SHARE = 100.0
"""The largest c of a bounded damping, unless its least is larger."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Damping(BaseModel):
    """The damping λ of every module, relative to its mean eigenvalue unless `kind` says otherwise.

    Attributes:
        kind: See the module's docstring.
        value: c, of `bounded` the least; λ itself where it is absolute. Not of a training.
        rate: η, the mean learning rate over the steps of a training.
        steps: T, all of them.
        batch: B, the rows of a step, accumulated ones included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["relative", "bounded", "trace", "training", "absolute"] = "relative"
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    rate: Positive | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Positive | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        """Refuse what a kind lacks, and settings of another kind, which would do nothing."""
        training = {"rate": self.rate, "steps": self.steps, "batch": self.batch}
        if self.kind == "training":
            absent = [name for name, value in training.items() if value is None]
            if absent:
                raise ValueError(f"damping of kind training needs {' and '.join(absent)}: those of the training")
            if "value" in self.model_fields_set and self.value != type(self).model_fields["value"].default:
                raise ValueError("damping of kind training takes no value: it follows from rate, steps and batch")
            return self
        idle = [name for name, value in training.items() if value is not None]
        if idle:
            raise ValueError(f"{' and '.join(idle)} mean nothing to damping of kind {self.kind}: leave them out")
        if self.kind == "trace" and self.value >= 1:
            raise ValueError(f"a share of the trace is less than 1, found {self.value:g}")
        return self

    def resolve(self, eigenvalues: Tensor) -> float:
        """Return λ for a module of these eigenvalues, any shape, none negative; of `bounded` see `within`."""
        if self.kind == "absolute":
            return self.value
        if self.kind == "trace":
            return _under_share(eigenvalues, self.value)
        mean = float(eigenvalues.mean())
        if self.kind in ("relative", "bounded"):
            return self.value * mean
        rate, steps, batch = self.rate or 0.0, self.steps or 0, self.batch or 0.0
        assert rate * steps * batch > 0, "the validator asks for all three"
        return (mean / batch) ** 0.5 / (rate * steps)

    def within(self, eigenvalues: Sequence[Tensor], budget: float | None) -> "Damping":
        """Return the relative damping that a bounded one comes to; any other is returned as it is.

        Args:
            eigenvalues: Of every module.
            budget: N times the mean loss of a row, in nats.

        Raises:
            CurvatureError: It is bounded, and there is no budget.
        """
        if self.kind != "bounded":
            return self
        if budget is None:
            raise CurvatureError("A bounded damping needs the rows' mean loss, and none is known: take kind relative.")
        return Damping(value=_least_share(eigenvalues, max(self.value, 1e-12), budget))

    @property
    def summary(self) -> str:
        """The damping in words: `damping 0.1 of the mean eigenvalue`."""
        if self.kind == "training":
            return f"damping of {self.steps:,} AdamW steps of {self.batch:g} rows at rate {self.rate:g}"
        if self.kind == "bounded":
            return f"damping of at least {self.value:g} of the mean eigenvalue, bounded by the rows' losses"
        where = {"relative": " of the mean eigenvalue", "trace": " of the trace", "absolute": " (absolute)"}
        return f"damping {self.value:g}{where[self.kind]}"


def _least_share(eigenvalues: Sequence[Tensor], least: float, budget: float) -> float:
    """Return the smallest c ≥ least with Σ Λ/(Λ + c · mean(Λ)) ≤ budget, from a histogram of log Λ/mean(Λ).

    It is `MOST_SHARE` at the most, unless `least` is larger.
    """
    edges = torch.linspace(-14, 14, 1401, dtype=torch.float64)
    counts = torch.zeros(1400, dtype=torch.float64)
    for values in eigenvalues:
        mean = float(values.mean())
        if mean > 0:
            ratios = (values.double().flatten() / mean).clamp(min=1e-14).log10()
            counts += torch.histc(ratios, 1400, -14, 14)
    ratios = 10 ** edges[1:]

    def dimension(share: float) -> float:
        return float((counts * ratios / (ratios + share)).sum())

    if dimension(least) <= budget or least >= MOST_SHARE:
        return least
    if dimension(MOST_SHARE) >= budget:
        return MOST_SHARE
    low, high = math.log10(least), math.log10(MOST_SHARE)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if dimension(10**middle) <= budget else (middle, high)
    return 10**high


def _under_share(eigenvalues: Tensor, share: float) -> float:
    """Return the eigenvalue at which a share of the trace is reached from below; 0 for no share."""
    if share == 0:
        return 0.0
    ascending = eigenvalues.double().flatten().sort().values
    cumulative = ascending.cumsum(0)
    return float(ascending[int((cumulative < share * cumulative[-1]).sum().clamp(max=len(ascending) - 1))])
