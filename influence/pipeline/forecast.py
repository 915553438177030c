"""What a build would take, from a look at the data and a short measurement; nothing is written."""

from dataclasses import dataclass
from typing import Any

from influence.config import RunConfig
from influence.data.dataset import open_rows
from influence.pipeline.build import probe_on
from influence.pipeline.cluster import connect, list_workers, resolve_device, worker_count
from influence.pipeline.fingerprint import Probed
from influence.pipeline.plan import Estimate, estimate, held_bytes, rows_per_shard
from influence.pipeline.spec import CaptureSpec
from influence.pipeline.worker import install
from influence.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What a build would take.

    Attributes:
        estimate: Disk and memory.
        probed: What a worker found: dtype, device, layers, speed.
        workers: How many would share the work.
        hours: Of capture, and of fitting factors, on these workers, from a short measurement; start-up and other
            stages come on top.
    """

    estimate: Estimate
    probed: Probed
    workers: int
    hours: float


def plan_run(config: RunConfig) -> Plan:
    """Measure on one worker and reckon the rest.

    Raises:
        InfluenceError: What the build itself would trip over in the settings, the data or the model.
    """
    rows = open_rows(config.data)
    rows.check(config.model.kind)
    with connect(config.cluster, 1) as client:
        install(client, local=config.cluster.kind == "local")
        probed = probe_on(client, CaptureSpec.of(config), timed=True)
        there = len(list_workers(client))
    checkpoints = len(config.recipe.checkpoints)
    per_shard = rows_per_shard(len(rows), held_bytes(config.store, probed.modules, checkpoints), config.store)
    kinds: dict[str, Any] = {"curvature": config.recipe.stored.curvature.kind, "index": config.index.kind}
    kinds |= {"codec": config.store, "recipe": config.recipe, "model_bytes": probed.model_bytes}
    needs = estimate(len(rows), probed.modules, per_shard, **kinds)
    workers = there
    if config.cluster.kind == "local":
        workers = worker_count(config.cluster, resolve_device(config.cluster), needs.shards)
    speed = (probed.tokens_per_second or 0) * workers
    passed = len(rows) * (checkpoints or 1) + _fitted(config.recipe, len(rows))
    hours = passed * probed.tokens_per_row / speed / 3600 if speed else float("inf")
    return Plan(needs, probed, workers, hours)


def _fitted(recipe: Recipe, rows: int) -> int:
    """Return how many rows go through the model to fit Kronecker factors, over both passes."""
    if not recipe.needs_factors:
        return 0
    return min(rows, recipe.factors.rows or rows) * (2 if recipe.corrects_eigenvalues else 1)
