"""`influence export`: write the training data without flagged rows, or undo that."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.cli.options import Form, FormOption, TrustOption, WhereOption
from influence.cli.streams import put_text, show, tell, told
from influence.errors import QueryError

if TYPE_CHECKING:
    from rich.table import Table

    from influence.export.clean import Exported


def export(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The cleaned file, in the data's format. A folder if the data are several files or a saved data set.",
        ),
    ],
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run directory: a local path, or s3://bucket/folder.")
    ] = None,
    drop: Annotated[
        list[Path] | None,
        typer.Option(
            "--drop",
            metavar="FILE",
            help="A table of `influence issues`: drop the rows whose action is drop. Repeatable.",
        ),
    ] = None,
    drop_issues: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Drop the rows that these checks flagged, whatever their action. `none`: drop nothing.",
        ),
    ] = None,
    where: WhereOption = None,
    relabel: Annotated[bool, typer.Option("--relabel", help="Replace labels by the suggested labels.")] = False,
    undo: Annotated[
        Path | None,
        typer.Option(metavar="CLEANED", help="Restore the original of this export to --out."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    form: FormOption = Form.table,
    trust: TrustOption = False,
) -> None:
    """Write the training data without flagged rows. All other rows keep their bytes; --undo restores the original.

    What was done to which row, and why, is in OUT.decisions.parquet beside it. With --where only rows that meet the
    condition are dropped or relabelled. The input is only read.
    """
    if undo is not None:
        if run or drop or drop_issues or where or relabel:
            raise QueryError(f"--undo {undo} needs --out and no other option: the decisions file has the rest.")
        _undo(undo, out, overwrite, form)
        return
    if run is None or not drop:
        what = "the run" if run is None else "a table of issues (--drop FILE): only rows that a table flags are dropped"
        raise QueryError(f"Name {what}: influence export RUN --drop issues.parquet --out clean.jsonl.")
    import influence.api
    from influence.engine.progress import ProgressBar

    with influence.api.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
        done = opened.export(
            out, drop, drop_issues=drop_issues, where=where, relabel=relabel, overwrite=overwrite, progress=bar
        )
    if form is Form.json:
        put_text((json.dumps(_as_dict(done), ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    else:
        show(_table(done))
    tell(f"{done.kept:,} of {done.rows:,} rows: {done.out}. Decisions on the other rows: {done.decisions}")
    if not done.dropped and not done.relabelled:
        met = "that meets --where" if where else "of the run"
        tell(f"warning: nothing was changed: the tables flag no row {met} for these options.", "yellow")
    if done.unexamined:
        tell(f"The last {done.unexamined:,} rows are beyond the run's data.limit: they were not examined and are kept.")


def _undo(cleaned: Path, out: Path, overwrite: bool, form: Form) -> None:
    from influence.engine.progress import ProgressBar
    from influence.export.undo import undo_export

    with ProgressBar(told()) as bar:
        about = undo_export(cleaned, out, overwrite=overwrite, progress=bar)
    same = "the original values of every row" if about.of_columns else f"the original bytes, {about.data}"
    rows = sum(file.rows for file in about.files)
    if form is Form.json:
        found = {"rows": rows, "run": about.run, "data": about.data, "out": str(out)}
        put_text((json.dumps(found, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    tell(f"{rows:,} rows, {same}: {out}")


def _as_dict(done: "Exported") -> dict[str, object]:
    counts = {"rows": done.rows, "kept": done.kept, "dropped": done.dropped, "relabelled": done.relabelled}
    return {**counts, "unexamined": done.unexamined, "out": str(done.out), "decisions": str(done.decisions)}


def _table(done: "Exported") -> "Table":
    """Return how many rows stayed, went and got another label, and which checks flagged them."""
    from influence.cli.streams import plain
    from influence.cli.tables import grid

    table = grid("result", "flagged by", "rows")
    table.add_row("kept", "", f"{done.kept - sum(done.relabelled.values()):,}")
    for action, counts in (("dropped", done.dropped), ("kept, relabelled", done.relabelled)):
        for reason, count in sorted(counts.items(), key=lambda held: -held[1]):
            table.add_row(action, plain(reason), f"{count:,}")
    return table
