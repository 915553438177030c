"""Export a cleaned data set: the original files, without the rows and with the labels that the user named.

One file becomes one file; several become a folder with the same names below it. What was done is in a file of decisions
beside it, which holds enough to undo it. Both are written in `OUT.parts/` and then renamed, the decisions first: a
cleaned file never stands without its decisions. Where `OUT.parts/` is left, an export was killed, and the same call
begins it again. The input is only read.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from influence.data.columns import find_layout
from influence.data.dataset import DataSettings, digest_files, joined_digest, locate
from influence.data.records import FileFormat, columns_of
from influence.diagnose.clean_parquet import clean_parquet
from influence.diagnose.clean_text import clean_text
from influence.diagnose.decisions import (
    About,
    CleanedFile,
    DecisionWriter,
    changed_file,
    decisions_path,
    read_decisions_about,
)
from influence.diagnose.outfile import MARK, already, parts_folder, same_file
from influence.diagnose.parts import done_anew, parts_of
from influence.diagnose.verdicts import Verdicts, Wish
from influence.errors import DataError, QueryError
from influence.pipeline.progress import Report, Stage
from influence.remote.place import check_local
from influence.store.digest import sha256
from influence.store.partial import disk_errors, sync_folder

if TYPE_CHECKING:
    from influence.run import Run

log = logging.getLogger(__name__)

DECISIONS = "decisions.parquet"
CLEANED = "cleaned"
REPLACED = "replaced"


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        out: The cleaned file, or folder of files.
        decisions: The file of decisions.
        rows: Rows there were.
        dropped: Rows dropped, by the checks that flagged them.
        relabelled: Rows with another label, by the checks that flagged them.
        unexamined: Rows after the run's last (`data.limit`), which stay.
    """

    out: Path
    decisions: Path
    rows: int
    dropped: dict[str, int]
    relabelled: dict[str, int]
    unexamined: int

    @property
    def kept(self) -> int:
        """Rows that are there still, relabelled ones among them."""
        return self.rows - sum(self.dropped.values())


@dataclass(frozen=True)
class _Source:
    """The files of a run's data set.

    Attributes:
        format: Of all of them.
        files: Their paths, in the order of their rows.
        names: What they are called below a folder.
        label: The column of labels; None where there is none.
    """

    format: FileFormat
    files: tuple[Path, ...]
    names: tuple[str, ...]
    label: str | None


def export_clean(
    run: "Run", wish: Wish, out: Path, *, overwrite: bool = False, progress: Report | None = None
) -> Exported:
    """Write a run's data set without the rows and with the labels that a user named.

    Args:
        run: The run.
        wish: What is to be done; see `verdicts`.
        out: The file, with the data's suffix; of several files, a folder.
        overwrite: Replace an earlier export.
        progress: Hears of every file.

    Raises:
        QueryError: A table is of another run, `out` is one of the data's own files, or exists; or no row would be left.
        DataError: The data have changed since the run was built, or are of a kind that can't be exported.
        RunLocked: Another process is at `out`.
        Incomplete: Interrupted, or the disk is full; the same call begins again.
    """
    source = _source_of(run)
    decisions = decisions_path(out)
    _check_out(source, wish, out, decisions, overwrite)
    wish.check(run)
    expected = str(run.manifest.fingerprint_parts["data"])
    _check_data(run, digest_files([str(file) for file in source.files]))
    with parts_of(out) as folder, done_anew(folder), disk_errors(out.parent, out.name, _size(source.files)):
        verdicts = Verdicts(wish.verdicts(run))
        cleaned = _clean(run, source, verdicts, folder, progress)
        rows = sum(file.rows for file in cleaned)
        dropped = {reason: count for (action, reason), count in verdicts.counts.items() if action == "drop"}
        relabelled = {reason: count for (action, reason), count in verdicts.counts.items() if action == "relabel"}
        if sum(dropped.values()) == rows:
            raise QueryError(f"Every one of the {rows:,} rows would be dropped. Name fewer checks, or give --where.")
        _check_data(run, joined_digest([file.original for file in cleaned]))
        assert verdicts.passed == rows >= run.rows, "the data's digest is the run's, so its rows are"
        _publish(folder, out, decisions, overwrite=overwrite)
    log.debug("%s is the data set %s, cleaned", out, expected)
    return Exported(out, decisions, rows, dropped, relabelled, rows - run.rows)


def _clean(
    run: "Run", source: _Source, verdicts: Verdicts, folder: Path, progress: Report | None
) -> tuple[CleanedFile, ...]:
    """Write the cleaned files and the decisions into the folder of parts."""
    stage = Stage("export", len(source.files), progress)
    schema = pq.read_schema(source.files[0]) if source.format == "parquet" else None
    found = []
    with DecisionWriter(folder / DECISIONS, run.manifest.rows_fingerprint, schema) as decisions:
        for number, (file, name) in enumerate(zip(source.files, source.names, strict=True)):
            path = folder / CLEANED / name if len(source.files) > 1 else folder / CLEANED
            path.parent.mkdir(parents=True, exist_ok=True)
            if source.format == "parquet":
                cleaned = clean_parquet(file, name, number, source.label, verdicts, path, decisions)
            else:
                cleaned = clean_text(file, name, number, source.format, source.label, verdicts, path, decisions)
            found.append(cleaned)
            stage.finished()
        data = str(run.manifest.fingerprint_parts["data"])
        several = len(source.files) > 1
        decisions.finish(About(run.manifest.rows_fingerprint, data, source.format, several, tuple(found)))
    return tuple(found)


def _publish(folder: Path, out: Path, decisions: Path, *, overwrite: bool) -> None:
    """Give decisions and cleaned files their names; the decisions first.

    Raises:
        QueryError: Another export is there, and may not be replaced.
    """
    mark, digest = folder / MARK, sha256(folder / DECISIONS)
    if out.exists() and not overwrite and not (mark.exists() and mark.read_text() == digest):
        raise QueryError(already(out))
    mark.write_text(digest)
    try:
        (folder / DECISIONS).replace(decisions)
        if out.is_dir():
            out.replace(folder / REPLACED)
        (folder / CLEANED).replace(out)
    except BaseException:
        if not out.exists():
            decisions.unlink(missing_ok=True)
        raise
    sync_folder(out.parent)


def _killed_late(out: Path, decisions: Path) -> bool:
    """Whether what is there was made by a call that was killed before its parts were gone."""
    mark = parts_folder(out) / MARK
    if not (mark.is_file() and decisions.is_file() and mark.read_text() == sha256(decisions)):
        return False
    return not out.exists() or changed_file(out, read_decisions_about(decisions)) is None


def _source_of(run: "Run") -> _Source:
    settings = run.config.data
    try:
        kind, files = locate(settings)
    except DataError as error:
        raise DataError(f"The data that {run.path} was built from aren't there. {error}") from None
    if kind in ("saved", "hub"):
        raise DataError(
            f"{settings.path} is a {'saved data set' if kind == 'saved' else 'data set of the hub'}, and export cleans "
            f"jsonl, csv and parquet files. Write it as one that keeps every value, by datasets.{_loaded(settings)}"
            ".to_parquet('rows.parquet'); build a run of that, and examine it."
        )
    paths = tuple(Path(file) for file in files)
    above = os.path.commonpath([path.parent for path in paths])
    try:
        label = find_layout(columns_of(files[0], kind), settings.columns, files[0])
    except DataError:
        _check_data(run, digest_files(files))
        raise
    names = tuple(path.relative_to(above).as_posix() for path in paths)
    return _Source(kind, paths, names, label.names["label"] if label.has("label") else None)


def _loaded(settings: DataSettings) -> str:
    """Return how the library datasets loads a data set that is no file of its own, as Python."""
    if locate(settings)[0] == "hub":
        name = "" if settings.name is None else f", {settings.name!r}"
        return f"load_dataset({settings.path!r}{name}, split={settings.split!r})"
    several = (Path(settings.path).expanduser() / "dataset_dict.json").is_file()
    return f"load_from_disk({settings.path!r}){f'[{settings.split!r}]' if several else ''}"


def _check_out(source: _Source, wish: Wish, out: Path, decisions: Path, overwrite: bool) -> None:
    check_local(out, "a cleaned data set")
    if not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write somewhere else.")
    several = len(source.files) > 1
    for path, what in ((out, "the cleaned data"), (decisions, "its decisions")):
        own = next((file for file in (*source.files, *wish.tables) if same_file(path, file)), None)
        if own is not None:
            raise QueryError(f"{path}, for {what}, is {own}, which is only read. Name another file with --out.")
    suffix = source.files[0].suffix
    if several:
        if any(file.resolve().is_relative_to(out.resolve()) for file in source.files):
            raise QueryError(f"{out} holds the data themselves, which are only read. Name another folder with --out.")
        if out.exists() and (not out.is_dir() or not decisions.exists()):
            raise QueryError(
                f"{out} is no folder that an export made. The data are {len(source.files)} files: name one."
            )
        if out.exists():
            made = {out / file.name for file in read_decisions_about(decisions).files}
            other = next((path for path in sorted(out.rglob("*")) if path.is_file() and path not in made), None)
            if other is not None:
                raise QueryError(f"{other} is no file of an export and would go with {out}. Name another with --out.")
    elif out.suffix != suffix or out.is_dir():
        raise QueryError(f"{out}: the cleaned data are {source.format} as the input is, so name a file …{suffix}.")
    if decisions.exists():
        about = read_decisions_about(decisions)  # nothing else of that name is replaced
        if (about.format, about.folder) != (source.format, several):
            raise QueryError(
                f"{decisions}, for the decisions, is about {'several files' if about.folder else 'a file'} of "
                f"{about.format} that were cleaned: name another with --out, so that it can be undone still."
            )
    there = next((path for path in (out, decisions) if path.exists()), None)
    if there is not None and not overwrite and not _killed_late(out, decisions):
        raise QueryError(already(there))
    if wish.relabel and source.label is None:
        raise QueryError(f"{source.files[0]} has no column of labels, so none can be changed: leave --relabel out.")


def _check_data(run: "Run", found: str) -> None:
    expected = run.manifest.fingerprint_parts["data"]
    if found != expected:
        raise DataError(
            f"{run.config.data.path} has changed since {run.path} was built from it: its digest is {found}, the run "
            f"expects {expected}. Row numbers may mean other rows now. Put back the file as it was, or build and "
            "examine a run of the new one."
        )


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


__all__ = ["Exported", "export_clean"]
