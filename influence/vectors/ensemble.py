"""Several checkpoints of one model: their vectors side by side, so that one inner product is the score over all.

    score(i, q) = w_i · Σ_c s_c ⟨u_c, r_c⟩

with u_c and r_c the query's and the row's vector at checkpoint c, under that checkpoint's own curvature, and w_i the
row's weight, its mean over the checkpoints, where the recipe has weights. So a vector is √s_1 v_1, √s_2 v_2, … in one
row of C·D columns, and one index over those rows answers for every checkpoint. s_c is the learning rate in TracIn, and
1/C where nobody sets one: then the score is the mean over checkpoints, as TRAK's is, which multiplies it by the mean of
the rows' 1−p. `traker` also divides each checkpoint's inverse by its own mean absolute value: `curvature.rescale`.

Lengths are taken last, over all columns, so a cosine is one between whole rows. One checkpoint of weight 1 is the
`Comparison` alone, to the last bit.

Sources: Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent" (TracIn), section 3.2;
Park et al. 2023 (TRAK), equation 17.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.axes import ND, ModuleColumns, PerExample
from influence.curvature.projected_fisher import ProjectedFisher
from influence.errors import RecipeError
from influence.recipes import Recipe
from influence.vectors.whiten import Comparison


@dataclass(frozen=True)
class Ensemble:
    """The comparisons of every checkpoint; takes gradients side by side, [n, C·D], where a `Comparison` takes [n, D].

    Attributes:
        parts: Of each checkpoint in the recipe's order, with its own curvature, all of one recipe.
    """

    parts: tuple[Comparison, ...]

    @property
    def recipe(self) -> Recipe:
        """Of every checkpoint."""
        return self.parts[0].recipe

    @property
    def scales(self) -> tuple[float, ...]:
        """What each checkpoint's inner product counts for."""
        recipe = self.parts[0].recipe
        weights = recipe.checkpoint_weights(len(self.parts))
        if not recipe.curvature.rescale:
            return weights
        fishers = [part.fisher for part in self.parts]
        return tuple(
            weight / fisher.mean_absolute_inverse()
            for weight, fisher in zip(weights, fishers, strict=True)
            if fisher is not None
        )

    def query_vectors(self, gradients: ND) -> ND:
        """Turn queries' gradients −∇m of every checkpoint, [m, C·D], into vectors to search with, same shape."""
        first = self.parts[0]
        return first.measured(self._per_checkpoint(gradients, lambda part, own: part.curved_queries(own)))

    def row_vectors(self, gradients: ND, weights: PerExample | None = None) -> ND:
        """Turn rows' gradients of every checkpoint, [n, C·D], into vectors to search among, same shape.

        Args:
            gradients: Side by side, unscaled.
            weights: [n], `mean_weights` of the checkpoints'; of a recipe whose rows have weights, and of no other.
        """
        first = self.parts[0]
        curved = self._per_checkpoint(gradients, lambda part, own: part.curved_rows(own))
        return first.measured(first.weighed(curved, weights))

    def stored_queries(self, vectors: ND) -> ND | None:
        """Return what scores stored rows as they are, before their weights; see `Comparison.stored_queries`."""
        if self.parts[0].stored_queries(vectors) is None:
            return None
        scales = self.scales
        if self.recipe.comparison == "cosine":
            return vectors if len(set(scales)) == 1 else None
        pieces = vectors.split(vectors.shape[1] // len(scales), dim=1)
        return torch.cat([piece * scale**0.5 for piece, scale in zip(pieces, scales, strict=True)], dim=1)

    @property
    def even_factor(self) -> float | None:
        """What `Comparison.even_factor` is, of checkpoints that count alike; None where they don't."""
        factor = self.parts[0].even_factor
        return None if factor is None or len(set(self.scales)) > 1 else factor * self.scales[0]

    def mean_weights(self, weights: Sequence[PerExample]) -> PerExample | None:
        """Return the rows' mean weight over the checkpoints, [n]; None of a recipe whose rows have none."""
        if not weights:
            return None
        shares = self.parts[0].recipe.checkpoint_shares(len(self.parts))
        return torch.stack([share * own for share, own in zip(shares, weights, strict=True)]).sum(dim=0)

    def _per_checkpoint(self, gradients: ND, apply: Callable[[Comparison, ND], ND]) -> ND:
        count = len(self.parts)
        if gradients.shape[1] % count:
            raise RecipeError(f"{gradients.shape[1]} columns aren't those of {count} checkpoints side by side.")
        pieces = gradients.split(gradients.shape[1] // count, dim=1)
        scaled: list[Tensor] = [
            apply(part, own) * scale**0.5 for part, own, scale in zip(self.parts, pieces, self.scales, strict=True)
        ]
        return torch.cat(scaled, dim=1)


Compared = Comparison | Ensemble
"""What turns gradients into the vectors of a recipe."""


def compared(recipe: Recipe, fisher: ProjectedFisher | None, rows: int) -> Compared:
    """Return a recipe with its curvature in hand.

    Args:
        recipe: Of the stored rows.
        fisher: Of all checkpoints' columns side by side; None where the recipe has none.
        rows: N.
    """
    count = len(recipe.checkpoints) or 1
    if not recipe.checkpoints and not recipe.curvature.rescale:
        return Comparison(recipe, fisher, rows)
    fishers = [None] * count if fisher is None else apart(fisher, count)
    return Ensemble(tuple(Comparison(recipe, own, rows) for own in fishers))


def apart(fisher: ProjectedFisher, count: int) -> list[ProjectedFisher]:
    """Return the Fisher of each of `count` checkpoints, from that of their columns side by side."""
    blocks, width = len(fisher.modules) // count, fisher.modules[-1].stop // count
    parts = []
    for number in range(count):
        own = slice(number * blocks, (number + 1) * blocks)
        modules = tuple(
            module.model_copy(update={"start": module.start - number * width, "stop": module.stop - number * width})
            for module in fisher.modules[own]
        )
        parts.append(ProjectedFisher(modules, fisher.eigenvalues[own], fisher.eigenvectors[own], fisher.dampings[own]))
    return parts


def side_by_side(modules: Sequence[ModuleColumns], count: int) -> tuple[ModuleColumns, ...]:
    """Return the columns of `count` checkpoints' gradients side by side; each module is named with its checkpoint."""
    if count == 1:
        return tuple(modules)
    width = modules[-1].stop
    return tuple(
        module.model_copy(
            update={
                "name": module.name + _suffix(number),
                "start": module.start + number * width,
                "stop": module.stop + number * width,
            }
        )
        for number in range(count)
        for module in modules
    )


def of_one(modules: Sequence[ModuleColumns], count: int) -> tuple[ModuleColumns, ...]:
    """Return one checkpoint's columns, under the model's own names, from those of `count` side by side."""
    if count == 1:
        return tuple(modules)
    first = modules[: len(modules) // count]
    return tuple(module.model_copy(update={"name": module.name.removesuffix(_suffix(0))}) for module in first)


def _suffix(number: int) -> str:
    return f" (checkpoint {number})"
