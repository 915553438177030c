"""Every row's score for itself, wanted in memory: a block of rows a task, in this process or on the run's cluster.

A block's scores wait in a file, as the parts of a scan do, so that whoever was killed goes on. Held are a few rows'
gradients and four bytes a row for the answer.
"""

from pathlib import Path

import numpy as np

from influence.config import RunConfig
from influence.pipeline.dispatch import dispatcher
from influence.pipeline.progress import Report, Stage
from influence.pipeline.scan import Question, planned
from influence.pipeline.score_stage import score_block, score_tasks
from influence.pipeline.tensors import load_tensors, saved_for
from influence.recipe import Recipe
from influence.store.reader import Store

COORDINATE_SECONDS = 1e-8
"""What a coordinate of a row takes to read, unpack and multiply."""
CURVED_SECONDS = 5e-11
"""What it takes besides for every column of the curvature that is applied to it."""


def self_influence(
    config: RunConfig, store: Store, recipe: Recipe, folder: Path, report: Report | None = None
) -> np.ndarray:
    """Return each row's score for itself, float32 [rows]. A cluster starts only where there is enough to do.

    Args:
        config: Of the run.
        store: Its rows.
        recipe: How they are scored: `score_plan.check_scannable` lets it pass.
        folder: Where blocks of scores wait, on a disk that workers see.
        report: Hears of every block.

    Raises:
        InfluenceError: What a worker met.
    """
    out = folder / "self.parquet"
    scan, _ = planned(config.model_copy(update={"recipe": recipe}), store, Question(None), out, store.rows)
    tasks = list(score_tasks(scan))
    missing = [task for task in tasks if not saved_for(scan.scored_file(task.block, task.batch), scan.fingerprint)]
    stage = Stage("self-influence", len(tasks), report, done=len(tasks) - len(missing))
    if missing:
        seconds = len(missing) * scan.step * store.dims * (COORDINATE_SECONDS + CURVED_SECONDS * _curved(store, recipe))
        with dispatcher(config, store.run_dir, seconds, len(missing), stage) as dispatch:
            for _ in dispatch(score_block, missing):
                pass
    found = np.empty(store.rows, dtype=np.float32)
    for task in tasks:
        start, stop = scan.block(task.block)
        held = load_tensors(scan.scored_file(task.block, task.batch), scan.fingerprint)
        found[start:stop] = held["scores"].numpy()
    return found


def _curved(store: Store, recipe: Recipe) -> int:
    """Return the columns of the widest block of a curvature that is applied to every row."""
    if recipe.curvature.kind != "fisher":
        return 0
    return store.dims if recipe.curvature.blocks == "all" else max(own.stop - own.start for own in store.modules)


__all__ = ["self_influence"]
