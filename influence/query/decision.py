"""What decides a query: the recipe's own way, changed as the query asks, or a refusal that says what to do."""

from pathlib import Path

from pydantic import ValidationError

from influence.baselines.bm25 import MOST_ROWS
from influence.errors import QueryError
from influence.query.baseline import check_asked
from influence.recipes import ExactSettings, Recipe

USUAL_K = 10
"""Rows on each side where nobody says how many, or as many as there are."""


def decision_of(recipe: Recipe, path: Path, exact: bool | None, candidates: int | None) -> ExactSettings:
    """Return what decides a query of a run.

    Args:
        recipe: The run's.
        path: The run's, for messages.
        exact: Whether proposals are scored from whole gradients; None leaves it to the recipe.
        candidates: How many proposals of each side; None leaves it to the recipe.

    Raises:
        QueryError: Exact scores are asked of a recipe without factors for them, or candidates without exact scores.
    """
    check_asked(recipe, path, (), exact=bool(exact) or candidates is not None)
    decision = recipe.decision
    if exact is False or (exact is None and decision.kind == "none"):
        if candidates is not None:
            raise QueryError("--candidates sets the number of rows that exact scores re-rank: add --exact.")
        return ExactSettings()
    if decision.kind == "none":
        raise QueryError(
            f"{path} has no Kronecker factors to score exactly with: its recipe has exact.kind none. {_remedy(recipe)}"
        )
    return decision if candidates is None else decision.model_copy(update={"candidates": candidates})


def _remedy(recipe: Recipe) -> str:
    """Say how a run gets factors for exact scores, or why one of its recipe gets none."""
    try:
        Recipe.model_validate(recipe.model_dump() | {"exact": {"kind": "ekfac"}})
    except ValidationError as error:
        return f"It gets none by another build: {error.errors()[0]['msg'].removeprefix('Value error, ')}."
    return "Build it again with --set recipe.exact.kind=ekfac; its rows stay, only the factors are fitted."


def checked_k(k: int | None, rows: int, path: Path, decision: ExactSettings) -> int:
    """Return how many rows are wanted on each side.

    Raises:
        QueryError: k isn't a whole number from 1 to the number of rows, or is more than there are candidates.
    """
    most = rows if decision.kind == "none" or decision.candidates is None else min(rows, decision.candidates)
    if k is None:
        return min(USUAL_K, most)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= rows:
        raise QueryError(f"k is {k!r}, but {path} has {rows} rows: k must be a number from 1 to {rows}.")
    if k > most:
        raise QueryError(
            f"k is {k}, and exact scores are for {decision.candidates} candidates of each side. Ask for more "
            f"candidates (--candidates {k}), or for a smaller k."
        )
    return k


def check_lexical(rows: int) -> None:
    """Refuse BM25 over more texts than fit into memory.

    Raises:
        QueryError: There are too many rows.
    """
    if rows > MOST_ROWS:
        raise QueryError(
            f"BM25 over {rows:,} texts doesn't fit into memory (at most {MOST_ROWS:,} rows). Build with "
            "--set recipe.exact.lexical=false, which takes candidates from the index only."
        )
