"""K-FAC's factors folded into the projection: rows that already live in the geometry of the curvature.

`Whitening` gives R (A + λ_A)^-½ for a random R, with λ_A a share c of A's mean eigenvalue, and so for S: the inner
product of two rows then estimates ⟨∇m, (S + λ_S)⁻¹ ⊗ (A + λ_A)⁻¹ ∇ℓ⟩, K-FAC's influence with factored damping.
`LeadingEigenvectors` gives the eigenvectors of the largest eigenvalues as rows.

Of a bounded damping c is the least between .01 and 100 for which all modules together have at most as many effective
dimensions as the N rows have nats of loss:

    Σ_modules [Σ_i a_i / (a_i + λ_A)] · [Σ_j s_j / (s_j + λ_S)] ≤ N · mean loss

The left side over N is the mean score with itself of a row whose labels the model drew, and one more copy can't raise a
row's log-likelihood by more than its loss. That is the rule of `curvature.damping` for exact scores. It also keeps the
sketch useful: its error is in proportion to the rows' lengths, which grow with every direction in which few rows have a
gradient, and what rows have in common doesn't. Beyond 100 hardly an eigenvalue decides anything and the order
becomes that of raw gradients, a poor one: a model that has learnt its rows by heart, with losses near 0, gets 100.
BENCHMARKS.md has measurements.

Source: Martens & Grosse 2015, section 6.3, for the factored damping; Choe et al. 2024 (LoGra), section 3.2, for the
eigenvectors.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from influence.curvature.damping import MOST_SHARE
from influence.curvature.kfac import Eigenbasis, Side
from influence.errors import CurvatureError
from influence.gradients.projection import Fold, ProjectionSettings

LEAST_SHARE = 0.01
"""What a bounded damping is at least; it is `damping.MOST_SHARE` at most."""


@dataclass(frozen=True)
class Whitening:
    """Folds (A + λ_A)^-½ and (S + λ_S)^-½ into random matrices.

    Attributes:
        basis: The factors, decomposed.
        damping: λ_A and λ_S as shares of the mean eigenvalues.
    """

    basis: Eigenbasis
    damping: float

    def fold(self, name: str, side: Literal["inputs", "outputs"], random: Tensor) -> Tensor:
        """Return drawn (A + λ_A)^-½ (or S's), [P, W] float64.

        Raises:
            CurvatureError: There are no factors for the module, or they are singular and the damping is 0.
        """
        basis = _wide(getattr(self.basis[name], side))
        damped = basis.values + self.damping * basis.values.mean()
        if not bool((damped > 0).all()) or float(damped.min()) < 1e-14 * float(damped.max()):
            raise CurvatureError(
                f"The covariance of the {side} of {name} is singular and the projection's damping is "
                f"{self.damping:g}: set recipe.projection.damping above 0, or fit the factors to more rows."
            )
        return basis.rotate_back(basis.rotate(random.double()) * damped.rsqrt())


@dataclass(frozen=True)
class LeadingEigenvectors:
    """Puts the leading eigenvectors of A and S in the place of random matrices."""

    basis: Eigenbasis

    def fold(self, name: str, side: Literal["inputs", "outputs"], random: Tensor) -> Tensor:
        """Return as many leading eigenvectors as `random` has rows, largest eigenvalue first, [P, W] float64."""
        basis = _wide(getattr(self.basis[name], side))
        order = torch.argsort(basis.values, descending=True, stable=True)[: len(random)]
        return basis.rotate_back(torch.eye(len(basis.values), dtype=torch.float64)[order])


def fold_for(settings: ProjectionSettings, basis: Eigenbasis, rows: int) -> Fold:
    """Return what a projection makes its matrices with; for settings whose rows are not random.

    Args:
        settings: Of the projection.
        basis: The factors, decomposed.
        rows: N of the training set, which a bounded damping is held to.

    Raises:
        CurvatureError: The damping is bounded, and the rows' mean loss isn't known or is negative.
    """
    if settings.rows == "whitened":
        return Whitening(basis, share_of(settings, basis, rows))
    return LeadingEigenvectors(basis)


def share_of(settings: ProjectionSettings, basis: Eigenbasis, rows: int) -> float:
    """Return the damping of a whitened projection, as a share of the mean eigenvalues."""
    return bounded_share(basis, rows) if settings.damping == "bounded" else settings.damping


def bounded_share(basis: Eigenbasis, rows: int) -> float:
    """Return the damping of kind bounded, c, as a share of the mean eigenvalues.

    Args:
        basis: The factors, decomposed, with the mean loss of the rows that they are fitted to.
        rows: N of the training set.

    Raises:
        CurvatureError: The mean loss isn't known, or is negative.
    """
    if not basis.loss >= 0:
        found = "not known: an earlier version fitted these factors" if math.isnan(basis.loss) else f"{basis.loss:.3g}"
        raise CurvatureError(
            f"A bounded damping of the projection needs the rows' mean loss in nats, not below 0, and it is {found}. "
            "Set recipe.projection.damping to a number, such as 0.1, or build the run anew."
        )
    budget = rows * basis.loss

    def dimensions(share: float) -> float:
        sides = ((module.inputs.values, module.outputs.values) for module in basis.modules)
        return sum(_dimensions(inputs, share) * _dimensions(outputs, share) for inputs, outputs in sides)

    if dimensions(LEAST_SHARE) <= budget:
        return LEAST_SHARE
    if dimensions(MOST_SHARE) >= budget:
        return MOST_SHARE
    low, high = math.log10(LEAST_SHARE), math.log10(MOST_SHARE)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if dimensions(10**middle) <= budget else (middle, high)
    return 10**high


def _dimensions(values: Tensor, share: float) -> float:
    """Return Σ v/(v + c·mean(v)); 0 of a side that saw nothing."""
    mean = values.mean()
    return float((values / (values + share * mean)).sum()) if float(mean) > 0 else 0.0


def _wide(side: Side) -> Side:
    return side.to(torch.device("cpu"), torch.float64)
