"""Every error this package raises on purpose.

A message says what was found, where, what was expected and what to do. `exit_code` is what a command line should end
with: 2 for bad input, 4 for work that the same command finishes.
"""

from typing import ClassVar


class VectorIndexError(Exception):
    """The parent of all of them: vectors, queries or settings that can't be used."""

    exit_code: ClassVar[int] = 2


class FaissMissing(VectorIndexError):
    """The module `faiss` isn't installed, or doesn't load; the message names the extra."""


class GpuMissing(VectorIndexError):
    """A GPU index was asked for, and there is no GPU, or faiss was built without one."""


class IndexCorrupt(VectorIndexError):
    """A file of the index isn't what its record promises: truncated, altered or unreadable."""


class IndexMismatch(VectorIndexError):
    """A whole index, but not this one: other vectors, or another version of the format."""


class IndexNotWritten(VectorIndexError):
    """The index couldn't be written (a full disk, no permission); nothing half-written is left."""

    exit_code: ClassVar[int] = 4
