"""What a check says of a run's rows: a score for each, and a case for every row that it flags.

One direction for all checks: the higher a row's score, the stronger the case against it. NaN: the check says nothing
of that row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Action = Literal["drop", "relabel", "review"]
"""What a check suggests: leave the row out of the cleaned set, give it another label, or have a person look at it."""


@dataclass(frozen=True, slots=True)
class Case:
    """What speaks against one flagged row.

    Attributes:
        evidence: Ids of the rows that made the case (of an evaluation set's, `eval:` in front), strongest first.
        action: What is suggested.
        suggestion: The same for people, in a few words: `relabel to 'email'`, `drop: a copy of asyncio.run`.
        label: The label suggested, of `relabel`.
    """

    evidence: tuple[str, ...]
    action: Action
    suggestion: str
    label: str | None = None


@dataclass(frozen=True)
class Finding:
    """What one check says of every row.

    Attributes:
        issue: The check's name, and that of its columns: `is_<issue>`, `<issue>_score`.
        scores: float32 [rows]; higher is a stronger case, NaN where the check says nothing.
        cases: By row, of the flagged rows and no others; of a finding that waits, in columns (`cases.Cases`).
        meaning: What a score is, with its unit, in a sentence.
        rule: From where on rows are flagged, with the number, and how it was chosen, in a sentence.
    """

    issue: str
    scores: np.ndarray
    cases: Mapping[int, Case]
    meaning: str
    rule: str

    @property
    def flagged(self) -> np.ndarray:
        """The flagged rows, int64, the strongest case first; ties by row."""
        rows = np.sort(np.fromiter(self.cases, np.int64, len(self.cases)))
        return rows[np.argsort(-np.nan_to_num(self.scores[rows], nan=-np.inf), kind="stable")]


__all__ = ["Action", "Case", "Finding"]
