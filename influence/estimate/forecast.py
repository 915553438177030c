"""What a build would take, from a look at the data and a short measurement; nothing is written."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from distributed import Client

from index.approximate.fallback import ladder
from index.factory import IndexPlan, plan_factory
from influence.axes import ModuleColumns
from influence.capture.cut import (
    Estimate,
    factor_groups,
    fisher_blocks,
    group_shards,
    most_shards,
    plan_shards,
)
from influence.capture.factor_files import cut_modules, module_widths
from influence.capture.fingerprint import Probed
from influence.capture.probe import probe_by
from influence.capture.spec import CaptureSpec
from influence.cluster import ClusterSettings
from influence.config import RunConfig
from influence.data.dataset import Rows, open_rows
from influence.engine.cluster import connect, list_workers, workers_wanted
from influence.engine.dispatch import Workers
from influence.engine.worker import install
from influence.estimate.index_timing import index_work
from influence.estimate.lexical_forecast import forecast_texts
from influence.estimate.query_cost import QueryCost, query_cost
from influence.estimate.timing import Timing, fisher_seconds, run_timing
from influence.recipes import Recipe
from influence.stages.lexical_stage import check_rows
from influence.stages.requirement import estimate_of
from influence.store.codecs import codec_for
from influence.vectors.ensemble import of_one

WORKER_START = 5.0
"""Seconds from the start of a local worker until it has imported what it needs, and from its last task to its end."""


@dataclass(frozen=True)
class Plan:
    """What a build would take.

    Attributes:
        estimate: Disk and memory.
        probed: What a worker found: dtype, device, layers, speed; of `bm25` words, in the place of tokens.
        workers: How many would share the work; `bm25` takes one.
        start: Seconds until the first worker has the model, and to let the workers go, as measured; of local workers as
            measured in this process, and `WORKER_START`.
        work: Seconds of each stage by one worker: `factors`, `decomposition`, `capture`, `curvature`, `fisher
            decomposition`, and of an approximate index `index training`, `index parts`, `index truth`, `index
            measuring`; of `auto` those of its first step.
        tasks: Into how many tasks each is cut: more workers than that share nothing.
        index: Which index will be built, in words.
        query: What a query takes; None of a run of texts.
        measuring: Seconds that the stages were measured for, loading apart.
    """

    estimate: Estimate
    probed: Probed
    workers: int
    start: float
    work: dict[str, float]
    tasks: dict[str, int]
    index: str = "words in memory-mapped lists"
    query: QueryCost | None = None
    measuring: float = 0.0

    def hours(self, workers: int | None = None) -> float:
        """Return the hours from the command to its end, with so many workers or those planned.

        Tasks of a stage are taken for equal, and a worker for no slower beside others than it was measured.
        """
        count = workers or self.workers
        rounds = {stage: -(-tasks // count) / tasks for stage, tasks in self.tasks.items()}
        return (self.start + sum(seconds * rounds[stage] for stage, seconds in self.work.items())) / 3600

    @property
    def worker_hours(self) -> float:
        """What all workers together are busy for: GPU-hours where each has a GPU."""
        return sum(self.work.values()) / 3600


def plan_run(config: RunConfig) -> Plan:
    """Measure in this process, or on the workers of a cluster that is not local, and reckon the rest.

    Raises:
        InfluenceError: What the build itself would trip over in the settings, the data or the model.
    """
    rows = open_rows(config.data)
    rows.check(config.model.kind)
    if config.recipe.baseline == "bm25":
        return _plan_texts(config, rows)
    began = time.perf_counter()
    cluster = _measuring(config.cluster)
    with connect(cluster, most_shards(len(rows), config.store) if cluster.here else 1) as client:
        install(client, local=cluster.here)
        probed = probe_by(Workers(lambda: nullcontext(client)), CaptureSpec.of(config))
        start, there = time.perf_counter() - began, len(list_workers(client))
        measuring = time.perf_counter()
        timing = _timed(client, config, probed)
        indexing = _indexing(client, config, probed, len(rows))
        closing = time.perf_counter()
        measuring = closing - measuring
    start += time.perf_counter() - closing
    if cluster != config.cluster:
        start += WORKER_START
    needs = estimate_of(config, len(rows), probed.modules, probed.model_bytes)
    found = probed.model_copy(
        update={"tokens_per_row": timing.tokens_per_row, "tokens_per_second": 1 / timing.capture or None}
    )
    work, tasks = _work(config.recipe, probed.modules, len(rows), timing, needs.shards)
    for stage, (seconds, count) in indexing.items():
        work[stage], tasks[stage] = seconds, count
    index = _told(ladder(config.index, len(rows), needs.dims))
    query = query_cost(config, len(rows), probed.modules, probed, timing, start)
    workers = workers_wanted(config.cluster, needs.shards) or there
    return Plan(needs, found, workers, start, work, tasks, index, query, measuring)


def _measuring(cluster: ClusterSettings) -> ClusterSettings:
    """Return the cluster to measure on: for local workers this process, which has all that they would import first."""
    if cluster.kind != "local" or cluster.workers == 0:
        return cluster
    return cluster.model_copy(update={"workers": 0, "adapt": None})


def _timed(client: Client, config: RunConfig, probed: Probed) -> Timing:
    """Time all workers at once; their mean."""
    recipe = config.recipe
    factors = recipe.factors if recipe.needs_factors else None
    spec = CaptureSpec.of(config).resolved(probed.dtype, "cuda" if probed.device == "cuda" else "cpu")
    about = {"corrects": recipe.corrects_eigenvalues, "exact": recipe.decision.kind != "none"}
    timed = partial(run_timing, spec, config.store, factors, **about)
    futures = [
        client.submit(timed, workers=[address], pure=False, allow_other_workers=False)
        for address in list_workers(client)
    ]
    found: list[Timing] = [future.result() for future in futures]
    return Timing(**{name: sum(getattr(each, name) for each in found) / len(found) for name in Timing.model_fields})


def _indexing(client: Client, config: RunConfig, probed: Probed, rows: int) -> dict[str, tuple[float, int]]:
    """Time what an approximate index takes on all workers at once: of each step their mean, and its tasks."""
    plan, recipe = plan_factory(config.index, rows, probed.dims), config.recipe.stored
    blocks = fisher_blocks(probed.modules, recipe.curvature.blocks, len(recipe.checkpoints) or 1)
    codec = codec_for(config.store, probed.modules)
    asked = (plan, rows, codec, recipe, blocks, config.cluster.threads_per_worker)
    if plan.factory is None:
        return {}
    futures = [
        client.submit(index_work, *asked, workers=[address], pure=False, allow_other_workers=False)
        for address in list_workers(client)
    ]
    found = [future.result() for future in futures]
    _, tasks = found[0]
    return {stage: (sum(work[stage] for work, _ in found) / len(found), count) for stage, count in tasks.items()}


def _told(plans: Sequence[IndexPlan]) -> str:
    """Return which index will be built, and what `auto` climbs to where that finds too little."""
    if len(plans) == 1:
        return plans[0].summary
    return f"{plans[0].summary}; if it finds too little: {'; '.join(plan.summary for plan in plans[1:])}"


def _work(
    recipe: Recipe, modules: Sequence[ModuleColumns], rows: int, timing: Timing, shards: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Return each stage's seconds by one worker, and its tasks."""
    work, tasks = {"capture": rows * timing.tokens_per_row * timing.capture}, {"capture": shards}
    if recipe.needs_factors:
        sample, count = min(rows, recipe.factors.rows or rows), len(recipe.checkpoints) or 1
        work["factors"] = count * sample * timing.tokens_per_row * (timing.covariance + timing.eigenvalues)
        # Checkpoints follow one another: at any time workers share the tasks of one.
        tasks["factors"] = factor_groups(sample, of_one(modules, count))
        work["decomposition"] = count * timing.decomposition
        tasks["decomposition"] = len(cut_modules(module_widths(modules, recipe)))
    if recipe.stored.curvature.kind == "fisher":
        blocks = fisher_blocks(modules, recipe.stored.curvature.blocks, len(recipe.checkpoints) or 1)
        work["curvature"], work["fisher decomposition"] = fisher_seconds(blocks, rows)
        tasks["curvature"] = len(group_shards(plan_shards(rows, -(-rows // shards)), blocks))
        tasks["fisher decomposition"] = 1
    return work, tasks


def _plan_texts(config: RunConfig, rows: Rows) -> Plan:
    """Reckon a run of texts, which one process makes without a model; words stand for tokens."""
    check_rows(len(rows))
    found = forecast_texts(config, rows)
    probed = Probed(
        modules=(),
        dims=0,
        dtype="words",
        device="cpu",
        device_name="CPU",
        token_budget=0,
        model_bytes=0,
        tokens_per_row=found.words_per_row,
        tokens_per_second=found.words_per_second,
    )
    work = {"capture": len(rows) * found.words_per_row / found.words_per_second}
    return Plan(found.estimate, probed, 1, 0.0, work, {"capture": 1})
