"""`influence select`: the rows to train on for a target, into a JSON Lines file (LESS)."""

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
        str, typer.Option("--target", metavar="FILE", help="Examples the model should get good at; no test set.")
    ],
    top: Annotated[str, typer.Option("--top", metavar="SHARE|ROWS", help="How many rows: 5% of all, or 500.")],
    out: Annotated[Path, typer.Option("--out", help="The chosen rows, ….jsonl. Until it stands, its parts beside it.")],
    per_group_cap: Annotated[
        str | None,
        typer.Option(
            "--per-group-cap", metavar="SHARE|ROWS", help="The most that one group may have of the chosen rows."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="COLUMN", help="What groups rows: source, label, uri, another column.")
    ] = "source",
    sets: Annotated[
        str | None,
        typer.Option(
            "--sets", metavar="COLUMN", help="Part the target by a column of its file; the best set's mean counts."
        ),
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out near-copies of better rows.")] = False,
    words: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Compare with BM25's choice of as many rows.")] = True,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE.svg|.html", help="Draw score against length, too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    form: FormOption = Form.table,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    trust: TrustOption = False,
) -> None:
    """Choose the rows that promote a target most; with several sets in it, the one a row promotes most counts."""
    overrides = cluster_settings(cluster, workers)
    import influence.run
    from influence.engine.progress import ProgressBar
    from influence.groups.figure import check_figure, write_figure
    from influence.select.plot import length_told, selection_plot

    def draw(found: "Selected") -> None:
        if figure is not None:
            notes = [f"Scores in {found.unit}. {found.sign}", f"{length_told(found)} {found.recipe}, run {found.run}."]
            notes += [] if found.caution is None else [found.caution]
            write_figure(selection_plot(found), figure, notes, overwrite=overwrite, beside=out)

    check_figure(figure, overwrite=overwrite, beside=out)
    with influence.run.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
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
