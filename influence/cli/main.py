"""`influence`: dispatch to the verbs, nothing else. No verb's imports are paid before it is called."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from influence.cli import (
    build,
    compare,
    demo,
    dirty,
    doctor,
    export,
    groups,
    issues,
    plan,
    query,
    score,
    select,
    status,
)
from influence.cli.ending import ended

app = typer.Typer(
    name="influence",
    help="Which training examples made the model say this?",
    epilog="Exit codes: 0 done, 2 usage or bad input, 3 a gate failed, 4 incomplete (the same command goes on).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stories = typer.Typer()
stories.callback(invoke_without_command=True)(ended(demo.demo))
for verb in (dirty.dirty, dirty.classifier):
    stories.command()(ended(verb))
app.add_typer(stories, name="demo")
for verb in (
    doctor.doctor,
    plan.plan,
    build.build,
    status.status,
    query.query,
    score.score,
    issues.issues,
    export.export,
    groups.groups,
    select.select,
    compare.compare,
):
    app.command()(ended(verb))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"influence {version('influence')}")
        raise typer.Exit


@app.callback()
def _influence(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and end the process with its exit code.

    Args:
        argv: The arguments; the process's own if None.

    Raises:
        SystemExit: Always; see `influence.cli.ending` for the codes.
    """
    app(args=argv, prog_name="influence")


if __name__ == "__main__":
    main()
