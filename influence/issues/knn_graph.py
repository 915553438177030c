"""The graph of nearest rows as cleanlab's Datalab takes it: SciPy's CSR matrix of distances, one minus the cosine.

Datalab wants equally many neighbours of every row, nearest first, and zeros stored. Where a row has fewer – a zero row
has none – rows after it stand in at the distance 1, that of a cosine of 0.

    from scipy.sparse import load_npz
    Datalab(data={"label": labels}, label_name="label").find_issues(knn_graph=load_npz("graph.npz"))
"""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from influence.artifacts.outfile import check_outfile
from influence.artifacts.partial import PartialFile, disk_errors, remove_half_written, sync_folder
from influence.errors import QueryError
from influence.issues.neighbors import NeighbourGraph

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FAR = 1.0
"""The distance of a row that stands in."""
ROUNDING = 1e-6
"""Below it a distance is 0: that of copies is what float32 leaves of one minus their cosine."""


def knn_matrix(graph: NeighbourGraph) -> "csr_matrix":
    """Return the graph as a CSR matrix, float32 [N, N], k stored entries a row. Memory: 8 to 12 bytes an entry.

    Raises:
        QueryError: There is only one row.
    """
    from scipy.sparse import csr_matrix

    check_wide(graph.rows)
    kind = _index_type(graph)
    indices, data = (np.empty((graph.rows, graph.k), kind_) for kind_ in (kind, np.float32))
    for first, rows, distances in distance_blocks(graph):
        indices[first : first + len(rows)], data[first : first + len(rows)] = rows, distances
    starts = graph.k * np.arange(graph.rows + 1, dtype=kind)
    return csr_matrix((data.ravel(), indices.ravel(), starts), shape=(graph.rows, graph.rows))


def save_knn_graph(
    graph: NeighbourGraph, out: Path, publish: Callable[[PartialFile], None] = PartialFile.publish
) -> None:
    """Write the graph as `scipy.sparse.save_npz` does, uncompressed, a block at a time.

    Args:
        graph: The graph.
        out: The file.
        publish: Gives the finished file its name, replacing what is there unless told otherwise.

    Raises:
        QueryError: There is only one row.
        Incomplete: The disk is full; nothing half-written is left.
    """
    check_wide(graph.rows)
    kind, count = np.dtype(_index_type(graph)), graph.rows * graph.k

    def members(name: str) -> Iterator[np.ndarray]:
        for _, rows, distances in distance_blocks(graph):
            yield (rows if name == "indices" else distances).astype(kind if name == "indices" else np.float32).ravel()

    def starts() -> Iterator[np.ndarray]:
        for first in range(0, graph.rows + 1, 2**20):
            yield graph.k * np.arange(first, min(graph.rows + 1, first + 2**20), dtype=kind)

    remove_half_written(out)
    with disk_errors(out.parent, out.name, count * (kind.itemsize + 4)):
        file = PartialFile(out)
        try:
            with zipfile.ZipFile(file, "w", allowZip64=True) as archive:  # type: ignore[arg-type]
                _add(archive, "indices", count, kind, lambda: members("indices"))
                _add(archive, "indptr", graph.rows + 1, kind, starts)
                _add(archive, "format", None, np.dtype("S3"), lambda: iter([np.array(b"csr")]))
                _add(archive, "shape", 2, np.dtype(np.int64), lambda: iter([np.array([graph.rows] * 2)]))
                _add(archive, "data", count, np.dtype(np.float32), lambda: members("data"))
            file.finish()
            publish(file)
            sync_folder(out.parent)
        finally:
            file.discard()


def distance_blocks(graph: NeighbourGraph) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (first row, rows int64 [b, k], distances float32 [b, k] ascending), with nothing missing."""
    for first, near in graph.blocks():
        found, there = near.alike.copy(), near.alike >= 0
        distances = np.where(there, np.clip(1 - near.alike_cosines, 0, 2), FAR).astype(np.float32)
        distances[distances < ROUNDING] = 0
        lacking = np.flatnonzero(~there.all(axis=1))
        if lacking.size:
            found[lacking] = _filled(first + lacking, found[lacking], graph)
        order = np.argsort(distances, axis=1, kind="stable")
        yield first, np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)


def check_graph_file(out: Path, *, overwrite: bool, beside: Path) -> None:
    """Refuse a place where the graph can't be written, before anything is computed.

    Args:
        out: The file.
        overwrite: Whether what is there may be replaced.
        beside: The table that is written first.

    Raises:
        QueryError: It isn't a new `….npz` on a disk, in a folder that is there.
    """
    if out.suffix.lower() != ".npz":
        raise QueryError(f"{out} can't be written: a graph is kept as SciPy keeps it, so its name must end in .npz.")
    check_outfile(out, "the graph", overwrite=overwrite, beside=beside)


def check_wide(rows: int) -> None:
    """Refuse a run in which no row has a neighbour.

    Raises:
        QueryError: There are fewer than two rows.
    """
    if rows < 2:
        raise QueryError(f"A graph of neighbours takes two rows or more, and the run has {rows}.")


def _filled(rows: np.ndarray, found: np.ndarray, graph: NeighbourGraph) -> np.ndarray:
    """Return the neighbours of some rows [n, k] with others in the place of those that are −1, each once."""
    after = (rows[:, None] + np.arange(1, min(graph.rows - 1, 2 * graph.k) + 1)) % graph.rows
    taken = (after[:, :, None] == found[:, None, :]).any(axis=2)
    free = np.take_along_axis(after, np.argsort(taken, axis=1, kind="stable"), axis=1)
    missing = found < 0
    turn = np.maximum(np.cumsum(missing, axis=1) - 1, 0)
    return np.where(missing, np.take_along_axis(free, turn, axis=1), found)


def _index_type(graph: NeighbourGraph) -> type[np.int32] | type[np.int64]:
    return np.int32 if graph.rows * graph.k <= np.iinfo(np.int32).max else np.int64


def _add(
    archive: zipfile.ZipFile, name: str, count: int | None, kind: np.dtype, pieces: Callable[[], Iterator[np.ndarray]]
) -> None:
    """Add an array to an archive in numpy's format."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        shape = () if count is None else (count,)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
        for piece in pieces():
            member.write(np.ascontiguousarray(piece, kind).tobytes())


__all__ = ["check_graph_file", "distance_blocks", "knn_matrix", "save_knn_graph"]
