"""Every error this package raises on purpose, and the exit code the command line gives it.

A message says what was found, where (file, line, row), what was expected and what to do. Exit codes are those of the
command line's contract: 2 usage or bad input, 3 a gate failed, 4 incomplete (the same command resumes).
"""

from collections.abc import Sequence
from typing import ClassVar


class InfluenceError(Exception):
    """The base class of all errors that influence raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(InfluenceError):
    """A run file, an override or an argument that can't be used."""


class DataError(InfluenceError):
    """A data file, a column or a row that can't be read or scored."""


class ModelError(InfluenceError):
    """A model folder, a weight or a layer choice that can't be used."""


class TaskError(InfluenceError):
    """A task that breaks its one duty: a loss for each example, shape [N]."""


class CaptureError(InfluenceError):
    """A gradient that can't be captured: of a layer that can't be split by example, or not finite.

    Attributes:
        positions: Positions of the examples that caused it, if known.
    """

    def __init__(self, message: str, positions: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.positions = tuple(positions)


class ProjectionError(InfluenceError):
    """A projection that doesn't fit its layer, or gives zeros or non-finite values."""


class OptimiserMismatch(InfluenceError):
    """An optimiser's state that can't be read, or isn't that of the model's parameters."""


class CurvatureError(InfluenceError):
    """Curvature that can't be fitted or inverted; the message names the module."""


class RecipeError(InfluenceError):
    """An unknown recipe or part, or parts that can't be combined."""


class StoreError(InfluenceError):
    """Something wrong with the files of a run."""


class DigestMismatch(StoreError):
    """A file's bytes are not those that its commit record promises."""


class FingerprintMismatch(StoreError):
    """A file belongs to another run, projection or model."""


class FormatVersionMismatch(StoreError):
    """A file written by another version of the format."""


class RunLocked(StoreError):
    """Another process is writing into this run directory."""


class QueryError(InfluenceError):
    """A query that can't be answered as asked."""


class ClusterError(InfluenceError):
    """A scheduler that can't be reached, or workers that can't start."""


class MissingExtra(InfluenceError):
    """An optional dependency that isn't installed; the message names the extra."""


class GateFailed(InfluenceError):
    """A check that guards the numbers did not pass."""

    exit_code: ClassVar[int] = 3


class Incomplete(InfluenceError):
    """Work that stopped early and left a state which the same command resumes."""

    exit_code: ClassVar[int] = 4
