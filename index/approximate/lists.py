"""The lists of all rows in one file, as FAISS maps them: of each cell its codes, then its row numbers; cell after cell.

We write the file ourselves, front to back. FAISS's own merge gives the same layout, but writes through mapped pages and
reports on standard output, where a command's data goes; so does its reader.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.approximate.train import lists_of
from index.factory import ID_BYTES, load_faiss

COPIED = 16 * 2**20
"""Bytes that are copied at a time."""


def write_lists(parts: Sequence[Any], cells: int, path: Path) -> list[int]:
    """Write the lists of several of FAISS's indexes, in their order, and return how many rows each cell has.

    Memory: 16 MiB; mapped parts are read page by page.
    """
    faiss = load_faiss()
    sources = [lists_of(part).invlists for part in parts]
    sizes = [sum(source.list_size(cell) for source in sources) for cell in range(cells)]
    with path.open("wb") as out:
        for cell in range(cells):
            for source in sources:
                count = source.list_size(cell)
                if count:
                    codes = source.get_codes(cell)
                    _copy(faiss.rev_swig_ptr(codes, count * source.code_size), out)
                    source.release_codes(cell, codes)
            for source in sources:
                count = source.list_size(cell)
                if count:
                    numbers = source.get_ids(cell)
                    _copy(faiss.rev_swig_ptr(numbers, count), out)
                    source.release_ids(cell, numbers)
    return sizes


def map_lists(index: Any, path: Path, sizes: Sequence[int]) -> None:
    """Give one of FAISS's indexes the lists of a file; pages are read when a search comes to them.

    Args:
        index: Trained, without rows; changed in place.
        path: What `write_lists` wrote.
        sizes: Rows of each cell, as it returned them.

    Raises:
        RuntimeError: FAISS can't map the file.
    """
    lists = lists_of(index)
    if sum(sizes) == 0:
        return
    mapped = load_faiss().OnDiskInvertedLists(lists.nlist, lists.code_size, str(path))
    # A pointer of FAISS's doesn't keep its array alive: the array needs a name for as long.
    counts = np.array(sizes, dtype=np.uint64)
    mapped.set_all_lists_sizes(load_faiss().swig_ptr(counts))
    mapped.read_only = True
    mapped.totsize = lists_bytes(sizes, lists.code_size)
    mapped.do_mmap()
    lists.replace_invlists(mapped, True)
    mapped.this.disown()
    index.ntotal = lists.ntotal = sum(sizes)


def lists_bytes(sizes: Sequence[int], code_size: int) -> int:
    """Return how long the file is."""
    return sum(sizes) * (code_size + ID_BYTES)


def _copy(values: NDArray[Any], out: Any) -> None:
    step = COPIED // values.itemsize
    for first in range(0, values.size, step):
        out.write(values[first : first + step])
