"""`influence score`: score every row for every query, or each row for itself, into a Parquet file."""

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
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="The file (.parquet). Partial results are in a folder beside it until it is complete."
        ),
    ],
    queries: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="JSON Lines, one query per line; - reads standard input.")
    ] = None,
    itself: Annotated[
        bool, typer.Option("--self", help="Score each row for itself (self-influence) instead of queries.")
    ] = False,
    keep: Annotated[
        Kept | None,
        typer.Option(
            help="all: every score, one line per row (default). top: the best rows of each query. rows: each "
            "row's mean, sum, "
            "min, max and share of positive scores over all queries."
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", min=1, help=f"With --keep top: number of rows on each side. Default: {USUAL_K}.")
    ] = None,
    raw: RawOption = False,
    where: WhereOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    trust: TrustOption = False,
) -> None:
    """Score every stored row, in memory that does not depend on their number. Run the same command again to resume."""
    if (queries is None) != itself:
        raise QueryError(
            "Both --queries and --self are given: keep one."
            if itself
            else "Nothing to score for: give --queries FILE, or --self for each row's influence on itself."
        )
    if itself and keep is not None:
        raise QueryError(f"--keep {keep} applies to queries, and --self has one score per row: remove it.")
    if k is not None and keep is not Kept.top:
        raise QueryError(f"-k {k} applies to --keep top: add that, or remove -k.")
    overrides = cluster_settings(cluster, workers)
    import influence.api
    from influence.engine.progress import ProgressBar

    with influence.api.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
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
