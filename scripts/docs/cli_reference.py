"""The command line reference, written from the options that the verbs declare."""

from collections.abc import Iterator
from typing import Any

import typer

from influence.cli.commands import app

INTRODUCTION = """# Command line

This page is generated from the command line itself; `influence VERB --help` prints the same texts.

Data goes to standard output; logs and progress go to standard error. Exit codes: 0 done, 2 usage or bad input, 3 a gate
failed, 4 incomplete (run the same command again to resume).
"""


def reference() -> str:
    """Return the reference as Markdown, with a section for each verb."""
    command: Any = typer.main.get_command(app)
    return "\n".join([INTRODUCTION, *_sections(command, command.make_context("influence", [], **_QUIET))])


_QUIET: dict[str, Any] = {"resilient_parsing": True}


def _sections(command: Any, context: Any) -> Iterator[str]:
    if context.parent is not None:
        yield f"## {context.command_path}\n\n{' '.join(command.help.split())}\n"
        records = [one.get_help_record(context) for one in command.get_params(context) if one.name != "help"]
        yield "| Argument or option | Meaning |\n|---|---|"
        yield from (f"| `{names}` | {_cell(meaning)} |" for names, meaning in filter(None, records))
        yield ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from _sections(inner, inner.make_context(name, [], context, **_QUIET))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
