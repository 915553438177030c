"""`influence status`: progress and properties of a run."""

import json
import sys
import time
from typing import Annotated, Any

import typer

from influence.cli.options import Form, FormOption, RunArgument
from influence.cli.streams import put_text, show, tell, told

INTERVAL = 2.0
"""Seconds between two refreshes of a watched run."""


def status(
    run: RunArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds until the run is complete.")
    ] = False,
    curvature: Annotated[
        bool, typer.Option("--spectra", help="Print each layer's eigenvalues and the share below the damping.")
    ] = False,
    form: FormOption = Form.table,
) -> None:
    """Print the progress and the properties of a run."""
    from influence.stages.status import status as look

    if curvature:
        _spectra(run, form)
        return
    if not watch:
        _print(look(run), form)
        return
    try:
        _watch(run, form)
    except KeyboardInterrupt:
        # Watching leaves nothing undone: Ctrl-C is how it ends.
        told().print()


def _spectra(run: str, form: Form) -> None:
    """Print the spectra of the run's curvatures."""
    from dataclasses import asdict

    from influence.cli.tables import spectra_tables
    from influence.stages.spectra import spectra

    found = spectra(run)
    if form is Form.json:
        document = {name: [asdict(spectrum) for spectrum in each] for name, each in found.items()}
        put_text(json.dumps(document, indent=2).encode() + b"\n", escapes=True)
        return
    show(*spectra_tables(found))


def _watch(run: str, form: Form) -> None:
    """Refresh until the run is complete."""
    from influence.stages.status import status as look

    found = _begun(run)
    if form is Form.table and sys.stdout.isatty():
        _live(run, found)
        return
    _print(found, form, compact=True)
    while not found["complete"]:
        time.sleep(INTERVAL)
        before, found = found, look(run)
        if found != before:
            _print(found, form, compact=True)


def _begun(run: str) -> dict[str, Any]:
    """Read the status of a watched run; wait for a build that has just started."""
    from influence.artifacts.lock import lock_holder
    from influence.artifacts.place import run_path
    from influence.errors import Incomplete
    from influence.stages.status import status as look

    told_why = False
    while True:
        try:
            return look(run)
        except Incomplete as error:
            if lock_holder(run_path(run)) is None:
                raise
            if not told_why:
                tell(f"Waiting: {error}", "dim")
                told_why = True
            time.sleep(INTERVAL)


def _print(found: dict[str, Any], form: Form, *, compact: bool = False) -> None:
    """Print what was found; of a run that is watched a JSON object a line."""
    if form is Form.json:
        put_text(json.dumps(found, ensure_ascii=False, indent=None if compact else 2).encode() + b"\n", escapes=True)
        return
    from influence.cli.tables import status_table

    show(status_table(found))


def _live(run: str, found: dict[str, Any]) -> None:
    """Redraw the table in place."""
    from rich.console import Console
    from rich.live import Live

    from influence.cli.tables import status_table
    from influence.stages.status import status as look

    with Live(status_table(found), console=Console(), auto_refresh=False, redirect_stderr=False) as live:
        while not found["complete"]:
            time.sleep(INTERVAL)
            found = look(run)
            live.update(status_table(found), refresh=True)


__all__ = ["status"]
