"""`influence plan`: estimate a build. Starts none and writes nothing."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from influence.cli.cluster import ClusterOption, WorkersOption, cluster_settings
from influence.cli.options import ConfigOption, Form, FormOption, SetOption
from influence.cli.streams import put_text, show, told

if TYPE_CHECKING:
    from influence.estimate.query_cost import QueryCost


def plan(
    config: ConfigOption,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    changes: SetOption = None,
    queries: Annotated[int, typer.Option(min=1, help="Also estimate a call with this number of queries.")] = 100,
    form: FormOption = Form.table,
) -> None:
    """Estimate rows, columns, bytes, memory and hours of a build, and the time of a query, from a short measurement."""
    from influence.api import plan as plan_run
    from influence.cli.tables import plan_tables

    with told().status("Measuring …"):
        found = plan_run(config, overrides=[*(changes or []), *cluster_settings(cluster, workers)])
    # Texts without a model are read by one process.
    most = found.estimate.shards if found.probed.modules else 1
    hours = {count: found.hours(count) for count in worker_counts(found.workers, most)}
    if form is Form.table:
        show(*plan_tables(found, hours, queries))
        return
    document: dict[str, Any] = {
        **asdict(found.estimate),
        "disk": found.estimate.disk,
        **found.probed.model_dump(mode="json", exclude={"modules", "dims", "coverage"}),
        "coverage": found.probed.coverage and found.probed.coverage.to_dict(),
        "modules": [module.name for module in found.probed.modules],
        "workers": found.workers,
        "hours": found.hours(),
        "hours_by_workers": {str(count): value for count, value in hours.items()},
        "worker_hours": found.worker_hours,
        "stages": {stage: {"seconds": seconds, "tasks": found.tasks[stage]} for stage, seconds in found.work.items()},
        "start_seconds": found.start,
        "index": found.index,
        "measuring_seconds": found.measuring,
        "query": found.query and _query(found.query, queries),
    }
    put_text(json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n", escapes=True)


def _query(cost: "QueryCost", queries: int) -> dict[str, Any]:
    """Return what one query and several take, in seconds and bytes."""
    counts = sorted({1, queries})
    taken = {str(count): {"seconds": cost.seconds(count), "memory": cost.memory(count)} for count in counts}
    return {"opening_seconds": cost.opening, "seconds": cost.each, "candidates": cost.candidates, "queries": taken}


def worker_counts(configured: int, shards: int) -> list[int]:
    """Return the numbers of workers to tell hours for: powers of two up to one a shard, and the configured."""
    powers = [2**power for power in range(7) if 2**power <= shards]
    return sorted({*powers, configured})
