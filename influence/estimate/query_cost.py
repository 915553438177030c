"""What a query of a run would take, reckoned before the run is built: seconds, and memory of the process that asks.

A query captures its own gradient, has the index propose rows, and computes the whole gradients of those again where
exact scores decide. The last is most of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from index.factory import plan_factory
from influence.axes import ModuleColumns
from influence.capture.batches import BATCH_BYTES
from influence.capture.cut import covariance_bytes, fisher_blocks, fisher_bytes
from influence.capture.exact import queries_at_once
from influence.config import RunConfig
from influence.estimate.timing import Timing
from influence.stages.requirement import PROCESS
from influence.store.codecs import bytes_per_row
from influence.vectors.ensemble import of_one

READ_BYTES = 1e9
"""Bytes of rows or of an index that a scan reads in a second, about."""


@dataclass(frozen=True)
class QueryCost:
    """What queries would take.

    Attributes:
        opening: Seconds until a process has the model; once for all queries.
        own: Seconds of one query, apart from its candidates.
        row: Seconds of one candidate, for all queries whose gradients are held with it.
        rows: Of the data set.
        candidates: Rows whose whole gradients are computed for each, at most; 0 where the index decides.
        fixed: Bytes held however many queries there are: Python, model, index, factors.
        gradient: Bytes of one query's gradient, whole where exact scores decide.
        together: Queries whose gradients are held at once, at most.
    """

    opening: float
    own: float
    row: float
    rows: int
    candidates: int
    fixed: int
    gradient: int
    together: int

    @property
    def each(self) -> float:
        """Seconds of one query that is asked alone, the opening apart."""
        return self.seconds(1) - self.opening

    def seconds(self, queries: int) -> float:
        """Return the seconds of so many queries in one call, at most.

        The whole gradient of a row is computed once for all queries that are held together. Queries of such a group
        are taken to share no candidate until they have as many as there are rows.
        """
        full, rest = divmod(queries, self.together)
        candidates = sum(
            groups * min(self.rows, size * self.candidates) for groups, size in ((full, self.together), (1, rest))
        )
        return self.opening + queries * self.own + candidates * self.row

    def memory(self, queries: int) -> int:
        """Return the bytes that one call of so many holds, a batch's activations apart.

        A batch's gradients stand beside those that are kept, twice while they leave the device.
        """
        batch = max(self.gradient, min(BATCH_BYTES, queries * self.gradient))
        return self.fixed + min(queries, self.together) * self.gradient + 2 * batch


def query_cost(
    config: RunConfig, rows: int, modules: Sequence[ModuleColumns], model_bytes: int, timing: Timing, opening: float
) -> QueryCost:
    """Reckon what a query takes.

    Args:
        config: Of the run.
        rows: Of the data set.
        modules: The columns of a row.
        model_bytes: Of the weights.
        timing: Of a worker; queries are taken for as long as rows.
        opening: Seconds until a process has the model.
    """
    recipe, decision = config.recipe, config.recipe.decision
    checkpoints = len(recipe.checkpoints) or 1
    own = of_one(modules, checkpoints)
    dims = modules[-1].stop if modules else 0
    index = plan_factory(config.index, rows, dims)
    scanned = index.disk_bytes or rows * bytes_per_row(config.store, modules)
    own_seconds = timing.tokens_per_row * timing.capture + scanned / READ_BYTES
    fixed = PROCESS + model_bytes * (2 if recipe.checkpoints else 1) + index.search_bytes
    if recipe.stored.curvature.kind == "fisher":
        fixed += fisher_bytes(fisher_blocks(modules, recipe.stored.curvature.blocks, checkpoints)) // 2
    if decision.kind == "none":
        return QueryCost(opening, own_seconds, 0.0, rows, 0, fixed, 4 * dims, max(1, rows))
    sides = 2 + decision.lexical
    candidates = rows if decision.candidates is None else min(rows, sides * decision.candidates)
    whole = sum(module.inputs * module.outputs for module in own)
    fixed += covariance_bytes(own) + 4 * whole * (decision.kind == "ekfac")
    row_seconds = timing.tokens_per_row * timing.exact
    together = queries_at_once(whole, every_row=decision.candidates is None)
    return QueryCost(opening, own_seconds + row_seconds, row_seconds, rows, candidates, fixed, 4 * whole, together)


__all__ = ["QueryCost", "query_cost"]
