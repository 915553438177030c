"""What is examined: a run, with what several checks read of it, each computed once and when first needed."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from influence.data.dataset import Rows
from influence.engine.progress import Report
from influence.errors import QueryError
from influence.issues.neighbors import NeighbourGraph, NeighbourSettings, neighbour_graph
from influence.query.evaluation import Evaluation
from influence.recipes import Recipe
from influence.run_dir import RunDir
from influence.scan.plan import check_scannable
from influence.scan.self_influence import self_influence
from influence.stages.record import overridden
from influence.store import columns
from influence.store.columns import Categories
from influence.text_dedup.inputs import open_data

log = logging.getLogger(__name__)


class Subject:
    """A run under examination, and what it is held against.

    Attributes:
        run: The run.
        folder: Where what takes long to compute is kept until the examination is over.
        neighbours: How near rows are looked for.
        evaluation: Examples that the model should get right; None where none were given.
        target: An unwanted output; None where none was given.
        overrides: `key=value` each, of the cluster section.
        progress: Hears of everything that takes long.
    """

    def __init__(
        self,
        run: RunDir,
        folder: Path,
        neighbours: NeighbourSettings,
        *,
        evaluation: Evaluation | None = None,
        target: Evaluation | None = None,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> None:
        check_examinable(run)
        self.run, self.folder, self.neighbours = run, folder, neighbours
        self.evaluation, self.target = evaluation, target
        self.overrides, self.progress = tuple(overrides), progress

    @property
    def rows(self) -> int:
        """Rows of the run."""
        return self.run.rows

    @property
    def labelled(self) -> bool:
        """Whether rows have labels, as those of a classifier do."""
        return bool((self.labels.codes >= 0).any())

    @cached_property
    def labels(self) -> Categories:
        """Every row's label."""
        return columns.categories(self.run.store, "label")

    @cached_property
    def losses(self) -> np.ndarray:
        """Every row's loss, summed over its scored tokens, in nats, float32 [rows]."""
        return columns.numbers(self.run.store, "loss")

    @cached_property
    def tokens(self) -> np.ndarray:
        """Every row's scored tokens, int32 [rows]."""
        return columns.numbers(self.run.store, "tokens")

    @cached_property
    def norms(self) -> np.ndarray:
        """The norm of every row's stored gradient, float32 [rows]; 0 where there was nothing to differentiate."""
        return columns.numbers(self.run.store, "norm")

    def check_self_influence(self) -> Recipe:
        """Return the recipe by which a row's score for itself says something.

        Raises:
            QueryError: There is none.
        """
        recipe = self.run.recipe.stored.model_copy(update={"comparison": "dot"})
        check_scannable(recipe, itself=True)
        return recipe

    @cached_property
    def self_influence(self) -> np.ndarray:
        """Each row's score for itself, float32 [rows]; of a recipe that compares by cosine, as its dot product has it.

        Under a cosine every row's score with itself is 1, which says nothing. Computed in blocks, which wait in the
        folder until the examination is over.
        """
        recipe = self.check_self_influence()
        config = overridden(self.run.config, self.overrides)
        return self_influence(config, self.run.store, recipe, self.folder, self.progress)

    @cached_property
    def data(self) -> Rows:
        """The rows as the data set has them: prompts apart from completions, which the stored texts aren't.

        Raises:
            DataError: The data set can't be read, or isn't the one that the run was built from.
        """
        return open_data(self.run)

    @cached_property
    def graph(self) -> NeighbourGraph:
        """Every row's nearest rows, by the cosine of their stored gradients; kept in the run's folder."""
        return neighbour_graph(self.run, self.neighbours, self.overrides, self.progress)

    def evaluation_scores(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [b, examples]) of all rows for the evaluation set."""
        assert self.evaluation is not None, "asked only by checks that need one"
        return self.evaluation.scores(self.folder, self.overrides, self.progress)

    @cached_property
    def evaluation_scales(self) -> np.ndarray:
        """The root mean square of all rows' scores for each evaluation example, float32 [examples]; ∞ where all are 0.

        Scores grow with the example's own gradient; divided by this, every example counts for as much.
        """
        squares = 0.0
        for _, scores in self.evaluation_scores():
            squares = squares + np.einsum("re,re->e", scores, scores, dtype=np.float64)
        scales = np.sqrt(np.asarray(squares) / max(1, self.rows))
        return np.where(scales > 0, scales, np.inf).astype(np.float32)

    def target_scores(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [b, examples]) of all rows for the unwanted output."""
        assert self.target is not None, "asked only by checks that need one"
        return self.target.scores(self.folder, self.overrides, self.progress)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of some rows, in the order asked."""
        return columns.ids(self.run.store, rows)


def check_examinable(run: RunDir) -> None:
    """Refuse a run without gradients.

    Raises:
        QueryError: Its recipe is a baseline.
    """
    if run.recipe.baseline is not None:
        raise QueryError(
            f"{run.path} is a run of the baseline {run.recipe.name}, which keeps no gradients to judge rows by. "
            "Examine a run of an influence recipe, such as whitened."
        )


__all__ = ["Subject", "check_examinable"]
