"""`influence doctor`: check that capture works in this environment, on this model and these rows."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.artifacts.place import is_remote
from influence.cli.options import Form, FormOption, SetOption, TrustOption
from influence.cli.streams import put_text, show, told
from influence.errors import ConfigError, GateFailed

if TYPE_CHECKING:
    from influence.doctor import Check


def doctor(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run directory, to check a finished run.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A run file, to check before a build.")] = None,
    row: Annotated[int | None, typer.Option(min=0, help="Show this row (counted from 0) as the model sees it.")] = None,
    changes: SetOption = None,
    form: FormOption = Form.table,
    trust: TrustOption = False,
) -> None:
    """Check environment, model and ten rows; print each measurement and its limit, and a row with its scored tokens."""
    if (run is None) == (config is None):
        both = "Neither a run nor a run file is" if run is None else "Both a run and a run file are"
        raise ConfigError(f"{both} given: influence doctor RUN, or influence doctor -c run.yaml.")
    from influence.artifacts.place import absolute, run_path
    from influence.config import load_config
    from influence.doctor import examine, examine_run

    place = None if run is None else absolute(run_path(run))
    found = (
        examine(load_config(config or "", changes or []), _disk(None), row)
        if place is None
        else examine_run(place, _disk(place), changes or [], row=row, trust=trust)
    )
    checks: list[Check] = []
    try:
        with told().status("Checking …") as status:
            for check in found:
                checks.append(check)
                status.update(f"Checking … {check.name} done")
    finally:
        _print(checks, form)
    failed = [check.name for check in checks if check.verdict == "fail"]
    if failed:
        raise GateFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")


def _disk(run: Path | None) -> Path | None:
    """Return a folder on the disk that the run stands on, or is to stand on; None where it stands in a bucket."""
    if run is None:
        return Path()
    return None if is_remote(run) else run


def _print(checks: "list[Check]", form: Form) -> None:
    if form is Form.json:
        put_text(
            json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=2).encode() + b"\n", escapes=True
        )
        return
    from influence.cli.tables import checks_table, shown_rows

    show(checks_table(checks), *shown_rows(checks))
