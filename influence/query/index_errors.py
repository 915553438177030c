"""Errors of the index package, which knows nothing of this one, as ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from index.errors import FaissMissing, GpuMissing, VectorIndexError
from influence.errors import Incomplete, InfluenceError, MissingExtra, StoreError


@contextmanager
def index_errors() -> Iterator[None]:
    """Turn errors of the index package into ours; the messages stay."""
    try:
        yield
    except VectorIndexError as error:
        kind: Callable[[str], InfluenceError] = StoreError
        if isinstance(error, FaissMissing | GpuMissing):
            kind = MissingExtra
        elif error.exit_code == Incomplete.exit_code:
            kind = Incomplete
        raise kind(str(error)) from error
