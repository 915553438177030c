"""Every row's score for some queries as one array, with its unit, its sign rule and how its magnitudes can be read."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from influence.recipes import Magnitudes, magnitudes, rank_only_queries


class Scores(np.ndarray):
    """Scores, float32 [queries, rows]: a numpy array that also says what its numbers are.

    A part of it, or what is computed from it, is a plain array's values again: it has no unit and no magnitudes.

    Attributes:
        unit: Of every score.
        sign: What the sign of a score means.
        log_likelihoods: log p(completion | prompt) of every query, float64 [queries], in nats; None of `bm25`.
        magnitudes: How the scores of every query can be read; see `influence.recipes.magnitude`.
    """

    unit: str
    sign: str
    log_likelihoods: np.ndarray | None
    magnitudes: tuple[Magnitudes, ...]

    @classmethod
    def of(
        cls, scores: np.ndarray, unit: str, sign: str, log_likelihoods: np.ndarray | None, contrasted: Sequence[bool]
    ) -> Self:
        """Return scores with what is told of them.

        Args:
            scores: float32 [queries, rows].
            unit: See the attributes, as for `sign` and `log_likelihoods`.
            sign: See the attributes.
            log_likelihoods: See the attributes.
            contrasted: Whether each query is asked about rather than another.
        """
        found = scores.view(cls)
        found.unit, found.sign, found.log_likelihoods = unit, sign, log_likelihoods
        said = [None] * len(scores) if log_likelihoods is None else log_likelihoods.tolist()
        best = [max(0.0, float(row.max(initial=0.0))) for row in scores]
        found.magnitudes = tuple(
            magnitudes(unit, most, log_likelihood, contrasted=against)
            for most, log_likelihood, against in zip(best, said, contrasted, strict=True)
        )
        return found

    def __array_finalize__(self, array: Any) -> None:
        self.unit, self.sign, self.log_likelihoods, self.magnitudes = "", "", None, ()

    @property
    def caution(self) -> str | None:
        """What to say beside the scores where those of some queries are a rank only."""
        return rank_only_queries(self.magnitudes)

    def __repr__(self) -> str:
        told = [f"Scores in {self.unit}. {self.sign}"] if self.unit else []
        return "\n".join([repr(np.asarray(self)), *told, *([] if self.caution is None else [self.caution])])


__all__ = ["Scores"]
