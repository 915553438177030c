"""The options that several verbs share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ConfigOption: TypeAlias = Annotated[Path, typer.Option("--config", "-c", help="The run file (YAML); see configs/.")]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in data.max_tokens=256. Repeatable."),
]
RunArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


class Form(StrEnum):
    """What a verb that reports prints: a table for people (also into a pipe), or JSON."""

    table = "table"
    json = "json"


FormOption: TypeAlias = Annotated[
    Form, typer.Option("--format", help="A table, also into a pipe, unless json is asked.")
]
