"""Data sets that `datasets` saved, or loaded from the hub, without the rows that go: a saved folder again.

`load_from_disk` reads it, with the same columns, features (names of classes among them), format and split, in as many
Arrow files as before. Of a dictionary of splits only the run's is written, as a data set of its own. Its fingerprint is
another, since `datasets` looks by it for results in its cache.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from influence.artifacts.partial import PartialFile
from influence.data.arrow_sets import INFO, STATE, ArrowSet
from influence.data.cache import no_progress_bars
from influence.data.identity import digest_of
from influence.engine.progress import Progress
from influence.export.clean_columns import (
    BATCH,
    Gathered,
    Labels,
    Originals,
    Values,
    clean_batch,
    portions,
    restored_batches,
)
from influence.export.decisions import About, CleanedFile, DecisionWriter
from influence.export.verdicts import Verdicts

HELD = 1000
"""Rows of a batch as it is written, as many as `datasets` writes."""
BESIDE = (INFO, STATE)
"""Files of a saved data set that hold no rows."""


def clean_saved(
    loaded: ArrowSet, label: str | None, verdicts: Verdicts, out: Path, decisions: DecisionWriter, stage: Progress
) -> tuple[tuple[CleanedFile, ...], dict[str, str]]:
    """Write a data set without the rows that go, and with the labels that change.

    Args:
        loaded: The data set.
        label: The column of labels; None where there is none.
        verdicts: What happens to which rows.
        out: The folder to be written.
        decisions: Takes down what is done.
        stage: Hears of every file.

    Returns:
        The files, and what stands in those beside them, as it was before.

    Raises:
        DataError: A label that should change can't be the new one.
    """
    told = _told(loaded, out)
    dataset = loaded.dataset.with_format(None)
    assert dataset._indices is None, "what was saved or loaded as a whole is read in the order of its files"
    labels = Labels.of(dataset.data.schema, label)
    count, found = files_of(loaded), []
    data = digest_of(loaded)
    for number in range(count):
        first, values = verdicts.passed, Values()
        name = f"data-{number:05d}-of-{count:05d}.arrow"
        with _Written(out / name, dataset.data.schema) as written:
            for batch in _batches(dataset.shard(count, number, contiguous=True).data.to_reader()):
                values.add(batch)
                written.add(clean_batch(batch, number, labels, verdicts, decisions, loaded.place))
        found.append(CleanedFile(name, verdicts.passed - first, data, written.digest, values.digest))
        stage.finished()
    names = [file.name for file in found]
    told = {INFO: told[INFO], STATE: _state(told[STATE], names)}
    new = sha256("".join(file.cleaned for file in found).encode()).hexdigest()[:16]
    _write_told(out, {**told, STATE: _state(told[STATE], names, new)})
    return tuple(found), told


def restore_saved(cleaned: Path, originals: Originals, about: About, out: Path, stage: Progress) -> list[str]:
    """Write a data set with every row and label that it had, as a saved folder.

    Returns:
        The digests of its files' values.
    """
    out.mkdir(parents=True, exist_ok=True)
    found, first = [], 0
    for file in about.files:
        values = Values()
        with (
            pa.memory_map(str(cleaned / file.name)) as source,
            pa.ipc.open_stream(source) as read,
            _Written(out / file.name, read.schema) as written,
        ):
            for batch in restored_batches(_batches(read), originals, first, file.rows):
                values.add(batch)
                written.add(batch)
        found.append(values.digest)
        first += file.rows
        stage.finished()
    _write_told(out, about.beside)
    return found


def files_of(loaded: ArrowSet) -> int:
    """Return in how many files a data set is written: as many as it is in, and none without a row."""
    return max(1, min(len(loaded.files), len(loaded.dataset)))


def _told(loaded: ArrowSet, out: Path) -> dict[str, str]:
    """Make the folder, and return what `datasets` writes, or wrote, beside the rows of a data set.

    That is its features and whatever else is known of it; and its state: its format, its split and its fingerprint.
    """
    if loaded.folder is not None:
        out.mkdir(parents=True, exist_ok=True)
        return {name: (loaded.files[0].parent / name).read_text(encoding="utf-8") for name in BESIDE}
    # What was loaded from the hub was never saved: it is now, without its rows.
    with no_progress_bars():
        loaded.dataset.select(range(0)).save_to_disk(str(out))
    told = {name: (out / name).read_text(encoding="utf-8") for name in BESIDE}
    for path in out.iterdir():
        path.unlink()
    return {**told, STATE: _state(told[STATE], [], loaded.dataset._fingerprint)}


def _state(told: str, names: list[str], fingerprint: str | None = None) -> str:
    """Return a state with other files, and another fingerprint."""
    state = {**json.loads(told), "_data_files": [{"filename": name} for name in names]}
    if fingerprint is not None:
        state["_fingerprint"] = fingerprint
    return json.dumps(state, indent=2, sort_keys=True)


def _write_told(out: Path, told: dict[str, str]) -> None:
    for name, content in told.items():
        file = PartialFile(out / name)
        try:
            file.write(content.encode())
            file.finish()
            file.publish()
        finally:
            file.discard()


def _batches(read: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    for batch in read:
        yield from portions(batch, BATCH)


class _Written:
    """An Arrow file as `datasets` writes them: a stream of batches, here of HELD rows or BATCH_BYTES, or a little more.

    Attributes:
        digest: SHA-256 of its bytes, once it stands.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.digest = ""
        self._file = PartialFile(path)
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._rows = Gathered(self._writer.write_table, schema, HELD)
        self.add = self._rows.add

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._rows.write()
                self._writer.close()
                self._file.finish()
                self._file.publish()
                self.digest = self._file.digest
        finally:
            self._file.discard()


__all__ = ["clean_saved", "files_of", "restore_saved"]
