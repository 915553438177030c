"""The files of an approximate index while it is built: what was trained, and a file of lists for each part of the rows.

    trained.faiss, trained.json        `save_trained`; every worker reads them with `load_trained`
    part-00000.faiss, part-00000.json  `build_part`: rows [first, stop), each named by its number in the whole data

Parts don't depend on one another: one task a part, in any order, anywhere. A part whose record stands is not built
again. What was trained and a part's rows decide its bytes: not the blocks they come in, nor the workers or threads, nor
the processor's BLAS.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.approximate.cells import Cells
from index.approximate.reduction import Sketch
from index.approximate.train import SEED, SLICE_ROWS, Trained, lists_of
from index.commit import (
    FORMAT_VERSION,
    REBUILD,
    FileRecord,
    Verify,
    file_record,
    free_bytes,
    parse_record,
    read_fields,
    replace_file,
    verify_file,
    write_record,
)
from index.errors import IndexCorrupt, IndexMismatch, IndexNotWritten, VectorIndexError
from index.exact import Blocks, checked_slices
from index.factory import IndexPlan, load_faiss
from index.persist import RECORD

TRAINED = "trained"


class TrainedRecord(BaseModel):
    """What `trained.json` holds: its own fields of `Trained`, and the file beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    fingerprint: str
    faiss: str
    plan: IndexPlan
    rows: int
    dims: int
    edges: list[float]
    starts: list[int]
    radii: list[float]
    file: FileRecord


class PartRecord(BaseModel):
    """What `part-….json` holds.

    Attributes:
        format_version: Of the two files.
        trained: Digest of the `trained.faiss` that it was built with.
        first: Its first row.
        stop: One past its last.
        file: The lists.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    trained: str
    first: int
    stop: int
    file: FileRecord


def part_ranges(plan: IndexPlan, rows: int) -> list[tuple[int, int]]:
    """Return the rows [first, stop) of every part: a function of the plan, not of who builds it."""
    return [(first, min(rows, first + plan.part_rows)) for first in range(0, rows, plan.part_rows)]


def part_name(number: int) -> str:
    """Return a part's file name without its ending."""
    return f"part-{number:05d}"


def save_trained(trained: Trained, directory: Path, fingerprint: str) -> TrainedRecord:
    """Write what was trained.

    Args:
        trained: Without rows.
        directory: Made if missing.
        fingerprint: Of the rows it is for.

    Raises:
        IndexNotWritten: The disk is full or can't be written.
    """
    faiss = load_faiss()
    path, record_path = directory / f"{TRAINED}.faiss", directory / f"{TRAINED}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # What was merged from another training is no index any more.
        (directory / RECORD).unlink(missing_ok=True)
        record_path.unlink(missing_ok=True)
        replace_file(path, lambda partial: faiss.write_index(trained.faiss, str(partial)))
        record = TrainedRecord(
            fingerprint=fingerprint,
            faiss=faiss.__version__,
            plan=trained.plan,
            rows=trained.rows,
            dims=trained.dims,
            edges=trained.cells.edges.tolist(),
            starts=trained.cells.starts.tolist(),
            radii=trained.cells.radii.tolist(),
            file=file_record(path),
        )
        write_record(record_path, record)
    except (OSError, RuntimeError) as error:
        raise IndexNotWritten(_not_written(directory, error)) from None
    return record


def load_trained(directory: Path, fingerprint: str) -> tuple[Trained, TrainedRecord]:
    """Read what was trained.

    Raises:
        IndexMismatch: For other rows, or of another version of the format.
        IndexCorrupt: A file is missing, truncated, altered or unreadable.
        FaissMissing: faiss isn't installed.
    """
    faiss = load_faiss()
    path, record_path = directory / f"{TRAINED}.faiss", directory / f"{TRAINED}.json"
    record = parse_record(record_path, read_fields(record_path), TrainedRecord)
    if record.fingerprint != fingerprint:
        raise IndexMismatch(
            f"{record_path}: trained for rows with the fingerprint {record.fingerprint}, expected {fingerprint}. "
            + REBUILD.format(record=record_path)
        )
    verify_file(path, record.file, record_path)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise IndexCorrupt(
            f"{path}: faiss {faiss.__version__} can't read what faiss {record.faiss} wrote ({error}). "
            + REBUILD.format(record=record_path)
        ) from None
    lists, plan = lists_of(index), record.plan
    cells = Cells(
        np.array(record.edges, np.float32),
        np.array(record.starts, np.int64),
        lists.quantizer.reconstruct_n(0, lists.nlist),
        np.array(record.radii, np.float32),
    )
    return Trained(
        plan, record.rows, record.dims, Sketch(record.dims, plan.reduced, SEED, plan.turned), cells, index
    ), record


def build_part(directory: Path, fingerprint: str, number: int, blocks: Blocks) -> PartRecord:
    """Build one part of the index and commit it; a part that stands is left as it is, and its blocks aren't read.

    Memory: the part's codes twice, what was trained, a block, and 4,096 reduced rows.

    Args:
        directory: Where `save_trained` wrote.
        fingerprint: Of the rows.
        number: Of the part in `part_ranges(plan, rows)`.
        blocks: (first row, vectors [b, dims]) of exactly its rows, consecutive, in blocks of any size.

    Raises:
        IndexMismatch: Rows are missing, repeated, out of order or too many; or what was trained is for other rows.
        IndexCorrupt: What was trained is missing or damaged.
        VectorIndexError: A row isn't finite, or a block has another width.
        IndexNotWritten: The disk is full or can't be written.
    """
    trained, record = load_trained(directory, fingerprint)
    first, stop = part_ranges(trained.plan, trained.rows)[number]
    existing = read_part(directory, number, record)
    if existing is not None:
        return existing
    filled = trained.emptied()
    for start, sketched in _sliced(blocks, trained.sketch, first, stop):
        _add(filled, sketched, start)
    name = part_name(number)
    try:
        replace_file(directory / f"{name}.faiss", lambda partial: load_faiss().write_index(filled.faiss, str(partial)))
        part = PartRecord(
            trained=record.file.sha256, first=first, stop=stop, file=file_record(directory / f"{name}.faiss")
        )
        write_record(directory / f"{name}.json", part)
    except (OSError, RuntimeError) as error:
        raise IndexNotWritten(_not_written(directory, error)) from None
    return part


def read_part(directory: Path, number: int, trained: TrainedRecord, verify: Verify = "size") -> PartRecord | None:
    """Return a part's record if it was built with what is trained now and its file is there; None otherwise."""
    record_path = directory / f"{part_name(number)}.json"
    try:
        record = parse_record(record_path, read_fields(record_path), PartRecord)
        verify_file(directory / f"{part_name(number)}.faiss", record.file, record_path, verify)
    except VectorIndexError:
        return None
    return record if record.trained == trained.file.sha256 else None


def _sliced(blocks: Blocks, sketch: Sketch, first: int, stop: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sketch blocks of any size and cut them again, into slices of SLICE_ROWS counted from the part's first row.

    Sketched first: a sketch is the same beside any rows, and 4,096 whole rows may be gigabytes.
    """
    waiting = np.empty((min(SLICE_ROWS, stop - first), sketch.reduced), dtype=np.float32)
    due, filled = first, 0
    for start, rows, _ in checked_slices(blocks, sketch.dims):
        part = sketch.apply(rows)
        if start != due or start + len(part) > stop:
            raise IndexMismatch(
                f"A block for rows {start} to {start + len(part) - 1} came where row {due} of [{first}, {stop}) "
                "was due. Every row must come once, in order: run the same build again to complete the shards."
            )
        due += len(part)
        offset = 0
        while offset < len(part):
            count = min(len(waiting) - filled, len(part) - offset)
            waiting[filled : filled + count] = part[offset : offset + count]
            filled, offset = filled + count, offset + count
            if filled == len(waiting):
                yield due - len(part) + offset - filled, waiting
                filled = 0
    if due != stop:
        raise IndexMismatch(f"The blocks ended before row {due} of [{first}, {stop}): run the same build again.")
    if filled:
        yield stop - filled, waiting[:filled]


def _add(filled: Trained, sketched: NDArray[np.float32], start: int) -> None:
    faiss = load_faiss()
    coded = filled.transform(sketched)
    assignment = filled.cells.assign(coded)
    numbers = np.arange(start, start + len(coded), dtype=np.int64)
    lists = filled.lists
    lists.add_core(len(coded), faiss.swig_ptr(coded), faiss.swig_ptr(numbers), faiss.swig_ptr(assignment))
    filled.faiss.ntotal = lists.ntotal


def _not_written(directory: Path, error: Exception) -> str:
    return (
        f"{directory}: a part of the index couldn't be written ({error}); {free_bytes(directory)}. Free some space or "
        "choose another folder, then run the same command to resume."
    )
