"""The parts of one method, which of them combine, and what its scores count."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from influence.curvature.covariance import FactorSettings
from influence.errors import RecipeError
from influence.gradients.adam import GradientSettings
from influence.gradients.projection import ProjectionSettings
from influence.recipes.checkpoint import Checkpoint
from influence.recipes.curvature import Curvature
from influence.recipes.exact import ExactSettings
from influence.recipes.sign import Baseline, sign_rule
from influence.task import Measured, Reduction

EXTRA_COPY = "nats per extra copy of the row"


def extra_copy(reduction: Reduction) -> str:
    """Return the unit of scores under an inverse curvature; of mean losses it says so."""
    return EXTRA_COPY if reduction == "sum" else f"{EXTRA_COPY} (its loss the mean over its tokens)"


class Recipe(BaseModel):
    """The parts of one method. Frozen; equal recipes give equal scores.

    Attributes:
        name: The preset it came from, for people to read; scores don't depend on it.
        measurement: What is asked of a query: its log-likelihood, log p(completion | prompt), in nats; or its
            `log_odds`, log p/(1−p) summed over the scored tokens, TRAK's. A row is then the gradient of its own
            log-odds, times the mean of its 1−p after the curvature.
        gradient: `raw`, the loss's own gradient; `adam`, divided by the root of the optimiser's second moment.
        projection: How a gradient becomes a row of the store.
        curvature: What is inverted between query and row.
        comparison: `dot`, or `cosine` (curvature first, then unit length, then the inner product).
        factors: How Kronecker factors are fitted, where a part needs them.
        exact: What decides among the rows that the index proposes.
        checkpoints: Whose inner products are summed; none is the model itself.
        baseline: A method without gradients in the place of all other parts: `bm25`, over the rows' texts, or `repsim`,
            the cosine of mean last hidden states. The sign rule is none of theirs; `sign` is what their scores say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    measurement: Measured = "log_likelihood"
    gradient: GradientSettings = GradientSettings()
    projection: ProjectionSettings = ProjectionSettings()
    curvature: Curvature = Curvature()
    comparison: Literal["dot", "cosine"] = "dot"
    factors: FactorSettings = FactorSettings()
    exact: ExactSettings = ExactSettings()
    checkpoints: tuple[Checkpoint, ...] = ()
    baseline: Baseline | None = None

    @model_validator(mode="after")
    def _parts_combine(self) -> "Recipe":
        """Refuse parts that can't be combined, with the nearest that can."""
        curvature = self.curvature
        if curvature.whole and self.projection.kind != "none":
            raise ValueError(
                f"curvature {curvature.kind} needs whole gradients, and the projection is "
                f"{self.projection.kind}. The nearest that can be: projection kind none, projection rows whitened "
                "(K-FAC folded into the projection) with curvature identity, or curvature fisher"
            )
        if curvature.whole and self.comparison == "cosine":
            raise ValueError(
                f"cosine needs every row's length under {curvature.kind}, which exact scoring doesn't form. The "
                "nearest that can be: comparison dot, or projection rows whitened with cosine"
            )
        if curvature.side == "query" and self.comparison == "cosine" and curvature.kind != "identity":
            raise ValueError("cosine takes half the curvature on each side: leave curvature side out, or say both")
        if curvature.damping.kind in ("bounded", "training") and curvature.kind == "fisher":
            raise ValueError(
                f"damping of kind {curvature.damping.kind} is of whole gradients' curvature, and a fisher is one of "
                "projected ones. The nearest that can be: curvature kind ekfac with projection kind none, or damping "
                "kind relative"
            )
        if curvature.blocks == "all" and curvature.kind != "fisher":
            raise ValueError(f"only a fisher can be taken over all columns together, not {curvature.kind}")
        if curvature.rescale and curvature.blocks != "all":
            raise ValueError(
                "rescale divides one inverse by its own mean entry, so it needs curvature kind fisher with blocks all"
            )
        if self.weighted and self.needs_factors:
            raise ValueError(
                "Kronecker factors are those of the loss, whose gradients a row of log_odds isn't. The nearest that "
                "can be: curvature fisher with projection rows random and exact none, or measurement log_likelihood"
            )
        if self.checkpoints and self.exact.kind != "none":
            raise ValueError(
                "exact scores are under one model, not several checkpoints. The nearest that can be: exact none, or "
                "no checkpoints"
            )
        if len({checkpoint.weight is None for checkpoint in self.checkpoints}) > 1:
            raise ValueError("some checkpoints have a weight and some have none: give every one its weight, or none")
        paths = [checkpoint.path for checkpoint in self.checkpoints if checkpoint.path is not None]
        if len(paths) != len(set(paths)):
            raise ValueError(f"a checkpoint is named twice among {', '.join(paths)}: give it once, with its weight")
        return self

    @model_validator(mode="after")
    def _gradients_combine(self) -> "Recipe":
        """Refuse parts that can't be combined with Adam's gradients, or with none."""
        if self.gradient.kind == "adam":
            if self.projection.folds or self.curvature.whole:
                raise ValueError(
                    "Kronecker factors are those of raw gradients, and adam divides each element by a number of its "
                    "own. The nearest that can be: curvature fisher with projection rows random, or gradient raw"
                )
            if self.weighted:
                raise ValueError(
                    "the optimiser's second moments are those of the loss, whose gradients a row of log_odds isn't. "
                    "The nearest that can be: measurement log_likelihood, or gradient raw"
                )
            if self.gradient.sides == "rows" and self.curvature.kind == "fisher":
                raise ValueError(
                    "the Fisher of divided rows means nothing to raw queries. The nearest that can be: gradient sides "
                    "both, or curvature identity"
                )
            if self.gradient.state is not None and len(self.checkpoints) > 1:
                raise ValueError(
                    f"gradient.state is one optimiser's, and there are {len(self.checkpoints)} checkpoints, each with "
                    "second moments of its own: give each checkpoint its state"
                )
            if self.gradient.state is not None and any(checkpoint.state for checkpoint in self.checkpoints):
                raise ValueError("gradient.state and the checkpoint's state are both given: keep one")
        elif any(checkpoint.state for checkpoint in self.checkpoints):
            raise ValueError("raw gradients read no optimiser's state: set gradient kind adam, or leave states out")
        if self.baseline is not None:
            parts = ("measurement", "gradient", "projection", "curvature", "comparison", "exact", "checkpoints")
            set_too = [part for part in parts if getattr(self, part) != type(self).model_fields[part].default]
            if set_too:
                raise ValueError(
                    f"the baseline {self.baseline} has no {' and no '.join(set_too)}: leave them out. The nearest that "
                    f"can be: {self.baseline} alone, or a recipe of gradients, such as gradcos"
                )
        return self

    @property
    def per_copy(self) -> bool:
        """Whether scores count what an extra copy of a row does, so that they take the 1/N."""
        return self.inverts and self.comparison == "dot" and not self.curvature.rescale

    @property
    def weighted(self) -> bool:
        """Whether rows are multiplied by a weight of their own after the curvature."""
        return self.measurement == "log_odds"

    def optimiser_states(self, count: int) -> tuple[str | None, ...]:
        """Return where each of `count` checkpoints' second moments are, as far as the recipe says."""
        own = [checkpoint.state for checkpoint in self.checkpoints] or [None] * count
        return tuple(state or (self.gradient.state if count == 1 else None) for state in own)

    def checkpoint_shares(self, count: int) -> tuple[float, ...]:
        """Return each checkpoint's share of a mean over `count` checkpoints, by their weights; they sum to 1."""
        weights = [checkpoint.weight or 1.0 for checkpoint in self.checkpoints] or [1.0] * count
        if len(weights) != count:
            raise RecipeError(
                f"The recipe names {len(weights)} checkpoints, and there are {count}: give the recipe and the call the "
                "same ones, in the same order."
            )
        return tuple(weight / sum(weights) for weight in weights)

    def checkpoint_weights(self, count: int) -> tuple[float, ...]:
        """Return what each of `count` checkpoints' inner products count for: η where that is set, else its share."""
        shares = self.checkpoint_shares(count)
        if not self._learning_rates:
            return shares
        return tuple(checkpoint.weight or 1.0 for checkpoint in self.checkpoints)

    @property
    def _learning_rates(self) -> bool:
        """Whether the checkpoints' weights are taken as learning rates."""
        weighted = any(checkpoint.weight is not None for checkpoint in self.checkpoints)
        return weighted and not self.inverts and self.comparison == "dot"

    @property
    def halved(self) -> bool:
        """Whether half the curvature is applied on each side, rather than all of it to the query."""
        return self.curvature.kind != "identity" and (self.comparison == "cosine" or self.curvature.side == "both")

    @property
    def stored(self) -> "Recipe":
        """The recipe that stored rows are compared by: itself, or a whitened sketch where it takes whole gradients.

        That of `repsim` says cosine, which its rows are compared by, and which nobody may set.
        """
        if self.baseline == "repsim":
            return self.model_copy(update={"comparison": "cosine"})
        if not self.curvature.whole:
            return self
        whitened = ProjectionSettings(rows="whitened", damping=self.projection.damping)
        return self.model_copy(update={"projection": whitened, "curvature": Curvature(), "exact": ExactSettings()})

    @property
    def decision(self) -> ExactSettings:
        """What decides a query in the end: `exact`, or the curvature itself, over every row, where it is K-FAC's."""
        if not self.curvature.whole:
            return self.exact
        kind = "kfac" if self.curvature.kind == "kfac" else "ekfac"
        return ExactSettings(kind=kind, damping=self.curvature.damping, candidates=None, lexical=False)

    @property
    def needs_factors(self) -> bool:
        """Whether some part of it is made of Kronecker factors."""
        return self.projection.folds or self.curvature.whole or self.exact.kind != "none"

    @property
    def corrects_eigenvalues(self) -> bool:
        """Whether some part of it is EK-FAC, which takes a second pass."""
        return "ekfac" in (self.curvature.kind, self.exact.kind)

    @property
    def inverts(self) -> bool:
        """Whether scores are under an inverse curvature."""
        return self.curvature.kind != "identity" or (self.projection.folds and self.projection.rows == "whitened")

    @property
    def sign(self) -> str:
        """What the sign of a score means, as every table, JSON document and page prints it."""
        return sign_rule(self.baseline)

    @property
    def unit(self) -> str:
        """The unit of a score where rows' losses are summed over their tokens; see `unit_under`."""
        return self.unit_under("sum")

    def unit_under(self, reduction: Reduction) -> str:
        """Return the unit of a score, as every table, JSON document and page prints it.

        Args:
            reduction: How a row's loss is made of its tokens' losses: the task's setting.
        """
        if self.baseline == "bm25":
            return "BM25 (no unit)"
        if self.comparison == "cosine" or self.baseline == "repsim":
            return "cosine (no unit)"
        if self.curvature.rescale:
            return "rescaled as traker does (no unit)"
        asked, losses = ("nats of log-odds", _LOG_ODDS) if self.weighted else ("nats", _LOSS)
        loss = losses[reduction]
        if self.per_copy:
            unit = extra_copy(reduction).replace("nats", asked)
            return unit + (", p(1−p) taken as 1" if self.weighted else "")
        step = "SGD step"
        if self.gradient.kind == "adam":
            if self.gradient.sides == "both":
                return "inner product of Adam-scaled gradients (no unit)"
            step = "Adam step, momentum apart,"
        if self._learning_rates:
            return f"{asked} (one {step} on the row's {loss} at each checkpoint, its weight the learning rate)"
        return f"{asked} per unit of learning rate (one {step} on the row's {loss})"

    @property
    def summary(self) -> str:
        """One line that names every part, for logs and pages."""
        if self.baseline is not None:
            what = {"bm25": "BM25 over the rows' texts", "repsim": "cosine of mean last hidden states"}[self.baseline]
            return f"{self.name}: {what}, no gradients"
        curvature = self.curvature.kind
        if curvature == "fisher":
            blocks = "per module" if self.curvature.blocks == "module" else "over all columns"
            curvature = f"empirical projected Fisher {blocks}, {self.curvature.damping.summary}"
            curvature += ", rescaled" if self.curvature.rescale else ""
        elif self.curvature.whole:
            curvature = f"{_shown(curvature)}, {self.curvature.damping.summary}"
        parts = f"{self.gradient.summary}, {self.projection.summary}, curvature {curvature}, {self.comparison}"
        if self.projection.folds or self.curvature.whole:
            parts += f" ({self.factors.summary})"
        if self.weighted:
            parts = f"log-odds, {parts}, rows times 1−p"
        if self.checkpoints:
            parts += f", {len(self.checkpoints)} checkpoint" + ("s" if len(self.checkpoints) > 1 else "")
        return f"{self.name}: {parts}"

    @property
    def exact_summary(self) -> str:
        """One line that says what decides, for logs and pages."""
        exact = self.exact
        if exact.candidates is None:
            whom = "every row"
        else:
            whom = f"the best {exact.candidates} of each side" + (" and of BM25" if exact.lexical else "")
        rank = f", rank {exact.rank}" if exact.rank is not None else ""
        return f"exact {_shown(exact.kind)} over {whom}, {exact.damping.summary}, {self.factors.summary}{rank}"


_LOSS = {"sum": "summed loss", "mean": "loss, the mean over its tokens"}
_LOG_ODDS = {"sum": "log-odds times 1−p", "mean": "log-odds times 1−p, divided by its tokens"}


def _shown(kind: str) -> str:
    return {"kfac": "K-FAC", "ekfac": "EK-FAC"}[kind]
