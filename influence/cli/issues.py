"""`influence issues`: check every row and write a table of the faults found."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.cli.cluster import ClusterOption, WorkersOption, cluster_settings
from influence.cli.options import Form, FormOption, RunArgument, TrustOption
from influence.cli.streams import put_text, show, tell, told

if TYPE_CHECKING:
    from influence.issues.issues import Examined


def issues(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="The table (.parquet). Partial results are in a folder beside it until it is complete."
        ),
    ],
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="Examples that the model should get right, in the format of the training data.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE",
            help="An unwanted output: a completion, a classifier's label, or a file in the format of --eval.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="With --target TEXT: the prompt, or the classifier's text.")
    ] = None,
    checks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Only these checks. Default: all that apply. `all,A` adds a check that is off by default.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="CHECK.KEY=VALUE", help="Change a check's setting or threshold. Repeatable."),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz", help="Also write every row's nearest rows, in the format of cleanlab's Datalab."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    form: FormOption = Form.table,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    trust: TrustOption = False,
) -> None:
    """Find rows that are mislabelled, harmful, poisoned, duplicated, leaked, in conflict, out of place or empty."""
    overrides = cluster_settings(cluster, workers)
    import influence.api
    from influence.engine.progress import ProgressBar
    from influence.issues.checks.registry import names_in, parse_settings
    from influence.issues.issues import examine
    from influence.query.evaluation import read_evaluation
    from influence.select.target import read_target

    with influence.api.open(run, trust=trust) as opened, ProgressBar(told()) as bar:
        found = examine(
            opened.run_dir,
            out,
            parse_settings(settings or ()),
            checks=names_in(checks),
            evaluation=None if evaluation is None else read_evaluation(opened.run_dir, evaluation),
            target=read_target(opened.run_dir, target, prompt),
            graph=graph,
            overwrite=overwrite,
            overrides=overrides,
            progress=bar,
        )
    if form is Form.json:
        put_text((json.dumps(_as_dict(found), ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    else:
        from influence.cli.diagnosis_tables import issues_tables

        show(*issues_tables(found))
    tell(f"One line for each of {found.rows:,} rows: {found.out}")
    if graph is not None:
        tell(f"{found.neighbours} As a CSR matrix of distances: {graph}")


def _as_dict(found: "Examined") -> dict[str, object]:
    return {
        "rows": found.rows,
        "out": str(found.out),
        "neighbours": found.neighbours,
        "issues": [
            {
                "issue": finding.issue,
                "flagged": len(finding.cases),
                "worst": found.worst[finding.issue],
                "meaning": finding.meaning,
                "rule": finding.rule,
            }
            for finding in found.findings
        ],
        "skipped": found.skipped,
    }
