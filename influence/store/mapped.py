"""Consecutive rows of a shard where they lie: in the pages that the kernel keeps of its file, mapped instead of copied.

A scan for few queries reads codes faster than they can be copied into a buffer first. Whoever reads a mapped page that
the file doesn't have any more is ended by a signal, so nothing is handed out before the kernel has promised every page
(`MADV_POPULATE_READ`, Linux 5.14): a file that is too short or a disk that fails is told then, and the rows are read
the usual way, whose errors have names. What is left is a file that is cut short while a block of it is scored.
"""

import mmap
import sys
from pathlib import Path

import numpy as np

from influence.artifacts.path import ObjectPath
from influence.store.codec import Codec, Encoded
from influence.store.shard import rows_header

POPULATE_READ = 22
"""The number of `MADV_POPULATE_READ`, which Python has no name for."""


def may_lend(path: Path) -> bool:
    """Whether rows below a folder can be lent at all: not those in a bucket, and by Linux alone."""
    return not isinstance(path, ObjectPath) and sys.platform == "linux"


def mapped_rows(path: Path, codec: Codec, rows: int, start: int, stop: int) -> tuple[Encoded, np.ndarray] | None:
    """Return the codes of some rows of a shard, read-only and only as long as they are held, and a copy of their norms.

    Args:
        path: The shard's vectors.
        codec: How they are kept.
        rows: How many rows the shard holds.
        start: The first one wanted, counted within the shard.
        stop: One past the last.

    Returns:
        Codes as `codec.layout` has them, [b, …], and norms, float32 [b]. None where they have to be read: the file is
        in a bucket, isn't laid out as expected or ends too soon, its arrays don't begin where processors want numbers
        to begin, or the kernel can't promise pages.
    """
    if not may_lend(path):
        return None
    header = rows_header(codec, rows)
    planes = [("", np.float32, 1), *((plane.name, plane.dtype, plane.width) for plane in codec.layout)]
    arrays: Encoded = {}
    at = len(header)
    with path.open("rb", buffering=0) as file:
        if file.read(len(header)) != header:
            return None
        for name, dtype, width in planes:
            row_bytes = np.dtype(dtype).itemsize * width
            content = _populated(file.fileno(), at + start * row_bytes, (stop - start) * row_bytes)
            array = None if content is None else content.view(dtype).reshape(stop - start, width)
            if array is None or not array.flags.aligned:
                return None
            arrays[name] = array
            at += rows * row_bytes
    norms = arrays.pop("")[:, 0].copy()
    return arrays, norms


def _populated(file: int, start: int, length: int) -> np.ndarray | None:
    """Map some bytes of a file, every page of them there; None where that can't be had. Unmapped with the array."""
    if not length:
        return np.empty(0, dtype=np.uint8)
    before = start % mmap.ALLOCATIONGRANULARITY
    try:
        pages = mmap.mmap(file, before + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start - before)
        pages.madvise(POPULATE_READ)
    except (OSError, ValueError):
        return None
    return np.frombuffer(pages, dtype=np.uint8)[before:]


__all__ = ["mapped_rows", "may_lend"]
