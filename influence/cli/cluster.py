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
        help="Where workers run: processes of this machine (cuda: one per GPU), jobs of a batch queue, or a Dask "
        "scheduler.",
    ),
]
WorkersOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Number of worker processes to start. 0: compute in this process."),
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
                f"--workers {workers} starts worker processes, but {cluster} has its own workers: remove one "
                "of the two options."
            )
        settings = ["cluster.kind=address", f"cluster.address={cluster}"]
    return settings if workers is None else [*settings, "cluster.adapt=null", f"cluster.workers={workers}"]
