"""What `float16`, `int8`, `int4` and `bits` share: one code a coordinate, unpacked a tile at a time.

To score, a tile of codes is unpacked to float32. A few queries are multiplied with it row by row, at 0.25 to 0.6 ns a
coordinate for one query; many queries as matrix products (see `products`), 2 ns a coordinate for 64 and 12 for 512.
Looking up a query's partial sums by the byte took 0.6 ns a bit and more in numpy. A scale is applied to a module's
inner product, not to its coordinates.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from influence.store.codec import Codec, Encoded, Plane, Scorer, row_products, tiles
from influence.store.products import GROUP, MANY, PANEL, aligned, grouped, padded, tile_products, tile_rows

SCALES = "scales"


@dataclass(frozen=True)
class Stretch:
    """Consecutive columns that are unpacked together: a module's, where each has its scale.

    Attributes:
        columns: Of a row.
        codes: Of the array of codes.
        width: Columns that the codes unpack to; those beyond `columns` are padding.
    """

    columns: slice
    codes: slice
    width: int

    @property
    def real(self) -> int:
        """The columns that aren't padding."""
        return self.columns.stop - self.columns.start


@dataclass(frozen=True)
class Panel:
    """Consecutive stretches that many queries are multiplied with together: a wide one, or several narrow ones.

    Attributes:
        columns: Of a row.
        stretches: Their numbers.
    """

    columns: slice
    stretches: tuple[int, ...]

    @property
    def width(self) -> int:
        """Its columns."""
        return self.columns.stop - self.columns.start


@dataclass(frozen=True)
class Coordinates(Codec):
    """A codec with one code a coordinate."""

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The columns, in order."""
        return self._stretches()

    @abstractmethod
    def _stretches(self) -> tuple[Stretch, ...]: ...

    @abstractmethod
    def _unpack(self, codes: np.ndarray, out: NDArray[np.float32]) -> None:
        """Unpack a stretch's codes [b, …] into [b, width], before any scale."""

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """The columns in consecutive panels."""
        found: list[list[int]] = []
        for number, stretch in enumerate(self.stretches):
            if found and stretch.columns.stop - self.stretches[found[-1][0]].columns.start <= PANEL:
                found[-1].append(number)
            else:
                found.append([number])
        return tuple(
            Panel(slice(self.stretches[part[0]].columns.start, self.stretches[part[-1]].columns.stop), tuple(part))
            for part in found
        )

    def decode(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the directions that some codes stand for, [n, D]."""
        codes, _ = self._planes(encoded)
        out = np.empty((len(codes), self.dims), dtype=np.float32)
        for panel in self.panels:
            self._decode(encoded, slice(0, len(codes)), panel, out[:, panel.columns])
        return out

    def lengths(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the lengths of the decoded directions, [n]."""
        codes, scales = self._planes(encoded)
        squares = np.zeros(len(codes))
        for number, stretch in enumerate(self.stretches):
            for rows, values in self._unpacked(codes, stretch):
                real = values[:, : stretch.real]
                scale = 1.0 if scales is None else scales[rows, number].astype(np.float64)
                squares[rows] += row_products(real, real) * scale**2
        return np.sqrt(squares).astype(np.float32)

    def scorer(self, queries: NDArray[np.float32]) -> Scorer:
        """Return what scores codes for some queries; many of them are laid out for matrix products once."""
        asked = self.checked(queries)
        if len(asked) < MANY:
            return lambda encoded: self._few_scores(encoded, asked).astype(np.float32)
        laid = [(panel, grouped(asked[:, panel.columns])) for panel in self.panels]
        return lambda encoded: self._many_scores(encoded, laid, len(asked))

    def _few_scores(self, encoded: Encoded, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        codes, scales = self._planes(encoded)
        total = np.zeros((len(queries), len(codes)))
        for number, stretch in enumerate(self.stretches):
            for rows, values in self._unpacked(codes, stretch):
                for query, asked in enumerate(queries[:, stretch.columns]):
                    found = row_products(values[:, : stretch.real], asked)
                    total[query, rows] += found if scales is None else found * scales[rows, number]
        return total

    def _many_scores(
        self, encoded: Encoded, laid: list[tuple[Panel, list[NDArray[np.float32]]]], count: int
    ) -> NDArray[np.float32]:
        rows = len(next(iter(encoded.values())))
        total = np.zeros((rows, padded(count)))
        for panel, groups in laid:
            height = tile_rows(panel.width)
            tile = aligned(height, panel.width)
            for start in range(0, rows, height):
                stop = min(rows, start + height)
                self._decode(encoded, slice(start, stop), panel, tile)
                for place, group in enumerate(groups):
                    part = total[start:stop, place * GROUP : (place + 1) * GROUP]
                    np.add(part, tile_products(tile, group)[: stop - start], out=part)
        return np.ascontiguousarray(total.T[:count], dtype=np.float32)

    def _decode(self, encoded: Encoded, rows: slice, panel: Panel, out: NDArray[np.float32]) -> None:
        """Unpack some rows of a panel, scales and all, into the first rows of [b, width]."""
        codes, scales = self._planes(encoded)
        for number in panel.stretches:
            stretch = self.stretches[number]
            place = slice(stretch.columns.start - panel.columns.start, stretch.columns.stop - panel.columns.start)
            for part, values in self._unpacked(codes[rows], stretch):
                scale = 1 if scales is None else scales[rows][part, number, None]
                np.multiply(values[:, : stretch.real], scale, out=out[part, place])

    def _planes(self, encoded: Encoded) -> tuple[np.ndarray, NDArray[np.float32] | None]:
        """Return the codes, and the scales where there are any."""
        return encoded[self.layout[-1].name], encoded.get(SCALES)

    def _unpacked(self, codes: np.ndarray, stretch: Stretch) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the rows of a tile and their values [b, width], which the next tile overwrites."""
        cut = tiles(len(codes), stretch.width)
        values = np.empty((cut[0][1] if cut else 0, stretch.width), dtype=np.float32)
        for start, stop in cut:
            part = values[: stop - start]
            self._unpack(codes[start:stop, stretch.codes], part)
            yield slice(start, stop), part


@dataclass(frozen=True)
class Scaled(Coordinates):
    """A codec whose codes are whole numbers, with one scale a row and module.

    The scale is a float32. A module may hold a ten-thousandth of a row, where a float16 has no precision left, and at
    one bit a coordinate and 1,024 columns the scale is 3 % of the module's bytes.
    """

    code_bits: ClassVar[int]

    def _layout(self) -> tuple[Plane, ...]:
        width = self.stretches[-1].codes.stop if self.modules else 0
        whole = self.code_bits == 8
        codes = Plane(self.name, np.int8 if whole else np.uint8, "I8" if whole else "U8", width)
        return Plane(SCALES, np.float32, "F32", len(self.modules)), codes

    def _stretches(self) -> tuple[Stretch, ...]:
        """Return one stretch a module, whose codes begin with a byte of their own."""
        found, at = [], 0
        for module in self.modules:
            size = -(-(module.stop - module.start) * self.code_bits // 8)
            found.append(Stretch(slice(module.start, module.stop), slice(at, at + size), size * 8 // self.code_bits))
            at += size
        return tuple(found)

    def _encode(self, unit: NDArray[np.floating], into: Encoded) -> None:
        for number, stretch in enumerate(self.stretches):
            for start, stop in tiles(len(unit), stretch.real):
                block = np.ascontiguousarray(unit[start:stop, stretch.columns], dtype=np.float32)
                codes, scales = self._quantise(block)
                into[self.name][start:stop, stretch.codes] = codes
                into[SCALES][start:stop, number] = scales

    @abstractmethod
    def _quantise(self, block: NDArray[np.float32]) -> tuple[np.ndarray, NDArray[np.float32]]:
        """Return the codes of one module, [b, bytes], and their scales, [b]; zeros for a zero block."""


def over_largest(block: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each row divided by its largest magnitude, [b, w] in [-1, 1], and those magnitudes, [b].

    Whatever is squared afterwards neither overflows nor vanishes. Zero rows stay zero.
    """
    largest = np.abs(block).max(axis=1)
    return (block / np.where(largest > 0, largest, 1)[:, None]).astype(np.float32, copy=False), largest
