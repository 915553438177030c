"""What is compared: queries and rows on their way from gradients to vectors whose plain inner product is the score.

With u the query's gradient −∇m, r the row's gradient ∇ℓ, F the curvature and λ its damping:

    dot, identity              u · r
    dot, whitened projection   (1/N) u · r                     nats per extra copy; the curvature is in the vectors
    dot, fisher                (1/N) (F+λ)⁻¹u · r              likewise
    dot, fisher on both sides  (1/N) (F+λ)^-½u · (F+λ)^-½r     the same scores
    cosine, identity           u/|u| · r/|r|
    cosine, fisher             unit((F+λ)^-½ u) · unit((F+λ)^-½ r)

A row of a recipe on log-odds is multiplied by its weight 1−p between the two. Curvature always comes before length, and
this is the only place where either is applied to a query or a row. A zero vector stays zero and scores 0. Several
checkpoints are several of these: see `ensemble`.

Source: methods: Koh & Liang 2017 for the sign and 1/N; Chang et al. 2024 (TrackStar) for the halves under cosine.
"""

from dataclasses import dataclass

from influence.axes import ND, PerExample
from influence.curvature.projected_fisher import ProjectedFisher
from influence.errors import RecipeError
from influence.recipes import Recipe
from influence.vectors.unit_norm import unit_norm


@dataclass(frozen=True)
class Comparison:
    """The comparison part of a recipe with its curvature in hand.

    Attributes:
        recipe: Its curvature and comparison decide what is done.
        fisher: The prepared curvature; None where the recipe has none.
        rows: N, the rows of the whole training set, for the 1/N of a score in nats per extra copy.
    """

    recipe: Recipe
    fisher: ProjectedFisher | None
    rows: int

    def __post_init__(self) -> None:
        """Refuse a recipe whose curvature isn't there, and a curvature that no recipe asked for."""
        if (self.recipe.curvature.kind == "fisher") != (self.fisher is not None):
            actual = "no curvature was given" if self.fisher is None else "a Fisher was given"
            raise RecipeError(f"The recipe's curvature is {self.recipe.curvature.kind}, and {actual}.")

    def query_vectors(self, gradients: ND) -> ND:
        """Turn queries' gradients −∇m, [m, D], into vectors to search with, same shape and dtype."""
        return self.measured(self.curved_queries(gradients))

    def row_vectors(self, gradients: ND, weights: PerExample | None = None) -> ND:
        """Turn rows' gradients ∇ℓ, [n, D], into vectors to search among, same shape and dtype.

        Args:
            gradients: Of what the recipe differentiates: the rows' losses, or minus their log-odds.
            weights: [n], of a recipe whose rows have weights, and of no other.

        Raises:
            RecipeError: Weights are missing, or the recipe has none.
        """
        return self.measured(self.weighed(self.curved_rows(gradients), weights))

    def stored_queries(self, vectors: ND) -> ND | None:
        """Return what scores stored rows as they are, before their weights, from queries as they are compared, [m, D].

        None where rows must be turned into vectors first, because half the curvature is on their side.
        """
        return vectors if self.fisher is None or not self.recipe.halved else None

    @property
    def even_factor(self) -> float | None:
        """C where a row's score with itself is c·‖row‖², before its weight; None where columns don't count alike."""
        if self.fisher is not None or self.recipe.comparison != "dot":
            return None
        return 1 / self.rows if self.recipe.per_copy else 1.0

    def curved_queries(self, gradients: ND) -> ND:
        """Apply the query's share of the curvature, and 1/N where scores count extra copies."""
        if self.fisher is not None:
            gradients = self.fisher.apply(gradients, power=-0.5 if self.recipe.halved else -1.0)
        return gradients / self.rows if self.recipe.per_copy else gradients

    def curved_rows(self, gradients: ND) -> ND:
        """Apply the row's share of the curvature."""
        if self.fisher is None or not self.recipe.halved:
            return gradients
        return self.fisher.apply(gradients, power=-0.5)

    def weighed(self, vectors: ND, weights: PerExample | None) -> ND:
        """Multiply rows by their weights, where the recipe has them; see `row_vectors`."""
        if self.recipe.weighted != (weights is not None):
            actual = "no weights of its rows were given" if weights is None else "weights of its rows were given"
            raise RecipeError(f"The recipe's measurement is {self.recipe.measurement}, and {actual}.")
        return vectors if weights is None else vectors * weights.to(vectors).unsqueeze(1)

    def measured(self, vectors: ND) -> ND:
        """Take the length, where only directions are compared."""
        return unit_norm(vectors)[0] if self.recipe.comparison == "cosine" else vectors
