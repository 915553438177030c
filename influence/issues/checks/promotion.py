"""How far each row promotes an unwanted output, and from where on that is more than chance.

A row's influence on each example is taken relative to the row's own size and set against all rows by median and MAD;
the mean over the examples is the row's promotion.

Source: Barshan et al. 2020, "RelatIF", for influence relative to self-influence.
"""

import numpy as np

from influence.issues.subject import Subject

SAMPLED = 65_536
"""Rows, evenly spread, whose scores say what the bulk of an example's scores is."""
TO_SIGMA = 1.4826
"""From a median absolute deviation to the standard deviation of a normal distribution."""


def promotion_of(subject: Subject) -> np.ndarray:
    """Return each row's mean standardised relative influence on the target, float64 [rows]; NaN of zero rows."""
    size = np.ones(subject.rows)
    if subject.run.recipe.comparison != "cosine":
        size = np.sqrt(np.maximum(subject.self_influence, 0))
    size[(subject.norms == 0) | (size == 0)] = np.nan
    step = max(1, subject.rows // SAMPLED)
    sampled = []
    for first, scores in subject.target_scores():
        places = np.arange(-first % step, len(scores), step)
        sampled.append(scores[places] / size[first + places, None])
    bulk = np.concatenate(sampled)
    bulk = bulk[~np.isnan(bulk).any(1)]
    found = np.full(subject.rows, np.nan)
    if not len(bulk):
        return found
    middle = np.median(bulk, axis=0)
    away = np.abs(bulk - middle)
    spread = TO_SIGMA * np.median(away, axis=0)
    spread = np.where(spread > 0, spread, np.sqrt(np.mean(away**2, axis=0)))
    told = spread > 0
    for first, scores in subject.target_scores():
        relative = scores / size[first : first + len(scores), None]
        found[first : first + len(scores)] = ((relative - middle) / np.where(told, spread, np.inf)).mean(1)
    return found


def far_out(null: np.ndarray) -> float:
    """Return from where on no row of a null is expected: its upper half continued as an exponential tail.

    Args:
        null: Standardised values, [n].

    Returns:
        The value that one of n would exceed, were the tail above the median exponential with the 90 % quantile's
        scale: exact for such a tail, wider than a normal one needs.
    """
    if not len(null):
        return float("inf")
    middle, high = np.quantile(null, (0.5, 0.9))
    scale = (high - middle) / np.log(5)
    return float(high + scale * max(0.0, np.log(0.1 * len(null))))


def standardised(values: np.ndarray, bulk: np.ndarray | slice) -> np.ndarray:
    """Return values in robust standard deviations (MAD) from the median of some of them.

    Where more than half of those are equal the deviation is taken from the rest; where all are, values are 0.
    """
    held = values[bulk]
    if not len(held):
        return np.zeros_like(values)
    middle = np.median(held)
    away = np.abs(held - middle)
    spread = TO_SIGMA * np.median(away) or float(np.sqrt(np.mean(away**2)))
    return (values - middle) / spread if spread else np.zeros_like(values)


__all__ = ["far_out", "promotion_of", "standardised"]
