"""`--cluster` and `--workers`: where a verb computes, as settings of the run file."""

from typing import Annotated, TypeAlias

import typer

from influence.errors import ConfigError

NAMES = ("local", "cuda", "slurm", "pbs", "lsf", "sge")
"""The kinds of cluster that have no address. Named here again, since `--help` pays for no settings model."""
ClusterOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar=f"{'|'.join(NAMES)}|tls://HOST:PORT",
        help="Processes of this machine (cuda: one a GPU), jobs of a batch queue, or a running Dask scheduler.",
    ),
]
WorkersOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--workers", min=0, help="Worker processes to start, here or in the queue's jobs; 0: this process computes."
    ),
]


def cluster_settings(cluster: str | None, workers: int | None) -> list[str]:
    """Return what `--cluster` and `--workers` mean as `key=value` settings.

    Raises:
        ConfigError: Neither a kind of cluster nor a scheduler's address, or workers that someone else starts.
    """
    settings = []
    if cluster in NAMES:
        settings = [f"cluster.kind={cluster}", "cluster.address=null", "cluster.tls=null"]
    elif cluster is not None:
        if "://" not in cluster:
            raise ConfigError(
                f"--cluster {cluster!r}: expected {', '.join(NAMES)}, or a scheduler's address as tls://host:8786."
            )
        if workers is not None:
            raise ConfigError(
                f"--workers {workers} starts worker processes, but {cluster} brings its own: leave one of them out."
            )
        settings = ["cluster.kind=address", f"cluster.address={cluster}"]
    return settings if workers is None else [*settings, "cluster.adapt=null", f"cluster.workers={workers}"]
