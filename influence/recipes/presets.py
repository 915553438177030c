"""The named presets: a new method is a new line here."""

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from influence.errors import RecipeError
from influence.recipes.method import Recipe

PRESETS: dict[str, dict[str, Any]] = {
    "graddot": {},
    "gradcos": {"comparison": "cosine"},
    "tracin": {},
    "less": {"gradient": {"kind": "adam", "sides": "rows"}, "comparison": "cosine"},
    "logra": {"curvature": {"kind": "fisher"}},
    "trackstar": {"curvature": {"kind": "fisher"}, "comparison": "cosine"},
    "whitened": {"projection": {"rows": "whitened", "p": 64, "q": 64}, "exact": {"kind": "ekfac"}},
    "trak": {
        "measurement": "log_odds",
        "projection": {"kind": "trak", "dims": 2048},
        "curvature": {"kind": "fisher", "blocks": "all", "damping": {"value": 0.0}},
    },
    "kfac": {"projection": {"kind": "none"}, "curvature": {"kind": "kfac"}},
    "ekfac": {"projection": {"kind": "none"}, "curvature": {"kind": "ekfac"}},
    "bm25": {"baseline": "bm25"},
    "repsim": {"baseline": "repsim"},
}
"""`less` leaves out what LESS adds to every row's gradient, the momentum, and the row's own share of the second moment;
over several checkpoints its length is that of all together, where LESS adds up a cosine of each."""


def recipe(name: str = "whitened", /, **parts: Any) -> Recipe:
    """Return a preset, with some of its parts changed.

    Args:
        name: One of `PRESETS`.
        **parts: Parts to change, as settings or dictionaries: `projection={"p": 64, "q": 64}`. `damping=0.1` and
            `seed=1` are short for the relative damping (of the curvature, or of a whitened projection) and the
            projection's seed.

    Raises:
        RecipeError: The preset or a part is unknown, or the parts can't be combined; the message lists what can.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"There is no recipe {name!r}. The presets are {', '.join(PRESETS)}.{hint}")
    for short in ("damping", "seed"):
        if isinstance(parts.get(short), bool):
            raise RecipeError(f"Recipe {name!r}: {short} is {parts[short]}; expected a number.")
    merged: dict[str, Any] = {"name": name, **PRESETS[name]}
    if "damping" in parts:
        value = parts.pop("damping")
        if name == "whitened":
            merged["projection"] = {**merged["projection"], "damping": value}
        else:
            merged["curvature"] = {**merged.get("curvature", {}), "damping": {"value": value}}
    if "seed" in parts:
        merged["projection"] = {**merged.get("projection", {}), "seed": parts.pop("seed")}
    for part, value in parts.items():
        old = merged.get(part)
        new = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        new = {"kind": new} if part == "gradient" and isinstance(new, str) else new
        merged[part] = {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        said = str(first["msg"]).removeprefix("Value error, ")
        if not where:
            raise RecipeError(f"Recipe {name!r}: {said}.") from None
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"Recipe {name!r}: {_unknown([str(step) for step in first['loc']])}") from None
        raise RecipeError(
            f"Recipe {name!r}: {where}: {said} (found {first.get('input')!r}). "
            f"The parts are {', '.join(Recipe.model_fields)}."
        ) from None


def _unknown(steps: list[str]) -> str:
    """Return what to say of a part, or a setting of one, that there isn't."""
    settings: Any = Recipe
    for step in steps[:-1]:
        field = getattr(settings, "model_fields", {}).get(step)
        settings = None if field is None else field.annotation
    allowed = list(getattr(settings, "model_fields", {}))
    near = get_close_matches(steps[-1], allowed, n=1)
    there = f" There are {', '.join(allowed)}." if allowed else ""
    return f"there is no {'.'.join(steps)}.{there}{f' Did you mean {near[0]}?' if near else ''}"
