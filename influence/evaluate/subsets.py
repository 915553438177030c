"""Random half subsets of the training rows: what the models of a linear datamodeling score are trained on.

A subset is a pure function of (format version, seed, number, rows), as the projections are: numpy's Philox keyed on a
SHA-256 of those, of which only the raw words are used. It is the same on every machine, worker and numpy version, and
asking for more subsets later leaves the first ones as they were.

Source: Ilyas et al. 2022, "Datamodels", section 2; Park et al. 2023, "TRAK", section 2, for α = 1/2.
"""

import hashlib

import numpy as np

from influence.errors import DataError

SUBSET_VERSION = 1


def half_subset(rows: int, number: int, seed: int = 0) -> np.ndarray:
    """Return one random half of the rows.

    Args:
        rows: How many training rows there are; 2 or more. Of an odd number the smaller half is taken.
        number: Which subset, from 0.
        seed: Of all of them.

    Returns:
        [rows // 2], int64, ascending and without repetition. Every half is equally likely.

    Raises:
        DataError: There are fewer than 2 rows, or the number is negative.
    """
    if rows < 2:
        raise DataError(f"Half of {rows} training rows was asked for: there must be at least 2.")
    if number < 0:
        raise DataError(f"Subset {number} was asked for; they are numbered from 0.")
    key = f"influence subset {SUBSET_VERSION} | seed {seed} | number {number} | rows {rows}"
    words = np.frombuffer(hashlib.sha256(key.encode()).digest()[:16], dtype="<u8")
    drawn = np.random.Philox(key=words).random_raw(rows)
    return np.sort(np.argsort(drawn, kind="stable")[: rows // 2])


def membership(subsets: list[np.ndarray], rows: int) -> np.ndarray:
    """Return which rows each subset holds, [subsets, rows], bool.

    Raises:
        DataError: A subset holds a row that doesn't exist, or one row twice.
    """
    held = np.zeros((len(subsets), rows), bool)
    for number, subset in enumerate(subsets):
        if len(subset) and (subset.min() < 0 or subset.max() >= rows or len(np.unique(subset)) != len(subset)):
            raise DataError(
                f"Subset {number} holds rows {subset.min()} to {subset.max()}, {len(subset)} in all: expected "
                f"different rows from 0 to {rows - 1}."
            )
        held[number, subset] = True
    return held


__all__ = ["half_subset", "membership"]
