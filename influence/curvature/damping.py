"""How much is added to the curvature before it is inverted.

Relative damping is λ = c · mean(Λ) with Λ the eigenvalues of one module's curvature, so one c means the same in layers
of different scale and does not change when the loss is multiplied by a constant. Absolute damping is λ itself, in the
units of the mean example loss's Gauss-Newton matrix.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Damping(BaseModel):
    """The damping λ, relative to the mean eigenvalue unless `kind` is `absolute`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["relative", "absolute"] = "relative"
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def resolve(self, mean_eigenvalue: float) -> float:
        """Return λ for a module whose curvature has this mean eigenvalue."""
        return self.value if self.kind == "absolute" else self.value * mean_eigenvalue

    @property
    def summary(self) -> str:
        """The damping in words: `damping 0.1 of the mean eigenvalue`."""
        return f"damping {self.value:g}" + (" of the mean eigenvalue" if self.kind == "relative" else " (absolute)")
