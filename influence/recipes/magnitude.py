"""Whether scores can be numbers of nats: no change of a log-likelihood reaches beyond a probability of 1.

A score of +20 nats per extra copy for an output of log p = −8.4 is impossible, whatever was trained. It comes from a
curvature with too little damping: in directions where few rows have a gradient, 1/λ decides. The order of the rows may
well be right; their magnitudes aren't. A contrast and log-odds have no such bound, since log p(B) may fall without end;
nor has a score per unit of learning rate, before the rate is known.
"""

from collections.abc import Collection
from typing import Literal

from influence.recipes.method import EXTRA_COPY

Magnitudes = Literal["nats", "rank_only", "unchecked", "no_unit"]
"""`nats`: the largest score is one that the output's probability allows; `rank_only`: it is more; `unchecked`: there is
no bound to hold it to; `no_unit`: scores are no numbers of nats in the first place."""

RANK_ONLY = (
    "a rank, not a number of nats. A larger damping makes them smaller; `influence doctor RUN` holds some to real "
    "training steps."
)
"""What is said of such scores, and what to do."""


def magnitudes(unit: str, best: float, log_likelihood: float | None, *, contrasted: bool) -> Magnitudes:
    """Return whether the scores of a query can be read as numbers of nats.

    Args:
        unit: Of the scores.
        best: The largest of them, 0 where none is positive.
        log_likelihood: Of the output that is asked about; None where no model was asked.
        contrasted: Whether it is asked about rather than another.
    """
    if not unit.startswith("nats"):
        return "no_unit"
    if contrasted or log_likelihood is None or not unit.startswith((EXTRA_COPY, "nats (one ")):
        return "unchecked"
    # Rounding of an output that is sure already is no case.
    return "rank_only" if best > -log_likelihood + 1e-6 * (1 + abs(log_likelihood)) else "nats"


def joint_magnitudes(queries: Collection[Magnitudes]) -> Magnitudes:
    """Return how scores that are made of several queries' scores (a mean, a sum) can be read: as the worst of these.

    Args:
        queries: How the scores of each can be read, one or more.
    """
    order: tuple[Magnitudes, ...] = ("no_unit", "rank_only", "unchecked", "nats")
    return next(kind for kind in order if kind in queries)


def rank_only_queries(queries: Collection[Magnitudes]) -> str | None:
    """Return what to say beside the scores of several queries where some are a rank only.

    Args:
        queries: How the scores of each can be read.
    """
    beyond = sum(kind == "rank_only" for kind in queries)
    if not beyond:
        return None
    return (
        f"For {beyond:,} of {len(queries):,} queries the largest score is more than the output's log-likelihood can "
        f"rise at all: their scores are {RANK_ONLY}"
    )
