"""What `float16`, `int8`, `int4` and `bits` share: one code a coordinate, read by compiled kernels.

Queries are multiplied with the codes as they are read: 0.02 to 0.08 ns a coordinate for one query, by the bits of a
code, and 0.02 to 0.03 for each of several. Many queries are multiplied with tiles of unpacked rows, as matrix products
(see `products`), 14 ns a coordinate for 512. A scale is applied to a piece's inner product, not to its coordinates,
where rows aren't unpacked. numba, which compiles the kernels, is imported when the first row is read.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from index.gemm import Packed, packed, product
from index.gemm.dots import row_dots
from influence.store.codec import Codec, Encoded, Plane, Scorer, tiles
from influence.store.codecs.pieces import BITS, INT8, Pieces, Stretch
from influence.store.products import MANY, PANEL, tile_rows

SCALES = "scales"


@dataclass(frozen=True)
class Panel:
    """Consecutive stretches that many queries are multiplied with together: a wide one, or several narrow ones.

    Attributes:
        columns: Of a row.
        stretches: Their numbers.
    """

    columns: slice
    stretches: slice

    @property
    def width(self) -> int:
        """Its columns."""
        return self.columns.stop - self.columns.start


@dataclass(frozen=True)
class Coordinates(Codec):
    """A codec with one code a coordinate.

    Attributes:
        kind: Of its codes, see `pieces`.
    """

    kind: ClassVar[int]

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The columns, in order."""
        return self._stretches()

    @abstractmethod
    def _stretches(self) -> tuple[Stretch, ...]: ...

    @cached_property
    def pieces(self) -> Pieces:
        """What kernels read the columns by."""
        return Pieces(self.kind, self.stretches)

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """The columns in consecutive panels."""
        groups: list[list[int]] = []
        for number, stretch in enumerate(self.stretches):
            if groups and stretch.columns.stop - self.stretches[groups[-1][0]].columns.start <= PANEL:
                groups[-1].append(number)
            else:
                groups.append([number])
        return tuple(
            Panel(
                slice(self.stretches[part[0]].columns.start, self.stretches[part[-1]].columns.stop),
                slice(part[0], part[-1] + 1),
            )
            for part in groups
        )

    def decode(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the directions that some codes stand for, [n, D]."""
        codes, scales = self._planes(encoded)
        out = np.empty((len(codes), self.dims), dtype=np.float32)
        self._unpack(codes, scales, slice(0, len(self.stretches)), out)
        return out

    def lengths(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the lengths of the decoded directions, [n]."""
        codes, scales = self._planes(encoded)
        squares = np.zeros(len(codes))
        for number, stretch in enumerate(self.stretches):
            for start, stop in tiles(len(codes), stretch.width):
                values = np.empty((stop - start, stretch.width), dtype=np.float32)
                # Without the scales, whose squares float32 may not hold.
                self._unpack(codes[start:stop], np.ones_like(scales[start:stop]), slice(number, number + 1), values)
                squares[start:stop] += row_dots(values, values) * scales[start:stop, number].astype(np.float64) ** 2
        return np.sqrt(squares).astype(np.float32)

    def scorer(self, queries: NDArray[np.float32], *, many: bool = False) -> Scorer:
        """Return what scores codes for some queries, which are laid out once."""
        checked = self.checked(queries)
        if len(checked) < MANY and not many:
            return self._few(checked)
        panels = [(panel, packed(checked[:, panel.columns].T)) for panel in self.panels]
        return lambda encoded: self._many_scores(encoded, panels, len(checked))

    def _few(self, queries: NDArray[np.float32]) -> Scorer:
        from influence.store.codecs import kernels

        several = len(queries) > 1
        kernel = kernels.products(self.kind, several)
        layout = self.pieces.laid_out(queries, kernels.TILES[several][1])
        totals = self.pieces.totals(layout) if self.kind == BITS else np.zeros((len(layout), len(self.pieces.table)))

        def score(encoded: Encoded) -> NDArray[np.float32]:
            codes, scales = self._planes(encoded)
            scores = np.zeros((len(layout), len(codes)))
            kernel(codes, scales, self.pieces.table, layout, totals, scores)
            return scores[: len(queries)].astype(np.float32)

        return score

    def _many_scores(self, encoded: Encoded, panels: list[tuple[Panel, Packed]], count: int) -> NDArray[np.float32]:
        codes, scales = self._planes(encoded)
        # What is summed once is rounded once.
        total = np.zeros((len(codes), count), np.float32 if len(panels) == 1 else np.float64)
        # One tile for all panels: fresh memory takes as long as what is done with it.
        buffer = np.empty(max(min(len(codes), tile_rows(panel.width)) * panel.width for panel, _ in panels), np.float32)
        for panel, queries in panels:
            height = tile_rows(panel.width)
            for start in range(0, len(codes), height):
                stop = min(len(codes), start + height)
                tile = buffer[: (stop - start) * panel.width].reshape(stop - start, panel.width)
                self._unpack(codes[start:stop], scales[start:stop], panel.stretches, tile)
                total[start:stop] += product(tile, queries)
        return np.ascontiguousarray(total.T, dtype=np.float32)

    def _unpack(
        self, codes: NDArray[np.uint8], scales: NDArray[np.float32], stretches: slice, out: NDArray[np.float32]
    ) -> None:
        """Unpack some stretches of n rows into the first rows of [b, w]."""
        from influence.store.codecs import kernels

        first = self.pieces.first
        table = self.pieces.table[first[stretches.start] : first[stretches.stop]]
        kernels.unpacked(self.kind)(codes, scales, table, self.stretches[stretches.start].columns.start, out)

    def _planes(self, encoded: Encoded) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the codes as bytes, and the scales; ones where there are none."""
        codes = np.ascontiguousarray(encoded[self.layout[-1].name]).view(np.uint8)
        scales = encoded.get(SCALES)
        return codes, np.ones((len(codes), len(self.stretches)), np.float32) if scales is None else scales


@dataclass(frozen=True)
class Scaled(Coordinates):
    """A codec whose codes are whole numbers, with one scale a row and module.

    The scale is a float32. A module may hold a ten-thousandth of a row, where a float16 has no precision left, and at
    one bit a coordinate and 1,024 columns the scale is 3 % of the module's bytes.
    """

    code_bits: ClassVar[int]

    def _layout(self) -> tuple[Plane, ...]:
        width = self.stretches[-1].codes.stop if self.modules else 0
        whole = self.kind == INT8
        codes = Plane(self.name, np.int8 if whole else np.uint8, "I8" if whole else "U8", width)
        return Plane(SCALES, np.float32, "F32", len(self.modules)), codes

    def _stretches(self) -> tuple[Stretch, ...]:
        """Return one stretch a module, whose codes begin with a byte of their own."""
        stretches, at = [], 0
        for module in self.modules:
            size = -(-(module.stop - module.start) * self.code_bits // 8)
            stretches.append(Stretch(slice(module.start, module.stop), slice(at, at + size)))
            at += size
        return tuple(stretches)

    def _encode(self, unit: NDArray[np.floating], into: Encoded) -> None:
        for number, stretch in enumerate(self.stretches):
            for start, stop in tiles(len(unit), stretch.width):
                block = np.ascontiguousarray(unit[start:stop, stretch.columns], dtype=np.float32)
                codes, scales = self._quantise(block)
                into[self.name][start:stop, stretch.codes] = codes
                into[SCALES][start:stop, number] = scales

    @abstractmethod
    def _quantise(self, block: NDArray[np.float32]) -> tuple[np.ndarray, NDArray[np.float32]]:
        """Return the codes of one module, [b, bytes], and their scales, [b]; zeros for a zero block."""


def calibrated(relative: NDArray[np.float32], along: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the scale s of each row's codes c with which ⟨x, s·c⟩ = ‖x‖², float32 [b]; 0 where x is zero.

    A row asked about itself then scores what it should, and so on average does a query that is some multiple of the row
    plus what is unrelated to it. The scale of least squared error, ⟨x, c⟩/⟨c, c⟩, makes both too small, by the share of
    ‖x‖² that the codes lose. What is read back is longer than x by as much.

    Args:
        relative: x, [b, w].
        along: ⟨x, c⟩, [b].
    """
    squares = row_dots(relative, relative)
    return np.divide(squares, along, out=np.zeros_like(along), where=along > 0).astype(np.float32)


def over_largest(block: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each row divided by its largest magnitude, [b, w] in [-1, 1], and those magnitudes, [b].

    Whatever is squared afterwards neither overflows nor vanishes. Zero rows stay zero.
    """
    largest = np.abs(block).max(axis=1)
    return (block / np.where(largest > 0, largest, 1)[:, None]).astype(np.float32, copy=False), largest
