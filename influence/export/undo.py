"""Undo an export: the original files again, from the cleaned ones and the decisions beside them.

Of JSON Lines and CSV to the byte, held to the digest of the data that the run was built from. Of Parquet, and of what
`datasets` saved or loaded, every row's values under the same schema, held to a digest of those: see `clean_columns`.
"""

from pathlib import Path

from influence.artifacts.digest import sha256
from influence.artifacts.outfile import MARK, already, parts_folder, same_file
from influence.artifacts.partial import check_replaceable, disk_errors, sync_folder
from influence.artifacts.place import check_local
from influence.data.identity import joined_digest
from influence.engine.progress import Progress, Report
from influence.errors import DataError, DigestMismatch, QueryError
from influence.export.clean_columns import Originals
from influence.export.clean_parquet import restore_parquet
from influence.export.clean_saved import restore_saved
from influence.export.clean_text import restore_text
from influence.export.decisions import About, Decisions, changed_file, decisions_path, read_decisions_about
from influence.issues.parts import done_anew, parts_of
from influence.run_dir import RunDir

RESTORED = "restored"


def undo_export(
    cleaned: Path,
    out: Path,
    *,
    of_run: RunDir | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> About:
    """Write the data set as it was before an export.

    Args:
        cleaned: What the export wrote; its decisions are beside it.
        out: Where to: a file, or of several files a folder that doesn't exist.
        of_run: Refuse what wasn't exported from this run's data; decisions need no run to be undone.
        overwrite: Replace the file that is there.
        progress: Hears of every file.

    Returns:
        What the decisions say of the export.

    Raises:
        QueryError: There are no decisions, or `out` exists or is one of the files that are read.
        DataError: The cleaned data have changed since the export.
        Incomplete: Interrupted, or the disk is full; the same call begins again.
    """
    decisions = decisions_path(cleaned)
    about = read_decisions_about(decisions)
    if of_run is not None and about.run != of_run.manifest.rows_fingerprint:
        raise QueryError(
            f"{cleaned} was exported from another run's data: its decisions name the fingerprint {about.run}, "
            f"{of_run.path} has {of_run.manifest.rows_fingerprint}. Ask the run that it was exported from."
        )
    _check(cleaned, decisions, about, out, overwrite)
    with parts_of(out) as folder, done_anew(folder), disk_errors(out.parent, out.name, decisions.stat().st_size):
        stage = Progress("undo", len(about.files), progress)
        if about.format == "saved":
            found = restore_saved(cleaned, Originals(decisions), about, folder / RESTORED, stage)
        else:
            found = _restore_files(cleaned, decisions, about, folder / RESTORED, stage)
        _check_restored(about, found, out)
        _publish(folder, out, decisions, about, overwrite=overwrite)
    return about


def _restore_files(cleaned: Path, decisions: Path, about: About, out: Path, stage: Progress) -> list[str]:
    """Write every file as it was, and return their digests: of their bytes, or of their values."""
    lines = None if about.of_columns else Decisions(decisions, ("offset", "written", "original"))
    originals = Originals(decisions) if about.of_columns else None
    found, first = [], 0
    for number, file in enumerate(about.files):
        source, target = (place / file.name if about.folder else place for place in (cleaned, out))
        target.parent.mkdir(parents=True, exist_ok=True)
        if originals is not None:
            found.append(restore_parquet(source, originals, first, file.rows, target))
        elif lines is not None:
            found.append(restore_text(source, lines, number, target))
        first += file.rows
        stage.finished()
    return found


def _publish(folder: Path, out: Path, decisions: Path, about: About, *, overwrite: bool) -> None:
    """Give what was restored its name.

    Raises:
        QueryError: Something else is there, and may not be replaced.
    """
    if out.exists() and (about.folder or not overwrite):
        for file in about.files:
            there, new = (place / file.name if about.folder else place for place in (out, folder / RESTORED))
            if not there.is_file() or sha256(there) != sha256(new):
                raise QueryError(already(out))
        return
    (folder / MARK).write_text(sha256(decisions))
    (folder / RESTORED).replace(out)
    sync_folder(out.parent)


def _killed_late(out: Path, decisions: Path) -> bool:
    """Whether what is there was restored by a call that was killed before its parts were gone."""
    mark = parts_folder(out) / MARK
    return mark.is_file() and mark.read_text() == sha256(decisions)


def _check(cleaned: Path, decisions: Path, about: About, out: Path, overwrite: bool) -> None:
    check_local(out, "a data set")
    if not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write somewhere else.")
    if not out.is_dir():
        check_replaceable(out)
    if any(same_file(out, path) for path in (cleaned, decisions)):
        raise QueryError(f"{out} is what is undone, which is only read. Name another file with --out.")
    if not about.folder and out.suffix != cleaned.suffix:
        raise QueryError(f"{out}: what is restored is {about.format}, so name a file …{cleaned.suffix}.")
    if out.exists() and (about.folder or out.is_dir() or not overwrite) and not _killed_late(out, decisions):
        way = "Name another" if about.folder or out.is_dir() else "Overwrite (--overwrite), or name another"
        raise QueryError(f"{out} exists already. {way} with --out.")
    changed = changed_file(cleaned, about)
    if changed is not None:
        path, digest, expected = changed
        raise DataError(
            f"{path} is not the file that {decisions} describes: its digest is {digest}, the export wrote "
            f"{expected}. It was "
            "changed since, or an export that should replace it was interrupted: put it back, or export again."
        )


def _check_restored(about: About, found: list[str], out: Path) -> None:
    """Hold what was restored to what there was."""
    if about.of_columns:
        expected, restored = [str(file.values) for file in about.files], found
    else:
        expected, restored = [about.data], [joined_digest(found)]
    if restored != expected:
        raise DigestMismatch(
            f"{out} was not written: what the decisions give back has the digest {', '.join(restored)}, the data that "
            f"the run was built from had {', '.join(expected)}. The file of decisions is damaged."
        )


__all__ = ["undo_export"]
