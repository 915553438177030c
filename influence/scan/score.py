"""Full scans of a run: every stored row scored for every query, or for itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from influence.capture.opening import run_spec
from influence.engine.progress import Progress, Report
from influence.run_dir import RunDir
from influence.scan.answer import Answered, Question, answer
from influence.scan.blocks import self_scores
from influence.scan.plan import check_scannable
from influence.stages.index import load_comparison
from influence.stages.record import overridden

SELF_BLOCK = 2**14
"""Rows between two steps of progress."""


def score_to(
    run: RunDir,
    question: Question,
    out: Path,
    *,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> Answered:
    """Answer a question about a run's rows with a Parquet file, on the run's cluster or the one that overrides name.

    Args:
        run: The run.
        question: What is asked.
        out: Where the answer goes; see `answer`.
        overwrite: Replace what is there.
        overrides: `key=value` each, of the cluster section.
        progress: Called with every `Step`.

    Raises:
        InfluenceError: See `answer`.
    """
    config = overridden(run.config, overrides)
    # Queries may be asked on another device than the rows were captured on.
    if config.cluster.here:
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "auto"})})
    check_scannable(config.recipe, itself=question.queries is None)
    spec = run_spec(config, run.path, run.manifest)
    return answer(config, run.store, spec, question, out, overwrite=overwrite, report=progress)


def self_scores_of(run: RunDir, progress: Report | None = None) -> np.ndarray:
    """Return each stored row's score for itself, float32 [rows], computed in this process, some rows at a time.

    Raises:
        QueryError: By the recipe it is 1 everywhere, or can't be had from stored rows.
    """
    check_scannable(run.recipe, itself=True)
    comparison = load_comparison(run.path, run.manifest, run.recipe.stored)
    scores, blocks = np.empty(run.rows, dtype=np.float32), run.store.span(SELF_BLOCK, 0, None)
    stage = Progress("self-influence", len(blocks), progress)
    for first in blocks:
        rows = np.arange(first, min(first + SELF_BLOCK, run.rows))
        scores[rows] = self_scores(run.store, comparison, rows)
        stage.finished()
    return scores
