"""The manifest: what the rows of a run are, how they are cut into shards, and the fingerprint they all carry.

The fingerprint is a digest of flat parts (model digest, data digest, projection seed, …). The parts are kept beside it,
so that two runs that differ can say in which part, and with which values.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from influence.artifacts.digest import FORMAT_VERSION, seal, unseal
from influence.artifacts.partial import write_whole
from influence.axes import ModuleColumns
from influence.coverage import Coverage
from influence.errors import FingerprintMismatch, StoreError
from influence.store.codec import CodecName, CodecSettings

MANIFEST = "manifest.json"

DAMAGED = (
    "Put it back from a copy of the run. Without one, move it out of the run and run the same build again: that "
    "writes it again and keeps every shard of the same settings, model and data."
)

Part = str | int | float | bool | None
"""One value of a fingerprint."""

log = logging.getLogger(__name__)


class StoreSettings(CodecSettings):
    """How rows are kept: the codec, its rank where it has one, and the cut.

    Attributes:
        rows_per_shard: The most rows of a shard, the last few hold fewer; None makes shards of about 256 MB, between 64
            and 65,536 rows.
    """

    codec: CodecName = "bits"
    rows_per_shard: int | None = Field(default=None, ge=1)


class ShardRange(BaseModel):
    """Rows `start` up to, not including, `stop` of the data set: the work of one task, the content of one shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int

    @model_validator(mode="after")
    def _holds_rows(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"shard {self.shard} spans rows {self.start} to {self.stop}: it must hold at least one")
        return self

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The stem of its files: `shard-00007`."""
        return f"shard-{self.shard:05d}"


class Quarantined(BaseModel):
    """A row that could not be captured: it is stored as zeros, scores 0, and is named wherever the run is spoken of.

    Attributes:
        row: Its number in the data set.
        id: Its id.
        error: What went wrong when it was tried alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: int
    id: str
    error: str


class Manifest(CodecSettings):
    """What every shard of a run has in common, its codec too. Frozen, saved before the first shard.

    It is saved once more where rows were quarantined, and where another recipe over the same rows was built.

    Attributes:
        format_version: The version of the files.
        fingerprint: Digest of `fingerprint_parts`; see `fingerprint_of`.
        fingerprint_parts: Everything that decides the bytes of a row, flat.
        modules: The tracked modules and their columns, covering [0, dims) in order.
        dims: D, the columns of a row; 0 where rows are texts and nothing else, which the baseline `bm25` compares.
        rows: Rows of the data set.
        shards: The plan, in order: it covers [0, rows) without gaps.
        meta: What people want to know but no row depends on: paths, software versions.
        settings: Every setting of the run's configuration that decides an answer, flat; None in a run that was built
            before they were recorded. See `influence.stages.record`.
        quarantined: Rows that could not be captured, ascending.
        coverage: Which share of the trained weights is tracked; None where rows aren't gradients, or nobody looked.
    """

    format_version: int = FORMAT_VERSION
    fingerprint: str
    fingerprint_parts: dict[str, Part]
    modules: tuple[ModuleColumns, ...]
    dims: int = Field(ge=0)
    rows: int = Field(ge=0)
    shards: tuple[ShardRange, ...]
    meta: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Part] | None = None
    quarantined: tuple[Quarantined, ...] = ()
    coverage: Coverage | None = None

    @property
    def reduction(self) -> Literal["sum", "mean"]:
        """How the loss that each row is the gradient of is made of its tokens' losses."""
        return "mean" if self.fingerprint_parts.get("task.reduction") == "mean" else "sum"

    @property
    def rows_fingerprint(self) -> str:
        """The fingerprint of the rows as they stand: the run's, and which rows are missing from it.

        What is made of the stored rows carries it, so that it is made anew once a quarantined row is captured.
        """
        if not self.quarantined:
            return self.fingerprint
        missing = ",".join(str(row.row) for row in self.quarantined)
        return fingerprint_of({"rows": self.fingerprint, "quarantined": missing})

    def quarantine(self, run_dir: Path, rows: Sequence[Quarantined]) -> "Manifest":
        """Return the manifest with these rows quarantined and no others, saved if that changes it."""
        return self._changed(run_dir, quarantined=tuple(sorted(rows, key=lambda row: row.row)))

    def record(self, run_dir: Path, settings: Mapping[str, Part]) -> "Manifest":
        """Return the manifest with these settings, saved if that changes it."""
        return self._changed(run_dir, settings=dict(settings))

    def _changed(self, run_dir: Path, **fields: Any) -> "Manifest":
        changed = self.model_copy(update=fields)
        if changed != self:
            write_whole(run_dir / MANIFEST, seal(changed.model_dump(mode="json")))
        return changed

    @model_validator(mode="after")
    def _covers_rows_and_columns(self) -> Self:
        row = 0
        for number, span in enumerate(self.shards):
            if (span.shard, span.start) != (number, row):
                raise ValueError(
                    f"shard {number} must start at row {row}, found shard {span.shard} starting at row {span.start}"
                )
            row = span.stop
        if row != self.rows:
            raise ValueError(f"the shards end at row {row}, there are {self.rows} rows")
        column = 0
        for module in self.modules:
            if module.start != column:
                raise ValueError(f"module {module.name!r} starts at column {module.start}, expected {column}")
            column = module.stop
        if column != self.dims:
            raise ValueError(f"the modules end at column {column}, a row has {self.dims}")
        return self

    def save(self, run_dir: Path) -> None:
        """Write `manifest.json`, or agree with the one that is there.

        A run that is resumed keeps its first manifest; a `meta` that has changed since, other software, is logged.

        Raises:
            FingerprintMismatch: The directory belongs to another run; the message names the parts that differ.
            StoreError: The manifest there is damaged, or has the same fingerprint and other rows, modules or shards.
            Incomplete: The disk is full.
        """
        path = run_dir / MANIFEST
        if path.exists():
            self._agree(Manifest.load(run_dir), path)
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, seal(self.model_dump(mode="json")))

    @classmethod
    def load(cls, run_dir: Path) -> Self:
        """Read `manifest.json`.

        Raises:
            StoreError: There is none, or it can't be used.
            FormatVersionMismatch: Another version of the format wrote it.
            DigestMismatch: A byte of it changed.
        """
        path = run_dir / MANIFEST
        if _missing(path):
            raise StoreError(
                f"{run_dir} holds no run: there is no {MANIFEST} in it. Build one, or name another directory."
            )
        document = unseal(path, DAMAGED)
        try:
            manifest = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise StoreError(f"{path} can't be used: {where}: {first['msg']}.") from None
        fingerprint = fingerprint_of(manifest.fingerprint_parts)
        if fingerprint != manifest.fingerprint:
            raise StoreError(
                f"{path} names the fingerprint {manifest.fingerprint}, and its parts have {fingerprint}: it was "
                f"written by hand. {DAMAGED}"
            )
        return manifest

    def _agree(self, there: "Manifest", path: Path) -> None:
        check_fingerprint(
            str(path), there.fingerprint, there.fingerprint_parts, self.fingerprint, self.fingerprint_parts
        )
        for field in ("dims", "rows", "codec", "rank", "modules", "shards"):
            if getattr(there, field) != getattr(self, field):
                raise StoreError(
                    f"{path} has the same fingerprint as this run and other {field}. "
                    "Build into another directory, or delete this one."
                )
        changed = sorted(key for key in {*there.meta, *self.meta} if there.meta.get(key) != self.meta.get(key))
        if changed:
            values = "; ".join(f"{key}: {there.meta.get(key)!r}, now {self.meta.get(key)!r}" for key in changed)
            log.warning("%s was written under other circumstances and is kept: %s", path, values)


def _missing(path: Path) -> bool:
    """Whether nothing has this name; what can't be looked at, and what is no file, is for the reader to name."""
    try:
        return not path.exists() and not (isinstance(path, os.PathLike) and os.path.islink(path))
    except OSError:
        return False


def fingerprint_of(parts: Mapping[str, Part]) -> str:
    """Return the fingerprint of a set of parts: 32 hex digits, the same for any order of the keys."""
    canonical = json.dumps(dict(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def check_fingerprint(
    where: str, actual: str, found_parts: Mapping[str, Part], expected: str, expected_parts: Mapping[str, Part]
) -> None:
    """Refuse rows of another run.

    Args:
        where: The file that carries the fingerprint `actual`.
        actual: Its fingerprint.
        found_parts: The parts of that fingerprint.
        expected: This run's fingerprint.
        expected_parts: The parts of this run's fingerprint.

    Raises:
        FingerprintMismatch: They differ; the message names every part that does, with both values.
    """
    if actual == expected:
        return
    differing = [
        f"{part} is {_value(found_parts, part)} there and {_value(expected_parts, part)} in this run"
        for part in sorted({*found_parts, *expected_parts})
        if _value(found_parts, part) != _value(expected_parts, part)
    ]
    reason = "; ".join(differing) or "no part that was recorded differs"
    raise FingerprintMismatch(
        f"{where} has fingerprint {actual}, this run has {expected}: {reason}. Rows of two runs can't be compared: "
        "open the run they belong to, or build into another directory."
    )


def _value(parts: Mapping[str, Part], part: str) -> str:
    return repr(parts[part]) if part in parts else "absent"
