"""What a codec is: how the direction of a row is kept in a shard, and how queries are scored from what was kept.

A row is a direction and a length. The length is the float32 norm of the true gradient, whatever the codec. The
direction is kept as the codec keeps it, and what is read back is an estimate of it: its own length needn't be 1.

Every codec is a pure function of one row. A row's codes don't depend on the rows beside it, and a score depends on
one row's codes and one query alone, not on the block, the other rows or the other queries: copies of a row have equal
codes and equal scores, to the last bit. That rules out a matrix product of whatever shape comes along, in which the
order of a sum may depend on where its row stands; `products` has those that are allowed, for many queries. It also
rules out numpy's reductions with `dtype=`, which cut rows where a buffer ends.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from influence.axes import ModuleColumns
from influence.errors import StoreError

CodecName = Literal["float16", "int8", "int4", "bits", "factors"]

NORM_BYTES = 4
"""A row's length: a float32, beside its codes."""

TILE = 2**18
"""Coordinates that are unpacked at a time: a megabyte of float32, which stays in a core's own cache."""

PIECE = 8192
"""The most columns of one inner product. OpenBLAS starts threads above 10,000, which cost more than they bring."""

LARGEST = 1.001
"""What no entry of a direction exceeds, rounding included."""

Encoded = dict[str, np.ndarray]
"""The codes of n rows by name, each array [n, …]; `Codec.layout` says which."""

Scorer = Callable[[Encoded], NDArray[np.float32]]
"""Codes of n rows to the scores of the queries it was made for, [m, n]."""


class CodecSettings(BaseModel):
    """Which codec.

    Attributes:
        codec: `float16`, 2 bytes a coordinate; `int8`, `int4` and `bits`, 8, 4 and 1 bit a coordinate and a float32
            scale a module; `factors`, the rank-c part of each module's [Q, P] block as 2c(Q + P) bytes.
        rank: c, for `factors` and for no other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    codec: CodecName = "float16"
    rank: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _only_factors_have_a_rank(self) -> Self:
        if self.codec == "factors" and self.rank is None:
            raise ValueError("codec factors needs a rank: how many terms of each module's block are kept, 1 or more")
        if self.codec != "factors" and self.rank is not None:
            raise ValueError(
                f"rank {self.rank} is given and codec is {self.codec}; only factors has a rank: leave one of them out"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_an_absent_rank(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The manifest of a run without a rank has the bytes it had before there were ranks.
        dumped = serialise(self)
        if self.rank is None:
            dumped.pop("rank", None)
        return dumped


@dataclass(frozen=True)
class Plane:
    """One named array of a shard: [n, width], of a numpy dtype that safetensors knows as `code`."""

    name: str
    dtype: type[np.generic]
    code: str
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * self.width


@dataclass(frozen=True)
class Codec(ABC):
    """Directions to codes and back, and scores from codes.

    Attributes:
        modules: The columns of a row, [0, D) in order.
    """

    modules: tuple[ModuleColumns, ...]

    name: ClassVar[CodecName]
    takes: ClassVar[Literal["float16", "float32"]] = "float32"
    """The type of direction that `encode` reads fastest."""

    @property
    def dims(self) -> int:
        """D, the columns of a row."""
        return self.modules[-1].stop if self.modules else 0

    @property
    def summary(self) -> str:
        """The codec in words, for messages."""
        return self.name

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a shard, its norm included."""
        return NORM_BYTES + sum(plane.row_bytes for plane in self.layout)

    @cached_property
    def layout(self) -> tuple[Plane, ...]:
        """The arrays that hold the codes, in the order of the file; none of rows without columns, which are texts."""
        return self._layout() if self.modules else ()

    def zeros(self, rows: int) -> Encoded:
        """Return the codes of n zero rows: zeros, under every codec."""
        return {plane.name: np.zeros((rows, plane.width), dtype=plane.dtype) for plane in self.layout}

    def encode(self, unit: NDArray[np.floating]) -> Encoded:
        """Return the codes of some directions. The same direction has the same codes wherever it stands.

        Args:
            unit: [n, D], float16, float32 or float64, each of length 1 or 0, so that no entry exceeds 1: nothing that a
                codec keeps in float16 can overflow.

        Raises:
            StoreError: Another shape or type, or a row that isn't finite or no direction; the first one is named.
        """
        if unit.ndim != 2 or unit.shape[1] != self.dims or unit.dtype.kind != "f":
            raise StoreError(
                f"Codec {self.name} takes directions [n, {self.dims}] of a float type, "
                f"found {unit.dtype} {list(unit.shape)}."
            )
        for start, stop in tiles(len(unit), self.dims):
            _check_directions(unit[start:stop], start)
        encoded = self.zeros(len(unit))
        self._encode(unit, encoded)
        return encoded

    @abstractmethod
    def decode(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the directions that some codes stand for, [n, D]; zero rows are zero."""

    def scores(self, encoded: Encoded, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the inner products of queries with what `decode` would return, without unpacking more than a tile.

        Each module's inner products are sums of float32 products in float32, 4,096 columns at a time; these are added
        up in float64, and the result is rounded once. From `products.MANY` queries on, narrow modules are summed in
        float32 together, and wide ones whole.

        Args:
            encoded: Codes of n rows.
            queries: [m, D].

        Returns:
            [m, n]. A score depends on its own row and query alone, and by a rounding on whether there are many queries.

        Raises:
            StoreError: Queries of another width.
        """
        return self.scorer(queries)(encoded)

    @abstractmethod
    def scorer(self, queries: NDArray[np.float32], *, many: bool = False) -> Scorer:
        """Return what `scores` does with these queries, prepared for block after block.

        Args:
            queries: [m, D].
            many: Score them as many are scored, however few they are: then no score differs by a rounding where others
                are asked with more.

        Raises:
            StoreError: Queries of another width.
        """

    def checked(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return queries as float32 [m, D], contiguous.

        Raises:
            StoreError: They have another width.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dims:
            raise StoreError(f"Queries of {self.dims} columns are expected, found the shape {list(queries.shape)}.")
        return np.ascontiguousarray(queries, dtype=np.float32)

    @abstractmethod
    def lengths(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return the lengths of what `decode` would return, [n]; 0 for zero rows."""

    @abstractmethod
    def _layout(self) -> tuple[Plane, ...]: ...

    @abstractmethod
    def _encode(self, unit: NDArray[np.floating], into: Encoded) -> None:
        """Fill zeroed codes with those of checked directions."""


def tiles(rows: int, width: int) -> list[tuple[int, int]]:
    """Cut n rows of some width into stretches of at most `TILE` coordinates, or of one row."""
    step = max(1, TILE // max(1, width))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def finite_rows(values: np.ndarray) -> NDArray[np.bool_]:
    """Say which rows of [n, w] hold finite numbers only; whole numbers are."""
    if values.dtype.kind != "f":
        return np.ones(len(values), dtype=bool)
    # In what isn't finite every bit of the exponent is set; numpy is slow at float16.
    halves = values.dtype == np.float16
    finite = (values.view(np.uint16) & 0x7FFF) < 0x7C00 if halves else np.isfinite(values)
    return np.logical_and.reduce(finite, axis=1)


def _check_directions(unit: NDArray[np.floating], start: int) -> None:
    if unit.dtype == np.float16:
        good = ((unit.view(np.uint16) & 0x7FFF) <= np.float16(LARGEST).view(np.uint16)).all(axis=1)
    else:
        # NaN compares false.
        good = (np.abs(unit) <= LARGEST).all(axis=1)
    bad = np.flatnonzero(~good)
    if bad.size:
        values = unit[bad[0]]
        trouble = f"entries up to {np.abs(values).max():.3g}"
        if not np.isfinite(values).all():
            trouble = f"{int(np.sum(~np.isfinite(values)))} entries that are NaN or infinite"
        raise StoreError(
            f"Vector {start + bad[0]} (counted from 0) holds {trouble}; a direction has length 1 or 0. Check the "
            "model's weights and the loss of that row."
        )
