"""Build a FAISS flat inner-product index from a stream of blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import IndexMismatch, VectorIndexError
from index.exact import Blocks, checked_slices
from index.factory import Device, IndexSettings, load_faiss, plan_factory, to_device


@dataclass(frozen=True)
class FlatIndex:
    """A searchable index; row i of it is the i-th vector it was built from.

    Attributes:
        faiss: FAISS's own object, an IndexFlatIP or its GPU copy. It holds float32.
        rows: How many vectors.
        dims: D.
        longest: The largest length (2-norm) of a row: it bounds the rounding of FAISS's float32 scores.
        device: Where it lives.
    """

    faiss: Any
    rows: int
    dims: int
    longest: float
    device: Device


def build(settings: IndexSettings, blocks: Blocks, rows: int, dims: int) -> FlatIndex:
    """Fill an index from consecutive blocks, starting at row 0.

    Memory: 4 · rows · dims bytes, since IndexFlatIP holds float32 whatever the blocks were stored in, plus one block
    and a 32 MiB slice. The room is taken once, in full; FAISS's own `add` would double its buffer on the way. On a GPU
    the same bytes are needed there too. FAISS's number of threads is left as the process set it.

    Args:
        settings: kind `flat`, or `auto` where `plan_factory` decides on that.
        blocks: (first row, vectors [b, dims]) pairs, consecutive.
        rows: How many rows will come.
        dims: D.

    Raises:
        FaissMissing: faiss isn't installed.
        GpuMissing: `device: gpu` without one.
        IndexMismatch: Rows are missing, repeated, out of order or too many.
        VectorIndexError: the settings decide on another kind, a row that isn't finite, or a block of another width.
    """
    plan = plan_factory(settings, rows, dims)
    if plan.kind != "flat":
        raise VectorIndexError(f"index.kind is {plan.kind}: no flat index is built for it. Search with exact_search.")
    faiss = load_faiss(settings.device)
    flat = faiss.IndexFlatIP(dims)
    values = _reserve(faiss, flat, rows)
    filled, longest = 0, 0.0
    for start, part, squares in checked_slices(blocks, dims):
        if start != filled or start + len(part) > rows:
            raise IndexMismatch(
                f"A block for rows {start} to {start + len(part) - 1} came where row {filled} of {rows} was due. "
                "Every row must come once, in order: run the same build again to complete the shards."
            )
        values[start : start + len(part)] = part
        filled += len(part)
        longest = max(longest, float(np.sqrt(squares.max())))
    if filled != rows:
        raise IndexMismatch(f"The blocks ended after {filled} of {rows} rows: run the same build again.")
    return FlatIndex(to_device(flat, settings.device), rows, dims, longest, settings.device)


def _reserve(faiss: Any, flat: Any, rows: int) -> NDArray[np.float32]:
    """Give the index its rows, all zero, and return them as an array that writes through."""
    if rows == 0:
        return np.empty((0, flat.d), dtype=np.float32)
    try:
        flat.codes.resize(rows * flat.code_size)
    except (MemoryError, RuntimeError):
        raise VectorIndexError(
            f"A flat index of {rows} rows and {flat.d} columns takes {4 * rows * flat.d:,} bytes of memory, which this "
            "machine doesn't give. Set index.kind: exact, which keeps nothing in memory, or project to fewer columns."
        ) from None
    flat.ntotal = rows
    return faiss.rev_swig_ptr(flat.get_xb(), rows * flat.d).reshape(rows, flat.d)
