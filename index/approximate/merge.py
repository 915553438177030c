"""Merge the parts of an approximate index on disk, and open it there.

    trained.faiss, trained.json   what was trained
    lists.ivfdata                 codes and row numbers of all rows; mapped into memory, never read whole by a search
    index.json                    the record, last: what it was built from, digests, and how well it finds what it
    should

Lists are copied from mapped parts in the order of the parts: the merged index has the same bytes whoever built them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from index.approximate.fallback import CLIMB, Tried
from index.approximate.lists import lists_bytes, map_lists, write_lists
from index.approximate.operating_points import Measured
from index.approximate.parts import TRAINED, load_trained, part_name, part_ranges, read_part
from index.approximate.search import ApproximateIndex
from index.commit import (
    FORMAT_VERSION,
    REBUILD,
    FileRecord,
    Verify,
    clear_partials,
    file_record,
    free_bytes,
    parse_record,
    read_fields,
    replace_file,
    verify_file,
    write_record,
)
from index.errors import IndexCorrupt, IndexMismatch, IndexNotWritten
from index.factory import IndexPlan, load_faiss
from index.persist import RECORD

LISTS = "lists.ivfdata"


class ApproximateRecord(BaseModel):
    """What `index.json` of an approximate index holds.

    Attributes:
        format_version: Of the files.
        kind: `approximate`; a flat index says `flat`.
        plan: The plan that was carried out.
        factory: FAISS's string.
        rows: Vectors in the index.
        dims: D.
        fingerprint: Of the rows it was built from, as the caller names them.
        faiss: The version that wrote it.
        sizes: Rows of every cell.
        files: `trained.faiss`, `trained.json` and `lists.ivfdata`, by name.
        measured: What was found by measuring, and the settings of searches that follow from it; None until then.
        tried: The steps of `auto` before it that fell short; see `ladder`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    kind: Literal["approximate"] = "approximate"
    plan: IndexPlan
    factory: str
    rows: int
    dims: int
    fingerprint: str
    faiss: str
    sizes: tuple[int, ...]
    files: dict[str, FileRecord]
    measured: Measured | None = None
    tried: tuple[Tried, ...] = ()


def merge_parts(directory: Path, fingerprint: str) -> ApproximateRecord:
    """Merge all parts and commit the index; one that stands is left as it is. The parts' files are removed.

    Memory: what was trained; the lists pass through mapped pages.

    Raises:
        IndexMismatch: A part is missing or was built with something else; all of them are named.
        IndexCorrupt: A part was altered.
        IndexNotWritten: The disk is full or can't be written.
    """
    existing = read_approximate(directory)
    if existing is not None and existing.fingerprint == fingerprint:
        remove_parts(directory)
        return existing
    trained, record = load_trained(directory, fingerprint)
    faiss = load_faiss()
    ranges = part_ranges(trained.plan, trained.rows)
    missing = [part_name(n) for n in range(len(ranges)) if read_part(directory, n, record, "digest") is None]
    if missing:
        raise IndexMismatch(
            f"{directory}: {len(missing)} of {len(ranges)} parts are missing, altered or of another training: "
            f"{', '.join(missing[:10])}. Run the same build again: it makes what is missing."
        )
    try:
        (directory / RECORD).unlink(missing_ok=True)
        paths = [directory / f"{part_name(number)}.faiss" for number in range(len(ranges))]
        parts = [faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY) for path in paths]
        sizes: list[int] = []
        replace_file(directory / LISTS, lambda partial: sizes.extend(write_lists(parts, trained.plan.cells, partial)))
        files = {name: file_record(directory / name) for name in (f"{TRAINED}.faiss", f"{TRAINED}.json", LISTS)}
        merged = ApproximateRecord(
            plan=record.plan,
            factory=str(trained.plan.factory),
            rows=trained.rows,
            dims=trained.dims,
            fingerprint=fingerprint,
            faiss=faiss.__version__,
            sizes=tuple(sizes),
            files=files,
        )
        write_record(directory / RECORD, merged)
    except (OSError, RuntimeError) as error:
        raise IndexNotWritten(
            f"{directory}: the parts couldn't be merged ({error}). It needs {trained.plan.disk_bytes:,} bytes "
            f"beside them; {free_bytes(directory)}. Free some space, then run the same command to resume."
        ) from None
    remove_parts(directory)
    return merged


def remove_parts(directory: Path) -> None:
    """Remove what an index was merged from, the parts' records first."""
    for pattern in ("part-*.json", "part-*.faiss"):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
    clear_partials(directory)


def remove_index(directory: Path, keep: str | None = None) -> None:
    """Remove an approximate index, the record first, but for one file; nothing happens where there is none."""
    for name in (RECORD, CLIMB, LISTS, f"{TRAINED}.json", f"{TRAINED}.faiss"):
        if name != keep:
            (directory / name).unlink(missing_ok=True)
    remove_parts(directory)


def record_measured(directory: Path, measured: Measured, attempts: Sequence[Tried] = ()) -> ApproximateRecord:
    """Put what was measured, and what fell short before, into the record of the merged index.

    Raises:
        IndexCorrupt: There is no index, or its record can't be read.
        IndexNotWritten: The disk is full or can't be written.
    """
    record = parse_record(directory / RECORD, read_fields(directory / RECORD), ApproximateRecord)
    changed = record.model_copy(update={"measured": measured, "tried": tuple(attempts)})
    try:
        write_record(directory / RECORD, changed)
    except OSError as error:
        raise IndexNotWritten(
            f"{directory / RECORD} couldn't be written ({error}). Run the same command again."
        ) from None
    return changed


def read_approximate(directory: Path) -> ApproximateRecord | None:
    """Return the record of the approximate index that stands in a directory; None if there is none or a flat one.

    Raises:
        IndexCorrupt: There is a record, but it can't be read.
        IndexMismatch: It is of another version of the format.
    """
    path = directory / RECORD
    if not path.exists():
        return None
    fields = read_fields(path)
    return parse_record(path, fields, ApproximateRecord) if fields.get("kind") == "approximate" else None


def open_index(directory: Path, fingerprint: str, verify: Verify = "digest") -> ApproximateIndex:
    """Open a merged index where it lies.

    Args:
        directory: Where `merge_parts` wrote.
        fingerprint: What the rows of this run are; an index built from others is refused.
        verify: `digest` reads every byte once; `size` opens an index of any size at once, and misses altered bytes.

    Raises:
        IndexMismatch: Built from other rows, or written in another version of the format.
        IndexCorrupt: A file is missing, truncated, altered or unreadable.
        FaissMissing: faiss isn't installed.
    """
    record_path = directory / RECORD
    record = parse_record(record_path, read_fields(record_path), ApproximateRecord)
    rebuild = REBUILD.format(record=record_path)
    if record.fingerprint != fingerprint:
        raise IndexMismatch(
            f"{record_path}: built from rows with the fingerprint {record.fingerprint}, expected {fingerprint}. "
            f"Neighbours from another run would be other documents. {rebuild}"
        )
    for name, expected in record.files.items():
        verify_file(directory / name, expected, record_path, verify)
    trained, _ = load_trained(directory, fingerprint)
    expected = lists_bytes(record.sizes, trained.lists.code_size)
    if (sum(record.sizes), len(record.sizes), record.files[LISTS].bytes) != (record.rows, trained.plan.cells, expected):
        raise IndexCorrupt(
            f"{record_path}: found {sum(record.sizes)} rows in {len(record.sizes)} lists and "
            f"{record.files[LISTS].bytes} bytes, expected {record.rows} rows in {trained.plan.cells} lists and "
            f"{expected} bytes. {rebuild}"
        )
    try:
        map_lists(trained.faiss, directory / LISTS, record.sizes)
    except RuntimeError as error:
        raise IndexCorrupt(f"{directory / LISTS}: can't be mapped into memory ({error}). {rebuild}") from None
    return ApproximateIndex(trained, (trained.faiss,), ((0, record.rows),), record.measured)


def open_parts(directory: Path, fingerprint: str, numbers: list[int] | None = None) -> ApproximateIndex:
    """Open parts that haven't been merged, some or all, and search them as one.

    Args:
        directory: Where `build_part` wrote.
        fingerprint: Of the rows.
        numbers: Which parts; all if None.

    Raises:
        IndexMismatch: A part is missing, altered, or of another training.
        IndexCorrupt: What was trained is missing or damaged.
    """
    trained, record = load_trained(directory, fingerprint)
    ranges = part_ranges(trained.plan, trained.rows)
    chosen_parts = list(range(len(ranges))) if numbers is None else numbers
    if missing := [part_name(n) for n in chosen_parts if read_part(directory, n, record, "digest") is None]:
        raise IndexMismatch(
            f"{directory}: {', '.join(missing)} missing, altered or of another training. Build them again."
        )
    faiss = load_faiss()
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    parts = tuple(faiss.read_index(str(directory / f"{part_name(n)}.faiss"), flags) for n in chosen_parts)
    return ApproximateIndex(trained, parts, tuple(ranges[n] for n in chosen_parts), None)
