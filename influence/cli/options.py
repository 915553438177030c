"""The options that several verbs share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from influence.errors import QueryError

ConfigOption: TypeAlias = Annotated[Path, typer.Option("--config", "-c", help="The run file (YAML); see configs/.")]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, for example data.max_tokens=256. Repeatable."),
]
# Text: a `Path` would turn s3://bucket into s3:/bucket.
RunArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory: a local path, or s3://bucket/folder.")
]

TrustOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-run",
        help="Trust a run that you did not build: allow its configuration to run code of its model, download from a "
        "hub, and use its cluster.",
    ),
]
WhereOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        help="Only rows that meet a condition, for example \"source = 'x' and tokens > 50\": SQL over row, id, "
        "source, uri, label, "
        "tokens, loss, norm, text.",
    ),
]

RawCsvOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--raw-csv",
        help="In CSV, write texts unchanged, without the apostrophe before formulas that a spreadsheet could run.",
    ),
]


def check_raw_csv(raw_csv: bool, form: str) -> None:
    """Refuse `--raw-csv` for another form than CSV.

    Raises:
        QueryError: The form isn't csv.
    """
    if raw_csv and form != "csv":
        raise QueryError(f"--raw-csv applies to CSV, and the format is {form}: remove it, or add --format csv.")


class Form(StrEnum):
    """What a verb that reports prints: a table for people (also into a pipe), or JSON."""

    table = "table"
    json = "json"


FormOption: TypeAlias = Annotated[Form, typer.Option("--format", help="Output format, also into a pipe.")]

RawOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Use prompts and completions as bare texts. Without it, in a run of chats, they are turns of a user and "
        "the assistant.",
    ),
]
"""Whether prompts and completions go past the chat template."""
