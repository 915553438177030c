"""The verbs of `influence`, and nothing else. The imports of a verb run only when it is called."""

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
    epilog="Exit codes: 0 done, 2 usage or bad input, 3 a gate failed, 4 incomplete (run the same command again to "
    "resume).",
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
