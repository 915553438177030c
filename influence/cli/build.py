"""`influence build`: make a run, or what is missing of it."""

from pathlib import Path
from typing import Annotated

import typer

from influence.cli.options import ConfigOption, SetOption
from influence.cli.streams import tell, told
from influence.errors import ConfigError


def build(
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", help="The run directory. One that holds this run is completed.")],
    cluster: Annotated[
        str | None,
        typer.Option(metavar="local|tcp://HOST:PORT", help="Processes of this machine, or a running Dask scheduler."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Local worker processes.")] = None,
    changes: SetOption = None,
) -> None:
    """Capture the gradients of every row, and build what queries need. Resumes by itself: run it again."""
    overrides = [*(changes or []), *cluster_settings(cluster, workers)]
    from influence.pipeline.progress import ProgressBar
    from influence.run import build as build_run

    with ProgressBar(told()) as progress:
        run = build_run(config, out, overrides=overrides, progress=progress)
    tell(f"{out} is complete: {run.rows:,} rows of {run.store.dims:,} columns, {run.recipe.summary}.", "green")
    classifies = run.config.model.kind == "sequence_classification"
    asked = '--text "…" --label …' if classifies else '--prompt "…" --completion "…"'
    tell(f"Ask it: influence query {out} {asked}")


def cluster_settings(cluster: str | None, workers: int | None) -> list[str]:
    """Return what `--cluster` and `--workers` mean as `key=value` settings.

    Raises:
        ConfigError: Neither `local` nor a scheduler's address, or workers that someone else starts.
    """
    settings = []
    if cluster == "local":
        settings = ["cluster.kind=local", "cluster.address=null"]
    elif cluster is not None:
        if "://" not in cluster:
            raise ConfigError(f"--cluster {cluster!r}: expected local, or a scheduler's address as tcp://host:8786.")
        if workers is not None:
            raise ConfigError(
                f"--workers {workers} starts local processes, but {cluster} brings its own workers: leave one out."
            )
        settings = ["cluster.kind=address", f"cluster.address={cluster}"]
    return settings if workers is None else [*settings, f"cluster.workers={workers}"]
