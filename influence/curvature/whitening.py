"""K-FAC's factors folded into the projection: rows that already live in the geometry of the curvature.

`Whitening` gives R (A + λ_A)^-½ for a random R, with λ_A a share of A's mean eigenvalue, and so for S: the inner
product of two rows then estimates ⟨∇m, (S + λ_S)⁻¹ ⊗ (A + λ_A)⁻¹ ∇ℓ⟩, K-FAC's influence with factored damping.
`LeadingEigenvectors` gives the eigenvectors of the largest eigenvalues as rows.

Source: Martens & Grosse 2015, section 6.3, for the factored damping; Choe et al. 2024 (LoGra), section 3.2, for the
eigenvectors.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from influence.curvature.kfac import Eigenbasis, Side
from influence.errors import CurvatureError
from influence.gradients.projection import Fold, ProjectionSettings


@dataclass(frozen=True)
class Whitening:
    """Folds (A + λ_A)^-½ and (S + λ_S)^-½ into random matrices.

    Attributes:
        basis: The factors, decomposed.
        damping: λ_A and λ_S as shares of the mean eigenvalues.
    """

    basis: Eigenbasis
    damping: float

    def fold(self, name: str, side: Literal["inputs", "outputs"], drawn: Tensor) -> Tensor:
        """Return drawn (A + λ_A)^-½ (or S's), [P, W] float64.

        Raises:
            CurvatureError: There are no factors for the module, or they are singular and the damping is 0.
        """
        held = _wide(getattr(self.basis[name], side))
        damped = held.values + self.damping * held.values.mean()
        if not bool((damped > 0).all()) or float(damped.min()) < 1e-14 * float(damped.max()):
            raise CurvatureError(
                f"The covariance of the {side} of {name} is singular and the projection's damping is "
                f"{self.damping:g}: set recipe.projection.damping above 0, or fit the factors to more rows."
            )
        return held.rotate_back(held.rotate(drawn.double()) * damped.rsqrt())


@dataclass(frozen=True)
class LeadingEigenvectors:
    """Puts the leading eigenvectors of A and S in the place of random matrices."""

    basis: Eigenbasis

    def fold(self, name: str, side: Literal["inputs", "outputs"], drawn: Tensor) -> Tensor:
        """Return as many leading eigenvectors as `drawn` has rows, largest eigenvalue first, [P, W] float64."""
        held = _wide(getattr(self.basis[name], side))
        order = torch.argsort(held.values, descending=True, stable=True)[: len(drawn)]
        return held.rotate_back(torch.eye(len(held.values), dtype=torch.float64)[order])


def fold_for(settings: ProjectionSettings, basis: Eigenbasis) -> Fold:
    """Return what a projection makes its matrices with; for settings whose rows are not random."""
    if settings.rows == "whitened":
        return Whitening(basis, settings.damping)
    return LeadingEigenvectors(basis)


def _wide(side: Side) -> Side:
    return side.to(torch.device("cpu"), torch.float64)
