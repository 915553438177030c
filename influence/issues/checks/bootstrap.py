"""The mean of each row's influence over evaluation examples, and how far chance could have moved it.

What is exchangeable are the examples: another evaluation set of the kind would have had others. Rows aren't drawn, all
of them are there. So a replicate draws examples with replacement and takes every row's mean over them; the draws are
the same for all rows, drawn once, and a block's replicates are one matrix product.

Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap".
"""

import numpy as np
from numpy.typing import NDArray


def replicate_weights(examples: int, replicates: int, seed: int) -> NDArray[np.float32]:
    """Return how much each example counts in the mean of each replicate, [examples, replicates]; columns add up to 1.

    Args:
        examples: m.
        replicates: How often m of them are drawn with replacement.
        seed: Of numpy's Philox, so that the draws are the same everywhere.
    """
    chance = np.random.Generator(np.random.Philox(seed))
    weights = np.empty((examples, replicates), dtype=np.float32)
    for replicate in range(replicates):
        drawn = chance.integers(0, examples, size=examples)
        weights[:, replicate] = np.bincount(drawn, minlength=examples) / examples
    return weights


def bootstrap_mean(
    scores: np.ndarray, weights: NDArray[np.float32], level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's mean over the examples, its standard error and a percentile interval, float64 [b] each.

    Args:
        scores: [b, m].
        weights: Of `replicate_weights`, [m, replicates].
        level: Of the interval, such as 0.95.

    Returns:
        Means, standard errors, lower and upper ends.
    """
    means = scores.mean(axis=1, dtype=np.float64)
    replicates = scores.astype(np.float32, copy=False) @ weights
    low, high = np.quantile(replicates, ((1 - level) / 2, (1 + level) / 2), axis=1)
    return means, replicates.std(axis=1, ddof=1, dtype=np.float64), low, high


__all__ = ["bootstrap_mean", "replicate_weights"]
