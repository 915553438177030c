"""`influence select`: select rows to train on for a target (LESS), into a JSON Lines file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.cli.cluster import ClusterOption, WorkersOption, cluster_settings
from influence.cli.options import Form, FormOption, RunArgument, TrustOption
from influence.cli.streams import put_text, show, tell, told

if TYPE_CHECKING:
    from influence.select.less import Selected


def select(
    run: RunArgument,
    target: Annotated[
        str, typer.Option("--target", metavar="FILE", help="Examples of the target task. Do not use a test set.")
    ],
    top: Annotated[
        str, typer.Option("--top", metavar="SHARE|ROWS", help="How many rows: a share (5%) or a number (500).")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="The selected rows (.jsonl). Partial results are in a folder beside it until it is complete."
        ),
    ],
    per_group_cap: Annotated[
        str | None,
        typer.Option(
            "--per-group-cap", metavar="SHARE|ROWS", help="Largest share or number of selected rows from one group."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="COLUMN", help="Column that groups rows: source, label, uri, or another.")
    ] = "source",
    sets: Annotated[
        str | None,
        typer.Option(
            "--sets",
            metavar="COLUMN",
            help="Column of the target's file that divides it into sets. The mean of the best set counts.",
        ),
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Skip near-copies of better rows.")] = False,
    words: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Compare with as many rows selected by BM25.")] = True,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE.svg|.html", help="Also draw score against length (extra: plots)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    form: FormOption = Form.table,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    trust: TrustOption = False,
) -> None:
    """Select the rows that promote a target most. With several sets, the set that a row promotes most counts."""
    overrides = cluster_settings(cluster, workers)
    import influence.api
    from influence.engine.progress import ProgressBar
    from influence.groups.figure import check_figure, write_figure
    from influence.select.plot import correlation, selection_plot

    def draw(found: "Selected") -> None:
        if figure is not None:
            notes = [f"Scores in {found.unit}. {found.sign}", f"{correlation(found)} {found.recipe}, run {found.run}."]
            notes += [] if found.caution is None else [found.caution]
            write_figure(selection_plot(found), figure, notes, overwrite=overwrite, beside=out)

    check_figure(figure, overwrite=overwrite, beside=out)
    with influence.api.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
        found = opened.select(
            target,
            top,
            out,
            per_group_cap=per_group_cap,
            by=by,
            sets=sets,
            dedup=dedup,
            words=words,
            deliver=draw,
            overwrite=overwrite,
            overrides=overrides,
            progress=bar,
        )
    if form is Form.json:
        content = json.dumps(found.to_dict(), ensure_ascii=False) + "\n"
        put_text(content.encode(errors="backslashreplace"), escapes=True)
    else:
        from influence.cli.diagnosis_tables import selection_tables

        show(*selection_tables(found))
    for warning in found.warnings:
        tell(f"warning: {warning}", "yellow")
    tell(f"Wrote {out}: {len(found.chosen):,} of {found.rows:,} rows.", "green")
    if figure is not None:
        tell(f"Wrote {figure}.", "green")
