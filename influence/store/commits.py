"""What the commit records of a run promise, and whether its files keep it.

A record is read the first time one of its files is wanted, and a file's digest the first time the process touches it.
"""

from pathlib import Path

from influence.artifacts.digest import verify
from influence.errors import StoreError
from influence.store.manifest import Manifest, ShardRange, check_fingerprint
from influence.store.shard import ShardFiles, ShardRecord


class Commits:
    """The commit records of a run's shards."""

    def __init__(self, run_dir: Path, manifest: Manifest) -> None:
        self.run_dir = run_dir
        self.manifest = manifest
        # Digest and size of each file whose record this object has read.
        self._promised: dict[str, tuple[str, int]] = {}

    def check(self, path: Path, span: ShardRange, *, again: bool = False) -> None:
        """Check that a file of a shard is the one that was committed.

        Args:
            path: The file.
            span: Its shard.
            again: Read record and file even if they were read before.

        Raises:
            StoreError: The commit record can't be used, or belongs to another run.
            DigestMismatch: The file isn't the one that was committed.
        """
        if again or path.name not in self._promised:
            record = self.record(span)
            for name, digest in record.digests.items():
                self._promised[name] = (digest, record.sizes[name])
        digest, size = self._promised[path.name]
        verify(path, digest, size, ShardFiles(self.run_dir, span).remedy, again=again)

    def record(self, span: ShardRange) -> ShardRecord:
        """Read the commit record of a shard.

        Raises:
            StoreError: There is none, it can't be used, or it commits other rows, columns or files than planned.
            FingerprintMismatch: It belongs to another run.
        """
        files = ShardFiles(self.run_dir, span)
        record = ShardRecord.load(files)
        check_fingerprint(
            str(files.record),
            record.fingerprint,
            record.fingerprint_parts,
            self.manifest.fingerprint,
            self.manifest.fingerprint_parts,
        )
        actual = (record.start, record.stop, record.dims, set(record.digests), set(record.sizes))
        names = {files.vectors.name, files.metadata.name}
        if actual != (span.start, span.stop, self.manifest.dims, names, names):
            raise StoreError(
                f"{files.record} commits rows {record.start} to {record.stop} of {record.dims} columns in "
                f"{', '.join(sorted(record.digests))}; the manifest expects rows {span.start} to {span.stop} of "
                f"{self.manifest.dims} columns in {', '.join(sorted(names))}. {files.remedy}"
            )
        return record
