"""`influence build`: build a run, or resume it."""

from shlex import quote
from typing import Annotated

import typer

from influence.cli.cluster import ClusterOption, WorkersOption, cluster_settings
from influence.cli.options import ConfigOption, SetOption
from influence.cli.streams import tell, told


def build(
    config: ConfigOption,
    out: Annotated[
        str,
        typer.Option(
            metavar="RUN", help="The run directory, or s3://bucket/folder. A directory with this run is resumed."
        ),
    ],
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    changes: SetOption = None,
) -> None:
    """Capture the gradients of every row and build curvature and index. Run the same command again to resume."""
    overrides = [*(changes or []), *cluster_settings(cluster, workers)]
    from influence.api import build as build_run
    from influence.artifacts.place import run_path
    from influence.engine.progress import ProgressBar

    place = run_path(out)
    with ProgressBar(told()) as progress:
        run = build_run(config, place, overrides=overrides, progress=progress)
    of = f" of {run.store.dims:,} columns" if run.store.dims else ""
    tell(f"{place} is complete: {run.rows:,} rows{of}, {run.recipe.summary}.", "green")
    classifies = run.config.model.kind == "sequence_classification"
    asked = '--text "…" --label …' if classifies else '--prompt "…" --completion "…"'
    tell(f"Query it: influence query {quote(str(place))} {asked}")
