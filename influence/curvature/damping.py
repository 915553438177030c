"""How much is added to the curvature before it is inverted.

    relative   λ = c · mean(Λ), Λ the eigenvalues of one module's curvature
    trace      the λ under which a share c of the trace Σ Λ lies
    training   λ = √(mean(Λ)/B) / (η T), of a training by AdamW: T steps at a mean rate η, of B rows each
    absolute   λ itself, in the units of the mean example loss's Gauss-Newton matrix

Relative and trace mean the same in layers of different scale, and don't change when the loss is multiplied by a
constant. How eigenvalues are spread differs, though: in a large model nearly all of the trace lies in few directions,
and λ = .01 · mean(Λ) leaves the others to 1/λ. A share of the trace follows the spread.

Where only the order of rows counts, little damping is best. Where a score is to be the number of nats that one more
copy of a row would have brought, λ is what the training itself stood for. SGD at rate η reaches a direction of
curvature Λ after 1/(η Λ) steps, so that T steps are a damping of 1/(η T). AdamW divides a gradient by the root of its
second moment, which is mostly the noise of its batch, mean(Λ)/B. `scripts/benchmarks/damping.py` measures it.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Damping(BaseModel):
    """The damping λ of every module, relative to its mean eigenvalue unless `kind` says otherwise.

    Attributes:
        kind: See the module's docstring.
        value: c; λ itself where it is absolute. Not of a training.
        rate: η, the mean learning rate over the steps of a training.
        steps: T, all of them.
        batch: B, the rows of a step, accumulated ones included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["relative", "trace", "training", "absolute"] = "relative"
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
                raise ValueError("damping of kind training takes no value: rate, steps and batch decide it")
            return self
        idle = [name for name, value in training.items() if value is not None]
        if idle:
            raise ValueError(f"{' and '.join(idle)} mean nothing to damping of kind {self.kind}: leave them out")
        if self.kind == "trace" and self.value >= 1:
            raise ValueError(f"a share of the trace is less than 1, found {self.value:g}")
        return self

    def resolve(self, eigenvalues: Tensor) -> float:
        """Return λ for a module of these eigenvalues, any shape, none negative."""
        if self.kind == "absolute":
            return self.value
        if self.kind == "trace":
            return _under_share(eigenvalues, self.value)
        mean = float(eigenvalues.mean())
        if self.kind == "relative":
            return self.value * mean
        rate, steps, batch = self.rate or 0.0, self.steps or 0, self.batch or 0.0
        assert rate * steps * batch > 0, "the validator asks for all three"
        return (mean / batch) ** 0.5 / (rate * steps)

    @property
    def summary(self) -> str:
        """The damping in words: `damping 0.1 of the mean eigenvalue`."""
        if self.kind == "training":
            return f"damping of {self.steps:,} AdamW steps of {self.batch:g} rows at rate {self.rate:g}"
        where = {"relative": " of the mean eigenvalue", "trace": " of the trace", "absolute": " (absolute)"}
        return f"damping {self.value:g}{where[self.kind]}"


def _under_share(eigenvalues: Tensor, share: float) -> float:
    """Return the eigenvalue at which a share of the trace is reached from below; 0 for no share."""
    if share == 0:
        return 0.0
    ascending = eigenvalues.double().flatten().sort().values
    reached = ascending.cumsum(0)
    return float(ascending[int((reached < share * reached[-1]).sum().clamp(max=len(ascending) - 1))])
