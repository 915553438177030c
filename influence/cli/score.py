"""`influence score`: every row, for every query or for itself, into a Parquet file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from influence.cli.cluster import ClusterOption, WorkersOption, cluster_settings
from influence.cli.options import RawOption, RunArgument, TrustOption, WhereOption
from influence.cli.queries import from_file
from influence.cli.streams import tell, told
from influence.errors import QueryError

USUAL_K = 100


class Kept(StrEnum):
    """What is kept of the scores."""

    all = "all"
    top = "top"
    rows = "rows"


def score(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="The file, ….parquet. Until it stands, its parts are beside it.")],
    queries: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="JSON Lines with a query a line, from a file or stdin.")
    ] = None,
    itself: Annotated[bool, typer.Option("--self", help="Score each row for itself instead: self-influence.")] = False,
    keep: Annotated[
        Kept | None,
        typer.Option(
            help="All scores, a line a row (the default); the top rows of each query; or of all rows their mean, sum, "
            "min, max and share of positive scores over the queries."
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help=f"With --keep top: rows on each side, {USUAL_K}.")] = None,
    raw: RawOption = False,
    where: WhereOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    trust: TrustOption = False,
) -> None:
    """Score every stored row. Memory stays the same for any number of rows and queries; run it again to resume."""
    if (queries is None) != itself:
        raise QueryError(
            "Both --queries and --self are given: keep one."
            if itself
            else "Say what is asked: --queries FILE, or --self for each row's influence on itself."
        )
    if itself and keep is not None:
        raise QueryError(f"--keep {keep} is about queries, and --self keeps one score a row: leave it out.")
    if k is not None and keep is not Kept.top:
        raise QueryError(f"-k {k} is about --keep top: add that, or leave -k out.")
    overrides = cluster_settings(cluster, workers)
    import influence.run
    from influence.engine.progress import ProgressBar

    with influence.run.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
        if queries is None:
            done = opened.self_influence_to(out, where=where, overwrite=overwrite, overrides=overrides, progress=bar)
        else:
            done = opened.score_to(
                list(from_file(queries, opened.query_form.asking(raw=raw))),
                out,
                keep=(keep or Kept.all).value,
                k=k or min(USUAL_K, opened.rows),
                where=where,
                overwrite=overwrite,
                overrides=overrides,
                progress=bar,
            )
    whom = f"{done.queries:,} queries" if done.queries else "themselves"
    tell(f"Scores in {done.unit}. {done.sign}", "dim")
    if done.caution is not None:
        tell(done.caution, "yellow")
    tell(f"Wrote {out}: {done.rows:,} rows, scored for {whom}.", "green")
