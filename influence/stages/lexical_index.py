"""BM25's inverted index in a run: the library's files, and beside them the record of what they were made from.

    index/bm25/        numpy arrays and JSON as `bm25s` saves them; mapped, not read, when a query comes
    index/bm25.json    written last: digests and lengths of those files, and the fingerprint of the texts

The same texts give the same bytes under the same version of the library.
"""

import logging
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from influence.artifacts.digest import FORMAT_VERSION, seal, sha256, unseal, verify
from influence.artifacts.partial import SUFFIX, disk_errors, sync_folder, write_whole
from influence.baselines import bm25
from influence.baselines.bm25 import BM25
from influence.errors import DigestMismatch, FingerprintMismatch, StoreError
from influence.store.manifest import Manifest, fingerprint_of
from influence.store.reader import Store

log = logging.getLogger(__name__)

FILES, RECORD = "bm25", "bm25.json"
POSTING_BYTES = 8
"""Of a distinct word of a text on the disk: its score and the text's number."""
MAKING_BYTES = 50
"""What making the index holds for each of them, measured over 50,000 texts of 100 words."""


class LexicalRecord(BaseModel):
    """What `index/bm25.json` holds.

    Attributes:
        format_version: Of the store.
        fingerprint: Of the texts and of BM25's settings.
        rows: Texts in the index.
        digests: Hex SHA-256 by file name.
        sizes: Bytes by file name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    fingerprint: str
    rows: int
    digests: dict[str, str]
    sizes: dict[str, int]


def lexical_stands(folder: Path, manifest: Manifest) -> bool:
    """Whether a run's index is in the folder of its indexes; a damaged record counts as none, with a log line."""
    if not (folder / RECORD).exists():
        return False
    try:
        record = _read(folder / RECORD)
    except StoreError as error:
        log.warning("The index is built again: %s", error)
        return False
    found = {path.name: path.stat().st_size for path in (folder / FILES).glob("*")}
    return record.fingerprint == _fingerprint(manifest) and found == record.sizes


def build_lexical(run_dir: Path, folder: Path, manifest: Manifest) -> None:
    """Make the index from a run's stored texts and save it in a folder, replacing the one that stands there.

    Raises:
        DataError: No text has a word.
        StoreError: It can't be written. Incomplete: the disk is full.
    """
    partial = folder / (FILES + SUFFIX)
    log.info("Indexing the words of %d rows.", manifest.rows)
    prepared = bm25.fit(Store(run_dir).texts())
    with disk_errors(folder.parent, "BM25's index", 0):
        folder.mkdir(exist_ok=True)
        try:
            # What a killed build left; the run is locked.
            shutil.rmtree(partial, ignore_errors=True)
            prepared.save(partial)
            for path in partial.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            # Files that are replaced must not be vouched for by the old record.
            (folder / RECORD).unlink(missing_ok=True)
            shutil.rmtree(folder / FILES, ignore_errors=True)
            partial.rename(folder / FILES)
            sync_folder(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    paths = sorted((folder / FILES).iterdir())
    record = LexicalRecord(
        fingerprint=_fingerprint(manifest),
        rows=manifest.rows,
        digests={path.name: sha256(path) for path in paths},
        sizes={path.name: path.stat().st_size for path in paths},
    )
    write_whole(folder / RECORD, seal(record.model_dump(mode="json")))


def load_lexical(folder: Path, manifest: Manifest) -> BM25:
    """Open a run's index from the folder of its indexes.

    Raises:
        FingerprintMismatch: It was made from other texts.
        DigestMismatch: A file of it is missing or damaged.
        StoreError: There is no record, or it can't be used.
    """
    path = folder / RECORD
    record = _read(path)
    if record.fingerprint != _fingerprint(manifest):
        raise FingerprintMismatch(
            f"{path} is of fingerprint {record.fingerprint}, these texts are of {_fingerprint(manifest)}: "
            f"{_remedy(path)}"
        )
    for name, digest in record.digests.items():
        verify(folder / FILES / name, digest, record.sizes[name], _remedy(path))
    return bm25.load(folder / FILES)


def _fingerprint(manifest: Manifest) -> str:
    return fingerprint_of({"rows": manifest.rows_fingerprint, "stop_words": bm25.STOP_WORDS, **bm25.SETTINGS})


def _read(path: Path) -> LexicalRecord:
    try:
        return LexicalRecord.model_validate(unseal(path, _remedy(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise DigestMismatch(f"{path} can't be used: {where}: {first['msg']}. {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    return f"Delete {path} and run the same build again: the index is made anew from the stored texts."
