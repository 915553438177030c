"""The linear datamodeling score: do a method's scores, summed over a subset's rows, order models trained on subsets?

Models are trained on random subsets of the rows and a query's output is measured on each. A method predicts that
output as the sum of its scores over the subset's rows. The score of one query is Spearman's rank correlation between
prediction and measurement over the subsets; the method's is the mean over queries. 1 is a perfect order, 0 is none.

Sign and scale: the measured output is a log-likelihood, so that a positive score promotes, as everywhere in this
package. A loss in its place turns every score's sign round. Only ranks count, so no method's unit matters.

Source: Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", section 2 (definition 2.3); Ilyas et al. 2022,
"Datamodels: Predicting Predictions from Training Data".
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from influence.errors import DataError

RESAMPLES = 200
"""Draws of the bootstrap over subsets."""


@dataclass(frozen=True)
class DatamodelingScore:
    """What `linear_datamodeling_score` found.

    Attributes:
        score: Mean over queries of `by_query`.
        query_error: Its standard error over the queries, the subsets taken as given.
        subset_error: Its standard error over the subsets, by bootstrap, the queries taken as given. Two methods that
            are measured on the same models share most of it.
        by_query: [queries], Spearman's rank correlation over the subsets.
        silent: Queries whose prediction is the same for every subset; they score 0.
    """

    score: float
    query_error: float
    subset_error: float
    by_query: np.ndarray
    silent: int


def linear_datamodeling_score(scores: np.ndarray, held: np.ndarray, outputs: np.ndarray) -> DatamodelingScore:
    """Hold a method's scores against models that were trained on subsets of the rows.

    Args:
        scores: [queries, rows]; positive promotes.
        held: Which rows each model was trained on, [subsets, rows], bool; see `subsets.membership`.
        outputs: The measured output of each query on each model, its log-likelihood, [subsets, queries].

    Returns:
        The score with its two standard errors. A query whose prediction doesn't vary scores 0 and is counted: a method
        that says nothing predicts nothing.

    Raises:
        DataError: The shapes don't fit; there are fewer than 3 subsets or no query; a number isn't finite; or a
            query's output is the same on every model, so that there is nothing to predict.
    """
    scores, held, outputs = np.asarray(scores), np.asarray(held), np.asarray(outputs)
    _check(scores, held, outputs)
    predicted = held.astype(np.float64) @ scores.T.astype(np.float64)
    by_query = _rank_correlation(predicted, outputs)
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(outputs), (RESAMPLES, len(outputs)))
    resampled = [float(_rank_correlation(predicted[draw], outputs[draw]).mean()) for draw in draws]
    queries = len(by_query)
    return DatamodelingScore(
        score=float(by_query.mean()),
        query_error=float(by_query.std(ddof=1) / queries**0.5) if queries > 1 else float("nan"),
        subset_error=float(np.std(resampled, ddof=1)),
        by_query=by_query,
        silent=int((np.ptp(predicted, axis=0) == 0).sum()),
    )


def reliability(once: np.ndarray, again: np.ndarray, outputs: np.ndarray) -> float:
    """Return what share of the measured outputs' variance is the subset's doing and not the training seed's.

    Its square root is the correlation that a perfect prediction of a subset's mean output would reach: the ceiling of
    the score.

    Args:
        once: Outputs of models of some subsets, [pairs, queries].
        again: Outputs of the same subsets under another training seed, [pairs, queries].
        outputs: Outputs of all subsets, one seed each, [subsets, queries].

    Returns:
        1 − (variance between seeds) / (variance over subsets), the mean over queries; it can be negative by chance.

    Raises:
        DataError: The shapes don't fit, or a query's output is the same on every model.
    """
    once, again, outputs = np.asarray(once), np.asarray(again), np.asarray(outputs)
    if once.shape != again.shape or once.ndim != 2 or outputs.ndim != 2 or once.shape[1] != outputs.shape[1]:
        raise DataError(
            f"Outputs {once.shape} and again {again.shape} of the same subsets, beside {outputs.shape} of all: "
            "expected [pairs, queries] twice and [subsets, queries]."
        )
    _refuse_constant(outputs)
    between_seeds = ((once - again) ** 2).mean(axis=0) / 2
    return float((1 - between_seeds / outputs.var(axis=0, ddof=1)).mean())


def _check(scores: np.ndarray, held: np.ndarray, outputs: np.ndarray) -> None:
    shapes = f"Found scores {scores.shape}, held {held.shape}, outputs {outputs.shape}"
    wanted = "expected [queries, rows], [subsets, rows], [subsets, queries]"
    if (scores.ndim, held.ndim, outputs.ndim) != (2, 2, 2):
        raise DataError(f"{shapes}: {wanted}.")
    (queries, rows), subsets = scores.shape, len(held)
    if held.shape != (subsets, rows) or outputs.shape != (subsets, queries):
        raise DataError(f"{shapes}: {wanted}.")
    if subsets < 3 or queries < 1:
        raise DataError(f"{shapes}: a rank correlation needs at least 3 subsets and 1 query.")
    if held.dtype != np.bool_:
        raise DataError(f"`held` is {held.dtype}: expected bool, which rows each model was trained on.")
    for name, values in (("scores", scores), ("outputs", outputs)):
        if not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0].tolist()
            raise DataError(f"{name} hold {values[tuple(place)]} at {place}: no rank can be given to it.")
    _refuse_constant(outputs)


def _refuse_constant(outputs: np.ndarray) -> None:
    constant = np.flatnonzero(np.ptp(outputs, axis=0) == 0)
    if len(constant):
        raise DataError(
            f"The output of queries {constant[:10].tolist()} is the same on all {len(outputs)} models, so no method "
            "can predict it. Were the models trained on different rows?"
        )


def _rank_correlation(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column, ties sharing their mean rank; 0 where a column doesn't vary."""
    a, b = (rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (predicted, measured))
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.divide((a * b).sum(axis=0), scale, out=np.zeros(a.shape[1]), where=scale > 0)


__all__ = ["DatamodelingScore", "linear_datamodeling_score", "reliability"]
