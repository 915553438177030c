"""The path of a run as a field of a settings model; apart, so that the command line starts without pydantic."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from influence.artifacts.place import run_path
from influence.errors import ConfigError, MissingExtra


def _read(value: Any) -> Path:
    try:
        return run_path(value)
    except (ConfigError, MissingExtra) as error:
        raise ValueError(str(error)) from None


RunPath = Annotated[Path, PlainValidator(_read), PlainSerializer(str)]
"""A field of a settings model: the path of a run or of a file in one."""
