"""`influence groups`: the influence of each source, label or other group of rows on each set of queries."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.cli.cluster import ClusterOption, WorkersOption, cluster_settings
from influence.cli.options import RawCsvOption, RunArgument, TrustOption, check_raw_csv
from influence.cli.streams import drawn, put, put_text, show, tell, told
from influence.errors import ConfigError, QueryError

if TYPE_CHECKING:
    from influence.groups.groups import GroupInfluences


class GroupsForm(StrEnum):
    """The forms of the table."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def groups(
    run: RunArgument,
    queries: Annotated[
        str,
        typer.Option(
            "--queries", metavar="FILE", help="Examples whose outputs are measured, in the format of the training data."
        ),
    ],
    by: Annotated[
        str, typer.Option("--by", metavar="COLUMN", help="source, label, uri, or another column of the training data.")
    ] = "source",
    sets: Annotated[
        str | None,
        typer.Option(
            "--sets",
            metavar="COLUMN",
            help="Column of the queries' file that divides them into sets. Default: one set.",
        ),
    ] = None,
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    form: Annotated[
        GroupsForm | None,
        typer.Option("--format", help="Output format. Default: table; with --out, the format of the suffix."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the table to a file. Then an interrupted scan can be resumed.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE.svg|.html", help="Also draw sums and means as bars (extra: plots)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    raw_csv: RawCsvOption = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    trust: TrustOption = False,
) -> None:
    """Print the summed and mean influence of each group of rows on each set of queries, with bootstrap intervals."""
    chosen = _form(form, out)
    check_raw_csv(raw_csv, chosen.value)
    overrides = cluster_settings(cluster, workers)
    import influence.api
    from influence.artifacts.outfile import write_outfile
    from influence.engine.progress import ProgressBar
    from influence.groups.bars import group_bars
    from influence.groups.figure import check_figure, write_figure

    def write(found: "GroupInfluences") -> None:
        if out is not None:
            write_outfile(out, _content(found, chosen, raw_csv), overwrite=overwrite)
        if figure is not None:
            notes = [f"Scores in {found.unit}. {found.sign}", f"{found.intervals} {found.recipe}, run {found.run}."]
            notes += [] if found.caution is None else [found.caution]
            write_figure(group_bars(found), figure, notes, overwrite=overwrite, beside=out)

    check_figure(figure, overwrite=overwrite, beside=out)
    with influence.api.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
        found = opened.groups(
            queries,
            by,
            sets=sets,
            replicates=_even(replicates),
            seed=seed,
            out=out,
            deliver=write,
            overwrite=overwrite,
            overrides=overrides,
            progress=bar,
        )
    if chosen not in (GroupsForm.table, GroupsForm.json):
        tell(f"Scores in {found.unit}. {found.sign} {found.intervals}", "dim")
    if found.caution is not None and (out is not None or chosen not in (GroupsForm.table, GroupsForm.json)):
        tell(found.caution, "yellow")
    if out is None:
        _print(found, chosen, raw_csv)
    for path in (out, figure):
        if path is not None:
            tell(f"Wrote {path}.", "green")


def _even(replicates: int) -> int:
    if not 100 <= replicates <= 20_000 or replicates % 2:
        raise ConfigError(f"--replicates {replicates}: expected an even number from 100 to 20000.")
    return replicates


def _form(form: GroupsForm | None, out: Path | None) -> GroupsForm:
    """Return the form that was asked for, by flag or by the file's suffix."""
    if form is None and out is not None:
        suffix = out.suffix.lower().removeprefix(".")
        if suffix not in {*GroupsForm} - {GroupsForm.table}:
            raise QueryError(f"--out {out}: its suffix names no format. Add --format {'|'.join(GroupsForm)}.")
        form = GroupsForm(suffix)
    form = form or GroupsForm.table
    if form is GroupsForm.parquet and out is None and sys.stdout.isatty():
        raise QueryError(
            "Parquet is binary and standard output is a terminal. Add --out groups.parquet, or redirect it."
        )
    return form


def _content(found: "GroupInfluences", form: GroupsForm, raw_csv: bool) -> bytes:
    """Return the bytes of a file."""
    from influence.cli.diagnosis_tables import groups_tables
    from influence.groups.file import encode

    if form is GroupsForm.table:
        return drawn(*groups_tables(found), plain=True).encode()
    return encode(found, form.value, raw_csv=raw_csv)


def _print(found: "GroupInfluences", form: GroupsForm, raw_csv: bool) -> None:
    from influence.cli.diagnosis_tables import groups_tables
    from influence.groups.file import encode

    if form is GroupsForm.table:
        show(*groups_tables(found))
    elif form is GroupsForm.parquet:
        put(encode(found, form.value))
    else:
        put_text(encode(found, form.value, raw_csv=raw_csv), escapes=form is GroupsForm.json)
