"""Export a cleaned data set: the original files, without the rows and with the labels that the user named.

One file becomes one file; several become a folder with the same names below it; what `datasets` saved or loaded becomes
a saved folder. What was done is in a file of decisions beside it, which holds enough to undo it. Both are written in
`OUT.parts/` and then renamed, the decisions first: a cleaned file never stands without its decisions. Where
`OUT.parts/` is left, an export was killed, and the same call begins it again. The input is only read.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.digest import sha256
from influence.artifacts.outfile import MARK, already, parts_folder
from influence.artifacts.partial import check_replaceable, disk_errors, sync_folder
from influence.data.identity import joined_digest
from influence.engine.progress import Progress, Report
from influence.errors import QueryError
from influence.export.clean_parquet import clean_parquet
from influence.export.clean_saved import clean_saved, files_of
from influence.export.clean_text import clean_text
from influence.export.decisions import (
    About,
    CleanedFile,
    DecisionWriter,
    changed_file,
    decisions_path,
    read_decisions_about,
)
from influence.export.original import Original, check_data, check_place, original_of
from influence.export.verdicts import Verdicts, Wish
from influence.issues.parts import done_anew, parts_of
from influence.run_dir import RunDir

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


def export_clean(
    run: RunDir, wish: Wish, out: Path, *, overwrite: bool = False, progress: Report | None = None
) -> Exported:
    """Write a run's data set without the rows and with the labels that a user named.

    Args:
        run: The run.
        wish: What is to be done; see `verdicts`.
        out: The file, with the data's suffix; of several files, or of what `datasets` saved, a folder.
        overwrite: Replace an earlier export.
        progress: Hears of every file.

    Raises:
        QueryError: A table is of another run, `out` is one of the data's own files, or exists; or no row would be left.
        DataError: The data have changed since the run was built.
        RunLocked: Another process is at `out`.
        Incomplete: Interrupted, or the disk is full; the same call begins again.
    """
    original = original_of(run)
    decisions = decisions_path(out)
    _check_out(original, wish, out, decisions, overwrite)
    wish.check(run)
    check_data(run, original)
    with parts_of(out) as folder, done_anew(folder), disk_errors(out.parent, out.name, _size(original.files)):
        verdicts = Verdicts(wish.verdicts(run))
        cleaned = _clean(run, original, verdicts, folder, progress)
        rows = sum(file.rows for file in cleaned)
        dropped = {reason: count for (action, reason), count in verdicts.counts.items() if action == "drop"}
        relabelled = {reason: count for (action, reason), count in verdicts.counts.items() if action == "relabel"}
        if sum(dropped.values()) == rows:
            raise QueryError(f"Every one of the {rows:,} rows would be dropped. Name fewer checks, or give --where.")
        read = joined_digest([file.original for file in cleaned]) if original.loaded is None else None
        check_data(run, original, read)
        assert verdicts.passed == rows >= run.rows, "the data's digest is the run's, so its rows are"
        _publish(folder, out, decisions, overwrite=overwrite)
    log.debug("%s is the data set %s, cleaned", out, original.place)
    return Exported(out, decisions, rows, dropped, relabelled, rows - run.rows)


def _clean(
    run: RunDir, original: Original, verdicts: Verdicts, folder: Path, progress: Report | None
) -> tuple[CleanedFile, ...]:
    """Write the cleaned files and the decisions into the folder of parts."""
    fingerprint, data = run.manifest.rows_fingerprint, str(run.manifest.fingerprint_parts["data"])
    with DecisionWriter(folder / DECISIONS, fingerprint, _schema(original)) as decisions:
        if original.loaded is not None:
            stage = Progress("export", files_of(original.loaded), progress)
            given = original.loaded, original.label, verdicts, folder / CLEANED, decisions, stage
            found, beside = clean_saved(*given)
        else:
            stage = Progress("export", len(original.files), progress)
            found, beside = _clean_files(original, verdicts, folder / CLEANED, decisions, stage), {}
        decisions.finish(About(fingerprint, data, original.format, original.folder, found, beside))
    return found


def _clean_files(
    original: Original, verdicts: Verdicts, out: Path, decisions: DecisionWriter, stage: Progress
) -> tuple[CleanedFile, ...]:
    found = []
    for number, (file, name) in enumerate(zip(original.files, original.names, strict=True)):
        path = out / name if original.folder else out
        path.parent.mkdir(parents=True, exist_ok=True)
        label, kind = original.label, original.format
        if kind == "jsonl" or kind == "csv" or kind == "tsv":
            found.append(clean_text(file, name, number, kind, label, verdicts, path, decisions))
        else:
            found.append(clean_parquet(file, name, number, label, verdicts, path, decisions))
        stage.finished()
    return tuple(found)


def _schema(original: Original) -> pa.Schema | None:
    """Return the schema of rows that are columns."""
    if original.loaded is not None:
        return original.loaded.dataset.data.schema
    return pq.read_schema(original.files[0]) if original.format == "parquet" else None


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


def _check_out(original: Original, wish: Wish, out: Path, decisions: Path, overwrite: bool) -> None:
    check_place(original, wish.tables, out, decisions)
    for path in (out, decisions):
        if not path.is_dir():
            check_replaceable(path)
    there = next((path for path in (out, decisions) if path.exists()), None)
    if there is not None and not overwrite and not _killed_late(out, decisions):
        raise QueryError(already(there))
    if wish.relabel and original.label is None:
        raise QueryError(f"{original.place} has no column of labels, so none can be changed: leave --relabel out.")


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


__all__ = ["Exported", "export_clean"]
