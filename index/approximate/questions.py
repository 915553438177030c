"""What an index is measured with: questions drawn as users' are, from rows of the data.

Three kinds, a third of the questions each: a row; a row negated, which asks what speaks against it; and the difference
of two rows, as a contrast of two completions is. An index that finds the rows nearest to a row needn't find what is
nearest to the others: on rows with a shared mean every row lies on one side, and a negated question on the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.approximate.train import SEED

COUNT = 240
"""Questions."""
NONE = -1
"""In the place of a second row."""


@dataclass(frozen=True)
class Questions:
    """Questions made of rows; each row is left out of the answers to its own.

    Attributes:
        rows: int64 [m].
        against: The rows that are subtracted, int64 [m]; `NONE` where none is.
        signs: 1 or −1, float32 [m].
    """

    rows: NDArray[np.int64]
    against: NDArray[np.int64]
    signs: NDArray[np.float32]

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def vectors(self, fetch: Callable[[NDArray[np.int64]], NDArray[np.floating]]) -> NDArray[np.floating]:
        """Return the questions, [m, D].

        Args:
            fetch: Gives rows' vectors.
        """
        vectors, second = fetch(self.rows), self.against != NONE
        vectors = vectors * self.signs[:, None]
        vectors[second] -= fetch(self.against[second])
        return vectors

    @property
    def kinds(self) -> list[NDArray[np.int64]]:
        """The questions of each kind that there are, by their places."""
        second = self.against != NONE
        parts = (~second & (self.signs > 0), ~second & (self.signs < 0), second)
        return [np.flatnonzero(part) for part in parts if part.any()]

    def drop_own(self, question: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return rows without those that a question is made of, in their order."""
        return rows[(rows != self.rows[question]) & (rows != self.against[question])]


def questions(rows: int, count: int = COUNT) -> Questions:
    """Draw questions, the same every time.

    Args:
        rows: Of the data.
        count: How many; fewer where there are fewer rows than a third of that.
    """
    random = np.random.Generator(np.random.Philox(key=SEED + 1))
    share = min(rows, -(-count // 3))
    plain, negated, first = (random.choice(rows, share, replace=False).astype(np.int64) for _ in range(3))
    # Another row than the first, wherever there is one.
    second = (first + 1 + random.integers(0, max(1, rows - 1), share)) % max(1, rows)
    contrasts = share if rows > 1 else 0
    none = np.full(2 * share, NONE, np.int64)
    return Questions(
        np.concatenate([plain, negated, first[:contrasts]]),
        np.concatenate([none, second[:contrasts]]),
        np.repeat(np.array([1, -1, 1], np.float32), [share, share, contrasts]),
    )
