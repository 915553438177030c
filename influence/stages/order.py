"""The stages of a build, in order: what `build` completes and `status` reads."""

from pathlib import Path

from influence.capture.opening import run_spec
from influence.capture.rows import RowCapture
from influence.config import RunConfig
from influence.data.dataset import Rows
from influence.engine.stage import Stage
from influence.stages.approximate import ApproximateIndex
from influence.stages.factors import KroneckerFactors
from influence.stages.fisher import ProjectedFisherStage
from influence.stages.index import FlatIndex, index_plan
from influence.stages.lexical_stage import LexicalIndex, Texts
from influence.stages.resolved import resolved
from influence.store.manifest import Manifest


def build_stages(config: RunConfig, run_dir: Path, manifest: Manifest) -> list[Stage]:
    """Return the stages that a run consists of; each needs what those before it leave."""
    return [*row_stages(config, run_dir, manifest), *later_stages(config, run_dir, manifest)]


def row_stages(config: RunConfig, run_dir: Path, manifest: Manifest, rows: Rows | None = None) -> list[Stage]:
    """Return the stages up to the rows, which are the last.

    Args:
        config: Of the run.
        run_dir: The run, in reach of every worker.
        manifest: Of the run.
        rows: The data set, where it is open already.
    """
    if config.recipe.baseline == "bm25":
        return [Texts(config, run_dir, manifest, rows)]
    settled = resolved(config, manifest)
    shards = RowCapture(run_spec(settled, run_dir, manifest), run_dir, manifest)
    if not config.recipe.needs_factors:
        return [shards]
    unfitted = run_spec(settled, run_dir, manifest, fitted=False)
    return [KroneckerFactors(unfitted, run_dir, manifest, config.recipe), shards]


def later_stages(config: RunConfig, run_dir: Path, manifest: Manifest) -> list[Stage]:
    """Return the stages over stored rows, of a manifest that knows which rows are quarantined."""
    if config.recipe.baseline == "bm25":
        return [LexicalIndex(run_dir, manifest)]
    recipe, threads = config.recipe.stored, config.cluster.threads_per_worker
    stages: list[Stage] = []
    if recipe.curvature.kind != "identity":
        stages.append(ProjectedFisherStage(run_dir, manifest, recipe, threads))
    if config.index.kind != "exact":
        approximate = index_plan(config.index, manifest).factory is not None
        kind = ApproximateIndex if approximate else FlatIndex
        stages.append(kind(run_dir, manifest, recipe, config.index, threads))
    return stages
