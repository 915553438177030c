"""Rows out of place: far from every other row, and with more influence on themselves than length and loss explain.

Either alone is no case. A long or hard text has a large gradient and still resembles others; a short one may resemble
nothing and change nothing. The score is how far the self-influence lies above what is explained, in standard deviations
of the bulk, times the share of rows that are nearer to their nearest rows than this one is. Cosines themselves say
little: of whitened gradients the usual row is as far from its nearest as chance has it, and none could stand out. The
threshold is Tukey's outer fence of the first factor, which outliers don't move unless they are a quarter of the rows.
"""

from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import least_squares

from influence.errors import QueryError
from influence.issues.cases import gather
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject

FEWEST = 20
"""Rows below which nothing can be said of what is usual."""
FITTED = 20_000
"""Rows, evenly across the run, from which is read how self-influence goes with length and loss."""
SHOWN = 3
"""Nearest rows that are named as evidence."""
NORMAL = 1.4826
"""Standard deviations that a median absolute deviation comes to where values are normal."""
FENCE = 3.0
"""Interquartile ranges above the third quartile: Tukey's outer fence."""
BLOCK = 4096
"""Flagged rows whose evidence is read together."""


class OutlierSettings(BaseModel):
    """From where on a row is out of place.

    Attributes:
        threshold: Of the score, in standard deviations of the bulk; unset, Tukey's outer fence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(default=None, gt=0)


def lacks(subject: Subject) -> str | None:
    """Say what is missing: rows to compare with, or scores of rows for themselves."""
    if subject.rows < FEWEST:
        return f"It needs {FEWEST} rows or more to estimate the usual value, and there are {subject.rows}."
    try:
        subject.check_self_influence()
    except QueryError as error:
        return f"It needs each row's influence on itself. {error}"
    return None


def check(subject: Subject, settings: OutlierSettings) -> Finding:
    """Flag rows that are far from every other and have more influence on themselves than rows like them."""
    strength = deviations(excess(subject.self_influence, subject.tokens, subject.losses))
    scores = np.maximum(strength, 0) * shares_nearer(distances(subject))
    threshold, rule = settings.threshold, "as set"
    if threshold is None:
        rule = "Tukey's outer fence of the first factor, its third quartile and three interquartile ranges"
        threshold = fence(strength)
    flagged = np.flatnonzero(scores > threshold)
    return Finding(
        "outlier",
        scores.astype(np.float32),
        gather(_cases(subject, flagged)),
        "By how many standard deviations of the bulk the row has more influence on itself than its tokens and loss "
        "explain, times the share of rows that are nearer to their nearest rows than this one.",
        f"Flagged above {threshold:.3g}: {rule}.",
    )


def distances(subject: Subject) -> np.ndarray:
    """Return one minus every row's mean cosine with its nearest rows, float32 [rows]; NaN where there are none."""
    found = np.full(subject.rows, np.nan, dtype=np.float32)
    for first, near in subject.graph.blocks():
        there = near.alike >= 0
        count = there.sum(axis=1)
        total = np.where(there, near.alike_cosines, 0).sum(axis=1)
        block = found[first : first + len(count)]
        np.divide(count - total, count, out=block, where=count > 0)
    return found


def shares_nearer(distances: np.ndarray) -> np.ndarray:
    """Return for each row the share of rows with a smaller distance, float64 [n]; 1 where there is no distance at all.

    A row without any neighbour is as far as can be.
    """
    known = np.sort(distances[np.isfinite(distances)])
    shares = np.searchsorted(known, distances, side="left") / max(1, len(known) - 1)
    return np.where(np.isfinite(distances), np.minimum(shares, 1), 1.0)


def excess(influence: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the logarithm of self-influence beyond what tokens and loss explain, float64 [n]; NaN where it is none.

    The logarithm is fitted by those of tokens and loss with a soft absolute loss, which single rows don't pull at.

    Args:
        influence: [n], each row's on itself.
        tokens: [n].
        losses: [n], summed over the tokens, in nats.
    """
    good = np.isfinite(influence) & (influence > 0)
    found = np.full(len(influence), np.nan)
    if not good.any():
        return found
    known = np.stack([np.log(np.maximum(tokens, 1)), np.log(np.maximum(losses, 1e-6))], axis=1)[good]
    target = np.log(influence[good].astype(np.float64))
    known = np.concatenate([known - np.median(known, axis=0), np.ones((len(known), 1))], axis=1)
    shown = np.unique(np.linspace(0, len(known) - 1, min(len(known), FITTED)).astype(np.int64))
    begin = np.array([0.0, 0.0, np.median(target)])
    fitted = least_squares(lambda weights: known[shown] @ weights - target[shown], begin, loss="soft_l1")
    found[good] = target - known @ fitted.x
    return found


def deviations(values: np.ndarray) -> np.ndarray:
    """Return (value − median) / standard deviation of the bulk, by the median absolute deviation, float64 [n].

    Where more than half of the values are alike, their mean absolute deviation stands in; where all are, all are 0.
    """
    centred = values.astype(np.float64) - np.nanmedian(values) if np.isfinite(values).any() else values.astype(float)
    spread = NORMAL * np.nanmedian(np.abs(centred)) if np.isfinite(values).any() else 0.0
    if spread == 0 and np.isfinite(values).any():
        spread = float(np.nanmean(np.abs(centred)))
    return centred / spread if spread > 0 else np.where(np.isnan(centred), np.nan, 0.0)


def fence(values: np.ndarray) -> float:
    """Return Tukey's outer fence: third quartile and three interquartile ranges; infinite where there is no value."""
    known = values[np.isfinite(values)]
    if not known.size:
        return float("inf")
    low, high = np.quantile(known, [0.25, 0.75])
    return float(high + FENCE * (high - low))


def _cases(subject: Subject, rows: np.ndarray) -> Iterator[tuple[int, Case]]:
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        near = subject.graph.of(part).alike[:, :SHOWN]
        wanted = np.unique(near[near >= 0])
        names = dict(zip(wanted.tolist(), subject.ids(wanted), strict=True))
        for row, line in zip(part.tolist(), near.tolist(), strict=True):
            evidence = tuple(names[other] for other in line if other >= 0)
            yield row, Case(evidence, "review", "review: unlike every other row")


__all__ = ["OutlierSettings", "check", "deviations", "distances", "excess", "fence", "lacks", "shares_nearer"]
