"""The data set that an export cleans: what it is, which files it has, and where the cleaned one may stand."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from influence.artifacts.outfile import same_file
from influence.artifacts.place import check_local
from influence.data.arrow_sets import ArrowSet, load_hub, load_saved
from influence.data.columns import find_layout
from influence.data.dataset import SUFFIXES, locate
from influence.data.identity import DataIdentity, digest_files, digest_of
from influence.data.records import FileFormat, columns_of
from influence.errors import DataError, QueryError
from influence.export.decisions import read_decisions_about
from influence.run_dir import RunDir


@dataclass(frozen=True)
class Original:
    """A run's data set.

    Attributes:
        format: Of its files; `saved` of what `datasets` saved, or loaded from the hub.
        files: Their paths, in the order of their rows.
        names: What they are called below a folder; none of `saved`.
        label: The column of labels; None where there is none.
        loaded: Of `saved`, the data set.
    """

    format: FileFormat | Literal["saved"]
    files: tuple[Path, ...]
    names: tuple[str, ...] = ()
    label: str | None = None
    loaded: ArrowSet | None = None

    @property
    def folder(self) -> bool:
        """Whether the cleaned data set is a folder of files."""
        return self.loaded is not None or len(self.files) > 1

    @property
    def place(self) -> str:
        """Where its rows are, for messages."""
        return str(self.files[0]) if self.loaded is None else self.loaded.place

    def digest(self) -> str:
        """Return its digest as it is now."""
        return digest_files([str(file) for file in self.files]) if self.loaded is None else digest_of(self.loaded)


def original_of(run: RunDir) -> Original:
    """Return the data set that a run was built from.

    Raises:
        DataError: It isn't there, or has other columns now.
    """
    settings = run.config.data
    loaded = None
    try:
        kind, files = locate(settings)
        if kind in ("saved", "hub"):
            loaded = load_saved(settings) if kind == "saved" else load_hub(settings)
    except DataError as error:
        raise DataError(f"The data that {run.path} was built from aren't there. {error}") from None
    if kind == "saved" or kind == "hub":
        assert loaded is not None, "it was loaded above"
        found = Original("saved", loaded.files, loaded=loaded)
    else:
        paths = tuple(Path(file) for file in files)
        above = os.path.commonpath([path.parent for path in paths])
        found = Original(kind, paths, tuple(path.relative_to(above).as_posix() for path in paths))
    try:
        columns = _columns(found, settings.columns.named)
        layout = find_layout(columns, settings.columns, found.place, sparse=found.format == "jsonl")
    except DataError:
        check_data(run, found)
        raise
    return replace(found, label=layout.columns.label)


def _columns(original: Original, named: Collection[str]) -> Iterable[str]:
    if original.loaded is not None:
        return original.loaded.dataset.column_names
    assert original.format != "saved", "what was saved was loaded"
    return columns_of(str(original.files[0]), original.format, named)


def check_data(run: RunDir, original: Original, found: str | None = None) -> None:
    """Hold a run's data set to that of the build.

    Args:
        run: The run.
        original: Its data set.
        found: The digest of what was read of it; that of what is there now if None.

    Raises:
        DataError: It is another.
    """
    identity = DataIdentity.of(run.manifest.fingerprint_parts, run.rows, run.path)
    if original.loaded is not None:
        identity.check_set(original.loaded)
    else:
        identity.check_digest(run.config.data.path, found or original.digest())


def check_place(original: Original, read: Iterable[Path], out: Path, decisions: Path) -> None:
    """Refuse a place where a cleaned data set can't stand, or would replace what no export of such data wrote.

    Args:
        original: What is cleaned.
        read: What else is only read.
        out: The cleaned file, or folder of files.
        decisions: The decisions about it.

    Raises:
        QueryError: It can't stand there.
    """
    check_local(out, "a cleaned data set")
    if not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write somewhere else.")
    for path, what in ((out, "the cleaned data"), (decisions, "its decisions")):
        own = next((file for file in (*original.files, *read) if same_file(path, file)), None)
        if own is not None:
            raise QueryError(f"{path}, for {what}, is {own}, which is only read. Name another file with --out.")
    suffix = original.files[0].suffix if original.files else ""
    if original.folder:
        _check_folder(original, out, decisions)
    elif out.suffix != suffix or out.is_dir():
        raise QueryError(f"{out}: the cleaned data are {original.format} as the input is, so name a file …{suffix}.")
    if decisions.exists():
        about = read_decisions_about(decisions)  # nothing else of that name is replaced
        if (about.format, about.folder) != (original.format, original.folder):
            raise QueryError(
                f"{decisions}, for the decisions, belongs to {'several files' if about.folder else 'a file'} of "
                f"{about.format} that were cleaned: name another file with --out, so that the earlier export can "
                "still be undone."
            )


def _check_folder(original: Original, out: Path, decisions: Path) -> None:
    if any(file.resolve().is_relative_to(out.resolve()) for file in original.files):
        raise QueryError(f"{out} holds the data themselves, which are only read. Name another folder with --out.")
    saved = None if original.loaded is None else original.loaded.folder
    if saved is not None and out.resolve().is_relative_to(saved.resolve()):
        raise QueryError(f"{out} lies in {saved}, which is only read. Name a folder elsewhere with --out.")
    what = f"{len(original.files)} files" if original.loaded is None else "written as a saved data set, a folder"
    if out.exists() and (not out.is_dir() or not decisions.exists()):
        raise QueryError(f"{out} is no folder that an export made. The data are {what}: name one.")
    if original.loaded is not None and out.suffix.lower() in SUFFIXES:
        raise QueryError(f"{out}: the cleaned data are {what}, so give a name without {out.suffix}.")
    if out.exists():
        about = read_decisions_about(decisions)
        made = {out / name for name in (*(file.name for file in about.files), *about.beside)}
        other = next((path for path in sorted(out.rglob("*")) if path.is_file() and path not in made), None)
        if other is not None:
            raise QueryError(f"{other} is no file of an export and would go with {out}. Name another with --out.")


__all__ = ["Original", "check_data", "check_place", "original_of"]
