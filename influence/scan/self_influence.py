"""Every row's score for itself, wanted in memory: a block of rows a task, in this process or on the run's cluster.

A block's scores wait in a file, as the parts of a scan do, so that whoever was killed goes on. Held are a few rows'
gradients and four bytes a row for the answer.
"""

from pathlib import Path

import numpy as np

from influence.config import RunConfig
from influence.engine.dispatch import complete, workers_for
from influence.engine.progress import Report
from influence.recipes import Recipe
from influence.scan.answer import Question, planned
from influence.scan.blocks import ScoreBlocks, comparison_held, scoring_seconds
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
    stage = ScoreBlocks(scan, "self-influence")
    missing = len(stage.missing())
    seconds = scoring_seconds(scan, store.manifest, missing)
    with workers_for(config, store.run_dir, seconds, missing) as workers, comparison_held():
        complete([stage], workers, report)
    scores = np.empty(store.rows, dtype=np.float32)
    for task in stage.cut():
        start, stop = scan.block(task.span[0])
        scores[start:stop] = task.load()["scores"].numpy()
    return scores


__all__ = ["self_influence"]
