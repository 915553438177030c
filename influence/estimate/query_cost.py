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
from influence.capture.exact import BLOCK_ROWS, queries_at_once
from influence.capture.fingerprint import Probed
from influence.config import RunConfig
from influence.estimate.timing import Timing
from influence.scan.plan import batch_of
from influence.stages.requirement import PROCESS
from influence.store.codecs import bytes_per_row
from influence.vectors.ensemble import of_one

READ_BYTES = 1e9
"""Bytes of rows or of an index that a scan reads in a second, about."""


ACTIVATIONS = 2
"""Times the tracked layers' inputs and outputs that a batch's graph holds: norms, attention and the activation function
keep theirs, too."""


@dataclass(frozen=True)
class QueryCost:
    """What queries would take.

    Attributes:
        opening: Seconds until a process has the model; once for all queries.
        own: Seconds of one query, apart from its candidates.
        row: Seconds of one candidate, for all queries whose gradients are held with it.
        rows: Of the data set.
        candidates: Rows whose whole gradients are computed for each, at most; 0 where the index decides.
        fixed: Bytes held however many queries there are: Python, model, index, factors, a batch's activations.
        loading: Bytes that stand beside those of `fixed` while factors are read, before a query has a gradient.
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
    loading: int = 0

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
        """Return the bytes that one call of so many holds at the most.

        A batch's gradients stand beside those that are kept, twice while they leave the device.
        """
        held = min(queries, self.together)
        batch = max(self.gradient, min(BATCH_BYTES, held * self.gradient))
        return self.fixed + max(self.loading, held * self.gradient + 2 * batch)


def query_cost(
    config: RunConfig, rows: int, modules: Sequence[ModuleColumns], probed: Probed, timing: Timing, opening: float
) -> QueryCost:
    """Reckon what a query takes.

    Args:
        config: Of the run.
        rows: Of the data set.
        modules: The columns of a row.
        probed: What a worker found: bytes of the weights, padded tokens of a batch.
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
    fixed = PROCESS + probed.model_bytes * (2 if recipe.checkpoints else 1) + index.search_bytes
    fixed += activation_bytes(own, min(probed.token_budget, int(BLOCK_ROWS * timing.tokens_per_row)))
    if recipe.stored.curvature.kind == "fisher":
        fixed += fisher_bytes(fisher_blocks(modules, recipe.stored.curvature.blocks, checkpoints)) // 2
    if decision.kind == "none":
        return QueryCost(opening, own_seconds, 0.0, rows, 0, fixed, 4 * dims, batch_of(dims))
    sides = 2 + decision.lexical
    candidates = rows if decision.candidates is None else min(rows, sides * decision.candidates)
    whole = sum(module.inputs * module.outputs for module in own)
    # Eigenvalues are in float64, K-FAC's as well as EK-FAC's, which are read from a file of float32.
    fixed += covariance_bytes(own) + 8 * whole
    loading = max(covariance_bytes(own), 8 * whole if decision.kind == "ekfac" else 0)
    row_seconds = timing.tokens_per_row * timing.exact
    together = queries_at_once(whole, every_row=decision.candidates is None)
    return QueryCost(
        opening, own_seconds + row_seconds, row_seconds, rows, candidates, fixed, 4 * whole, together, loading
    )


def activation_bytes(modules: Sequence[ModuleColumns], tokens: int) -> int:
    """Return the bytes that a batch's graph holds from the first tracked layer on, about.

    Args:
        modules: The tracked layers of one checkpoint.
        tokens: Padded tokens of the batch.
    """
    return 4 * ACTIVATIONS * tokens * sum(module.inputs + module.outputs for module in modules)


__all__ = ["QueryCost", "activation_bytes", "query_cost"]
