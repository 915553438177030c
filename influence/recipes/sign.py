"""What a score's sign means: one rule for influence, and for each baseline what its scores say instead."""

from typing import Literal

SIGN_RULE = (
    "Positive: training more on this row raises the measured output's log-probability (promotes it). "
    "Negative: opposes it."
)
Baseline = Literal["bm25", "repsim"]
"""The methods that know nothing of gradients."""

_NO_INFLUENCE = "A baseline, no influence: it has no opposing side."
_BASELINE_RULES: dict[Baseline, str] = {
    "bm25": f"Higher: more and rarer words in common with the row. {_NO_INFLUENCE}",
    "repsim": f"Higher: the row's mean last hidden state is nearer the query's in direction. {_NO_INFLUENCE}",
}


def sign_rule(baseline: Baseline | None) -> str:
    """Return the sentence that stands wherever a method's scores are shown; None is every method but a baseline."""
    return SIGN_RULE if baseline is None else _BASELINE_RULES[baseline]
