"""Which data set a run was built from, and whether what stands there now is still that one.

Whoever reads the rows of a run again (exact scores, factors, checks, groups, exports) opens them with the run's
identity: `influence.data.dataset.open_rows(settings, identity)`. Row numbers of a changed file mean other rows.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from influence.artifacts.checksum import cached_sha256
from influence.data.arrow_sets import ArrowSet
from influence.errors import DataError

REMEDY = (
    "Row numbers may mean other rows now. Put back the data as they were, or build another run of the new ones. "
    "A query without exact scores (--no-exact) reads no row."
)


class DataIdentity(BaseModel):
    """The data set of a run.

    Attributes:
        digest: As `Rows.digest` gave it when the run was built.
        rows: How many rows it has.
        run: The run's path, for messages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    rows: int
    run: str

    @classmethod
    def of(cls, parts: Mapping[str, Any], rows: int, run: Path) -> Self:
        """Return the identity that a run's manifest records, in the parts of its fingerprint and its rows."""
        return cls(digest=str(parts["data"]), rows=rows, run=str(run))

    def check_digest(self, place: str, digest: str, *earlier: str) -> None:
        """Hold the digest of a data set to the recorded one.

        Args:
            place: The data set.
            digest: Its digest.
            earlier: What earlier releases took for the digest of such a data set.

        Raises:
            DataError: It is another.
        """
        if self.digest not in (digest, *earlier):
            raise DataError(
                f"{place} has changed since {self.run} was built from it: its digest is {digest}, the run expects "
                f"{self.digest} over {self.rows:,} rows. {REMEDY}"
            )

    def check_set(self, loaded: ArrowSet) -> None:
        """Hold a saved or hub data set to the recorded one; raises as `check_digest`."""
        # Runs of a hub data set once recorded its fingerprint alone.
        earlier = (loaded.dataset._fingerprint,) if loaded.folder is None else ()
        self.check_digest(loaded.place, digest_of(loaded), *earlier)

    def check_rows(self, place: str, count: int) -> None:
        """Hold the number of rows that were read to the recorded one.

        Raises:
            DataError: It is another, though the digest is the same: the data are read in another way.
        """
        if count != self.rows:
            raise DataError(
                f"{place} gives {count:,} rows, and {self.run} was built from {self.rows:,} of the same bytes: this "
                "release or its settings read them in another way. Build another run."
            )


def digest_of(loaded: ArrowSet) -> str:
    """Return the digest of a saved data set's files as they are now; of the hub, with its fingerprint before it.

    The fingerprint of a hub data set names what was asked for; the files in the cache may have changed since.
    """
    files = [str(file) for file in loaded.files]
    if loaded.folder is not None:
        return digest_files(files)
    return "+".join([loaded.dataset._fingerprint, *([digest_files(files)] if files else [])])


def digest_files(files: Sequence[str]) -> str:
    """Return the digest of a data set of these files."""
    return joined_digest([cached_sha256(Path(file)) for file in files])


def joined_digest(digests: Sequence[str]) -> str:
    """Return the digest of a data set from the SHA-256 of each of its files: of one file its own."""
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


__all__ = ["DataIdentity", "digest_files", "digest_of", "joined_digest"]
