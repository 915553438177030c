"""`factors`: the rank-c part of each module's [Q, P] block, as 2c vectors in float16.

A block V is kept as Σ_c l_c r_cᵀ, the first c terms of its singular value decomposition: of all matrices of rank c none
is closer. Each term's singular value is shared by both of its vectors, l = u√σ and r = v√σ, so that neither leaves the
range of float16: no entry exceeds √‖V‖ ≤ 1 where a row has length 1. The squared error is that of the singular values
left out, plus rounding of some 2⁻¹¹ of what was kept. Scores are too small by what is left out of ‖V‖²: at rank 1 a row
of many tokens keeps half of it. (Scaling up what is kept makes up for that on average and ranks worse.) A block whose
shorter side is under c is kept at that rank, which is all of it.

A score never forms the [Q, P] block: with the query's block H it is Σ_c l_cᵀ H r_c.

Source: LoRIF, arXiv 2601.21929; for the decomposition Halko, Martinsson and Tropp 2011, algorithm 4.4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.gemm.dots import row_dots
from influence.axes import ModuleColumns
from influence.errors import StoreError
from influence.store.codec import PIECE, Codec, Encoded, Plane, Scorer, tiles
from influence.store.codecs.float16 import widened

SPARE, ITERATIONS = 8, 8
"""Of the subspace iteration: directions beyond those that are kept, and rounds."""


class Place(NamedTuple):
    """Where a module's factors lie in a row of `factors`: rank × Q numbers, then rank × P."""

    module: ModuleColumns
    rank: int
    left: slice
    right: slice


@dataclass(frozen=True)
class Factors(Codec):
    """Directions as float16 [n, Σ c(Q + P)].

    Attributes:
        rank: c.
    """

    rank: int

    name: ClassVar[Literal["factors"]] = "factors"

    def __post_init__(self) -> None:
        """Refuse a rank that every block is below."""
        most = max((min(module.q, module.p) for module in self.modules), default=0)
        if not 1 <= self.rank <= most:
            raise StoreError(
                f"store.rank is {self.rank}, and the largest module's block has rank {most} at most: choose 1 to "
                f"{most}, or another codec. Factors of rank c save bytes where c is well under the shorter side."
            )

    @property
    def summary(self) -> str:
        """The codec in words, for messages."""
        return f"factors of rank {self.rank}"

    def _layout(self) -> tuple[Plane, ...]:
        return (Plane("factors", np.float16, "F16", self.places[-1].right.stop),)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each module's factors lie."""
        places, at = [], 0
        for module in self.modules:
            rank = min(self.rank, module.q, module.p)
            between, end = at + rank * module.q, at + rank * (module.q + module.p)
            places.append(Place(module, rank, slice(at, between), slice(between, end)))
            at = end
        return tuple(places)

    def decode(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the directions that some factors stand for, [n, D]."""
        out = np.empty((len(encoded["factors"]), self.dims), dtype=np.float32)
        for place, rows, left, right in self._unpacked(encoded):
            module = place.module
            out[rows, module.start : module.stop] = (left.transpose(0, 2, 1) @ right).reshape(len(left), -1)
        return out

    def lengths(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the lengths of the decoded directions, [n]: ‖Σ l rᵀ‖² = Σ_cd ⟨l_c, l_d⟩⟨r_c, r_d⟩."""
        squares = np.zeros(len(encoded["factors"]))
        for _, rows, left, right in self._unpacked(encoded):
            lefts, rights = (side @ side.transpose(0, 2, 1) for side in (left, right))
            squares[rows] += row_dots(lefts.reshape(len(left), -1), rights.reshape(len(left), -1))
        return np.sqrt(np.maximum(squares, 0)).astype(np.float32)

    def _encode(self, unit: NDArray[np.floating], into: Encoded) -> None:
        for place in self.places:
            module = place.module
            for start, stop in tiles(len(unit), module.stop - module.start):
                block = np.ascontiguousarray(unit[start:stop, module.start : module.stop], dtype=np.float32)
                left, right = leading_terms(block.reshape(-1, module.q, module.p), place.rank)
                into["factors"][start:stop, place.left] = left.reshape(len(left), -1)
                into["factors"][start:stop, place.right] = right.reshape(len(right), -1)

    def scorer(self, queries: NDArray[np.float32], *, many: bool = False) -> Scorer:
        """Return what scores factors for some queries, one after the other however many there are."""
        checked = self.checked(queries)
        return lambda encoded: self._scores(encoded, checked).astype(np.float32)

    def _scores(self, encoded: Encoded, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        total = np.zeros((len(queries), len(encoded["factors"])))
        for place, rows, left, right in self._unpacked(encoded):
            module = place.module
            # Few enough columns at a time that BLAS starts no threads for one row.
            step = max(1, PIECE // module.q)
            for query, vector in enumerate(queries[:, module.start : module.stop]):
                block = vector.reshape(module.q, module.p)
                through = np.empty_like(right)
                for column in range(0, module.p, step):
                    piece = slice(column, column + step)
                    np.matmul(left, block[:, piece], out=through[..., piece])
                total[query, rows] += row_dots(through.reshape(len(left), -1), right.reshape(len(left), -1))
        return total

    def _unpacked(self, encoded: Encoded) -> Iterator[tuple[Place, slice, NDArray[np.float32], NDArray[np.float32]]]:
        """Yield a module, the rows of a tile, and their factors in float32, [b, c, Q] and [b, c, P]."""
        halves = encoded["factors"]
        for place in self.places:
            width = place.right.stop - place.left.start
            for start, stop in tiles(len(halves), width):
                left, right = widened(halves[start:stop, place.left]), widened(halves[start:stop, place.right])
                shape = (stop - start, place.rank, -1)
                yield place, slice(start, stop), left.reshape(shape), right.reshape(shape)


def leading_terms(blocks: NDArray[np.float32], rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the leading terms of each block's singular value decomposition, singular values shared by both sides.

    By subspace iteration, on eight directions more than are kept. Blocks of per-token sums have spectra that fall, and
    converge to rounding; a block of 64×64 random numbers, whose spectrum hardly falls, is left 1e-4 of its square
    further off than the best. It is five times as fast as decomposing the block, and runs no LAPACK routine on a matrix
    wide enough to start threads, which for one small matrix each cost a hundred times its work.

    Args:
        blocks: [n, Q, P].
        rank: c, at most the shorter side.

    Returns:
        l [n, c, Q] and r [n, c, P], whose Σ_c l_c r_cᵀ is the block's best approximation of rank c.
    """
    if blocks.shape[1] > blocks.shape[2]:
        right, left = leading_terms(np.ascontiguousarray(blocks.transpose(0, 2, 1)), rank)
        return left, right
    # The products below square a block's entries; at scale 1 they neither overflow nor vanish.
    largest = np.abs(blocks).max(axis=(1, 2), keepdims=True)
    relative = (blocks / np.where(largest > 0, largest, 1)).astype(np.float32, copy=False)
    left = _leading_directions(relative, rank)
    right = left @ relative
    values = np.sqrt(row_dots(right.reshape(-1, right.shape[2]), right.reshape(-1, right.shape[2])))
    roots = np.sqrt(values).reshape(*right.shape[:2], 1).astype(np.float32)
    shared = np.sqrt(largest)
    # A term of singular value zero is none: its left vector, whatever it is, is multiplied by zero.
    return left * roots * shared, np.divide(right, roots, out=np.zeros_like(right), where=roots > 0) * shared


def _leading_directions(blocks: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return the leading left singular vectors of each block, [n, c, Q]."""
    side = blocks.shape[1]
    squared = blocks @ np.ascontiguousarray(blocks.transpose(0, 2, 1))
    # Any start will do that leans on all directions; this one needs no random numbers.
    start = np.cos(np.outer(np.arange(1, side + 1) ** 2, np.arange(1, min(side, rank + SPARE) + 1)))
    products = squared @ start.astype(np.float32)
    for _ in range(ITERATIONS):
        products = squared @ np.linalg.qr(products)[0]
    basis = np.linalg.qr(products)[0]
    within = basis.transpose(0, 2, 1) @ blocks
    order = np.linalg.eigh(within @ np.ascontiguousarray(within.transpose(0, 2, 1)))[1][:, :, : -rank - 1 : -1]
    return np.ascontiguousarray((basis @ order).transpose(0, 2, 1))
