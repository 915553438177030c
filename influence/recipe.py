"""A recipe: the parts of an influence method, and the named presets.

No method has code of its own. A recipe names its parts, and the rooms of the house read the part that is theirs:
measurement (`task`), gradient and projection (`gradients`), curvature (`curvature`), comparison (`vectors`). A new
method is a new line in `PRESETS`, or one new part in one new file.

The sign rule, for every recipe: **positive = training more on this row raises the measured output's log-probability
(promotes it); negative = opposes it.**
"""

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from influence.curvature.damping import Damping
from influence.errors import RecipeError
from influence.gradients.projection import ProjectionSettings

SIGN_RULE = (
    "Positive: training more on this row raises the measured output's log-probability (promotes it). "
    "Negative: opposes it."
)


class Curvature(BaseModel):
    """The curvature part: what stands between the query's gradient and the row's.

    `fisher` is the projected Gauss-Newton matrix, one block a module, fitted to the *stored* rows: the labels are the
    data's own, so it is the empirical Fisher. It is applied on the query side, damped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["identity", "fisher"] = "identity"
    damping: Damping = Damping()


class Recipe(BaseModel):
    """The parts of one method. Frozen; equal recipes give equal scores.

    Attributes:
        name: The preset it came from, for people to read; scores don't depend on it.
        measurement: What is asked of a query: its log-likelihood, log p(completion | prompt), in nats.
        gradient: `raw`, the loss's own gradient.
        projection: How a gradient becomes a row of the store.
        curvature: What is inverted between query and row.
        comparison: `dot`, or `cosine` (curvature first, then unit length, then the inner product).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    measurement: Literal["log_likelihood"] = "log_likelihood"
    gradient: Literal["raw"] = "raw"
    projection: ProjectionSettings = ProjectionSettings()
    curvature: Curvature = Curvature()
    comparison: Literal["dot", "cosine"] = "dot"

    @property
    def unit(self) -> str:
        """The unit of a score, as every table, JSON document and page prints it."""
        if self.comparison == "cosine":
            return "cosine (no unit)"
        if self.curvature.kind == "identity":
            return "nats per unit of learning rate (one SGD step on the row's summed loss)"
        return "nats per extra copy of the row"

    @property
    def summary(self) -> str:
        """One line that names every part, for logs and pages."""
        curvature = self.curvature.kind
        if curvature == "fisher":
            curvature = f"empirical projected Fisher per module, {self.curvature.damping.summary}"
        parts = f"{self.gradient} gradients, {self.projection.summary}, curvature {curvature}, {self.comparison}"
        return f"{self.name}: {parts}"


PRESETS: dict[str, dict[str, Any]] = {
    "graddot": {},
    "gradcos": {"comparison": "cosine"},
    "logra": {"curvature": {"kind": "fisher"}},
}


def recipe(name: str = "logra", /, **parts: Any) -> Recipe:
    """Return a preset, with some of its parts changed.

    Args:
        name: One of `PRESETS`.
        **parts: Parts to change, as settings or dictionaries: `projection={"p": 64, "q": 64}`. `damping=0.1` and
            `seed=1` are short for the curvature's relative damping and the projection's seed.

    Raises:
        RecipeError: The preset or a part is unknown; the message lists the allowed names.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"There is no recipe {name!r}. The presets are {', '.join(PRESETS)}.{hint}")
    merged: dict[str, Any] = {"name": name, **PRESETS[name]}
    if "damping" in parts:
        curvature = dict(merged.get("curvature", {}))
        merged["curvature"] = {**curvature, "damping": {"value": parts.pop("damping")}}
    if "seed" in parts:
        merged["projection"] = {"seed": parts.pop("seed")}
    for part, value in parts.items():
        old = merged.get(part)
        new = value.model_dump() if isinstance(value, BaseModel) else value
        merged[part] = {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise RecipeError(
            f"Recipe {name!r}: {where}: {first['msg']} (found {first.get('input')!r}). "
            f"The parts are {', '.join(Recipe.model_fields)}."
        ) from None


__all__ = ["PRESETS", "SIGN_RULE", "Curvature", "Recipe", "recipe"]
