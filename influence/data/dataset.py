"""A data set, opened: rows in their order, memory-mapped, never the whole set in memory.

JSON Lines, CSV and Parquet files are read once, by `records`, into the memory-mapped cache of `datasets` (see `cache`).
Folders that `datasets` saved and data sets of the hub are memory-mapped as they are.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from influence.artifacts.place import check_name
from influence.artifacts.regular import irregular
from influence.data.arrow_sets import ArrowSet, is_saved, load_hub, load_saved
from influence.data.cache import Stamp, cached_rows, check_stamp, stamp_of
from influence.data.canonical import canonical_row, example_of
from influence.data.classes import class_names, file_classes
from influence.data.columns import CONTENT_ROLES, Columns, Layout, Shape, find_layout
from influence.data.example import Example, MessagesContent
from influence.data.identity import DataIdentity, digest_files, digest_of
from influence.data.integrity import check_ids, check_nulls
from influence.data.records import DELIMITERS, FileFormat, columns_of
from influence.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

TaskKind = Literal["causal_lm", "sequence_classification"]
Native = Literal["saved", "hub"]
"""What the library `datasets` keeps as Arrow files."""

SUFFIXES: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".tgz")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
ROWS_PER_READ = 256


class DataSettings(BaseModel):
    """Where the rows are and how long ones are treated.

    Attributes:
        path: A file, a pattern of files (`corpus/*.jsonl`, read in the order of their names), a folder written by
            `datasets.save_to_disk`, or the name of a data set on the hub.
        format: `auto` goes by the suffix, or by what the folder holds.
        split: The split of a saved or hub data set.
        name: The configuration of a hub data set.
        columns: The names that the user's data gives to each role.
        max_tokens: The most tokens that are processed together.
        long_rows: Longer rows are cut off (`truncate`), or cut into parts that map back to their row (`split`).
        append_eos: Ends every text, completion and conversation with the tokeniser's end-of-sequence token, scored.
        limit: Read this many rows only.
        quarantine: How many rows may fail to be captured before the build gives up. Until then a row that fails alone
            or kills its worker is stored as zeros and listed with its error, and the build goes on; 0 stops at the
            first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "saved", "hub"] = "auto"
    split: str = "train"
    name: str | None = None
    columns: Columns = Columns()
    max_tokens: int = Field(default=512, ge=2)
    long_rows: Literal["truncate", "split"] = "truncate"
    append_eos: bool = False
    limit: int | None = Field(default=None, ge=1)
    quarantine: int = Field(default=100, ge=0)


class Rows:
    """The rows of an opened data set; see `open_rows`.

    Attributes:
        place: The path or name it was opened from, for messages.
        shape: Which columns hold the content, the same for all rows.
        classes: The names of its classes, from 0, where its labels are numbers that stand for names (`ClassLabel`).
    """

    def __init__(
        self,
        dataset: "Dataset",
        layout: Layout,
        place: str,
        *,
        canonical: bool,
        digest: Callable[[], str],
        mapped: Stamp = (),
        classes: tuple[str, ...] = (),
    ) -> None:
        """Set up; see `open_rows`.

        Args:
            dataset: The rows.
            layout: What their columns amount to.
            place: For messages.
            canonical: The rows are our own copy, in canonical form.
            digest: Returns the digest of what was opened.
            mapped: The files that are read where they lie, as they were when they were opened: none of a copy.
            classes: What the data set calls its classes, from 0.
        """
        self.classes = classes
        self.place = place
        self.shape: Shape = layout.shape
        self._dataset = dataset
        self._layout = layout
        self._canonical = canonical
        self._digest = digest
        self._mapped = mapped

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def columns(self) -> Columns:
        """The columns that are read, every other role left out by name."""
        return self._layout.columns

    @property
    def chats(self) -> bool:
        """Whether rows are chats: messages, or prompts and completions that are lists of messages."""
        return self.shape == "messages" or (
            self.shape == "prompt" and isinstance(self.example(0).content, MessagesContent)
        )

    @property
    def has_label(self) -> bool:
        """Whether rows come with a class."""
        if self._layout.has("label") or not self._canonical:
            return self._layout.has("label")
        return self._dataset.data.column("label").null_count < len(self)

    def example(self, row: int) -> Example:
        """Return one row, counted from 0."""
        return next(self.examples(row, row + 1))

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """Yield the rows `start` to `stop` (exclusive; None for all) in their order, a few hundred in memory at a time.

        Raises:
            DataError: A value of a saved or hub data set is null or of the wrong type (the message names the row), or
                the data set was written to since it was opened.
            IndexError: The range is not one of this data set.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"Rows {start} to {stop} are not in {self.place}, which has {len(self)}.")
        for block in range(start, stop, ROWS_PER_READ):
            check_stamp(self._mapped)
            columns = self._dataset[block : min(block + ROWS_PER_READ, stop)]
            for row, values in enumerate(zip(*columns.values(), strict=True), start=block):
                record = dict(zip(columns, values, strict=True))
                if not self._canonical:
                    record = canonical_row(record, self._layout, f"{self.place}, row {row} (counted from 0)")
                yield example_of(row, record, self.shape)

    def digest(self) -> str:
        """Return the SHA-256 of the input file's bytes, or of several files' digests; of the hub see `digest_of`.

        Raises:
            DataError: A file has changed since the rows were opened.
        """
        return self._digest()

    def check(self, kind: TaskKind) -> None:
        """Check, in one pass over the columns concerned, what a task needs of the whole data set.

        Raises:
            DataError: A column that the task needs is missing, a content or label is null, or an id is given twice.
        """
        if kind == "sequence_classification":
            if not self.has_label:
                raise DataError(
                    f"{self.place} has no label column, which a sequence classifier needs. "
                    f"Columns found: {self._layout.listing}. "
                    "Add a column 'label' with each row's class, or name yours in data.columns.label."
                )
            if self.shape not in ("text", "input_ids"):
                raise DataError(
                    f"{self.place} holds rows of shape {self.shape!r}; a classifier reads 'text' or 'input_ids'. "
                    "Join what it reads into one column."
                )
        column = {role: role if self._canonical else name for role, name in self._layout.names.items()}
        if not self._canonical:
            check_nulls(self._dataset, [column[role] for role in CONTENT_ROLES[self.shape]], self.place)
        if kind == "sequence_classification":
            check_nulls(self._dataset, [column["label"]], self.place)
        if self._layout.has("id"):
            check_nulls(self._dataset, [column["id"]], self.place)
            check_ids(self._dataset, column["id"], self.place)


def open_rows(settings: DataSettings, identity: DataIdentity | None = None) -> Rows:
    """Open a data set. The first process reads its files once; any other finds them in the cache of `datasets`.

    Of files a copy is read from then on, whatever becomes of them. What is mapped where it lies (a saved or hub data
    set) is refused once it is written to.

    Args:
        settings: Where the data set is.
        identity: Of the run whose rows these must be; none where there is no run yet. Reads every file once.

    Raises:
        DataError: It is missing, empty, unreadable (the message names file and line), its columns make no shape, or it
            isn't the data set that the identity is of.
    """
    kind, files = _located(settings, identity)
    if kind in ("saved", "hub"):
        rows = _native_rows(load_saved(settings) if kind == "saved" else load_hub(settings), settings, identity)
    else:
        rows = _file_rows(files, kind, settings, identity)
    if identity is not None:
        identity.check_rows(rows.place, len(rows))
    return rows


def _located(settings: DataSettings, identity: DataIdentity | None) -> tuple[FileFormat | Native, tuple[str, ...]]:
    try:
        return locate(settings)
    except DataError as error:
        if identity is None:
            raise
        raise DataError(f"The data that {identity.run} was built from aren't there. {error}") from None


def _file_rows(files: tuple[str, ...], kind: FileFormat, settings: DataSettings, identity: DataIdentity | None) -> Rows:
    place, stamp = files[0] if len(files) == 1 else settings.path, stamp_of(files)

    def digest() -> str:
        digests = digest_files(files)
        check_stamp(stamp)
        return digests

    if identity is not None:
        # Before a line is read: what has become of a changed file may be anything.
        identity.check_digest(place, digest())
    columns = columns_of(files[0], kind, settings.columns.named)
    layout = find_layout(columns, settings.columns, files[0], sparse=kind == "jsonl")
    if kind in DELIMITERS and layout.shape in ("messages", "input_ids"):
        raise DataError(
            f"{files[0]}: the column of {layout.shape} is a list, which {kind.upper()} can't hold. Write jsonl or "
            "parquet."
        )
    rows = cached_rows(stamp, kind, layout, settings.limit)
    classes = file_classes(files, layout.names["label"]) if kind == "parquet" and layout.has("label") else ()
    return Rows(rows, layout, place, canonical=True, digest=digest, classes=classes)


def locate(settings: DataSettings) -> tuple[FileFormat | Native, tuple[str, ...]]:
    """Return what a data set is, and its files in their order; none of a saved or hub data set.

    Raises:
        DataError: There is nothing, or its format can't be told.
    """
    path, file_format = settings.path, settings.format
    if file_format == "hub":
        return "hub", ()
    local = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(local):
        if file_format not in ("auto", "saved") or not is_saved(Path(local)):
            raise DataError(
                f"{path} is a folder{'' if is_saved(Path(local)) else ' that datasets.save_to_disk did not write'}; "
                f"expected {'a saved data set' if file_format in ('auto', 'saved') else 'a ' + file_format + ' file'}. "
                f"For a folder of files give a pattern, such as {os.path.join(path, '*.jsonl')}."
            )
        return "saved", ()
    files = (
        (local,) if os.path.isfile(local) else tuple(sorted(filter(os.path.isfile, glob.glob(local, recursive=True))))
    )
    if not files:
        kind = irregular(local)
        if kind is not None:
            raise DataError(
                f"{path} is {kind}. Rows are read several times, so they lie in files: write them to one, and name it."
            )
        if file_format == "auto" and HUB_NAME.fullmatch(path) and Path(path).suffix.lower() not in SUFFIXES:
            return "hub", ()
        expected = {"auto": "a file, a folder or a pattern of files", "saved": "a folder"}.get(
            file_format, f"a {file_format} file"
        )
        raise DataError(
            f"There is nothing at {path} (looked for {local}). Expected {expected}; check data.path or the name given."
        )
    for file in files:
        check_name(Path(file), "the data file")
    if file_format == "saved":
        raise DataError(f"{path} is a file, expected a folder that datasets.save_to_disk wrote. Set data.format: auto.")
    packed = [file for file in files if Path(file).suffix.lower() in COMPRESSED]
    if packed:
        raise DataError(
            f"{packed[0]} is compressed, and rows are read from plain files. Unpack it, and name the file that comes "
            "out."
        )
    formats = {SUFFIXES.get(Path(file).suffix.lower()) for file in files} if file_format == "auto" else {file_format}
    if len(formats) > 1 or None in formats:
        raise DataError(
            f"Can't tell the format of {path} from its suffix. Known suffixes: {', '.join(SUFFIXES)}. "
            "Rename it; or, of training data, set data.format to jsonl, csv, tsv or parquet."
        )
    return next(iter(formats)), files  # type: ignore[return-value]


def _native_rows(loaded: ArrowSet, settings: DataSettings, identity: DataIdentity | None) -> Rows:
    dataset, place, stamp = loaded.dataset, loaded.place, stamp_of(map(str, loaded.files))
    if identity is not None:
        identity.check_set(loaded)
    layout = find_layout(dataset.column_names, settings.columns, place)
    if len(dataset) == 0:
        raise DataError(f"{place} has columns but no rows. Expected at least one row.")
    dataset = dataset.with_format(None).select_columns([name for name in layout.names.values() if name in layout.found])
    if settings.limit is not None:
        dataset = dataset.select(range(min(settings.limit, len(dataset))))
    classes = class_names(dataset.features.arrow_schema, layout.names.get("label"))
    return Rows(
        dataset, layout, place, canonical=False, digest=lambda: digest_of(loaded), mapped=stamp, classes=classes
    )
