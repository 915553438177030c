"""The options that several verbs share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from influence.errors import QueryError

ConfigOption: TypeAlias = Annotated[Path, typer.Option("--config", "-c", help="The run file (YAML); see configs/.")]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in data.max_tokens=256. Repeatable."),
]
# Text: a `Path` would turn s3://bucket into s3:/bucket.
RunArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory: a local path, or s3://bucket/folder.")
]

TrustOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-run",
        help="Do all that the configuration of a run that you didn't build asks for: run code of its model, fetch from "
        "a hub, use its cluster.",
    ),
]
WhereOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        help="Only rows that meet it, as in \"source = 'x' and tokens > 50\": SQL over row, id, source, uri, label, "
        "tokens, loss, norm, text.",
    ),
]

RawCsvOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--raw-csv", help="In CSV, texts as they are: none with an apostrophe in front that a spreadsheet might run."
    ),
]


def check_raw_csv(raw_csv: bool, form: str) -> None:
    """Refuse `--raw-csv` for another form than CSV.

    Raises:
        QueryError: The form isn't csv.
    """
    if raw_csv and form != "csv":
        raise QueryError(f"--raw-csv is about CSV, and the form is {form}: leave it out, or add --format csv.")


class Form(StrEnum):
    """What a verb that reports prints: a table for people (also into a pipe), or JSON."""

    table = "table"
    json = "json"


FormOption: TypeAlias = Annotated[
    Form, typer.Option("--format", help="A table, also into a pipe, unless json is asked.")
]

RawOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Ask about prompts and completions as they stand. Without it they are turns of a user and the assistant "
        "where the run's rows are chats.",
    ),
]
"""Whether prompts and completions go past the chat template."""
