"""Every row's score for itself, wanted in memory: a block of rows a task, in this process or on the run's cluster.

A block's scores wait in a file, as the parts of a scan do, so that whoever was killed goes on. Held are a few rows'
gradients and four bytes a row for the answer.
"""

from pathlib import Path

import numpy as np

from influence.artifacts.tensors import load_tensors, saved_for
from influence.config import RunConfig
from influence.engine.dispatch import dispatcher
from influence.engine.progress import Progress, Report
from influence.recipes import Recipe
from influence.scan.answer import Question, planned
from influence.scan.blocks import comparison_held, score_block, score_tasks, scoring_seconds
from influence.store.reader import Store


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
    stage = Progress("self-influence", len(tasks), report, done=len(tasks) - len(missing))
    if missing:
        seconds = scoring_seconds(scan, store.manifest, len(missing))
        with dispatcher(config, store.run_dir, seconds, len(missing)) as dispatch, comparison_held():
            for _ in dispatch(score_block, missing, stage):
                pass
    found = np.empty(store.rows, dtype=np.float32)
    for task in tasks:
        start, stop = scan.block(task.block)
        held = load_tensors(scan.scored_file(task.block, task.batch), scan.fingerprint)
        found[start:stop] = held["scores"].numpy()
    return found


__all__ = ["self_influence"]
