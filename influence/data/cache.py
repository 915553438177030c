"""Files read once into the memory-mapped Arrow cache of `datasets`.

The cache's key is each file's path, size and times: another process reopens what stands, a changed file is read anew.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from influence.data.canonical import canonical_row
from influence.data.columns import Layout, Shape
from influence.data.records import FileFormat, records
from influence.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

log = logging.getLogger(__name__)

CANONICAL_FORM = 2
"""Part of the key: raised when canonical rows change, so that no old ones are read."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, bytes, modification and change time (nanoseconds) of each file."""


def stamp_of(files: Iterable[str]) -> Stamp:
    """Return what some files are told from changed ones by, without reading them."""
    # The change time too: a file can be rewritten at its old length and given its old modification time.
    stats = [(file, os.stat(file)) for file in files]
    return tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats)


def check_stamp(stamp: Stamp) -> None:
    """Refuse files that were written to since they were opened.

    Raises:
        DataError: One was.
    """
    for file, *state in stamp:
        try:
            now = stamp_of((file,))
        except OSError:
            now = ()
        if now != ((file, *state),):
            raise DataError(f"{file} changed since it was opened. Run again when nothing writes to it any more.")


def _features(shape: Shape) -> "Features":
    from datasets import Features, Sequence, Value

    chat = ("messages", "template")
    content = {
        "text": {"text": Value("large_string")},
        "prompt": {name: Value("large_string") for name in ("prompt", "completion", *chat)},
        "messages": {name: Value("large_string") for name in chat},
        "input_ids": {"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int32"))},
    }[shape]
    return Features({name: Value("string") for name in ("id", "source", "uri", "label")} | content)


def _canonical_rows(
    stamp: Stamp,
    file_format: FileFormat,
    shape: Shape,
    names: tuple[tuple[str, str], ...],
    has_id: bool,
    limit: int | None,
    form: int,
) -> Iterator[dict[str, Any]]:
    """Yield canonical rows for the cache. The arguments are its key: plain values, and `form` for that only."""
    files = tuple(file for file, *_ in stamp)
    log.info("Reading %s (%d file(s), %s) into the cache of datasets.", files[0], len(files), shape)
    layout = Layout(shape, dict(names), (dict(names)["id"],) if has_id else ())
    count = 0
    for file in files:
        for where, record in records(file, file_format, tuple(layout.names.values())):
            yield canonical_row(record, layout, where)
            count += 1
            if count == limit:
                return
    if count == 0:
        raise DataError(f"{files[0]} has columns but no rows. Expected at least one row.")
    if stamp_of(files) != stamp:
        raise DataError(f"{', '.join(files)} changed while it was read. Run again when nothing writes to it any more.")


def cached_rows(stamp: Stamp, file_format: FileFormat, layout: Layout, limit: int | None) -> "Dataset":
    """Return the canonical rows of some files as a memory-mapped `Dataset`: a copy of what the stamp stands for.

    Args:
        stamp: The files, in the order of their rows, as they were when their digest was checked.
        file_format: The format of all of them.
        layout: What their columns amount to.
        limit: Stop after this many rows.

    Raises:
        DataError: A record can't be read; or the cache's folder has no room or can't be written.
    """
    from datasets import Dataset

    key = {
        "stamp": stamp,
        "file_format": file_format,
        "shape": layout.shape,
        "names": tuple(sorted(layout.names.items())),
        "has_id": layout.has("id"),
        "limit": limit,
        "form": CANONICAL_FORM,
    }
    try:
        with no_progress_bars():
            return Dataset.from_generator(_canonical_rows, features=_features(layout.shape), gen_kwargs=key)  # type: ignore[return-value]
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, DataError):
                raise cause from None
            if isinstance(cause, OSError):
                raise DataError(
                    f"{stamp[0][0]} could not be read into the cache of datasets: {cause}. "
                    "Make room there, or set HF_DATASETS_CACHE to a folder that has it and can be written."
                ) from None
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the progress bars of `datasets` off for a while, unless the user's environment insists on them."""
    import datasets
    from datasets.config import HF_DATASETS_DISABLE_PROGRESS_BARS as WANTED

    if datasets.are_progress_bars_disabled() or WANTED is False:
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
