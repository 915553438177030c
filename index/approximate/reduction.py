"""Wide rows made narrow before FAISS sees them: a random sum of columns, then the sample's principal directions.

The random sum is a count sketch with groups of equal size: every column gets a random sign, runs of `reduced` columns
are turned round by a random number of places, so that like columns of like layers don't meet, and added up. Inner
products stay right on average. It costs one pass over the row where a dense Gaussian matrix costs `reduced` of them,
and finds as much or more (measured on one-bit rows of 20,480 columns; docs/benchmarks.md). Its randomness comes from
numpy's Philox, keyed on the seed, and is the same on every machine.

The principal directions are those of the second moment, not of the covariance: FAISS's own PCA subtracts the mean, and
inner products of what is left rank other rows first. They are then turned at random among themselves, because codes of
a few bits want coordinates of one size. Rows too wide for such matrices are turned by `turn` instead.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.rotation import turn

SKETCHED_BYTES = 8 * 2**20
"""Rows that are added up at a time, as float32."""


@dataclass(frozen=True)
class Sketch:
    """The random sum of columns, [n, dims] to [n, reduced]. With equal widths rows pass as they are, unless turned.

    Attributes:
        dims: D.
        reduced: Columns of what comes out, at most D; of turned rows also a few more, which are filled with zeros.
        seed: Of the signs and the order of the columns.
        turned: Whether what comes out is turned at random.
    """

    dims: int
    reduced: int
    seed: int
    turned: bool = False

    def apply(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Add up the columns of every row, and turn it; a pure function of the row.

        Args:
            vectors: [n, dims].

        Returns:
            float32 [n, reduced].
        """
        if self.turned:
            out = np.empty((len(vectors), self.reduced), dtype=np.float32)
            step = max(1, SKETCHED_BYTES // (4 * self.reduced))
            for first in range(0, len(vectors), step):
                out[first : first + step] = turn(self._summed(vectors[first : first + step]), self._turning)
            return out
        return self._summed(vectors)

    def _summed(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        if self.reduced == self.dims:
            return np.ascontiguousarray(vectors, dtype=np.float32)
        if self.reduced > self.dims:
            return np.pad(np.asarray(vectors, dtype=np.float32), ((0, 0), (0, self.reduced - self.dims)))
        signs, shifts = self._draw
        out = np.zeros((len(vectors), self.reduced), dtype=np.float32)
        step = max(1, SKETCHED_BYTES // (4 * self.reduced))
        for first in range(0, len(vectors), step):
            summed = out[first : first + step]
            for run, shift in enumerate(shifts):
                start, stop = run * self.reduced, min((run + 1) * self.reduced, self.dims)
                # The run of columns, turned round: what is shifted off the end comes in at the front.
                cut = min(stop, start + self.reduced - shift)
                for begin, end, at in ((start, cut, shift), (cut, stop, 0)):
                    part = np.asarray(vectors[first : first + step, begin:end], dtype=np.float32)
                    summed[:, at : at + end - begin] += part * signs[begin:end]
        return out

    @cached_property
    def _draw(self) -> tuple[NDArray[np.float32], list[int]]:
        """A sign for every column, and how far each run of `reduced` columns is turned."""
        random = np.random.Generator(np.random.Philox(key=self.seed))
        signs = random.choice(np.array([-1, 1], dtype=np.float32), self.dims)
        return signs, random.integers(0, self.reduced, -(-self.dims // self.reduced)).tolist()

    @cached_property
    def _turning(self) -> NDArray[np.float32]:
        """A sign for every column of what is turned."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, 1]))
        return random.choice(np.array([-1, 1], dtype=np.float32), self.reduced)


def principal_directions(sample: NDArray[np.float32], width: int, seed: int, *, turned: bool) -> NDArray[np.float32]:
    """Return a matrix whose rows span the sample's leading directions about zero, float32 [width, d].

    Memory: three matrices of d × d float64.

    Args:
        sample: [n, d].
        width: How many directions.
        seed: Of the turn.
        turned: Whether the directions are mixed by a random rotation, so that they carry equal parts.
    """
    moment = np.zeros((sample.shape[1],) * 2)
    for first in range(0, len(sample), 4096):
        part = sample[first : first + 4096].astype(np.float64)
        moment += part.T @ part
    directions = np.linalg.eigh(moment)[1][:, ::-1][:, :width].T
    if turned:
        directions = rotation(width, seed) @ directions
    return np.ascontiguousarray(directions, dtype=np.float32)


def rotation(width: int, seed: int) -> NDArray[np.float64]:
    """Return a random orthogonal matrix [width, width]."""
    random = np.random.Generator(np.random.Philox(key=seed))
    return np.linalg.qr(random.standard_normal((width, width)))[0]
